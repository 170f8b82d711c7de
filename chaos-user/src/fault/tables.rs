//! The rules as look-up tables: for every value a field can have, the set of rules it satisfies.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use chaos_ebpf::{
    abi::{self, DIRECTIONS, Direction, NameState, Setup, table},
    classify::End,
};
use ipnet::IpNet;

use super::{
    CgroupId, Deviations, Peers, Rule,
    names::{self, TooManyStates},
};
use crate::spec::{Glob, PortRange, Question};

/// Address tables of one end and family, keyed by the address in network byte order and the prefix length.
pub type Prefixes<A> = BTreeMap<(A, u8), u64>;

/// All tables of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What the programs are specialised by; the loader adds the owner and the link layer.
    pub setup: Setup,
    /// The rules, without an end.
    pub rules: Vec<abi::Rule>,
    /// The distributions of their delays.
    pub deviations: Deviations,
    /// The profile's peers, by [`Direction`].
    pub profile: [Option<Peers>; DIRECTIONS],
    /// By IP protocol number.
    pub protocols: BTreeMap<u8, u64>,
    /// By a cgroup's number.
    pub cgroups: BTreeMap<u64, u64>,
    /// By a process's number.
    pub processes: BTreeMap<u32, u64>,
    /// The names of DNS queries.
    pub names: Vec<NameState>,
    /// By DNS record type.
    pub records: BTreeMap<u16, u64>,
    /// By port, for each end.
    pub ports: BTreeMap<(End, u16), u64>,
    /// By IPv4 prefix, for each end: whole addresses are those of length 32.
    pub v4: BTreeMap<End, Prefixes<[u8; 4]>>,
    /// By IPv6 prefix, for each end: whole addresses are those of length 128.
    pub v6: BTreeMap<End, Prefixes<[u8; 16]>>,
    /// Whether there are names of hosts, which may come to stand for other addresses.
    pub follows: bool,
}

impl Tables {
    /// Compiles the rules. There are at most [`abi::MAX_RULES`], see [`check`](super::check).
    #[must_use]
    pub fn new(rules: &[Rule], seed: u64) -> Self {
        let mut tables = Self::default();
        // Bits without a rule count as satisfied, so that "nobody asks" is all ones.
        let setup = &mut tables.setup;
        for any in [
            &mut setup.any_protocol,
            &mut setup.any_remote,
            &mut setup.any_local,
            &mut setup.any_remote_port,
            &mut setup.any_local_port,
            &mut setup.any_cgroup,
            &mut setup.any_name,
            &mut setup.any_record,
        ] {
            *any = u64::MAX;
        }
        for (index, rule) in rules.iter().enumerate() {
            tables.add(1 << index, rule, seed);
        }
        // Rules whose names are too many `check` has refused.
        tables.names = names(rules).unwrap_or_default();
        tables.close();
        tables
    }

    fn add(&mut self, bit: u64, rule: &Rule, seed: u64) {
        self.setup.direction[rule.direction as usize] |= bit;
        let row = rule.row(Duration::ZERO, &mut self.deviations, seed);
        self.setup.effects |= row.effects;
        if row.spares != 0 {
            self.setup.sparing |= bit;
        }
        self.rules.push(row);
        if let Some(profile) = &rule.impairments.profile {
            self.profile[rule.direction as usize] = Some(Peers::new(profile, rule.direction));
        }
        let matches = &rule.matches;
        if !matches.protocols.is_empty() {
            self.setup.any_protocol &= !bit;
        }
        for protocol in &matches.protocols {
            *self.protocols.entry(*protocol).or_default() |= bit;
        }
        if !matches.cgroups.is_empty() || !matches.processes.is_empty() {
            self.setup.any_cgroup &= !bit;
        }
        for process in &matches.processes {
            *self.processes.entry(*process).or_default() |= bit;
            self.setup.processes = 1;
        }
        for CgroupId { id, level } in &matches.cgroups {
            *self.cgroups.entry(*id).or_default() |= bit;
            let (levels, count) = (&mut self.setup.levels, self.setup.level_count as usize);
            if !levels[..count].contains(level) && count < levels.len() {
                levels[count] = *level;
                self.setup.level_count += 1;
            }
        }
        if !rule.names.is_empty() {
            self.follows = true;
            // Of either family, whatever there is now.
            self.setup.tables |= table::REMOTE4 | table::REMOTE6;
        }
        self.add_question(bit, matches.question.as_ref());
        self.add_end(bit, End::Remote, &matches.remote, &matches.remote_ports);
        self.add_end(bit, End::Local, &matches.local, &matches.local_ports);
    }

