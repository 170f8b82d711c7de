//! A run that has clocks be wrong.

mod preview;

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use chaos_ebpf::{
    abi::{Control, Count, Direction},
    time::Block,
};

use super::{
    Facts, HookRecord, LEASE, RuleRecord, RuleReport, Run, RunReport, SessionError,
    clocks::Clocks,
    enrol::{enrol, trees},
    guard::Guard,
    hands::Hands,
    journal::{Journal, random},
    members::Members,
    slow::unwritten,
};
use crate::{
    fault::{CallTables, line::Lines},
    kernel::{
        self,
        calls::Exempt,
        change::{Change, Ledger},
        clock,
        counters::{Counters, MapIds, RuleCount},
        hold::{self, Crew},
        mechanism::Mechanism,
        memory::{ClockError, VdsoChange},
        probe,
        process::Process,
        reach, signals,
        stop::StopError,
        time::{Holding, Rewrite, TimePrograms},
        vdso::{Image, Kind, Patch},
    },
    spec::SkewSpec,
    target::Target,
};

pub use preview::SkewPreview;

/// What is going to be done; nothing in it needs to be looked up or checked again.
#[derive(Clone, Debug)]
pub struct SkewPlan {
    /// Whose clocks.
    pub targets: Vec<Target>,
    /// How wrong, and which.
    pub spec: SkewSpec,
    /// What the programs look the targets up in.
    pub tables: CallTables,
}

/// What stands where an interface's name would.
const PLACE: &str = "clocks";
/// How often what somebody could not be told is told once more: who cannot be traced for a moment waits for no second.
const AGAIN: u32 = 5;
/// How often it is looked for processes that nobody has told of.
const LOOK: Duration = Duration::from_millis(200);

/// All that it has, in the kernel and beside it.
#[derive(Debug)]
pub(super) struct SkewRun {
    plan: SkewPlan,
    programs: TimePrograms,
    rewriting: Rewriting,
    clocks: Arc<Clocks>,
    hands: Option<Hands>,
    lines: Option<Lines>,
    armed: bool,
    since: u64,
    looked: Instant,
    /// Why it could not be looked the last time that it could not.
    unlisted: Option<kernel::Error>,
    /// Whether a clock that must not jump is just being told where its way changes.
    bends: bool,
    /// How often the last block is written once more, for somebody who could not be told: not until the lease is renewed.
    again: u32,
    kind: Kind,
    patch: Patch,
    /// The turn of the blocks that the programs have.
    turn: u64,
    /// Last of all: it ends when this does.
    _guard: Guard,
}

/// Whether what system calls read is rewritten.
#[derive(Debug)]
enum Rewriting {
    Done,
    /// Why not.
    Not(String),
}

impl SkewRun {
    /// What is said of a plan before anything is done.
    pub(super) fn facts(plan: &SkewPlan) -> Facts {
        let label = plan.spec.to_string();
        let rule = RuleRecord { fault: label, direction: Direction::Call, asked: None };
        Facts {
            place: PLACE.into(),
            device: None,
            ifindex: 0,
            rules: vec![rule],
            seed: None,
            duration: plan.spec.duration,
            protected: String::new(),
            spares_a_session: false,
        }
    }

    /// Loads and attaches, and adds to every process what does nothing yet.
    pub(super) fn prepare(plan: SkewPlan, journal: &mut Journal) -> Result<Self, SessionError> {
        let image = Image::own()?;
        let kind = if plan.spec.by == Some(Mechanism::Fexit) { Kind::Call } else { Kind::Skew };
        let token = u64::from_le_bytes(random().map_err(proc("read /dev/urandom"))?);
        let patch = image.patch(kind, token)?;
        let (programs, rewriting) = programs(&plan)?;
        let mut roll = programs.roll()?;
        // There is one rule.
        enrol(&trees(&plan.targets, |_| 1), &mut roll)?;
        SessionError::if_interrupted()?;
        let guard = Guard::begin(journal.id()).map_err(proc("start a guard"))?;
        journal.note(Change::Vdso(VdsoChange::of(&patch))).map_err(unwritten)?;
        let but = vec![std::process::id(), guard.pid()];
        let members = Members::new(plan.targets.clone(), roll, but);
        let clocks = Arc::new(Clocks::new(patch.clone(), members)?);
        let run = Self {
            plan,
            programs,
            rewriting,
            clocks,
            hands: None,
            lines: None,
            armed: false,
            since: 0,
            looked: Instant::now(),
            unlisted: None,
            bends: false,
            again: 0,
            kind,
            patch,
            turn: 0,
            _guard: guard,
        };
        // Whoever has not come back from a process by then changes nothing any more.
        run.adopt_all().inspect_err(|_| run.clocks.end())?;
        Ok(run)
    }

