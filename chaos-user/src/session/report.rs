//! What became of a run, in numbers.

use chaos_ebpf::{
    abi::{Count, Direction},
    decide::eligible,
    packet::protocol,
};

use crate::{
    fault::Rule,
    kernel::counters::{Counters, Effects},
};

/// What packets are called that hosts and switches send of their own accord.
pub const BACKGROUND: &str = "neighbour discovery, multicast reports and link control";

/// What became of a rule.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RuleReport {
    /// Its number.
    pub rule: usize,
    /// The fault as it was written.
    pub fault: String,
    /// Which packets it acts on.
    pub direction: Direction,
    /// The chance asked for, between 0 and 1, if there is a single one.
    pub asked: Option<f64>,
    /// Packets that came by its hook while armed.
    pub seen: Count,
    /// Packets among them that met its conditions.
    pub matched: Count,
    /// Packets among these that its window let it act on.
    pub eligible: u64,
    /// Packets it acted on.
    pub fired: Count,
    /// Packets among these that hosts and switches send of their own accord: address resolution and neighbour discovery,
    /// reports of multicast groups, what never leaves its link.
    pub fired_background: u64,
    /// What it did to these.
    pub effects: Effects,
    /// Whether it only keeps others from acting: what it matched was left alone.
    pub spares: bool,
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunReport {
    /// Rule by rule.
    pub rules: Vec<RuleReport>,
    /// Packets that rules would have hit, and that are protected.
    pub spared: u64,
    /// Packets that could not wait, found no room on the way back, or still waited when it ended; nothing if that could not be
    /// read.
    pub queue_lost: Option<u64>,
    /// What else was not as one would expect, a sentence each.
    pub remarks: Vec<String>,
}

pub(super) fn report(rules: &[Rule], counters: &Counters) -> RunReport {
    let counted = rules.iter().zip(&counters.rules).enumerate();
    let reports = counted
        .map(|(number, (rule, count))| RuleReport {
            rule: number,
            fault: rule.label.clone(),
            direction: rule.direction,
            asked: rule.impairments.chance(),
            seen: counters.seen[rule.direction as usize],
            matched: count.matched,
            eligible: eligible(&rule.window, count.matched.packets),
            fired: count.fired,
            fired_background: count.background,
            effects: count.effects,
            spares: !rule.spares.is_empty(),
        })
        .collect();
    let remarks = background_alone(rules, counters).into_iter().collect();
    RunReport { rules: reports, spared: counters.spared, remarks, ..RunReport::default() }
}

/// What to say where nothing was hit but what comes by itself: the traffic that was meant may not have been there. A rule for
/// protocols that have nothing else, or whose packets are named so, has hit what it was to.
fn background_alone(rules: &[Rule], counters: &Counters) -> Option<String> {
    let is_meant = |rule: &Rule| {
        let protocols = &rule.matches.protocols;
        !protocols.is_empty() && protocols.iter().all(|it| [protocol::IGMP, protocol::ICMPV6].contains(it))
    };
    let fired = || rules.iter().zip(&counters.rules).filter(|(_, count)| count.fired.packets > 0);
    let is_all = fired().all(|(rule, count)| count.background == count.fired.packets && !is_meant(rule));
    let packets: u64 = fired().map(|(_, count)| count.fired.packets).sum();
    (is_all && packets > 0).then(|| {
        format!(
            "warning: no packet of a program was hit, only {packets} of {BACKGROUND}, which hosts and switches send by \
             themselves"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Match, kernel::counters::RuleCount, spec::Impairments};

    /// Of each rule its protocols, how many packets it hit, and how many of them came by themselves.
    fn remark(rules: &[(&[u8], u64, u64)]) -> Option<String> {
        let rule = |protocols: &[u8]| Rule {
            label: String::new(),
            direction: Direction::Out,
            matches: Match { protocols: protocols.to_vec(), ..Match::default() },
            window: chaos_ebpf::abi::Window::ALL,
            impairments: Impairments::default(),
            spares: Vec::new(),
            names: Vec::new(),
        };
        let count = |packets, background| RuleCount {
            fired: Count { packets, ..Count::default() },
            background,
            ..RuleCount::default()
        };
        let counters = Counters {
            rules: rules.iter().map(|(_, fired, background)| count(*fired, *background)).collect(),
            ..Counters::default()
        };
        let rules: Vec<_> = rules.iter().map(|(protocols, ..)| rule(protocols)).collect();
        background_alone(&rules, &counters)
    }

    #[test]
    fn a_run_that_hit_nothing_but_what_comes_by_itself_says_so() {
        let (icmp, icmpv6) = (&[protocol::ICMP, protocol::ICMPV6][..], &[protocol::ICMPV6][..]);
        let said = remark(&[(&[], 2, 2), (&[], 3, 3), (&[], 0, 0)]).unwrap_or_default();
        assert!(said.starts_with("warning: ") && said.contains("only 5 of neighbour discovery"), "{said}");
        assert!(remark(&[(icmp, 1, 1)]).is_some(), "a ping was meant");
        for hit in [
            &[(&[][..], 2, 1)][..],
            &[(&[], 2, 2), (&[], 1, 0)],
            &[(&[], 0, 0)],
            &[(icmpv6, 2, 2)],
            &[(&[protocol::IGMP], 2, 2)],
            &[(&[], 2, 2), (icmpv6, 1, 1)],
        ] {
            assert_eq!(remark(hit), None, "{hit:?}");
        }
    }
}
