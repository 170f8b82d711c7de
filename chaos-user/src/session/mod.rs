//! The life of a fault: prepared -> armed -> disarmed -> detached -> verified.
//!
//! Each step consumes the one before. Whatever is dropped on the way, by an error or by the end of the
//! process, closes the links it holds, and the lease in the kernel ends what could still act.

mod journal;
mod lease;
mod live;
mod process;
mod record;
mod sweep;
mod undo;
mod verify;
mod watch;

use std::{io, time::Duration};

use chaos_ebpf::{
    abi::{Count, Direction},
    decide::eligible,
};

pub use journal::{Begun, Entry, HookRecord, JournalError, RuleRecord};
pub use lease::{LEASE, Lapsed, RENEWAL};
pub use live::{Live, State, live};
pub use process::Process;
pub use record::Record;
pub use sweep::{SweepError, Swept, stop, sweep};
pub use verify::Dirty;
pub use watch::{Ending, Observer, Signals, watch};

use crate::{
    fault::{Rule, Tables},
    kernel::{
        self,
        attach::Attachment,
        btf,
        clock::{self, Ticks},
        counters::Counters,
        mechanism::{Fault, Mechanism},
        probe,
        programs::{Environment, Programs},
    },
    target::{self, Device},
};
use journal::Journal;
use lease::Lease;

/// What is going to be done; nothing in it needs to be looked up or checked again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interface.
    pub device: Device,
    /// The rules, at most [`MAX_RULES`](chaos_ebpf::abi::MAX_RULES).
    pub rules: Vec<Rule>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
}

/// A fault that could not be prepared, or whose owner lost hold of it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(kernel::Error),
    /// The kernel does not say where it keeps what.
    #[error("{0}; {remedy}", remedy = Mechanism::Btf.remedy())]
    Types(kernel::Error),
    /// The journal could not be written, and without it nothing is begun.
    #[error("{0}; without a journal there nothing is injected: make /run a writable tmpfs")]
    Journal(#[from] JournalError),
    /// What had been attached could not be removed again.
    #[error(transparent)]
    Dirty(#[from] Dirty),
    /// Something of `/proc` could not be read.
    #[error("{call}: {source}")]
    Proc {
        /// The operation.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl From<kernel::Error> for SessionError {
    fn from(error: kernel::Error) -> Self {
        if error.object.ends_with(btf::VMLINUX) { Self::Types(error) } else { Self::Kernel(error) }
    }
}

/// Everything is loaded and attached, and does nothing yet.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    tables: Tables,
    programs: Programs,
    attachments: Vec<Attachment>,
    journal: Journal,
}

impl Prepared {
    /// Loads and attaches, disarmed.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was done until then is undone.
    pub fn new(plan: Plan) -> Result<Self, SessionError> {
        let proc = |call| move |source| SessionError::Proc { call, source };
        let owner = Process::current().map_err(proc("read /proc/self/stat"))?;
        let begun = Begun {
            owner,
            device: plan.device.name.clone(),
            ifindex: plan.device.ifindex,
            netns: target::current_netns().map_err(proc("stat /proc/thread-self/ns/net"))?,
            rules: plan.rules.iter().map(rule_record).collect(),
            seed: plan.seed,
        };
        let mut journal = Journal::begin(begun)?;
        match Self::attach(&plan, &mut journal) {
            Ok((tables, programs, attachments)) => {
                let mut prepared = Self { plan, tables, programs, attachments, journal };
                match prepared.record() {
                    Ok(()) => Ok(prepared),
                    Err(error) => Err(prepared.given_up(error)),
                }
            }
            Err(error) => {
                // What could not be taken back is left, with the record of it, for the next sweep.
                let clean = journal.take_back().and_then(|()| verify::gone(&[], journal.changes()));
                if clean.is_ok() {
                    journal.end()?;
                }
                Err(error.into())
            }
        }
    }

    fn attach(plan: &Plan, journal: &mut Journal) -> kernel::Result<(Tables, Programs, Vec<Attachment>)> {
        let tables = Tables::new(&plan.rules);
        let environment = Environment { owner_tgid: probe::own_tgid(), ethernet: plan.device.ethernet };
        let mut programs = Programs::load(&tables, plan.seed, environment)?;
        let mut attachments = Vec::new();
        for direction in [Direction::In, Direction::Out].into_iter().filter(|way| tables.acts(*way)) {
            let attachment = Attachment::new(&mut programs, &plan.device, Fault::Loss, direction, journal)?;
            attachments.push(attachment);
        }
        Ok((tables, programs, attachments))
    }

    fn record(&mut self) -> Result<(), SessionError> {
        let entry = Entry::Prepared { hooks: self.hooks(), maps: self.programs.map_ids()? };
        Ok(self.journal.append(&entry)?)
    }

    /// Ends what an error has stopped; what remains to be said is that error, or that something is left.
    fn given_up(self, error: SessionError) -> SessionError {
        self.end().map_or_else(SessionError::from, |_| error)
    }

    /// The run's id, by which `faultline stop` knows it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.journal.id()
    }

    /// What is going to be done.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The hooks in use.
    #[must_use]
    pub fn hooks(&self) -> Vec<HookRecord> {
        self.attachments.iter().map(hook_record).collect()
    }

    /// Whether links alone hold it, for which the owner need not be where the interface is.
    #[must_use]
    pub fn holds_itself(&self) -> bool {
        self.journal.changes().is_empty()
    }

    /// Arms: from here on packets are hit.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; nothing was hit then.
    pub fn arm(mut self) -> Result<Armed, SessionError> {
        let now = clock::monotonic();
        let until = self.plan.duration.map(|duration| now.saturating_add(duration.as_nanos() as u64));
        match self.switch_on(now, until) {
            Ok(lease) => Ok(Armed { prepared: self, since: now, until, lease }),
            Err(error) => Err(self.given_up(error)),
        }
    }

    fn switch_on(&mut self, now: u64, until: Option<u64>) -> Result<Lease, SessionError> {
        let ticks = Ticks::read()?;
        for rule in &mut self.tables.rules {
            rule.expires_at = ticks.at(until.unwrap_or(u64::MAX));
        }
        self.programs.set_rules(&self.tables.rules)?;
        self.journal.append(&Entry::Armed { at_ns: now, until_ns: until })?;
        Ok(Lease::begin(&mut self.programs, ticks, now)?)
    }

    /// Detaches what is disarmed, and checks that nothing is left. The counts are those after the last packet.
    ///
    /// # Errors
    ///
    /// [`Dirty`] if something is still there, or that cannot be established.
    pub fn end(self) -> Result<Vec<RuleReport>, Dirty> {
        let Self { plan, tables: _, programs, attachments, journal } = self;
        let hooks: Vec<_> = attachments.iter().map(hook_record).collect();
        drop(attachments);
        let taken_back = journal.take_back();
        let counters = programs.counters();
        drop(programs);
        taken_back?;
        verify::gone(&hooks, journal.changes())?;
        journal.end().map_err(Dirty::journal)?;
        Ok(report(&plan.rules, &counters.map_err(Dirty::unknown)?))
    }
}

