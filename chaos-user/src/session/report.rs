//! What became of a run, in numbers.

use chaos_ebpf::{
    abi::{Count, Direction},
    decide::eligible,
};

use crate::{
    fault::Rule,
    kernel::counters::{Counters, Effects},
};

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
    /// Packets that could not wait, found no room on the way back, or still waited when it ended.
    pub queue_lost: u64,
    /// What else was not as one would expect, a sentence each.
    pub remarks: Vec<String>,
}

pub(super) fn report(rules: &[Rule], counters: &Counters) -> RunReport {
    let counted = rules.iter().zip(&counters.rules).enumerate();
    let rules = counted
        .map(|(number, (rule, count))| RuleReport {
            rule: number,
            fault: rule.label.clone(),
            direction: rule.direction,
            asked: rule.impairments.chance(),
            seen: counters.seen[rule.direction as usize],
            matched: count.matched,
            eligible: eligible(&rule.window, count.matched.packets),
            fired: count.fired,
            effects: count.effects,
            spares: !rule.spares.is_empty(),
        })
        .collect();
    RunReport { rules, spared: counters.spared, ..RunReport::default() }
}
