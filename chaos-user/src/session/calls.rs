//! A run that acts on system calls.

use std::{fmt, time::Duration};

use chaos_ebpf::{
    abi::{Control, Direction, HOOKS},
    call::Inode,
    decide::eligible,
};

use super::{
    Facts, HookRecord, PreviewError, RuleRecord, RuleReport, Run, RunReport, SessionError,
    enrol::{enrol, trees},
    preview::{ASKED, PreviewTarget, unsure},
};
use crate::{
    fault::{CallRule, CallTables},
    host::{Demands, HostError, Use},
    kernel::{
        self,
        btf::KernelTypes,
        calls::{CallPrograms, Exempt},
        counters::{Counters, MapIds},
        mechanism::Mechanism,
        probe::{self, Outlook, State},
        wiring::{self, CallsError},
    },
    spec::Lines,
    target::{self, Target},
};

/// What is going to be done; nothing in it needs to be looked up or checked again.
#[derive(Clone, Debug)]
pub struct CallPlan {
    /// Whose calls; without any, everybody's.
    pub targets: Vec<Target>,
    /// The rules.
    pub rules: Vec<CallRule>,
    /// The same as the programs look them up.
    pub tables: CallTables,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// By which mechanism, if not by the best there is.
    pub by: Option<Mechanism>,
    /// The injector's own files, which are never hit.
    pub own_files: [Inode; 2],
}

/// What stands where an interface's name would.
const PLACE: &str = "system calls";

/// All that it has in the kernel.
#[derive(Debug)]
pub(super) struct CallRun {
    plan: CallPlan,
    programs: CallPrograms,
}

impl CallRun {
    /// What is said of a plan before anything is done.
    pub(super) fn facts(plan: &CallPlan) -> Facts {
        let record = |rule: &CallRule| RuleRecord {
            fault: rule.label.clone(),
            direction: Direction::Call,
            asked: Some(rule.chance),
        };
        Facts {
            place: PLACE.into(),
            device: None,
            ifindex: 0,
            rules: plan.rules.iter().map(record).collect(),
            seed: Some(plan.seed),
            duration: plan.duration,
            protected: String::new(),
            spares_a_session: false,
        }
    }

    /// Loads and attaches, disarmed.
    pub(super) fn attach(plan: CallPlan) -> Result<Self, SessionError> {
        let exempt = Exempt { owner_tgid: probe::own_tgid()?, files: plan.own_files };
        let programs = CallPrograms::new(&plan.rules, &plan.tables, plan.by, exempt)?;
        SessionError::if_interrupted()?;
        let rules_of = |process| plan.tables.processes.get(&process).copied().unwrap_or(0);
        enrol(&trees(&plan.targets, rules_of), &mut programs.roll()?)?;
        Ok(Self { plan, programs })
    }
}

impl Run for CallRun {
    fn hooks(&self) -> Vec<HookRecord> {
        self.programs.attached().iter().map(HookRecord::of_call).collect()
    }

    fn map_ids(&self) -> kernel::Result<Option<MapIds>> {
        self.programs.map_ids().map(Some)
    }

    fn expire(&mut self, tick: u64) -> kernel::Result<()> {
        for rule in &mut self.plan.tables.rules {
            rule.expires_at = tick;
        }
        self.programs.set_rules(&self.plan.tables.rules)
    }

    fn set_control(&mut self, control: Control) -> kernel::Result<()> {
        self.programs.set_control(control)
    }

    fn targets(&self) -> &[Target] {
        &self.plan.targets
    }

    fn counters(&self) -> kernel::Result<Counters> {
        self.programs.counters()
    }

    fn report(&self, counters: &Counters) -> RunReport {
        let seen = counters.seen.get(HOOKS - 1).copied().unwrap_or_default();
        let counted = self.plan.rules.iter().zip(&counters.rules).enumerate();
        let rules = counted.map(|(number, (rule, count))| RuleReport {
            rule: number,
            fault: rule.label.clone(),
            direction: Direction::Call,
            asked: Some(rule.chance),
            seen,
            matched: count.matched,
            eligible: eligible(&rule.window, count.matched.packets),
            fired: count.fired,
            fired_background: 0,
            effects: count.effects,
            spares: false,
        });
        RunReport { rules: rules.collect(), spared: counters.spared, ..RunReport::default() }
    }

