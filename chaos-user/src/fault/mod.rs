//! From what was written to what the kernel is given: rules, and the tables that find them. No I/O here.

pub mod call;
mod distribution;
pub mod glob;
pub mod line;
mod names;
pub mod net;
pub mod profile;
pub mod skew;
mod tables;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use chaos_ebpf::abi::{self, Direction, MAX_LEVELS, MAX_RULES, Window};
use ipnet::IpNet;

pub use call::{CallError, CallRule, CallTables, Wanted};
pub use distribution::Deviations;
pub use profile::Peers;
pub use tables::{Prefixes, Tables};

use crate::{
    kernel::mechanism::Fault,
    spec::{Cut, Impairments, PortRange, Question},
};

/// One row of the rule table.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The fault as it was written.
    pub label: String,
    /// Which way its packets go.
    pub direction: Direction,
    /// Which packets.
    pub matches: Match,
    /// Which of them by their order.
    pub window: Window,
    /// What is done to them.
    pub impairments: Impairments,
    /// The rules that do nothing to its packets, by their numbers; then it does nothing else.
    pub spares: Vec<usize>,
    /// The names of other hosts among these: what else they come to stand for belongs to `matches` as well.
    pub names: Vec<String>,
}

impl Rule {
    /// Takes note of what a name stands for, and says how much of it is new.
    pub fn learn(&mut self, name: &str, addresses: &[IpNet]) -> usize {
        let mut new = Vec::new();
        if self.names.iter().any(|known| known == name) {
            new.extend(addresses.iter().filter(|address| !self.matches.remote.contains(address)));
        }
        self.matches.remote.extend(&new);
        new.len()
    }

    /// What the table of mechanisms calls its faults.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let Impairments {
            dns: _,
            answer: _,
            cut,
            loss,
            duplicate,
            corrupt,
            reorder: _,
            rate,
            delay,
            ramps: _,
            profile,
        } = &self.impairments;
        let there = [
            (Fault::Refuse, matches!(cut, Some(Cut::Refuse(_)))),
            (Fault::Reset, *cut == Some(Cut::Reset)),
            (Fault::Timeout, *cut == Some(Cut::Timeout)),
            (Fault::Loss, matches!(cut, Some(Cut::Partition | Cut::Blackhole))),
            (Fault::Loss, loss.is_some()),
            (Fault::Duplicate, duplicate.is_some()),
            (Fault::Corrupt, corrupt.is_some()),
            (Fault::Rate, rate.is_some()),
            (Fault::Delay, delay.is_some() || profile.is_some()),
            (Fault::Dns, self.matches.question.is_some()),
        ];
        let by_cgroup = (!self.matches.cgroups.is_empty()).then_some(Fault::Aim);
        let by_process = (!self.matches.processes.is_empty()).then_some(Fault::AimAtProcess);
        let aimed = by_cgroup.into_iter().chain(by_process);
        there.into_iter().filter(|(_, there)| *there).map(|(fault, _)| fault).chain(aimed).collect()
    }

    /// Whether it resets connections, of which it must see a packet.
    #[must_use]
    pub fn resets(&self) -> bool {
        self.impairments.cut == Some(Cut::Reset)
    }

    /// Whether its packets go a way of their own: to wait, or to have their checksums completed.
    #[must_use]
    pub fn needs_detour(&self) -> bool {
        self.impairments.waits() || self.impairments.breaks_checksums()
    }

    /// Whether a packet may be received twice.
    #[must_use]
    pub fn comes_in_again(&self) -> bool {
        self.direction == Direction::In && self.impairments.duplicate.is_some()
    }

    /// The row after this time, without an end.
    #[must_use]
    pub fn row(&self, elapsed: Duration, deviations: &mut Deviations, seed: u64) -> abi::Rule {
        let table = deviations.place(&self.impairments);
        let effects = net::effects(&self.impairments, elapsed, table, seed);
        let spares = self.spares.iter().fold(0, |rules, rule| rules | 1 << rule);
        abi::Rule { window: self.window, numbered: u32::from(self.window != Window::ALL), spares, ..effects }
    }
}