    fn add_question(&mut self, bit: u64, question: Option<&Question>) {
        let Some(Question { names: _, types }) = question else { return };
        self.setup.any_name &= !bit;
        if !types.is_empty() {
            self.setup.any_record &= !bit;
        }
        for record in types {
            *self.records.entry(record.0).or_default() |= bit;
        }
    }

    fn add_end(&mut self, bit: u64, end: End, networks: &[IpNet], ports: &[PortRange]) {
        let (any_address, any_port) = match end {
            End::Remote => (&mut self.setup.any_remote, &mut self.setup.any_remote_port),
            End::Local => (&mut self.setup.any_local, &mut self.setup.any_local_port),
        };
        if !networks.is_empty() {
            *any_address &= !bit;
        }
        if !ports.is_empty() {
            *any_port &= !bit;
        }
        for port in ports.iter().flat_map(|range| range.ports()) {
            *self.ports.entry((end, port)).or_default() |= bit;
        }
        for network in networks {
            let length = network.prefix_len();
            let (whole, prefix) = end_bits(end, network);
            self.setup.tables |= if length == network.max_prefix_len() { whole } else { prefix };
            let rules = match network.network() {
                IpAddr::V4(address) => self.v4.entry(end).or_default().entry((address.octets(), length)),
                IpAddr::V6(address) => {
                    let networks = self.v6.entry(end).or_default();
                    *networks.entry((address.octets(), length)).or_default() |= bit;
                    continue;
                }
            };
            *rules.or_default() |= bit;
        }
    }

    /// Gives every prefix the rules of the shorter ones around it: the kernel finds the longest alone.
    fn close(&mut self) {
        for prefixes in self.v4.values_mut() {
            close(prefixes, |(address, length)| (u128::from(u32::from_be_bytes(*address)) << 96, *length));
        }
        for prefixes in self.v6.values_mut() {
            close(prefixes, |(address, length)| (u128::from_be_bytes(*address), *length));
        }
    }

    /// Writes what has changed of the rules after this time.
    pub fn ramp(&mut self, rules: &[Rule], elapsed: Duration, seed: u64) {
        for (row, rule) in self.rules.iter_mut().zip(rules) {
            let now = rule.row(elapsed, &mut self.deviations, seed);
            *row = abi::Rule { expires_at: row.expires_at, ..now };
        }
    }

    /// Whether any rule acts on packets going this way.
    #[must_use]
    pub fn acts(&self, direction: Direction) -> bool {
        self.setup.direction[direction as usize] != 0
    }
}

/// The automaton of all names that rules want; a rule that wants a query for no certain name wants any.
pub(super) fn names(rules: &[Rule]) -> Result<Vec<NameState>, TooManyStates> {
    let any = [Glob::any()];
    let wanted = rules.iter().enumerate().filter_map(|(index, rule)| {
        let question = rule.matches.question.as_ref()?;
        Some((1 << index, if question.names.is_empty() { &any[..] } else { &question.names }))
    });
    names::compile(&names::wanted(wanted))
}

fn end_bits(end: End, network: &IpNet) -> (u32, u32) {
    match (end, network) {
        (End::Remote, IpNet::V4(_)) => (table::REMOTE4, table::REMOTE4_NET),
        (End::Remote, IpNet::V6(_)) => (table::REMOTE6, table::REMOTE6_NET),
        (End::Local, IpNet::V4(_)) => (table::LOCAL4, table::LOCAL4_NET),
        (End::Local, IpNet::V6(_)) => (table::LOCAL6, table::LOCAL6_NET),
    }
}

