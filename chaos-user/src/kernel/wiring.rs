//! What goes where: for each operation and system call of the rules the first mechanism of the table that is not refused.

use std::collections::{BTreeMap, BTreeSet};

use chaos_ebpf::call::{CALLS, MAX_CALLS, Setup, effect, kind, program};
use syscalls::Sysno;

use super::{
    Error,
    btf::KernelTypes,
    hook::{self, Effect, Site, site_of, sites},
    mechanism::Mechanism,
};
use crate::{
    fault::{CallRule, CallTables},
    spec::{Calls, Op},
};

/// What a rule is of: an operation, or a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// An operation.
    Op(Op),
    /// A system call.
    Call(Sysno),
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Op(op) => f.write_str(op.name()),
            Self::Call(call) => f.write_str(call.name()),
        }
    }
}

/// What a rule is of, each by itself.
#[must_use]
pub fn units(rule: &CallRule) -> Vec<Unit> {
    match &rule.calls {
        Calls::Ops(ops) => ops.iter().copied().map(Unit::Op).collect(),
        Calls::Named(calls, _) => calls.iter().copied().map(Unit::Call).collect(),
    }
}

/// What could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CallsError {
    /// No mechanism for an operation or a system call.
    #[error("{what} cannot be hit on this kernel: {why}; {remedy}")]
    NoMechanism {
        /// Which.
        what: String,
        /// Why each of the mechanisms cannot.
        why: String,
        /// What to change.
        remedy: &'static str,
    },
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Why mechanisms are passed over: for everything, or for one thing.
pub(super) type Refusals = BTreeMap<(Mechanism, Option<Unit>), String>;

/// By what a unit is hit.
struct Picked {
    mechanism: Mechanism,
    places: Vec<Placed>,
    /// Why by that, and not by those before it.
    why: String,
}

/// In the verifier's words, what is at a function of the security modules at which it does not let BPF.
pub(super) const DISABLED_HOOK: &str = "points to disabled hook";

/// The first mechanism that has a hook for a unit, and is not refused.
fn pick(
    unit: Unit,
    effect: Effect,
    by: Option<Mechanism>,
    types: &KernelTypes,
    refusals: &Refusals,
) -> Result<Picked, CallsError> {
    let mut passed_over = Vec::new();
    let mut remedy = match by {
        Some(_) => "leave --by out, to have it by whichever can",
        None => "use a kernel that has a hook for it",
    };
    for mechanism in hook::mechanisms(effect).filter(|it| by.is_none_or(|by| by == *it)) {
        let refused = [None, Some(unit)].into_iter().find_map(|unit| refusals.get(&(mechanism, unit)));
        let places = places(unit, mechanism, types);
        match refused {
            _ if places.is_empty() => passed_over.push(format!("{mechanism} has no hook for it")),
            Some(reason) => {
                passed_over.push(format!("{mechanism}: {reason}"));
                // No parameter makes it a hook for BPF that the kernel has not (`bpf_lsm_disabled_hooks`).
                if !reason.contains(DISABLED_HOOK) {
                    remedy = mechanism.remedy();
                }
            }
            None => {
                let why = match &passed_over[..] {
                    [] => "the first choice".into(),
                    passed_over => passed_over.join("; "),
                };
                return Ok(Picked { mechanism, places, why });
            }
        }
    }
    let none = || by.map_or_else(String::new, |by| format!("{by} is not for this"));
    let why = if passed_over.is_empty() { none() } else { passed_over.join("; ") };
    Err(CallsError::NoMechanism { what: unit.to_string(), why, remedy })
}

/// What goes to a site.
pub(super) struct Wired {
    pub(super) setup: Setup,
    pub(super) units: BTreeSet<Unit>,
    pub(super) why: String,
}

/// All of it.
pub(super) struct Wiring {
    pub(super) sites: BTreeMap<Site, Wired>,
    /// By system call, for the tracepoint of all of them.
    pub(super) calls: Vec<u64>,
}