/// Which packets a rule matches, by their ends as the host sees them. An empty list asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The other host's address.
    pub remote: Vec<IpNet>,
    /// This host's address.
    pub local: Vec<IpNet>,
    /// The other host's port.
    pub remote_ports: Vec<PortRange>,
    /// This host's port.
    pub local_ports: Vec<PortRange>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// The cgroups of this host's sockets.
    pub cgroups: Vec<CgroupId>,
    /// The processes that have made these, themselves or by those they have begun.
    pub processes: Vec<u32>,
    /// The DNS query it is.
    pub question: Option<Question>,
}

impl Match {
    /// Whether it asks for nobody's sockets.
    #[must_use]
    pub fn is_of_everybody(&self) -> bool {
        self.cgroups.is_empty() && self.processes.is_empty()
    }

    /// Whether packets of a connection would match, its cgroup aside. An end that is not settled could be any.
    #[must_use]
    pub fn takes(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> bool {
        let address = |wanted: &[IpNet], end: SocketAddr| {
            let address = end.ip().to_canonical();
            wanted.is_empty()
                || address.is_unspecified()
                || wanted.iter().any(|network| network.contains(&address))
        };
        let port = |wanted: &[PortRange], end: SocketAddr| {
            wanted.is_empty()
                || end.port() == 0
                || wanted.iter().any(|range| range.ports().contains(&end.port()))
        };
        (self.protocols.is_empty() || self.protocols.contains(&protocol))
            && address(&self.remote, remote)
            && address(&self.local, local)
            && port(&self.remote_ports, remote)
            && port(&self.local_ports, local)
    }
}

/// A cgroup as the kernel's programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupId {
    /// Its number.
    pub id: u64,
    /// How deep it lies, the root being 0.
    pub level: u8,
}

/// More than one run can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// More faults than there are bits in a rule set.
    #[error(
        "{0} rules, and one run has at most {MAX_RULES}; a fault is a rule for each direction it acts in, and \
         further faults can go into a second run"
    )]
    Rules(usize),
    /// Targets at more depths than are looked at.
    #[error(
        "cgroups at {0} different depths, and one run has at most {MAX_LEVELS}; further ones can go into a second run"
    )]
    Levels(usize),
    /// More than one profile.
    #[error("more than one profile, and one run has at most one; a second one can go into a second run")]
    Profiles,
    /// More names than one automaton can tell apart.
    #[error(
        "the patterns of --name are too many, or have too many * in them; further ones can go into a second run"
    )]
    Names,
}

/// Checks that a run can have these rules.
///
/// # Errors
///
/// [`TooMany`].
pub fn check(rules: Vec<Rule>) -> Result<Vec<Rule>, TooMany> {
    let cgroups = rules.iter().flat_map(|rule| &rule.matches.cgroups);
    let levels = cgroups.map(|cgroup| cgroup.level).collect::<BTreeSet<_>>().len();
    let mut profiles =
        rules.iter().filter_map(|rule| Some((rule.direction, rule.impairments.profile.as_ref()?)));
    let first = profiles.next();
    // The other one of a fault both ways has the same profile.
    let is_other = |(direction, profile)| {
        first.is_some_and(|(way, first)| way == direction || !Arc::ptr_eq(first, profile))
    };
    match rules.len() {
        _ if profiles.any(is_other) => Err(TooMany::Profiles),
        count if count > MAX_RULES => Err(TooMany::Rules(count)),
        _ if levels > MAX_LEVELS => Err(TooMany::Levels(levels)),
        _ if tables::names(&rules).is_err() => Err(TooMany::Names),
        _ => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_match() {
        let matches = Match {
            remote: vec!["10.0.0.0/8".parse().expect("valid")],
            remote_ports: vec!["443".parse().expect("valid")],
            protocols: vec![6],
            ..Match::default()
        };
        let takes = |protocol, remote: &str| {
            matches.takes(protocol, "10.9.9.9:5000".parse().expect("valid"), remote.parse().expect("valid"))
        };
        assert!(takes(6, "10.1.2.3:443") && takes(6, "[::ffff:10.1.2.3]:443"));
        assert!(!takes(17, "10.1.2.3:443") && !takes(6, "10.1.2.3:80") && !takes(6, "11.1.2.3:443"));
        // A socket that listens, or that is connected to nobody.
        assert!(takes(6, "0.0.0.0:0") && takes(6, "[::]:0"));
    }
}
