//! A run that limits what cgroups do with block devices. Nothing in the kernel knows of its lease: the limits stay as
//! long as nobody takes them back.

use std::{cell::RefCell, fmt, time::Duration};

use chaos_ebpf::abi::{Control, Direction};
use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, faccessat},
};

use super::{
    Ending, Facts, HookRecord, Record, RuleRecord, RuleReport, Run, RunReport, SessionError,
    journal::Journal, preview::PreviewTarget,
};
use crate::{
    host::{Demands, HostError, Use, rights},
    kernel::{
        self,
        change::{Change, Ledger, Unwritten},
        counters::{Counters, Effects},
        mechanism::Mechanism,
        throttle::{self, BlockDevice, Limits, Tally, Throttle, ThrottleError},
    },
    spec::{Lines, shown},
    target::{self, Cgroup, Target, has_block_device},
};

/// A cgroup, a device, and how little it may do with that.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowRule {
    /// Whom.
    pub cgroup: Cgroup,
    /// With what.
    pub device: BlockDevice,
    /// How much at most.
    pub limits: Limits,
    /// The fault as it was written.
    pub label: String,
}

/// What is going to be done; nothing in it needs to be looked up again.
#[derive(Clone, Debug)]
pub struct SlowPlan {
    /// Whom it is aimed at.
    pub targets: Vec<Target>,
    /// The rules, each of another cgroup or another device.
    pub rules: Vec<SlowRule>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
}

/// What stands where an interface's name would.
const PLACE: &str = "block devices";

impl SlowPlan {
    /// Refuses what would only half work here.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn check(&self) -> Result<(), HostError> {
        Demands { uses: vec![Use::Programs], changes: true }.check()?;
        for SlowRule { cgroup, .. } in &self.rules {
            let path = cgroup.path.join(throttle::LIMITS);
            // Asked, and not tried: a plan opens nothing to be written.
            let limits = faccessat(AT_FDCWD, &path, AccessFlags::W_OK, AtFlags::AT_EACCESS);
            let limits = limits.map_err(std::io::Error::from);
            rights::explain(&limits, &[Use::Limits])?;
        }
        Ok(())
    }

    /// What it comes to, looked up and not set yet.
    fn throttles(&self, own: Option<&str>) -> Result<Vec<Throttle>, SessionError> {
        let all = Record::all()?.understood.into_iter();
        let others: Vec<_> = all.filter(|it| Some(it.id.as_str()) != own).collect();
        let mut throttles = Vec::new();
        for SlowRule { cgroup, device, limits, .. } in &self.rules {
            let has_it = |change: &Change| {
                change.throttle().is_some_and(|it| (it.cgroup, it.device) == (cgroup.id, *device))
            };
            if let Some(other) = others.iter().find(|other| other.changes().iter().any(has_it)) {
                let (folder, id) = (cgroup.path.clone(), other.id.clone());
                return Err(ThrottleError::Taken { folder, device: *device, id }.into());
            }
            throttles.push(Throttle::new(&cgroup.path, cgroup.id, *device, *limits)?);
        }
        Ok(throttles)
    }
}

/// All that it has in the kernel.
#[derive(Debug)]
pub(super) struct SlowRun {
    plan: SlowPlan,
    throttles: Vec<Throttle>,
    armed: bool,
    /// What had been counted when it was armed.
    before: Vec<Tally>,
    /// And when that was last looked at.
    now: RefCell<Vec<Tally>>,
}

impl SlowRun {
    /// What is said of a plan before anything is done.
    pub(super) fn facts(plan: &SlowPlan) -> Facts {
        let record = |rule: &SlowRule| RuleRecord {
            fault: rule.label.clone(),
            direction: Direction::Call,
            asked: None,
        };
        Facts {
            place: PLACE.into(),
            device: None,
            ifindex: 0,
            rules: plan.rules.iter().map(record).collect(),
            seed: None,
            duration: plan.duration,
            protected: String::new(),
            spares_a_session: false,
        }
    }

    /// Looks what is to be changed and writes it down; changes nothing yet.
    pub(super) fn prepare(plan: SlowPlan, journal: &mut Journal) -> Result<Self, SessionError> {
        let _held = journal.hold().map_err(unwritten)?;
        let throttles = plan.throttles(Some(journal.id()))?;
        for throttle in &throttles {
            journal.note(Change::Throttle(throttle.clone())).map_err(unwritten)?;
        }
        let none = vec![Tally::default(); throttles.len()];
        Ok(Self { plan, throttles, armed: false, before: none.clone(), now: none.into() })
    }

    /// What has been counted so far; of a cgroup that is gone, what was seen last.
    fn look(&self) -> kernel::Result<Vec<Tally>> {
        let mut now = self.now.borrow_mut();
        for (throttle, now) in self.throttles.iter().zip(now.iter_mut()) {
            *now = throttle.tally()?.unwrap_or(*now);
        }
        Ok(now.clone())
    }
}

