//! Network faults as rules: which packets, and what is done to them.

use std::time::Duration;

use chaos_ebpf::{
    abi::{self, Direction, Window, effect},
    decide::random_start,
};

use ipnet::IpNet;

use super::{CgroupId, Match, Rule};
use crate::spec::{
    self, Cut, Exclusion, FaultSpec, Impairments, Loss, PortRange, Profile, Selectors, Sides, show_rate,
};

/// What of a fault had to be looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The cgroups of its owners.
    pub cgroups: Vec<CgroupId>,
    /// The processes among these, by number.
    pub processes: Vec<u32>,
    /// The addresses of its peers.
    pub peers: Addresses,
    /// Those of its exclusions, by their place among these.
    pub excluded: Vec<Addresses>,
}

/// What some peers stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Their addresses and networks.
    pub networks: Vec<IpNet>,
    /// The names among them, which may come to stand for others.
    pub names: Vec<String>,
}

impl Extend<Self> for Addresses {
    fn extend<T: IntoIterator<Item = Self>>(&mut self, others: T) {
        for Self { networks, names } in others {
            self.networks.extend(networks);
            self.names.extend(names);
        }
    }
}

/// The rules of all faults: of each one for each direction it acts in, and behind them what they leave alone.
#[must_use]
pub fn rules(faults: &[(&FaultSpec, Found)]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut spares: Vec<Rule> = Vec::new();
    for (spec, found) in faults {
        for direction in spec.sides.directions() {
            let place = rules.len();
            rules.push(Rule {
                label: spec.to_string(),
                direction: *direction,
                matches: matches(spec, *direction, found),
                window: spec.window,
                impairments: spec.impairments.clone(),
                spares: Vec::new(),
                names: found.peers.names.clone(),
            });
            for spare in spec.selectors.excluded.iter().zip(&found.excluded).flat_map(left_alone) {
                let (label, matches, names) = spare;
                // What several faults leave alone is looked for once.
                match spares.iter_mut().find(|other| {
                    other.direction == *direction && other.matches == matches && other.names == names
                }) {
                    Some(other) => other.spares.push(place),
                    None => spares.push(Rule {
                        label: format!("exclude {label}"),
                        direction: *direction,
                        matches,
                        window: Window::ALL,
                        impairments: Impairments::default(),
                        spares: vec![place],
                        names,
                    }),
                }
            }
        }
    }
    rules.extend(spares);
    rules
}

/// The packets of an exclusion: a port is one at either end.
fn left_alone((exclusion, found): (&Exclusion, &Addresses)) -> Vec<(String, Match, Vec<String>)> {
    let all = match exclusion {
        Exclusion::Peer(_) => vec![Match { remote: found.networks.clone(), ..Match::default() }],
        Exclusion::Port(port) => vec![
            Match { remote_ports: vec![*port], ..Match::default() },
            Match { local_ports: vec![*port], ..Match::default() },
        ],
        Exclusion::Protocol(protocol) => vec![Match { protocols: protocol.numbers(), ..Match::default() }],
    };
    all.into_iter().map(|matches| (exclusion.to_string(), matches, found.names.clone())).collect()
}

/// Source and destination as remote and local end. A conversation is described as it is sent, so what is
/// received of it has its destination where the description has its source.
fn matches(spec: &FaultSpec, direction: Direction, found: &Found) -> Match {
    let Selectors {
        to,
        from,
        mut port,
        sport,
        mut proto,
        owners: _,
        everything: _,
        peers: _,
        excluded: _,
        question,
    } = spec.selectors.clone();
    if proto.is_empty() && spec.impairments.cut.is_some_and(Cut::is_of_connections) {
        proto.push(spec::Protocol::Tcp);
    }
    if question.is_some() && port.is_empty() {
        port.push(PortRange::NAME_SERVERS);
    }
    if question.is_some() && proto.is_empty() {
        proto.extend([spec::Protocol::Udp, spec::Protocol::Tcp]);
    }
    let protocols = proto.into_iter().flat_map(spec::Protocol::numbers).collect();
    let (cgroups, processes) = (found.cgroups.clone(), found.processes.clone());
    let (mut remote, local, remote_ports, local_ports) =
        if direction == Direction::In && spec.sides != Sides::Both {
            (from, to, sport, port)
        } else {
            (to, from, port, sport)
        };
    // The command line lets only one of the two be given.
    remote.extend(&found.peers.networks);
    Match { remote, local, remote_ports, local_ports, protocols, cgroups, processes, question }
}

