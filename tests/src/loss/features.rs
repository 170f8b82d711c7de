//! Every branch that a run's faults and selectors put into the programs is one the verifier takes: each alone, every two
//! together and apart, and all at once.

use chaos_ebpf::abi::{Direction, Window, effect, program, protect};
use chaos_user::{
    fault::{CgroupId, Match, Rule, Tables},
    kernel::programs::{Environment, Programs},
    spec::{Impairments, Question},
};

use crate::{
    error::{Context, Failure, Result},
    verified::Verified,
};

/// What can be asked for of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    Effects(u32),
    Cgroups,
    Processes,
    Questions,
    Protocols,
    Ports,
    Addresses,
    Ethernet,
    Spares,
    Protects,
}

use Feature::{
    Addresses, Cgroups, Effects, Ethernet, Ports, Processes, Protects, Protocols, Questions, Spares,
};

/// All of them; what goes together only, such as an answer and the reset of who asks by TCP, is one.
const FEATURES: [Feature; 23] = [
    Effects(effect::LOSS),
    Effects(effect::BURSTS),
    Effects(effect::LOSS | effect::PER_FLOW),
    Effects(effect::DUPLICATE),
    Effects(effect::CORRUPT),
    Effects(effect::CORRUPT | effect::FIX_CHECKSUM),
    Effects(effect::DELAY),
    Effects(effect::DELAY | effect::KEEP_ORDER),
    Effects(effect::DELAY | effect::REORDER),
    Effects(effect::RATE),
    Effects(effect::RESET),
    Effects(effect::TIMEOUT),
    Effects(effect::PROFILE),
    Effects(effect::ANSWER | effect::RESET),
    Cgroups,
    Processes,
    Questions,
    Protocols,
    Ports,
    Addresses,
    Ethernet,
    Spares,
    Protects,
];

/// Each alone, and all. What differs between the directions is loaded with all, and with pairs.
pub(super) fn alone() -> Result {
    verified()?.hold()
}

/// What of them was looked at.
///
/// # Errors
///
/// What does not load.
pub(crate) fn verified() -> Result<Verified> {
    let each = FEATURES.iter().map(|feature| (vec![*feature], Which::Sent));
    try_all(each.chain([(FEATURES.to_vec(), Which::All)]))
}

/// Of any two both, either and neither. Both directions share all but a few lines: all features and none are loaded for both,
/// of two halves each for one. What does nothing but lose asks its rules in a loop of its own: the same of those features.
pub(super) fn pairs() -> Result {
    let losing: Vec<Feature> = FEATURES.into_iter().filter(|feature| only_loses(*feature)).collect();
    let sets = [&FEATURES[..], &losing].map(|features| {
        let all = [Vec::new(), features.to_vec()].map(|features| (features, Which::BothWays));
        let halves = halves(features.len()).into_iter().flatten();
        let halves = halves.map(|half| half.into_iter().map(|place| features[place]).collect::<Vec<_>>());
        let halves: Vec<_> = halves.zip([Which::Sent, Which::Received].into_iter().cycle()).collect();
        all.into_iter().chain(halves)
    });
    try_all(sets.into_iter().flatten())?.hold()
}

fn only_loses(feature: Feature) -> bool {
    !matches!(feature, Effects(effects) if effects & !effect::ANY_LOSS != 0)
}

/// So many things by halves, of which one has one of any two things and the other has the other: those whose numbers have a
/// certain digit, and those whose numbers have not. Two different numbers differ in a digit.
fn halves(things: usize) -> Vec<[Vec<usize>; 2]> {
    let digits = usize::BITS - (things - 1).leading_zeros();
    let with = |digit: u32, value: usize| (0..things).filter(|number| number >> digit & 1 == value).collect();
    (0..digits).map(|digit| [0, 1].map(|value| with(digit, value))).collect()
}

/// Which programs are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// What decides over packets that are sent, and at the earliest hook that received ones can have.
    Sent,
    /// What decides over packets that are received, and at that hook.
    Received,
    /// All of these.
    BothWays,
    /// The same, and those of a detour, of a profile's changes, of new sockets and of connections, which hardly depend on the features.
    All,
}

