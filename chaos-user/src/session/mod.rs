//! The life of a fault: prepared -> armed -> disarmed -> detached -> verified.
//!
//! Each step consumes the one before. Whatever is dropped on the way, by an error or by the end of the
//! process, closes the links it holds, and the lease in the kernel ends what could still act.

mod journal;
mod lease;
mod live;
mod preview;
mod process;
mod profile;
mod record;
mod report;
mod sweep;
mod undo;
mod verify;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use chaos_ebpf::abi::{DIRECTIONS, Direction};
use ipnet::IpNet;

pub use journal::{Begun, Entry, HookRecord, JournalError, RuleRecord};
pub use lease::{LEASE, Lapsed, RENEWAL};
pub use live::{Live, State, live};
pub use preview::{Preview, PreviewError};
pub use process::Process;
pub use profile::{ApplyError, Target as ProfileRun};
pub use record::Record;
pub use report::{RuleReport, RunReport};
pub use sweep::{SweepError, Swept, stop, sweep};
pub use verify::Dirty;
pub use watch::{Ending, Observer, Signals, watch};

use crate::{
    fault::{Rule, Tables},
    kernel::{
        self,
        attach::Attachment,
        btf, change,
        clock::{self, Ticks},
        detour::{Detour, Queue},
        mechanism::Mechanism,
        probe,
        prod::Prod,
        programs::{self, Environment, Programs},
    },
    target::{self, CgroupError, Device, Protected, Target},
};
use journal::Journal;
use lease::Lease;
use report::report;

/// What is going to be done; nothing in it needs to be looked up or checked again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interface; none where no packets are hit.
    pub device: Option<Device>,
    /// Whose packets; without any, everybody's.
    pub targets: Vec<Target>,
    /// The rules, at most [`MAX_RULES`](chaos_ebpf::abi::MAX_RULES).
    pub rules: Vec<Rule>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// How many packets may wait in each direction.
    pub limit: u32,
    /// Whether the interface's own segmentation is switched off.
    pub exact: bool,
    /// What is left alone whatever the rules say.
    pub protected: Protected,
}

impl Plan {
    /// The targets that rules of a kind are aimed at.
    fn named_by(&self, kind: impl Fn(&Rule) -> bool) -> impl Iterator<Item = &Target> {
        let wanted: Vec<_> = self.rules.iter().filter(|rule| kind(rule)).map(|rule| &rule.matches).collect();
        self.targets.iter().filter(move |target| match target {
            Target::Cgroup(cgroup) => wanted.iter().flat_map(|it| &it.cgroups).any(|it| it.id == cgroup.id),
            Target::Process(tree) => wanted.iter().any(|it| it.processes.contains(&tree.pid)),
        })
    }

    /// Where it acts, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        self.device.as_ref().map_or(NO_DEVICE, |device| &device.name)
    }
}

/// Their cgroups' folders, each once and without those below others: a program runs once for each that it is attached to.
fn outermost<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<&'a Path> {
    let all: BTreeSet<&Path> = targets.map(Target::folder).collect();
    let is_below = |folder: &Path| all.iter().any(|other| *other != folder && folder.starts_with(other));
    all.iter().copied().filter(|folder| !is_below(folder)).collect()
}

/// What stands where an interface's name would, for a run that has none.
pub const NO_DEVICE: &str = "connect()";