/// What the kernel is told to do, after this time: all of a rule but its end and its window.
/// `table` is where the distribution of delays lies, and how many entries it has.
#[must_use]
pub fn effects(impairments: &Impairments, elapsed: Duration, table: (u32, u32), seed: u64) -> abi::Rule {
    let Impairments {
        dns: _,
        answer,
        cut,
        loss,
        duplicate,
        corrupt,
        reorder,
        rate,
        delay,
        ramps: _,
        profile,
    } = impairments.at(elapsed);
    let mut rule = abi::Rule::NOTHING;
    if profile.is_some() {
        rule.effects |= effect::PROFILE;
    }
    if let Some(answer) = answer {
        // Over TCP the connection is reset.
        rule.effects |= effect::ANSWER | effect::RESET;
        rule.answer = answer.rcode() + 1;
    }
    match cut {
        None => {}
        Some(Cut::Partition | Cut::Blackhole) => {
            rule.effects |= effect::LOSS;
            rule.loss.threshold = spec::Percent::ALL.threshold();
        }
        Some(Cut::Reset) => rule.effects |= effect::RESET,
        Some(Cut::Timeout) => rule.effects |= effect::TIMEOUT,
        Some(Cut::Refuse(errno)) => {
            rule.effects |= effect::REFUSE;
            rule.errno = (errno as i32).cast_unsigned();
        }
    }
    match loss {
        None => {}
        Some(Loss::Random(it)) => {
            rule.effects |= effect::LOSS;
            rule.loss = chance(it);
        }
        Some(Loss::PerFlow(percent)) => {
            rule.effects |= effect::PER_FLOW;
            rule.loss.threshold = percent.threshold();
            // The same both ways: not of the rule, but of the run.
            rule.flow_seed = random_start(seed, u32::MAX, 0) as u32;
        }
        Some(Loss::Bursts(model)) => {
            let [to_bad, to_good, bad_loss, good_loss] = model.map(spec::Percent::threshold);
            rule.effects |= effect::BURSTS;
            rule.bursts = abi::Bursts { to_bad, to_good, bad_loss, good_loss };
        }
    }
    if let Some(it) = duplicate {
        rule.effects |= effect::DUPLICATE;
        rule.duplicate = chance(it);
    }
    if let Some(it) = corrupt {
        rule.effects |= effect::CORRUPT | if it.fix_checksum { effect::FIX_CHECKSUM } else { 0 };
        rule.corrupt = chance(it.chance);
        rule.corrupt_bits = it.bits;
        rule.corrupt_offset = it.offset.map_or(-1, u32::cast_signed);
    }
    if let Some(it) = reorder {
        rule.effects |= effect::REORDER;
        rule.reorder = chance(it.chance);
        rule.reorder_gap = it.gap;
    }
    if let Some(it) = rate {
        rule.effects |= effect::RATE | effect::KEEP_ORDER;
        rule.rate = wire(&it);
    }
    if let Some(it) = delay {
        rule.effects |= effect::DELAY;
        if it.reorders {
            rule.effects &= !effect::KEEP_ORDER;
        } else {
            rule.effects |= effect::KEEP_ORDER;
        }
        rule.delay = abi::Delay {
            time: it.time.as_nanos() as u64,
            jitter: it.jitter.as_nanos() as u64,
            correlation: it.correlation.threshold(),
            table: table.0,
            entries: table.1,
            pad: 0,
        };
    }
    rule
}

/// Most packets that wait at once in a direction, unless it is asked for fewer: with their bookkeeping a gigabyte of
/// small ones, and some of large ones.
pub const MOST_WAITING: u32 = 1_000_000;

/// More packets than can wait.
#[derive(Debug, thiserror::Error)]
#[error(
    "a delay of {delay} on a wire of {rate} is {packets} full packets under way, and {limit} can wait: with this \
     rate a delay of {fitting_delay} fits, with this delay a rate of {fitting_rate}"
)]
pub struct TooManyWaiting {
    delay: humantime::FormattedDuration,
    rate: String,
    packets: u64,
    limit: u32,
    fitting_delay: humantime::FormattedDuration,
    fitting_rate: String,
}

/// Checks that what is under way on each wire finds room, as far as that is known: without a rate it is not.
///
/// # Errors
///
/// [`TooManyWaiting`].
pub fn check_room(rules: &[Rule], limit: u32) -> Result<(), TooManyWaiting> {
    let mut wires = Vec::new();
    for Rule { impairments, direction, .. } in rules {
        wires.extend(impairments.rate.map(|rate| (rate.bits, impairments.longest_delay())));
        if let Some(profile) = &impairments.profile {
            wires.extend(wires_of(profile, *direction));
        }
    }
    check_wires(wires, limit)
}