    fn detach(&mut self) -> kernel::Result<u64> {
        self.programs.detach();
        Ok(0)
    }
}

const _: () = assert!(Direction::Call as usize == HOOKS - 1);

/// What would be hit, by what.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CallPreview {
    /// The rules, in order.
    pub rules: Vec<String>,
    /// What each operation and system call of these would be hit by.
    pub hooks: Vec<CallHook>,
    /// The processes that are aimed at; without any, everybody's calls are.
    pub targets: Vec<PreviewTarget>,
    /// Longest that a call would wait, keeping its CPU, in nanoseconds.
    pub busy_wait_ns: u64,
}

/// By what an operation or a system call would be hit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CallHook {
    /// The operation, or the system call.
    pub what: String,
    /// The mechanism; none if the kernel has none.
    pub mechanism: Option<Mechanism>,
    /// The kernel's functions, or its tracepoint.
    pub functions: Vec<String>,
    /// Why there is none, and what to change.
    pub missing: Option<String>,
    /// Whether it is known without a try that the kernel has the mechanism.
    pub is_known: bool,
}

impl CallPreview {
    /// Whether the kernel has all that it takes.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.hooks.iter().all(|hook| hook.mechanism.is_some())
    }
}

impl CallPlan {
    /// Refuses what would only half work here.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn check(&self) -> Result<(), HostError> {
        Demands { uses: vec![Use::Programs], changes: false }.check()
    }

    /// Looks, and touches nothing.
    ///
    /// # Errors
    ///
    /// [`PreviewError`].
    pub fn preview(&self) -> Result<CallPreview, PreviewError> {
        let kernel = Outlook::default();
        let types = KernelTypes::read()?;
        let has = |mechanism| !kernel.lacks(mechanism);
        let hook = |(unit, found): (wiring::Unit, Result<wiring::Choice, CallsError>)| {
            let (found, missing) = match found {
                Ok(found) => (Some(found), None),
                Err(error) => (None, Some(error.to_string())),
            };
            let (mechanism, functions) = found.unzip();
            let functions = functions.unwrap_or_default();
            let is_known = mechanism.is_none_or(|it| kernel.state(it) != State::Unknown);
            CallHook { what: unit.to_string(), mechanism, functions, missing, is_known }
        };
        let is_let = |function: &str| kernel.lets_bpf(function, types);
        let hooks = wiring::preview(&self.rules, self.by, has, is_let, types);
        let mut targets = Vec::new();
        for target in &self.targets {
            let processes = target::names(&target.processes()?)?;
            targets.push(PreviewTarget { target: target.to_string(), processes });
        }
        Ok(CallPreview {
            rules: self.rules.iter().map(|rule| rule.label.clone()).collect(),
            hooks: hooks.into_iter().map(hook).collect(),
            targets,
            busy_wait_ns: CallTables::longest_wait(&self.rules),
        })
    }
}

impl fmt::Display for CallPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Lines(f);
        writeln!(f, "plan, nothing is touched: {PLACE}")?;
        for (number, rule) in self.rules.iter().enumerate() {
            writeln!(f, "  rule {number}: {rule}")?;
        }
        for CallHook { what, mechanism, functions, missing, is_known } in &self.hooks {
            match (mechanism, missing) {
                (Some(mechanism), _) => {
                    let unsure = if *is_known { String::new() } else { unsure(&[*mechanism]) };
                    writeln!(f, "  {what}: by {mechanism}: {}{unsure}", functions.join(", "))?;
                }
                (None, missing) => writeln!(f, "  {}", missing.as_deref().unwrap_or(what))?,
            }
        }
        if self.targets.is_empty() {
            writeln!(f, "  target: everybody but the first process and the kernel's own")?;
        }
        for target in &self.targets {
            writeln!(f, "  target: {target}")?;
        }
        if self.busy_wait_ns > 0 {
            let wait = humantime::format_duration(Duration::from_nanos(self.busy_wait_ns));
            writeln!(f, "  a call that is hit keeps its CPU for up to {wait}")?;
        }
        writeln!(f, "  to be undone by more than the end of the process: nothing")?;
        writeln!(f, "  {ASKED}")
    }
}