    /// Those that are there. A process that is named must be one whose clocks can be wrong, and of others one must be.
    fn adopt_all(&self) -> Result<(), SessionError> {
        let mut refused = None;
        for (process, is_named, done) in self.adopt_each()? {
            match done {
                Ok(()) | Err(ClockError::Own) => {}
                Err(error) => {
                    let is_gone = matches!(error, ClockError::Gone | ClockError::NoMemory);
                    let error = SessionError::Clock { process: process.pid, error };
                    if is_named {
                        return Err(error);
                    }
                    refused = if is_gone { refused } else { Some(error) };
                }
            }
        }
        match refused {
            Some(error) if self.clocks.counts().1 == 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Sees to each, which is named or not: first to those that are.
    fn adopt_each(&self) -> Result<Vec<Adopted>, SessionError> {
        const LONGEST: Duration = Duration::from_secs(2);
        let roots = self.plan.targets.iter().filter_map(|target| match target {
            Target::Process(tree) => Some(tree.root()),
            Target::Cgroup(_) => None,
        });
        let roots: BTreeSet<_> = roots.collect();
        let now = self.clocks.members().now()?;
        let (named, others): (Vec<_>, Vec<_>) = now.into_iter().partition(|process| roots.contains(process));
        let end = Instant::now() + LONGEST;
        let clocks = Arc::clone(&self.clocks);
        let mut all =
            self.adopt_these(named, end, true, move |process| adopt_named(&clocks, process, end))?;
        let clocks = Arc::clone(&self.clocks);
        all.extend(self.adopt_these(others, Instant::now(), false, move |process| clocks.adopt(process))?);
        Ok(all)
    }

    /// Whoever does not come back from one in time is left behind.
    fn adopt_these(
        &self,
        all: Vec<Process>,
        end: Instant,
        are_named: bool,
        adopt: impl Fn(Process) -> Result<(), ClockError> + Send + Sync + 'static,
    ) -> Result<Vec<Adopted>, SessionError> {
        /// How long one that is tried at last may take, and how long each that does nothing about it.
        const LAST: Duration = Duration::from_millis(700);
        const EACH: Duration = Duration::from_millis(2);
        let end = end + LAST + EACH * all.len() as u32;
        let done = reach::each(all.clone(), end, signals::is_pending, adopt)?;
        SessionError::if_interrupted()?;
        let stuck = |process: Process| {
            self.clocks.miss(process);
            Err(ClockError::Stop(StopError::Stuck(process.pid.cast_signed())))
        };
        let each = all.into_iter().zip(done);
        Ok(each.map(|(process, done)| (process, are_named, done.unwrap_or_else(|| stuck(process)))).collect())
    }

    /// Goes on to now, and tells everybody; for as long as the lease is, and no longer than it is to last.
    fn write(&mut self) -> kernel::Result<()> {
        let now = clock::readings();
        let elapsed = clock::exact().saturating_sub(self.since);
        let Some(lines) = &mut self.lines else { return Ok(()) };
        lines.go_on(&now, elapsed);
        self.bends = lines.bend(&now);
        let mut window = LEASE.as_nanos() as u64;
        if let Some(duration) =
            self.plan.spec.duration.filter(|_| !lines.is_settling() && !lines.keep_order())
        {
            window = window.min((duration.as_nanos() as u64).saturating_sub(elapsed));
        }
        let block = lines.block(window);
        if !self.clocks.set(Some(&block))? {
            self.again = 0;
        }
        if matches!(self.rewriting, Rewriting::Done) {
            self.turn += 1;
            self.programs.set_block(self.turn, &block)?;
        }
        Ok(())
    }
}

/// Who was seen to, whether it was named, and what came of it.
type Adopted = (Process, bool, Result<(), ClockError>);

/// Nobody comes again for one that is refused here: it may only wait for a disk.
fn adopt_named(clocks: &Clocks, process: Process, end: Instant) -> Result<(), ClockError> {
    let mut pause = Duration::from_millis(10);
    loop {
        match clocks.adopt(process) {
            Err(error) if error.is_passing() && Instant::now() + pause < end && !signals::is_pending() => {}
            done => return done,
        }
        thread::sleep(pause);
        pause *= 2;
    }
}

/// The programs, with those that rewrite what system calls read if they may.
fn programs(plan: &SkewPlan) -> Result<(TimePrograms, Rewriting), SessionError> {
    let exempt = Exempt { owner_tgid: probe::own_tgid()?, files: Default::default() };
    let holding = Holding::on(Crew::cpus()?.len());
    let load = |rewrite| TimePrograms::new(&plan.tables, exempt, holding, rewrite);
    match plan.spec.by {
        Some(Mechanism::Fexit) => {
            let programs = load(Rewrite::All).map_err(|error| {
                let remedy = remedy(&error);
                SessionError::NoRewriting { error, remedy }
            })?;
            Ok((programs, Rewriting::Done))
        }
        Some(_) => Ok((load(Rewrite::No)?, Rewriting::Not("only the vDSO was asked for".into()))),
        None => match load(Rewrite::Raw) {
            Ok(programs) => Ok((programs, Rewriting::Done)),
            Err(error) => {
                let why = format!("{error}; {}", remedy(&error));
                Ok((load(Rewrite::No)?, Rewriting::Not(why)))
            }
        },
    }
}

/// What to change where what system calls read cannot be rewritten.
fn remedy(error: &kernel::Error) -> &'static str {
    let missing = if error.errno() == libc::EPERM { Mechanism::ProbeWriteUser } else { Mechanism::Fexit };
    missing.remedy()
}

fn proc(call: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Proc { call, source }
}

impl Run for SkewRun {
    fn hooks(&self) -> Vec<HookRecord> {
        let names: Vec<_> = self.patch.functions().collect();
        let why = match (&self.rewriting, self.kind) {
            (Rewriting::Done, Kind::Skew) => "the first choice; raw system calls by fexit".into(),
            (Rewriting::Not(why), Kind::Skew) => {
                format!("the first choice; raw system calls are told right: {why}")
            }
            (_, Kind::Call) => "so that clocks are read by system calls".into(),
        };
        let vdso = HookRecord {
            direction: Direction::Call,
            hook: Mechanism::VdsoPatch,
            function: Some(names.join(", ")),
            why,
            program_id: None,
            link_id: None,
        };
        std::iter::once(vdso).chain(self.programs.attached().iter().map(HookRecord::of_call)).collect()
    }

