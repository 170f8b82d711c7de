//! From what was written to what the kernel is given: rules, and the tables that find them. No I/O here.

pub mod loss;
mod tables;

use chaos_ebpf::abi::{Direction, MAX_RULES, Window};
use ipnet::IpNet;

pub use tables::{Prefixes, Tables};

use crate::spec::PortRange;

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
    /// The chance that was asked for, between 0 and 1.
    pub asked: f64,
    /// The chance as a threshold, see [`decide::fires`](chaos_ebpf::decide::fires).
    pub threshold: u32,
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
}

/// More faults than there are bits in a rule set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} rules, and one run has at most {MAX_RULES}; a fault is a rule for each direction it acts in, and \
     further faults can go into a second run"
)]
pub struct TooManyRules(usize);

/// Checks that a run can have these rules.
///
/// # Errors
///
/// [`TooManyRules`].
pub fn check(rules: Vec<Rule>) -> Result<Vec<Rule>, TooManyRules> {
    if rules.len() > MAX_RULES { Err(TooManyRules(rules.len())) } else { Ok(rules) }
}
