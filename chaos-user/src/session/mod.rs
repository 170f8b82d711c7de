//! The life of a fault: prepared -> armed -> disarmed -> detached -> verified.
//!
//! Each step consumes the one before. Whatever is dropped on the way, by an error or by the end of the
//! process, closes the links it holds, and the lease in the kernel ends what could still act.

mod backoff;
mod calls;
mod clocks;
mod enrol;
mod folder;
mod guard;
mod hands;
mod journal;
mod lease;
mod live;
mod members;
mod namespaces;
mod net;
mod preview;
mod process;
mod profile;
mod record;
mod report;
mod silent;
mod skew;
mod slow;
mod sweep;
mod undo;
mod verify;
mod watch;

use std::{fmt, io, time::Duration};

use chaos_ebpf::abi::Control;
use ipnet::IpNet;

pub use calls::{CallPlan, CallPreview};
pub use folder::JournalError;
pub use guard::{COMMAND as GUARD, guard};
pub use journal::{Begun, Entry, FORMAT, HookRecord, RuleRecord};
pub use lease::{LEASE, Lapsed, RENEWAL};
pub use live::{Live, State, live};
pub use namespaces::Namespaces;
pub use net::{NO_DEVICE, Plan};
pub use preview::{Preview, PreviewError};
pub use profile::{ApplyError, Target as ProfileRun};
pub use record::{Kept, Record, Records};
pub use report::{BACKGROUND, RuleReport, RunReport};
pub use skew::{SkewPlan, SkewPreview};
pub use slow::{SlowPlan, SlowPreview, SlowRule};
pub use sweep::{Left, SweepError, Swept, stop, sweep};
pub use verify::Dirty;
pub use watch::{Ending, Observer, watch};

use crate::{
    host::{self, HostError},
    kernel::{
        self, btf,
        clock::{self, Ticks},
        counters::{Counters, MapIds},
        mechanism::Mechanism,
        memory::ClockError,
        signals,
        throttle::{Tally, ThrottleError},
        vdso::VdsoError,
        wiring::CallsError,
    },
    target::{self, CgroupError, Target},
};
use calls::CallRun;
use journal::Journal;
use lease::Lease;
use net::NetRun;
use skew::SkewRun;
use slow::SlowRun;