    fn map_ids(&self) -> kernel::Result<Option<MapIds>> {
        self.programs.map_ids().map(Some)
    }

    /// The guard and the threads are the owner's own.
    fn holds_itself(&self) -> bool {
        false
    }

    fn expire(&mut self, tick: u64) -> kernel::Result<()> {
        self.programs.expire(tick)
    }

    fn set_control(&mut self, control: Control) -> kernel::Result<()> {
        match (self.armed, control.lease_until != 0) {
            (false, true) => {
                self.armed = true;
                // Nobody who keeps a CPU is to wait for this thread.
                hold::first();
                let (events, holds) = (self.programs.events(), self.programs.holds());
                self.hands = Some(Hands::begin(Arc::clone(&self.clocks), &events, &holds)?);
                // Once it has begun, all have to be told soon.
                self.since = clock::exact();
                let SkewSpec { skew, clocks, allow_backwards, .. } = &self.plan.spec;
                self.lines = Some(Lines::new(skew, clocks, *allow_backwards, &clock::readings()));
                // From here on what is executed is held, and somebody must be there for it.
                self.programs.set_control(control)?;
                self.again = AGAIN;
                self.write()?;
                self.look()
            }
            (true, true) => {
                self.programs.set_control(control)?;
                self.again = AGAIN;
                self.write()
            }
            (true, false) => {
                self.armed = false;
                let done = self.programs.set_control(control);
                let off = self.clocks.set(None).map(drop);
                self.programs.set_block(self.turn + 1, &Block::RIGHT).and(done).and(off)
            }
            (false, false) => Ok(()),
        }
    }