pub(super) fn unwritten(error: Unwritten) -> SessionError {
    let other = |error| kernel::Error::new("write", "the journal", std::io::Error::other::<Unwritten>(error));
    error.downcast().map_or_else(|error| other(error).into(), |error| SessionError::Journal(*error))
}

impl Run for SlowRun {
    fn hooks(&self) -> Vec<HookRecord> {
        let record = |it: &Throttle| HookRecord {
            direction: Direction::Call,
            hook: Mechanism::IoMax,
            function: Some(format!("{} of {}", it.device, shown::name(&it.folder))),
            why: format!("set to {}", it.limits),
            program_id: None,
            link_id: None,
        };
        self.throttles.iter().map(record).collect()
    }

    fn counted(&mut self) -> kernel::Result<Vec<Tally>> {
        self.before = self.look()?;
        Ok(self.before.clone())
    }

    /// Its owner alone knows when its time is over.
    fn expire(&mut self, _tick: u64) -> kernel::Result<()> {
        Ok(())
    }

    fn set_control(&mut self, control: Control) -> kernel::Result<()> {
        match (self.armed, control.lease_until != 0) {
            (false, true) => {
                // Should one of them fail, all those before it are taken back by whoever ends the run.
                self.throttles.iter().try_for_each(Throttle::set)?;
                self.armed = true;
            }
            (true, false) => {
                let counted = self.look();
                self.armed = false;
                let undone: Vec<_> = self.throttles.iter().map(Throttle::undo).collect();
                undone.into_iter().chain([counted.map(drop)]).collect::<kernel::Result<()>>()?;
            }
            (true, true) | (false, false) => {}
        }
        Ok(())
    }

    fn targets(&self) -> &[Target] {
        &self.plan.targets
    }

    fn ending(&self) -> kernel::Result<Option<Ending>> {
        for throttle in &self.throttles {
            if !has_block_device(throttle.device) {
                return Ok(Some(Ending::DiskGone));
            }
            if throttle.is_whole()? == Some(false) {
                return Ok(Some(Ending::Overruled));
            }
        }
        Ok(None)
    }

    /// Since it was armed, and until it was disarmed.
    fn counters(&self) -> kernel::Result<Counters> {
        let now = if self.armed { self.look()? } else { self.now.borrow().clone() };
        Ok(throttle::counters(&self.throttles, &self.before, &now))
    }

    fn report(&self, counters: &Counters) -> RunReport {
        let seen = counters.seen[Direction::Call as usize];
        let counted = self.plan.rules.iter().zip(&counters.rules).enumerate();
        let rules = counted.map(|(number, (rule, count))| RuleReport {
            rule: number,
            fault: rule.label.clone(),
            direction: Direction::Call,
            asked: None,
            seen,
            matched: count.matched,
            eligible: 0,
            fired: count.fired,
            fired_background: 0,
            effects: Effects::default(),
            spares: false,
        });
        RunReport { rules: rules.collect(), ..RunReport::default() }
    }

    /// What it has changed is taken back from the journal.
    fn detach(&mut self) -> kernel::Result<u64> {
        Ok(0)
    }
}

/// What would be limited.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SlowPreview {
    /// The rules, in order.
    pub rules: Vec<String>,
    /// The processes that would be slowed down.
    pub targets: Vec<PreviewTarget>,
    /// What does not end by itself with the owner, and is written down before it is changed.
    pub journalled: Vec<String>,
}

impl SlowPlan {
    /// Looks, and touches nothing.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it could not be done.
    pub fn preview(&self) -> Result<SlowPreview, SessionError> {
        let change = |it: &Throttle| {
            let before = if it.before == Limits::default() { "none".into() } else { it.before.to_string() };
            let Throttle { folder, device, limits, .. } = it;
            format!("io.max of {} on {device} set to {limits}; before it: {before}", shown::name(&folder))
        };
        let journalled = self.throttles(None)?.iter().map(change).collect();
        let mut targets = Vec::new();
        for target in &self.targets {
            let processes = target.processes()?;
            targets.push(PreviewTarget { target: target.to_string(), processes: target::names(&processes)? });
        }
        let rules = self.rules.iter().map(|rule| rule.label.clone()).collect();
        Ok(SlowPreview { rules, targets, journalled })
    }
}

impl fmt::Display for SlowPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Lines(f);
        let Self { rules, targets, journalled } = self;
        writeln!(f, "plan, nothing is touched: {PLACE}")?;
        rules.iter().enumerate().try_for_each(|(number, rule)| writeln!(f, "  rule {number}: {rule}"))?;
        targets.iter().try_for_each(|target| writeln!(f, "  target: {target}"))?;
        writeln!(f, "  to be undone by more than the end of the process: {}", journalled.join("; "))
    }
}