/// A fault that could not be prepared, or whose owner lost hold of it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Something that it takes is missing here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(kernel::Error),
    /// The kernel does not say where it keeps what.
    #[error("{0}; {remedy}", remedy = Mechanism::Btf.remedy())]
    Types(kernel::Error),
    /// The kernel has no qdisc in which packets could wait.
    #[error("{0}; {remedy}", remedy = Mechanism::SchFq.remedy())]
    NoQueue(kernel::Error),
    /// The interface keeps offloads on.
    #[error(
        "{device} cannot switch off {stays}: a packet would not always be one on the wire; leave --exact out, and what it \
         makes of several packets is hit whole"
    )]
    NotExact {
        /// The interface.
        device: String,
        /// What stays on.
        stays: String,
    },
    /// The journal could not be written, and without it nothing is begun.
    #[error("{0}; without a journal there nothing is injected: make /run a writable tmpfs")]
    Journal(#[from] JournalError),
    /// What had been attached could not be removed again.
    #[error(transparent)]
    Dirty(#[from] Dirty),
    /// Nothing on this kernel by which calls could be hit.
    #[error(transparent)]
    Calls(#[from] CallsError),
    /// A cgroup that cannot be limited.
    #[error(transparent)]
    Throttle(#[from] ThrottleError),
    /// The vDSO of this kernel cannot be changed.
    #[error(transparent)]
    Vdso(#[from] VdsoError),
    /// That of a process cannot be.
    #[error("the clocks of process {process} cannot be wrong: {error}")]
    Clock {
        /// Which.
        process: u32,
        /// Why not.
        error: ClockError,
    },
    /// What system calls read cannot be rewritten.
    #[error("{error}; {remedy}, or leave --by out")]
    NoRewriting {
        /// The kernel's answer.
        error: kernel::Error,
        /// What to change.
        remedy: &'static str,
    },
    /// The target has gone meanwhile.
    #[error(transparent)]
    Target(#[from] CgroupError),
    /// The kernel does not list the connections that are to be reset.
    #[error("{0}; load the module tcp_diag, or use a kernel that has it (CONFIG_INET_TCP_DIAG)")]
    NoConnections(kernel::Error),
    /// Something of `/proc` could not be read.
    #[error("{call}: {source}")]
    Proc {
        /// The operation.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody asked for its end before it had begun.
    #[error("interrupted before it began; nothing was done")]
    Interrupted,
    /// It could not be prepared, and what had been done until then could not be undone.
    #[error("{error}; and of what was begun it is {dirty}")]
    Left {
        /// Why it could not be.
        error: Box<Self>,
        /// What is left.
        dirty: Dirty,
    },
}

impl SessionError {
    /// Fails once somebody has asked for the end of the run, whose programs take their time to load.
    fn if_interrupted() -> Result<(), Self> {
        if signals::is_pending() { Err(Self::Interrupted) } else { Ok(()) }
    }
}

impl From<kernel::Error> for SessionError {
    fn from(error: kernel::Error) -> Self {
        // One that is there and could not be read this time is no reason to use another kernel.
        let is_lacking = matches!(error.errno(), 0 | libc::ENOENT);
        if is_lacking && error.object.ends_with(btf::VMLINUX) {
            Self::Types(error)
        } else {
            Self::Kernel(error)
        }
    }
}

/// What a run has in the kernel, whichever kind it is.
trait Run: fmt::Debug {
    /// The hooks in use.
    fn hooks(&self) -> Vec<HookRecord>;

    /// By what others follow it, if it has programs.
    fn map_ids(&self) -> kernel::Result<Option<MapIds>> {
        Ok(None)
    }

    /// What has been counted of what its changes are about, before it is armed.
    fn counted(&mut self) -> kernel::Result<Vec<Tally>> {
        Ok(Vec::new())
    }

    /// What else is written down once it is prepared.
    fn more_entries(&mut self) -> kernel::Result<Vec<Entry>> {
        Ok(Vec::new())
    }

    /// Whether links alone hold it, for which the owner need not be where it acts.
    fn holds_itself(&self) -> bool {
        true
    }

    /// Has all rules end at this tick.
    fn expire(&mut self, tick: u64) -> kernel::Result<()>;

    /// Arms, renews or disarms: one write.
    fn set_control(&mut self, control: Control) -> kernel::Result<()>;

    /// Whom it is aimed at; nobody if at everybody.
    fn targets(&self) -> &[Target];

    /// What of that on which it acts has ended it, if anything has.
    fn ending(&self) -> kernel::Result<Option<Ending>> {
        Ok(None)
    }

    /// Whether anything changes while it runs.
    fn is_ramped(&self) -> bool {
        false
    }

    /// Writes what has changed in this time.
    fn ramp(&mut self, _elapsed: Duration) -> kernel::Result<()> {
        Ok(())
    }

    /// Begins to become right where that cannot be had at once, and says how long that takes, at about.
    fn settle(&mut self) -> Option<Duration> {
        None
    }

    /// Whether all is right that [`Run::settle`] began with.
    fn is_settled(&self) -> bool {
        true
    }

    /// Takes note of what a name stands for now.
    fn learn(&mut self, _name: &str, _addresses: &[IpNet]) -> kernel::Result<()> {
        Ok(())
    }

    /// Sees to it that nobody is taken for a process that has ended, by having its number.
    fn forget_the_dead(&mut self) -> kernel::Result<()> {
        Ok(())
    }

    /// Sets off what would not happen by itself, without waiting for it.
    fn prod(&self) -> kernel::Result<()> {
        Ok(())
    }

    /// What has been counted so far.
    fn counters(&self) -> kernel::Result<Counters>;

    /// The same, rule by rule.
    fn report(&self, counters: &Counters) -> RunReport;

    /// Detaches everything, and says how many packets did not come out of its queues.
    ///
    /// # Errors
    ///
    /// If that cannot be read. Everything is detached all the same.
    fn detach(&mut self) -> kernel::Result<u64>;
}

/// What is said of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Where it acts, for people.
    pub place: String,
    /// The interface, if it acts on one.
    pub device: Option<String>,
    ifindex: u32,
    /// The rules.
    pub rules: Vec<RuleRecord>,
    /// Seed of the random numbers, if there are any.
    pub seed: Option<u64>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// What is left alone whatever the rules say.
    pub protected: String,
    /// Whether the caller's own session is.
    pub spares_a_session: bool,
}

/// Everything is loaded and attached, and does nothing yet.
#[derive(Debug)]
pub struct Prepared {
    facts: Facts,
    run: Box<dyn Run>,
    journal: Journal,
}

impl Prepared {
    /// Loads and attaches what acts on packets and connections, disarmed.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was done until then is undone.
    pub fn new(plan: Plan) -> Result<Self, SessionError> {
        plan.check()?;
        Self::begin(NetRun::facts(&plan), |journal| Ok(Box::new(NetRun::attach(plan, journal)?)))
    }

    /// Loads and attaches what acts on system calls, disarmed.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was done until then is undone.
    pub fn of_calls(plan: CallPlan) -> Result<Self, SessionError> {
        plan.check()?;
        Self::begin(CallRun::facts(&plan), |_| Ok(Box::new(CallRun::attach(plan)?)))
    }

    /// Looks what is to be limited, and writes it down.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; nothing has been changed.
    pub fn of_slow(plan: SlowPlan) -> Result<Self, SessionError> {
        plan.check()?;
        Self::begin(SlowRun::facts(&plan), |journal| Ok(Box::new(SlowRun::prepare(plan, journal)?)))
    }

    /// Changes what processes read their clocks by, so that they go on being right until it is armed.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was done until then is undone.
    pub fn of_skew(plan: SkewPlan) -> Result<Self, SessionError> {
        plan.check()?;
        Self::begin(SkewRun::facts(&plan), |journal| Ok(Box::new(SkewRun::prepare(plan, journal)?)))
    }

    fn begin(
        facts: Facts,
        attach: impl FnOnce(&mut Journal) -> Result<Box<dyn Run>, SessionError>,
    ) -> Result<Self, SessionError> {
        let proc = |source| SessionError::Proc { call: "read /proc/self/stat", source };
        SessionError::if_interrupted()?;
        let owner = kernel::process::Process::current().map_err(proc)?;
        let begun = Begun {
            format: FORMAT,
            namespaces: Namespaces::own()?,
            owner,
            device: facts.device.clone(),
            ifindex: facts.ifindex,
            netns: target::current_netns()?,
            boot_id: host::boot_id().map_err(|source| SessionError::Proc { call: "read boot_id", source })?,
            rules: facts.rules.clone(),
            seed: facts.seed,
        };
        let mut journal = Journal::begin(begun)?;
        match attach(&mut journal) {
            Ok(run) => {
                let mut prepared = Self { facts, run, journal };
                match prepared.record() {
                    Ok(()) => Ok(prepared),
                    Err(error) => Err(prepared.given_up(error)),
                }
            }
            Err(error) => {
                // What could not be taken back is left, with the record of it, for the next sweep.
                let undone = journal.take_back().and_then(|()| {
                    verify::gone(&[], journal.changes())?;
                    journal.end().map_err(Dirty::journal)
                });
                Err(left(error, undone.err()))
            }
        }
    }

    fn record(&mut self) -> Result<(), SessionError> {
        let prepared = Entry::Prepared { hooks: self.run.hooks(), maps: self.run.map_ids()? };
        self.journal.append(&prepared)?;
        for entry in self.run.more_entries()? {
            self.journal.append(&entry)?;
        }
        Ok(())
    }

    /// Ends what an error has stopped; what remains to be said is that error, and that something is left.
    fn given_up(self, error: SessionError) -> SessionError {
        left(error, self.end().dirty)
    }

    /// The run's id, by which `faultline stop` knows it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.journal.id()
    }

    /// What is going to be done.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The hooks in use.
    #[must_use]
    pub fn hooks(&self) -> Vec<HookRecord> {
        self.run.hooks()
    }

    /// Whether links alone hold it, for which the owner need not be where the interface is.
    #[must_use]
    pub fn holds_itself(&self) -> bool {
        self.journal.changes().is_empty() && self.run.holds_itself()
    }

    /// Arms: from here on it acts.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; nothing was hit then.
    pub fn arm(mut self) -> Result<Armed, SessionError> {
        let now = clock::monotonic();
        let until = self.facts.duration.map(|duration| now.saturating_add(duration.as_nanos() as u64));
        match self.switch_on(now, until) {
            Ok(lease) => Ok(Armed { prepared: self, since: now, until, lease }),
            Err(error) => Err(self.given_up(error)),
        }
    }

    fn switch_on(&mut self, now: u64, until: Option<u64>) -> Result<Lease, SessionError> {
        let ticks = Ticks::read()?;
        self.run.expire(ticks.at(until.unwrap_or(u64::MAX)))?;
        let counted = self.run.counted()?;
        self.journal.append(&Entry::Armed { at_ns: now, until_ns: until, counted })?;
        Ok(Lease::begin(&mut *self.run, ticks, now)?)
    }

    /// Detaches what is disarmed, and checks that nothing is left. The counts are those after the last packet.
    #[must_use]
    pub fn end(self) -> Ended {
        let Self { facts: _, mut run, journal } = self;
        let hooks = run.hooks();
        let queues = run.detach();
        let taken_back = journal.take_back();
        let counters = run.counters();
        let mut report =
            counters.as_ref().map_or_else(|_| RunReport::default(), |counters| run.report(counters));
        match queues {
            Ok(lost) => report.queue_lost = Some(lost),
            Err(error) => {
                report
                    .remarks
                    .push(format!("how many packets were lost while they waited is not known: {error}"));
            }
        }
        drop(run);
        let undone = taken_back.and_then(|()| {
            verify::gone(&hooks, journal.changes())?;
            journal.end().map_err(Dirty::journal)
        });
        Ended { report, uncounted: counters.err(), dirty: undone.err() }
    }
}

/// What has become of a run that is over.
#[derive(Debug)]
pub struct Ended {
    /// What it did; without any rule if that could not be counted.
    pub report: RunReport,
    /// Why it could not be.
    pub uncounted: Option<kernel::Error>,
    /// What is still there of it, or why that cannot be established.
    pub dirty: Option<Dirty>,
}

/// The error that has stopped a run, with what is left of that.
fn left(error: SessionError, dirty: Option<Dirty>) -> SessionError {
    match dirty {
        Some(dirty) => SessionError::Left { error: Box::new(error), dirty },
        None => error,
    }
}

/// It acts for as long as the lease is renewed.
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
        self.prepared.facts.duration
    }

    /// Time since it was armed, and time left if its end is known.
    #[must_use]
    pub fn time(&self) -> (Duration, Option<Duration>) {
        let now = clock::monotonic();
        let left = self.until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        (Duration::from_nanos(now.saturating_sub(self.since)), left)
    }

    /// Writes what has changed since it was armed.
    fn ramp(&mut self) -> kernel::Result<()> {
        let elapsed = Duration::from_nanos(clock::exact().saturating_sub(self.since));
        self.prepared.run.ramp(elapsed)
    }

    /// What has been counted so far.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counts(&self) -> kernel::Result<RunReport> {
        let run = &self.prepared.run;
        Ok(run.report(&run.counters()?))
    }

    /// Disarms, detaches, and checks that nothing is left. The counts are those after the last packet.
    #[must_use]
    pub fn end(self) -> Ended {
        let Self { mut prepared, since: _, until: _, lease } = self;
        let disarmed = lease.end(&mut *prepared.run);
        let mut ended = prepared.end();
        if let Err(error) = disarmed {
            // The lease ends the same way, and the links close at any rate: that they have is looked at.
            ended.report.remarks.push(format!("it was detached without being disarmed first: {error}"));
        }
        ended
    }
}