fn rule_record(rule: &Rule) -> RuleRecord {
    RuleRecord { fault: rule.label.clone(), direction: rule.direction, asked: rule.asked }
}

fn hook_record(attachment: &Attachment) -> HookRecord {
    HookRecord {
        direction: attachment.direction,
        hook: attachment.mechanism,
        why: attachment.why.clone(),
        program_id: attachment.program,
        link_id: attachment.link(),
    }
}

/// Packets are hit for as long as the lease is renewed.
#[derive(Debug)]
pub struct Armed {
    prepared: Prepared,
    since: u64,
    until: Option<u64>,
    lease: Lease,
}

impl Armed {
    /// Since when, `CLOCK_MONOTONIC` nanoseconds.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// How long it was to be, if that was said.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        self.prepared.plan.duration
    }

    /// Time since it was armed, and time left if its end is known.
    #[must_use]
    pub fn time(&self) -> (Duration, Option<Duration>) {
        let now = clock::monotonic();
        let left = self.until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        (Duration::from_nanos(now.saturating_sub(self.since)), left)
    }

    /// What has been counted so far.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counts(&self) -> kernel::Result<Vec<RuleReport>> {
        let counters = self.prepared.programs.counters()?;
        Ok(report(&self.prepared.plan.rules, &counters))
    }

    /// Disarms, detaches, and checks that nothing is left. The counts are those after the last packet.
    ///
    /// # Errors
    ///
    /// [`Dirty`] if something is still there, or that cannot be established.
    pub fn end(self) -> Result<Vec<RuleReport>, Dirty> {
        let Self { mut prepared, since: _, until: _, lease } = self;
        // Should this write fail, the lease ends the same way, and the links close at any rate.
        let disarmed = lease.end(&mut prepared.programs);
        let rules = prepared.end()?;
        disarmed.map_err(Dirty::unknown)?;
        Ok(rules)
    }
}

/// What became of a rule.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RuleReport {
    /// Its number.
    pub rule: usize,
    /// The fault as it was written.
    pub fault: String,
    /// Which packets it acts on.
    pub direction: Direction,
    /// The chance asked for, between 0 and 1.
    pub asked: f64,
    /// Packets that came by its hook while armed.
    pub seen: Count,
    /// Packets among them that met its conditions.
    pub matched: Count,
    /// Packets among these that its window let it act on.
    pub eligible: u64,
    /// Packets it acted on.
    pub fired: Count,
}

fn report(rules: &[Rule], counters: &Counters) -> Vec<RuleReport> {
    let counted = rules.iter().zip(&counters.rules).enumerate();
    counted
        .map(|(number, (rule, count))| RuleReport {
            rule: number,
            fault: rule.label.clone(),
            direction: rule.direction,
            asked: rule.asked,
            seen: counters.seen[rule.direction as usize],
            matched: count.matched,
            eligible: eligible(&rule.window, count.matched.packets),
            fired: count.fired,
        })
        .collect()
}