/// What goes where, by the first mechanism of each unit that is not refused.
pub(super) fn wire(
    rules: &[CallRule],
    tables: &CallTables,
    setup: Setup,
    by: Option<Mechanism>,
    types: &KernelTypes,
    refusals: &Refusals,
) -> Result<Wiring, CallsError> {
    let mut wiring = Wiring { sites: BTreeMap::new(), calls: vec![0; CALLS as usize] };
    // What would grow is told by the file as well.
    let grows = tables.rules.iter().any(|row| row.effects & effect::GROWTH != 0);
    let looks_at_files = u32::from(grows || rules.iter().any(|rule| rule.wanted.is_of_files()));
    for (index, rule) in rules.iter().enumerate() {
        let bit = 1_u64 << index;
        for unit in units(rule) {
            let Picked { places, why, .. } = pick(unit, rule.effect(), by, types, refusals)?;
            let row = tables.rules.get(index).map_or(0, |row| row.effects);
            for Placed { site, kind, shape } in places {
                if site.program == program::ANY_CALL {
                    let calls = match unit {
                        Unit::Op(op) => hook::calls_of(op).to_vec(),
                        Unit::Call(call) => vec![call],
                    };
                    for call in calls {
                        if let Some(rules) = wiring.calls.get_mut(call.id() as usize) {
                            *rules |= bit;
                        }
                    }
                }
                let fresh = || {
                    let mut setup = shape(setup);
                    setup.by_fd &= looks_at_files;
                    Wired { setup, units: BTreeSet::new(), why: why.clone() }
                };
                let wired = wiring.sites.entry(site).or_insert_with(fresh);
                wired.setup.rules[kind] |= bit;
                // Only a write can be told to make a file longer; all else that grows does so always.
                let growth = if unit == Unit::Op(Op::Write) { 0 } else { effect::GROWTH };
                wired.setup.effects |= row & !growth;
                wired.units.insert(unit);
            }
        }
    }
    Ok(wiring)
}

/// A place for a unit: its site, what it is asked for there, and what else the program must know.
struct Placed {
    site: Site,
    kind: usize,
    shape: Box<dyn Fn(Setup) -> Setup>,
}

fn places(unit: Unit, mechanism: Mechanism, types: &KernelTypes) -> Vec<Placed> {
    match unit {
        Unit::Op(op) => {
            let all = sites(op, mechanism, types).into_iter();
            all.map(|(site, hook)| {
                let (within, other_calls) = hook.map(hook::Hook::calls).unwrap_or_default();
                let shape = move |mut setup: Setup| {
                    setup.call_count = within.len().min(MAX_CALLS) as u32;
                    setup.other_calls = other_calls;
                    setup.calls.iter_mut().zip(&within).for_each(|(to, from)| *to = *from);
                    Setup { by_fd: 1, ..setup }
                };
                Placed { site, kind: hook.map_or(kind::READ, |hook| hook.kind), shape: Box::new(shape) }
            })
            .collect()
        }
        Unit::Call(call) => {
            let by_fd = hook::takes_fd(call) || mechanism == Mechanism::RawTracepoint;
            let shape = move |setup| Setup { by_fd: by_fd.into(), ..setup };
            let site = site_of(call, mechanism, types);
            site.map(|site| Placed { site, kind: kind::READ, shape: Box::new(shape) }).into_iter().collect()
        }
    }
}

/// A mechanism, and the kernel's functions or tracepoints it would be at.
pub type Choice = (Mechanism, Vec<String>);

/// By what each operation and system call of these rules would be hit on a kernel that has these mechanisms, and that lets BPF at
/// these of the security modules' functions.
#[must_use]
pub fn preview(
    rules: &[CallRule],
    by: Option<Mechanism>,
    has: impl Fn(Mechanism) -> bool,
    is_let: impl Fn(&str) -> bool,
    types: &KernelTypes,
) -> Vec<(Unit, Result<Choice, CallsError>)> {
    let refused = |mechanism: &Mechanism| !has(*mechanism);
    let asked: BTreeSet<_> = rules.iter().flat_map(|rule| hook::mechanisms(rule.effect())).collect();
    let mut refusals: Refusals =
        asked.iter().copied().filter(refused).map(|it| ((it, None), "not here".to_owned())).collect();
    if asked.contains(&Mechanism::Lsm) && has(Mechanism::Lsm) {
        for unit in rules.iter().flat_map(units) {
            let mut functions = places(unit, Mechanism::Lsm, types).into_iter().map(|it| it.site.function);
            if let Some(function) = functions.find(|function| !is_let(function)) {
                let reason = format!("{function} {DISABLED_HOOK}");
                refusals.insert((Mechanism::Lsm, Some(unit)), reason);
            }
        }
    }
    let choose = |effect, unit| {
        let Picked { mechanism, places, .. } = pick(unit, effect, by, types, &refusals)?;
        // One tracepoint is that of several system calls.
        let functions: BTreeSet<_> = places.into_iter().map(|it| it.site.function).collect();
        Ok((mechanism, functions.into_iter().collect()))
    };
    let all = rules.iter().flat_map(|rule| units(rule).into_iter().map(|unit| (rule.effect(), unit)));
    all.map(|(effect, unit)| (unit, choose(effect, unit))).collect()
}