    fn targets(&self) -> &[Target] {
        &self.plan.targets
    }

    fn is_ramped(&self) -> bool {
        self.bends || self.again > 0 || self.lines.as_ref().is_some_and(Lines::change)
    }

    fn ramp(&mut self, _elapsed: Duration) -> kernel::Result<()> {
        self.again = self.again.saturating_sub(1);
        if self.armed { self.write() } else { Ok(()) }
    }

    fn settle(&mut self) -> Option<Duration> {
        let lines = self.lines.as_mut().filter(|_| self.armed)?;
        let time = lines.settle(&clock::readings());
        time.map(Duration::from_nanos)
    }

    fn is_settled(&self) -> bool {
        self.lines.as_ref().is_none_or(Lines::are_settled)
    }

    /// Who came to be without the programs' having told, by joining a cgroup or by a fork. A child has what its parent had
    /// when it was forked, and must know of a change before that comes.
    fn forget_the_dead(&mut self) -> kernel::Result<()> {
        if !self.bends && self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.look()
    }

    fn counters(&self) -> kernel::Result<Counters> {
        let (met, skewed) = self.clocks.counts();
        let count = |packets| Count { packets, ..Count::default() };
        let mut counters = Counters::default();
        counters.seen[Direction::Call as usize] = count(met);
        counters.rules.push(RuleCount { matched: count(met), fired: count(skewed), ..RuleCount::default() });
        Ok(counters)
    }

    fn report(&self, counters: &Counters) -> RunReport {
        let [rule] = &counters.rules[..] else { return RunReport::default() };
        let rules = vec![RuleReport {
            rule: 0,
            fault: self.plan.spec.to_string(),
            direction: Direction::Call,
            asked: None,
            seen: rule.matched,
            matched: rule.matched,
            eligible: rule.matched.packets,
            fired: rule.fired,
            fired_background: 0,
            effects: rule.effects,
            spares: false,
        }];
        RunReport { rules, remarks: self.remarks(), ..RunReport::default() }
    }

    fn detach(&mut self) -> kernel::Result<u64> {
        self.hands = None;
        self.programs.detach();
        Ok(0)
    }
}

impl SkewRun {
    fn look(&mut self) -> kernel::Result<()> {
        self.looked = Instant::now();
        match self.clocks.members().now() {
            Ok(now) => {
                if let Some(hands) = &mut self.hands {
                    hands.look(&now)?;
                }
            }
            // Whoever has come since is found the next time.
            Err(error) => self.unlisted = Some(error),
        }
        // Others see it by the maps.
        let (met, skewed) = self.clocks.counts();
        self.programs.set_counts(met, skewed)
    }

    /// What was not as one would expect.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Ok(tally) = self.programs.tally() {
            let missed = [
                (tally.crowded, "for want of a CPU to see to them on"),
                (tally.given_up + tally.stuck, "because that took too long"),
                (tally.untold, "because there were too many at once"),
            ];
            let missed = missed.into_iter().filter(|(count, _)| *count > 0);
            let missed: Vec<_> = missed.map(|(count, why)| format!("{count} {why}")).collect();
            if !missed.is_empty() {
                let execs = tally.execs;
                let missed = missed.join(", ");
                remarks.push(format!(
                    "of {execs} programs that were executed some began with right clocks: {missed}"
                ));
            }
        }
        for (reason, processes) in self.clocks.refusals() {
            let (count, first) = (processes.len(), processes.first().copied().unwrap_or(0));
            let who = if count == 1 {
                format!("process {first}")
            } else {
                format!("{count} processes, {first} among them")
            };
            remarks.push(format!("the clocks of {who} are right: {reason}"));
        }
        if let Some(error) = &self.unlisted {
            remarks.push(format!("who belongs to the target could not be looked at all the time: {error}"));
        }
        if let Rewriting::Not(why) = &self.rewriting {
            remarks.push(format!("what reads clocks by raw system calls was told the right time: {why}"));
        }
        remarks
    }
}