fn try_all(sets: impl Iterator<Item = (Vec<Feature>, Which)>) -> Result<Verified> {
    let mut verified = Verified::default();
    for (features, which) in sets {
        load(&features, which, &mut verified)
            .map_err(|failure| Failure::new(format!("{features:?}: {failure}")))?;
    }
    Ok(verified)
}

/// Loads programs of a run with these.
fn load(features: &[Feature], which: Which, verified: &mut Verified) -> Result {
    let has = |feature| features.contains(&feature);
    let matches = matches(features)?;
    let rule = |direction| Rule {
        label: String::new(),
        direction,
        matches: matches.clone(),
        window: Window::ALL,
        impairments: Impairments::default(),
        spares: Vec::new(),
        names: Vec::new(),
    };
    let mut tables = Tables::new(&[rule(Direction::In), rule(Direction::Out)], 1);
    for feature in features {
        match feature {
            Effects(effects) => tables.setup.effects |= effects,
            // The first rule, for the others.
            Spares => tables.setup.sparing |= 1,
            _ => {}
        }
    }
    let effects = tables.setup.effects;
    // Numbers that stand for interfaces; nothing is sent.
    let protect = if has(Protects) { protect::METADATA | protect::LOOPBACK | protect::SESSION } else { 0 };
    let environment =
        Environment { ethernet: has(Ethernet), near: [1, 1], far: [1, 1], protect, ..Environment::default() };
    let mut programs = Programs::load(&tables, 1, environment)?;
    for (direction, other) in [(Direction::Out, Which::Received), (Direction::In, Which::Sent)] {
        if which != other {
            verified.take_fd(programs.tc(direction)?, &features)?;
        }
    }
    // Who is not seen before the socket is, or does more than lose, is not at this hook.
    if effects & !effect::ANY_LOSS == 0 && matches.is_of_everybody() {
        verified.take_fd(programs.xdp()?, &features)?;
    }
    if which == Which::All {
        let detour = [program::BOUNCE, program::BACK].concat();
        for name in detour.into_iter().chain([program::QUEUE, program::FIGURES]) {
            verified.take_fd(programs.classifier(name)?, &features)?;
        }
        verified.take_fd(programs.socket()?, &features)?;
        for name in program::CONNECT {
            verified.take_fd(programs.connect(name)?, &features)?;
        }
    }
    Ok(())
}

fn matches(features: &[Feature]) -> Result<Match> {
    let mut matches = Match::default();
    for feature in features {
        match feature {
            Cgroups => matches.cgroups = vec![CgroupId { id: u64::MAX, level: 2 }],
            Processes => matches.processes = vec![u32::MAX],
            Questions => {
                let names = vec!["*.example".parse().context("a name")?];
                let types = vec!["A".parse().context("a type")?];
                matches.question = Some(Question { names, types });
            }
            Protocols => matches.protocols = vec![17],
            Ports => {
                matches.remote_ports = vec!["53".parse().context("a port")?];
                matches.local_ports = vec!["1024-65535".parse().context("ports")?];
            }
            Addresses => {
                let all = ["10.0.0.1/32", "10.0.0.0/24", "fd00::1/128", "fd00::/64"];
                matches.remote =
                    all.iter().map(|text| text.parse().context(text)).collect::<Result<Vec<_>>>()?;
                matches.local = matches.remote.clone();
            }
            Effects(_) | Ethernet | Spares | Protects => {}
        }
    }
    Ok(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_are_apart_both_ways() {
        let halves = halves(FEATURES.len());
        for (one, feature) in FEATURES.iter().enumerate() {
            for (other, left_out) in FEATURES.iter().enumerate().filter(|(other, _)| *other != one) {
                let apart = |half: &Vec<usize>| half.contains(&one) && !half.contains(&other);
                assert!(halves.iter().flatten().any(apart), "{feature:?}, {left_out:?}");
            }
        }
        assert!(halves.iter().all(|[one, other]| one.len() + other.len() == FEATURES.len()));
    }
}