/// In the order of a `BTreeMap` a prefix comes right before all that lie in it, so those around the current
/// one are a stack.
fn close<K: Ord>(prefixes: &mut BTreeMap<K, u64>, bits: impl Fn(&K) -> (u128, u8)) {
    let mut around: Vec<(u128, u8, u64)> = Vec::new();
    for (key, rules) in prefixes.iter_mut() {
        let (address, length) = bits(key);
        let within = |(outer, outer_length, _): &(u128, u8, u64)| {
            *outer_length == 0 || (outer ^ address) >> (128 - u32::from(*outer_length)) == 0
        };
        while around.last().is_some_and(|outer| !within(outer)) {
            around.pop();
        }
        *rules |= around.last().map_or(0, |(_, _, outer)| *outer);
        around.push((address, length, *rules));
    }
}

#[cfg(test)]
mod tests {
    use chaos_ebpf::{
        abi::Window,
        classify::{AddressTables, Tables as LookUp, classify},
        packet::{Headers, Network},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Match;
    use crate::spec::Impairments;

    /// The tables as the kernel's maps would answer: exact keys, and the longest prefix.
    impl LookUp for Tables {
        fn protocol(&self, protocol: u8) -> u64 {
            self.protocols.get(&protocol).copied().unwrap_or(0)
        }
        fn port(&self, end: End, port: u16) -> u64 {
            self.ports.get(&(end, port)).copied().unwrap_or(0)
        }
    }

    fn longest<A: Ord + Copy>(prefixes: Option<&Prefixes<A>>, longest: u8, mask: impl Fn(u8) -> A) -> u64 {
        let Some(prefixes) = prefixes else { return 0 };
        (0..longest).rev().find_map(|length| prefixes.get(&(mask(length), length))).copied().unwrap_or(0)
    }

    impl AddressTables<u32> for Tables {
        fn bits(end: End) -> (u32, u32) {
            end_bits(end, &"0.0.0.0/0".parse().expect("valid"))
        }
        fn address(&self, end: End, address: &u32) -> u64 {
            let prefixes = self.v4.get(&end);
            prefixes.and_then(|prefixes| prefixes.get(&(address.to_ne_bytes(), 32))).copied().unwrap_or(0)
        }
        fn prefix(&self, end: End, address: &u32) -> u64 {
            let bits = u64::from(u32::from_be(*address));
            longest(self.v4.get(&end), 32, |length| {
                ((bits & !((1_u64 << (32 - length)) - 1)) as u32).to_be_bytes()
            })
        }
    }

    impl AddressTables<[u32; 4]> for Tables {
        fn bits(end: End) -> (u32, u32) {
            end_bits(end, &"::/0".parse().expect("valid"))
        }
        fn address(&self, end: End, address: &[u32; 4]) -> u64 {
            let prefixes = self.v6.get(&end);
            prefixes.and_then(|prefixes| prefixes.get(&(octets(address), 128))).copied().unwrap_or(0)
        }
        fn prefix(&self, end: End, address: &[u32; 4]) -> u64 {
            let bits = u128::from_be_bytes(octets(address));
            longest(self.v6.get(&end), 128, |length| {
                if length == 0 { [0; 16] } else { (bits >> (128 - length) << (128 - length)).to_be_bytes() }
            })
        }
    }

    fn octets(address: &[u32; 4]) -> [u8; 16] {
        let mut octets = [0; 16];
        for (to, from) in octets.chunks_exact_mut(4).zip(address) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        octets
    }

    /// Few addresses, close together, so that rules and packets meet.
    fn network() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0..8_u8, 26..=32_u8).prop_map(|(low, length)| format!("10.0.0.{low}/{length}")),
            (0..8_u8, 122..=128_u8).prop_map(|(low, length)| format!("fd00::{low:x}/{length}")),
            Just("0.0.0.0/0".into()),
        ]
        .prop_map(|text: String| crate::spec::parse_network(&text).expect("valid"))
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let ports = || {
            let range = (0..6_u16, 0..3_u16).prop_map(|(first, more)| format!("{first}-{}", first + more));
            proptest::collection::vec(range.prop_map(|text| text.parse().expect("valid")), 0..2)
        };
        let networks = || proptest::collection::vec(network(), 0..3);
        let protocols = proptest::collection::vec(prop_oneof![Just(6), Just(17), Just(1)], 0..2);
        (any::<bool>(), networks(), networks(), ports(), ports(), protocols).prop_map(
            |(out, remote, local, remote_ports, local_ports, protocols)| Rule {
                label: String::new(),
                direction: if out { Direction::Out } else { Direction::In },
                matches: Match { remote, local, remote_ports, local_ports, protocols, ..Match::default() },
                window: Window::ALL,
                impairments: Impairments::default(),
                spares: Vec::new(),
                names: Vec::new(),
            },
        )
    }

    #[derive(Clone, Debug)]
    struct Packet {
        source: Option<IpAddr>,
        destination: Option<IpAddr>,
        ports: Option<(u16, u16)>,
        protocol: Option<u8>,
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let address = |v6: bool, low: u8| -> IpAddr {
            let text = if v6 { format!("fd00::{low:x}") } else { format!("10.0.0.{low}") };
            text.parse().expect("valid")
        };
        let protocol = proptest::option::of(prop_oneof![Just(6_u8), Just(17), Just(1)]);
        let ports = proptest::option::of((0..8_u16, 0..8_u16));
        (any::<bool>(), any::<bool>(), 0..10_u8, 0..10_u8, ports, protocol).prop_map(
            move |(ip, v6, source, destination, ports, protocol)| Packet {
                source: ip.then(|| address(v6, source)),
                destination: ip.then(|| address(v6, destination)),
                ports: ports.filter(|_| ip && protocol.is_some_and(|protocol| protocol != 1)),
                protocol: protocol.filter(|_| ip),
            },
        )
    }

    fn headers(packet: &Packet) -> Headers {
        let mut headers = Headers::NONE;
        for (address, words) in
            [(packet.source, &mut headers.source), (packet.destination, &mut headers.destination)]
        {
            let octets = match address {
                None => continue,
                Some(IpAddr::V4(address)) => {
                    headers.network = Network::V4;
                    address.octets().to_vec()
                }
                Some(IpAddr::V6(address)) => {
                    headers.network = Network::V6;
                    address.octets().to_vec()
                }
            };
            for (word, octets) in words.iter_mut().zip(octets.chunks(4)) {
                *word = u32::from_ne_bytes(octets.try_into().expect("four"));
            }
        }
        if let Some(protocol) = packet.protocol {
            (headers.has_protocol, headers.protocol) = (true, protocol);
        }
        if let Some((source, destination)) = packet.ports {
            (headers.has_ports, headers.source_port, headers.destination_port) = (true, source, destination);
        }
        headers
    }

    /// The definition, rule by rule.
    fn satisfies(packet: &Packet, direction: Direction, rule: &Rule) -> bool {
        let exchange = direction == Direction::In;
        let (remote, local) = match exchange {
            true => (packet.source, packet.destination),
            false => (packet.destination, packet.source),
        };
        let ports = packet.ports.map(
            |(source, destination)| {
                if exchange { (source, destination) } else { (destination, source) }
            },
        );
        let network = |networks: &[IpNet], address: Option<IpAddr>| {
            networks.is_empty()
                || address.is_some_and(|address| networks.iter().any(|network| network.contains(&address)))
        };
        let port = |ranges: &[PortRange], port: Option<u16>| {
            ranges.is_empty()
                || port.is_some_and(|port| ranges.iter().any(|range| range.ports().contains(&port)))
        };
        let wanted = &rule.matches;
        rule.direction == direction
            && network(&wanted.remote, remote)
            && network(&wanted.local, local)
            && port(&wanted.remote_ports, ports.map(|ports| ports.0))
            && port(&wanted.local_ports, ports.map(|ports| ports.1))
            && (wanted.protocols.is_empty()
                || packet.protocol.is_some_and(|protocol| wanted.protocols.contains(&protocol)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The bit vectors find exactly the rules that the packet satisfies one by one.
        #[test]
        fn as_rule_by_rule(rules in proptest::collection::vec(rule(), 0..12), packet in packet(), out: bool) {
            let direction = if out { Direction::Out } else { Direction::In };
            let tables = Tables::new(&rules, 1);
            let found = classify(&headers(&packet), direction, &tables.setup, &tables);
            let expected = (0..).zip(&rules).filter(|(_, rule)| satisfies(&packet, direction, rule));
            prop_assert_eq!(found, expected.fold(0, |set, (index, _)| set | 1_u64 << index));
        }
    }
}