/// The rate of each link, and the longest a packet takes on it behind that.
fn wires_of(profile: &Profile, direction: Direction) -> impl Iterator<Item = (u64, Duration)> {
    profile.sides(direction).filter_map(|side| {
        let (delay, jitter) = side.delay.unwrap_or_default();
        side.rate.map(|(bits, _)| (bits, delay + jitter))
    })
}

/// As [`check_room`], of a profile in the place of another.
///
/// # Errors
///
/// [`TooManyWaiting`].
pub fn check_profile(profile: &Profile, limit: u32) -> Result<(), TooManyWaiting> {
    check_wires([Direction::In, Direction::Out].into_iter().flat_map(|way| wires_of(profile, way)), limit)
}

fn check_wires(wires: impl IntoIterator<Item = (u64, Duration)>, limit: u32) -> Result<(), TooManyWaiting> {
    for (bits, delay) in wires {
        let packet_ns = u128::from(FULL_PACKET) * 8_000_000_000;
        let packets = u128::from(bits) * delay.as_nanos() / packet_ns;
        if packets > u128::from(limit) {
            let shortest = |nanoseconds: u128| {
                let milliseconds = u64::try_from(nanoseconds / 1_000_000).unwrap_or(u64::MAX);
                humantime::format_duration(Duration::from_millis(milliseconds))
            };
            let fitting = u128::from(limit) * packet_ns;
            return Err(TooManyWaiting {
                delay: humantime::format_duration(delay),
                rate: show_rate(bits),
                packets: u64::try_from(packets).unwrap_or(u64::MAX),
                limit,
                fitting_delay: shortest(fitting / u128::from(bits)),
                fitting_rate: show_rate(
                    u64::try_from(fitting / delay.as_nanos()).unwrap_or(u64::MAX) / 1000 * 1000,
                ),
            });
        }
    }
    Ok(())
}

fn chance(chance: spec::Chance) -> abi::Chance {
    abi::Chance { threshold: chance.percent.threshold(), correlation: chance.correlation.threshold() }
}

/// Bytes of a full packet on Ethernet, by which the limit of what may wait is reckoned.
pub const FULL_PACKET: u64 = 1514;

/// A byte takes `8e9 / rate` nanoseconds, which the kernel is given times 2^20.
pub(super) fn byte_time(bits: u64) -> u64 {
    ((8_000_000_000_u128 << 20) / u128::from(bits)) as u64
}

/// Nanoseconds that so many bytes take.
pub(super) fn wire_time(bits: u64, bytes: u64) -> u64 {
    (u128::from(bytes) * 8_000_000_000 / u128::from(bits)).min(u128::from(u64::MAX >> 1)) as u64
}

fn wire(rate: &spec::Rate) -> abi::Rate {
    abi::Rate {
        byte_time: byte_time(rate.bits),
        burst: wire_time(rate.bits, rate.burst),
        limit: wire_time(rate.bits, u64::from(rate.limit) * FULL_PACKET),
        overhead: rate.overhead,
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_network;

    fn to_web(sides: Sides) -> Vec<Rule> {
        let selectors = Selectors {
            to: vec![parse_network("10.0.0.2").expect("valid")],
            port: vec!["80".parse().expect("valid")],
            ..Selectors::default()
        };
        let impairments = Impairments::parse(&["loss".into(), "5%".into()]).expect("valid");
        rules(&[(&FaultSpec { impairments, sides, selectors, window: Window::ALL }, Found::default())])
    }

    #[test]
    fn a_destination_is_remote_when_sent_and_local_when_received() {
        let [sent] = &to_web(Sides::Out)[..] else { panic!("one rule") };
        assert_eq!((sent.matches.remote.len(), sent.matches.remote_ports.len()), (1, 1));
        assert_eq!((sent.matches.local.len(), sent.matches.local_ports.len()), (0, 0));
        let [received] = &to_web(Sides::In)[..] else { panic!("one rule") };
        assert_eq!((received.matches.local.len(), received.matches.local_ports.len()), (1, 1));
        assert!(received.matches.remote.is_empty());
    }

    #[test]
    fn both_is_the_conversation() {
        let [received, sent] = &to_web(Sides::Both)[..] else { panic!("two rules") };
        assert_eq!((received.direction, sent.direction), (Direction::In, Direction::Out));
        assert_eq!(received.matches, sent.matches);
        assert_eq!(sent.matches.remote.len(), 1);
    }
}