/// A fault that could not be prepared, or whose owner lost hold of it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(kernel::Error),
    /// The kernel does not say where it keeps what.
    #[error("{0}; {remedy}", remedy = Mechanism::Btf.remedy())]
    Types(kernel::Error),
    /// The kernel has no qdisc in which packets could wait.
    #[error("{0}; {remedy}", remedy = Mechanism::SchFq.remedy())]
    NoQueue(kernel::Error),
    /// The journal could not be written, and without it nothing is begun.
    #[error("{0}; without a journal there nothing is injected: make /run a writable tmpfs")]
    Journal(#[from] JournalError),
    /// What had been attached could not be removed again.
    #[error(transparent)]
    Dirty(#[from] Dirty),
    /// The target has gone meanwhile.
    #[error(transparent)]
    Target(#[from] CgroupError),
    /// The connections that are to be reset could not be looked up.
    #[error("look up open connections: {0}")]
    Flows(#[from] PreviewError),
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
    detours: Vec<Detour>,
    prod: Option<Prod>,
    /// How many addresses more names have come to stand for.
    learnt: usize,
    journal: Journal,
}

/// All that a run has in the kernel.
struct Loaded {
    tables: Tables,
    programs: Programs,
    attachments: Vec<Attachment>,
    detours: Vec<Detour>,
    prod: Option<Prod>,
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
            device: plan.device.as_ref().map(|device| device.name.clone()),
            ifindex: plan.device.as_ref().map_or(0, |device| device.ifindex),
            netns: target::current_netns().map_err(proc("stat /proc/thread-self/ns/net"))?,
            rules: plan.rules.iter().map(rule_record).collect(),
            seed: plan.seed,
        };
        let mut journal = Journal::begin(begun)?;
        match Self::attach(&plan, &mut journal) {
            Ok(Loaded { tables, programs, attachments, detours, prod }) => {
                let mut prepared =
                    Self { plan, tables, programs, attachments, detours, prod, learnt: 0, journal };
                match prepared.record() {
                    Ok(()) => Ok(prepared),
                    Err(error) => Err(prepared.given_up(error)),
                }
            }
            Err(error) => {
                // What could not be taken back is left, with the record of it, for the next sweep.
                let taken_back = journal.take_back();
                if taken_back.is_ok() && verify::gone(&[], journal.changes()).is_ok() {
                    journal.end()?;
                }
                Err(error)
            }
        }
    }

    fn attach(plan: &Plan, journal: &mut Journal) -> Result<Loaded, SessionError> {
        let tables = Tables::new(&plan.rules, plan.seed);
        let mut detours = Vec::new();
        let (mut near, mut far) = ([0; DIRECTIONS], [0; DIRECTIONS]);
        let directions: Vec<_> =
            [Direction::In, Direction::Out].into_iter().filter(|way| tables.acts(*way)).collect();
        for direction in &directions {
            if let Some(detour) = detour(plan, *direction, journal.id())? {
                (near[*direction as usize], far[*direction as usize]) = (detour.near, detour.far);
                detours.push((*direction, detour));
            }
        }
        let (protect, session) = plan.protected.given();
        let ifindex = plan.device.as_ref().map_or(0, |device| device.ifindex);
        let environment = Environment {
            protect,
            session,
            owner_tgid: probe::own_tgid(),
            ethernet: plan.device.as_ref().is_some_and(|device| device.ethernet),
            ifindex,
            place: place(journal.netns(), ifindex),
            near,
            far,
            generation: clock::exact(),
        };
        let mut programs = Programs::load(&tables, plan.seed, environment)?;
        for (direction, detour) in &mut detours {
            detour.attach(&mut programs, *direction)?;
        }
        let mut attachments = Vec::new();
        if let Some(device) = &plan.device {
            for direction in directions {
                let rules = plan.rules.iter().filter(|rule| rule.direction == direction);
                let faults: Vec<_> = rules.flat_map(Rule::faults).collect();
                attachments.push(Attachment::new(&mut programs, device, &faults, direction, journal)?);
            }
            if plan.exact {
                change::features_off(device.ifindex, journal)?;
            }
        }
        for folder in outermost(plan.named_by(|rule| rule.direction == Direction::Connect)) {
            attachments.extend(Attachment::to_cgroup(&mut programs, folder)?);
        }
        let trees = || plan.targets.iter().filter(|target| matches!(target, Target::Process(_)));
        // New sockets first: those that are made meanwhile are not to be missed.
        for folder in outermost(trees()) {
            attachments.push(Attachment::of_sockets(&mut programs, folder)?);
        }
        // Whoever is of several has the rules of all.
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        for target in trees() {
            let Target::Process(tree) = target else { continue };
            let rules = tables.processes.get(&tree.pid).copied().unwrap_or(0);
            for process in target.processes()? {
                *wanted.entry(process).or_default() |= rules;
            }
        }
        for (process, rules) in wanted {
            kernel::sockets::each(process, |socket| programs.mark(socket, rules))?;
        }
        let detours = detours.into_iter().map(|(_, detour)| detour).collect();
        let prod = plan.rules.iter().any(Rule::resets).then(Prod::open).transpose()?;
        Ok(Loaded { tables, programs, attachments, detours, prod })
    }

    fn record(&mut self) -> Result<(), SessionError> {
        let entry = Entry::Prepared { hooks: self.hooks(), maps: self.programs.map_ids()? };
        self.journal.append(&entry)?;
        let used = self.tables.profile.each_ref().map(Option::is_some);
        if used.contains(&true) {
            let ids = self.programs.profile_ids(used)?;
            self.journal.append(&Entry::Profile { ids, limit: self.plan.limit })?;
        }
        Ok(())
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
        self.journal.changes().is_empty() && self.detours.is_empty() && self.prod.is_none()
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
    pub fn end(self) -> Result<RunReport, Dirty> {
        let Self { plan, tables: _, programs, attachments, detours, prod: _, learnt: _, journal } = self;
        let hooks: Vec<_> = attachments.iter().map(hook_record).collect();
        // What waits still comes, by the way back and past the programs, which are disarmed.
        let queues: kernel::Result<Vec<_>> = detours.iter().map(|detour| detour.drain(DRAIN)).collect();
        drop(attachments);
        drop(detours);
        let taken_back = journal.take_back();
        let counters = programs.counters();
        drop(programs);
        let _held = taken_back?;
        verify::gone(&hooks, journal.changes())?;
        journal.end().map_err(Dirty::journal)?;
        let mut report = report(&plan.rules, &counters.map_err(Dirty::unknown)?);
        // Of an interface that is gone the detours are as well, if its network namespace is.
        let unsent = queues.unwrap_or_default();
        report.queue_lost = unsent.iter().map(|queue| queue.lost + u64::from(queue.waiting)).sum();
        Ok(report)
    }
}

/// An even number of this interface's and, but for one chance in two billion, no other's on the machine, with which
/// packets are marked.
fn place(netns: u64, ifindex: u32) -> u32 {
    // Namespaces' numbers are next to each other, as interfaces' are: they must not add up to the same.
    ((netns as u32).wrapping_mul(0x9e37_79b1) ^ ifindex << 1) & !1
}

/// The way round of the packets that go this way, if any need one.
fn detour(plan: &Plan, direction: Direction, id: &str) -> Result<Option<Detour>, SessionError> {
    let rules: Vec<_> = plan.rules.iter().filter(|rule| rule.direction == direction).collect();
    if !rules.iter().any(|rule| rule.needs_detour()) {
        return Ok(None);
    }
    let waits = rules.iter().any(|rule| rule.impairments.waits());
    let queue = waits.then_some(Queue { limit: plan.limit, horizon: HORIZON });
    let checksums = !rules.iter().any(|rule| rule.impairments.breaks_checksums());
    let name = format!("fl-{id}-{}", direction.name());
    match Detour::new(&name, queue, checksums) {
        Err(error) if error.call == "netlink(RTM_NEWQDISC)" && error.errno() == libc::ENOENT => {
            Err(SessionError::NoQueue(error))
        }
        made => Ok(Some(made?)),
    }
}

/// What fq lets wait: several delays in a row, and what waits before a wire.
const HORIZON: Duration = Duration::from_secs(600);

/// How long what waits is given to come out when a fault ends.
const DRAIN: Duration = Duration::from_secs(1);

fn rule_record(rule: &Rule) -> RuleRecord {
    RuleRecord { fault: rule.label.clone(), direction: rule.direction, asked: rule.impairments.chance() }
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

    /// Whether anything changes while it runs.
    fn is_ramped(&self) -> bool {
        self.prepared.plan.rules.iter().any(|rule| !rule.impairments.ramps.is_empty())
    }

    /// Writes what has changed since it was armed.
    fn ramp(&mut self) -> kernel::Result<()> {
        let elapsed = Duration::from_nanos(clock::exact().saturating_sub(self.since));
        let Prepared { plan, tables, programs, .. } = &mut self.prepared;
        tables.ramp(&plan.rules, elapsed, plan.seed);
        programs.set_rules(&tables.rules)
    }

    /// Takes note of what a name stands for now. What it stood for before stays: many answer with a few of their
    /// addresses at a time, and connections to those before go on.
    fn learn(&mut self, name: &str, addresses: &[IpNet]) -> kernel::Result<()> {
        let Prepared { plan, tables, programs, learnt, .. } = &mut self.prepared;
        if *learnt + addresses.len() > programs::NAMES_ROOM as usize {
            return Ok(());
        }
        let new = plan.rules.iter_mut().map(|rule| rule.learn(name, addresses)).max().unwrap_or(0);
        if new == 0 {
            return Ok(());
        }
        *learnt += new;
        let known = Tables::new(&plan.rules, plan.seed);
        (tables.v4, tables.v6) = (known.v4, known.v6);
        programs.set_addresses(tables)
    }

    /// Sees to it that nobody is taken for a process that has ended, by having its number.
    fn forget_the_dead(&mut self) -> kernel::Result<()> {
        let Prepared { plan, tables, programs, .. } = &mut self.prepared;
        for target in plan.targets.iter().filter(|target| !target.exists()) {
            if let Target::Process(tree) = target
                && tables.processes.remove(&tree.pid).is_some()
            {
                programs.forget_process(tree.pid)?;
            }
        }
        Ok(())
    }

    /// Has connections that are silent say something, so that they can be reset.
    fn prod(&self) -> Result<(), SessionError> {
        let Prepared { plan, prod: Some(prod), .. } = &self.prepared else { return Ok(()) };
        for flow in plan.open_to_reset()? {
            prod.provoke(flow.local, flow.remote)?;
        }
        Ok(())
    }

    /// What has been counted so far.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counts(&self) -> kernel::Result<RunReport> {
        let counters = self.prepared.programs.counters()?;
        Ok(report(&self.prepared.plan.rules, &counters))
    }

    /// Disarms, detaches, and checks that nothing is left. The counts are those after the last packet.
    ///
    /// # Errors
    ///
    /// [`Dirty`] if something is still there, or that cannot be established.
    pub fn end(self) -> Result<RunReport, Dirty> {
        let Self { mut prepared, since: _, until: _, lease } = self;
        // Should this write fail, the lease ends the same way, and the links close at any rate.
        let disarmed = lease.end(&mut prepared.programs);
        let report = prepared.end()?;
        disarmed.map_err(Dirty::unknown)?;
        Ok(report)
    }
}
