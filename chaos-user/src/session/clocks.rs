//! The processes of a run, and what has become of their clocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chaos_ebpf::time::Block;
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::{backoff::Backoff, members::Members};
use crate::kernel::{
    self,
    hold::{self, Claim},
    mappings::{FileId, Mappings},
    memory::{Changed, ClockError, Memory, Touch},
    process::{Process, unless_gone},
    reach,
    stop::StopError,
    vdso::Patch,
};

/// The processes of a run.
#[derive(Debug, Default)]
struct Processes {
    /// What is in force; without it clocks are right.
    block: Option<Block>,
    /// How often that has changed.
    turn: u64,
    changed: BTreeMap<u32, (Process, Arc<Changed>)>,
    /// Those that cannot be, and why.
    refused: BTreeMap<u32, Refusal>,
    /// Those that were no longer of the target when that was last looked at.
    missing: BTreeSet<Process>,
    /// When each was last begun to be seen to, or executed a program: what was begun before is of memory that it may have left.
    begun: BTreeMap<u32, (u64, Instant)>,
    /// How many of these there were.
    beginnings: u64,
    /// Those that somebody sees to just now, or is going to.
    busy: BTreeSet<u32>,
    /// How many programs there were, and how many of these had their clocks changed.
    met: u64,
    skewed: u64,
}

/// Why a process's clocks are as they were.
#[derive(Debug)]
struct Refusal {
    process: Process,
    reason: String,
    /// When it may be otherwise, if it may.
    again: Option<Backoff>,
}

impl Processes {
    /// From here on what was begun with this one before comes to nothing.
    fn begin(&mut self, process: u32) -> u64 {
        self.beginnings += 1;
        self.begun.insert(process, (self.beginnings, Instant::now()));
        self.beginnings
    }

    /// Those that have kept whoever sees to them.
    fn keepers(&self) -> impl Iterator<Item = u32> {
        /// Longer than it may take to stand still.
        const LONG: Duration = Duration::from_secs(1);
        let keeps = |process: &u32| self.begun.get(process).is_some_and(|(_, since)| since.elapsed() > LONG);
        self.busy.iter().copied().filter(move |process| keeps(process) && !self.refused.contains_key(process))
    }
}

impl Refusal {
    fn is_due(&self, now: Instant) -> bool {
        self.again.is_some_and(|again| again.is_due(now))
    }
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Clocks {
    patch: Patch,
    members: Members,
    /// What no process may run whose clocks are changed.
    own_program: Option<FileId>,
    own_times: Option<PathBuf>,
    processes: Mutex<Processes>,
    over: AtomicBool,
}

/// Those that somebody has to see to: for the first time, or once more.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    pub(super) new: Vec<Process>,
    pub(super) again: Vec<Process>,
}

/// What became of a block.
#[derive(Debug, Default)]
struct Written {
    /// Those that are gone, or execute other programs.
    lost: Vec<Arc<Changed>>,
    /// Whether there is one that could not be written to, and may be in a moment.
    is_untold: bool,
}

impl Clocks {
    /// Nobody's clock is changed yet.
    pub(super) fn new(patch: Patch, members: Members) -> kernel::Result<Self> {
        make_room()?;
        let own = mappings(std::process::id())?;
        Ok(Self {
            patch,
            members,
            own_program: own.code_at(make_room as fn() -> kernel::Result<()> as usize as u64),
            own_times: times_of("self")?,
            processes: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// Whose clocks are meant.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Nobody's clocks are to be changed any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        // Nothing is left half done by whoever panicked: all that is written here is written at once.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the clocks of a process that runs, which has to stop for that. It may keep the caller for as long as it pleases.
    pub(super) fn adopt(&self, process: Process) -> Result<(), ClockError> {
        let _touch = Touch::begin(&self.patch, process.pid);
        let is_over = || self.is_over();
        if is_over() {
            return Err(ClockError::LetGo);
        }
        let begun = {
            let mut processes = self.lock();
            processes.busy.insert(process.pid);
            processes.begin(process.pid)
        };
        let made = self.check(process.pid).and_then(|()| Changed::new(process, &self.patch, &is_over));
        self.take(process, begun, made)
    }

    /// The same of one that is held by the kernel, with its vDSO there.
    pub(super) fn adopt_held(&self, process: u32, vdso: u64, claim: &Claim<'_>) -> Result<(), ClockError> {
        let _touch = Touch::begin(&self.patch, process);
        if self.is_over() {
            return Err(ClockError::Gone);
        }
        let begun = self.lock().begin(process);
        let found = Process::find(process);
        let found = found
            .map_err(|source| kernel::Error::new("read", format!("/proc/{process}/stat"), source))?
            .ok_or(ClockError::Gone)?;
        let made = self.check(process).and_then(|()| {
            let memory = Memory::at(process, vdso)?;
            Changed::held(memory, &self.patch, &|| claim.stands() && !self.is_over())
        });
        self.take(found, begun, made)
    }

    fn check(&self, process: u32) -> Result<(), ClockError> {
        let is_own = |program: &FileId| Ok::<_, kernel::Error>(mappings(process)?.run(program));
        if self.own_program.as_ref().map_or(Ok(false), is_own)? {
            return Err(ClockError::Own);
        }
        match times_of(&process.to_string())? {
            times if times == self.own_times => Ok(()),
            Some(_) => Err(ClockError::TimeNamespace),
            // One that has ended has none.
            None => Err(ClockError::Gone),
        }
    }

    fn take(
        &self,
        process: Process,
        begun: u64,
        made: Result<Changed, ClockError>,
    ) -> Result<(), ClockError> {
        let mut set = made;
        let mut written = None;
        let mut processes = loop {
            let processes = self.lock();
            let is_new = written != Some(processes.turn);
            let Ok(changed) = &set else { break processes };
            if !is_new {
                break processes;
            }
            // Whoever waits for the lock may keep a CPU meanwhile: nothing is written with it.
            written = Some(processes.turn);
            let block = processes.block.filter(|_| !self.is_over());
            drop(processes);
            // What was set a moment ago may be over by now.
            let done =
                block.map_or_else(|| changed.set_off(&self.patch), |block| changed.set(&self.patch, &block));
            if let Err(error) = done {
                set = Err(error);
            }
        };
        let Process { pid, .. } = process;
        processes.busy.remove(&pid);
        if processes.begun.get(&pid).map(|(turn, _)| *turn) != Some(begun) {
            // It has executed a program, and is another's to see to.
            return set.map(drop);
        }
        processes.begun.remove(&pid);
        let before = processes.refused.remove(&pid);
        let met_before = before.is_some();
        match set {
            Ok(changed) => {
                processes.met += u64::from(!met_before);
                processes.skewed += 1;
                processes.changed.insert(pid, (process, Arc::new(changed)));
                Ok(())
            }
            Err(gone @ (ClockError::Gone | ClockError::NoMemory | ClockError::Own)) => Err(gone),
            Err(error) => {
                processes.met += u64::from(!met_before);
                let last = before.and_then(|before| before.again);
                let again = error.is_passing().then(|| Backoff::after(last, Instant::now()));
                processes.refused.insert(pid, Refusal { process, reason: error.to_string(), again });
                Err(error)
            }
        }
    }

    /// Has all clocks go by a block, or be right; whether one could not be written to that may be in a moment.
    ///
    /// # Errors
    ///
    /// The kernel's, where there is no room for a thread.
    pub(super) fn set(self: &Arc<Self>, block: Option<&Block>) -> kernel::Result<bool> {
        let mut processes = self.lock();
        processes.block = block.copied();
        processes.turn += 1;
        let all: Vec<_> = processes.changed.values().map(|(_, changed)| Arc::clone(changed)).collect();
        drop(processes);
        let Written { lost, is_untold } = self.write(all, block.copied())?;
        if !lost.is_empty() {
            // They are gone, or execute other programs, which may have been seen to meanwhile.
            let is_lost = |changed: &Arc<Changed>| lost.iter().any(|lost| Arc::ptr_eq(changed, lost));
            self.lock().changed.retain(|_, (_, changed)| !is_lost(changed));
        }
        Ok(is_untold)
    }

    /// Has the clocks of these go by a block, or be right. One that cannot be written to just now is tried again the next time; its
    /// line ends by itself meanwhile.
    fn write(self: &Arc<Self>, all: Vec<Arc<Changed>>, block: Option<Block>) -> kernel::Result<Written> {
        /// The lease is renewed by whoever waits for it.
        const LONGEST: Duration = Duration::from_millis(500);
        if all.is_empty() {
            return Ok(Written::default());
        }
        let clocks = Arc::clone(self);
        let write = move |changed: Arc<Changed>| {
            hold::first();
            // The last one still waits.
            let turn = changed.turn().ok_or(())?;
            let _touch = Touch::begin(&clocks.patch, changed.process());
            // What makes clocks be right may come at any time.
            let block = block.filter(|_| !clocks.is_over());
            let done = match &block {
                Some(block) => changed.set(&clocks.patch, block),
                None => changed.set_off(&clocks.patch),
            };
            drop(turn);
            match done {
                Err(error) if !error.is_passing() => Ok(Some(changed)),
                Err(error) if error.is_soon_over() => Err(()),
                _ => Ok(None),
            }
        };
        let done = reach::each(all, Instant::now() + LONGEST, || false, write)?;
        let is_untold = done.iter().any(|done| matches!(done, Some(Err(()))));
        let lost = done.into_iter().filter_map(|done| done?.ok()?).collect();
        Ok(Written { lost, is_untold })
    }

    /// How many programs were met, and how many of them had their clocks changed.
    pub(super) fn counts(&self) -> (u64, u64) {
        let processes = self.lock();
        (processes.met, processes.skewed)
    }

    /// Why which processes are as they were.
    pub(super) fn refusals(&self) -> BTreeMap<String, Vec<u32>> {
        let mut reasons: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let processes = self.lock();
        for (process, refusal) in &processes.refused {
            reasons.entry(refusal.reason.clone()).or_default().push(*process);
        }
        let keepers: Vec<_> = processes.keepers().collect();
        if !keepers.is_empty() {
            reasons.insert("its memory cannot be looked at: the kernel does not answer".into(), keepers);
        }
        reasons
    }

    /// Whoever sees to it has not come back by now.
    pub(super) fn miss(&self, process: Process) {
        let mut processes = self.lock();
        if !processes.changed.contains_key(&process.pid) && !processes.refused.contains_key(&process.pid) {
            let reason = StopError::Stuck(process.pid.cast_signed()).to_string();
            let again = Some(Backoff::after(None, Instant::now()));
            processes.met += 1;
            processes.refused.insert(process.pid, Refusal { process, reason, again });
        }
    }

    /// Looks for those among these processes that nobody has seen to, or that are to be tried again. Those that are gone are
    /// forgotten.
    pub(super) fn strangers(self: &Arc<Self>, now: &BTreeSet<Process>) -> kernel::Result<Strangers> {
        let time = Instant::now();
        let mut processes = self.lock();
        processes.refused.retain(|_, refusal| now.contains(&refusal.process));
        let Processes { changed, refused, busy, missing, begun, .. } = &mut *processes;
        // One that came since these were listed is none that has gone: only who is missing twice.
        let absent: BTreeSet<_> =
            changed.values().map(|(process, _)| *process).filter(|process| !now.contains(process)).collect();
        let gone = absent.intersection(missing).filter_map(|process| changed.remove(&process.pid));
        let gone: Vec<_> = gone.map(|(_, changed)| changed).collect();
        *missing = absent;
        let is_known = |process: &Process| {
            changed.get(&process.pid).is_some_and(|(known, _)| known == process)
                || busy.contains(&process.pid)
                || refused.get(&process.pid).is_some_and(|refusal| !refusal.is_due(time))
        };
        let strangers = now.iter().copied().filter(|process| !is_known(process));
        let (again, new) = strangers.partition(|process| refused.contains_key(&process.pid));
        let strangers = Strangers { new, again };
        busy.extend(strangers.new.iter().chain(&strangers.again).map(|process| process.pid));
        let numbers: BTreeSet<_> = now.iter().map(|process| process.pid).collect();
        begun.retain(|process, _| numbers.contains(process) || busy.contains(process));
        drop(processes);
        // Who has left the target and not ended is right again.
        self.write(gone, None)?;
        Ok(strangers)
    }

    /// Whether nobody was about to see to it; the caller is from here on.
    pub(super) fn see_to(&self, process: u32) -> bool {
        self.lock().busy.insert(process)
    }

    /// Nobody sees to it.
    pub(super) fn leave(&self, process: u32) {
        self.lock().busy.remove(&process);
    }

    /// A program is executed: what its process had of ours is gone.
    pub(super) fn forget(&self, process: u32) {
        let mut processes = self.lock();
        processes.begin(process);
        processes.changed.remove(&process);
        processes.refused.remove(&process);
    }
}

/// Makes room for a file of each process, before any program is held: the kernel has a process of several threads wait until
/// all CPUs have passed by when its table of files grows, and a CPU on which a program is held does not pass by.
fn make_room() -> kernel::Result<()> {
    const FILES: u64 = 1 << 16;
    let error = |call| move |source: io::Error| kernel::Error::new(call, "the number of open files", source);
    let limit = |call| move |errno: Errno| error(call)(errno.into());
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit("getrlimit"))?;
    let all = FILES.max(now);
    // Without CAP_SYS_RESOURCE there is no more to be had than there is.
    let files = match setrlimit(Resource::RLIMIT_NOFILE, all, all.max(most)) {
        Ok(()) => FILES,
        Err(_) => most.min(FILES),
    };
    setrlimit(Resource::RLIMIT_NOFILE, files.max(now), files.max(most)).map_err(limit("setrlimit"))?;
    let file = File::open("/dev/null").map_err(|source| kernel::Error::new("open", "/dev/null", source))?;
    // SAFETY: three integers.
    let last = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, files as i32 - 1) };
    if last < 0 {
        return Err(error("fcntl(F_DUPFD_CLOEXEC)")(io::Error::last_os_error()));
    }
    // SAFETY: just made, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(last) });
    Ok(())
}

fn mappings(process: u32) -> Result<Mappings, kernel::Error> {
    let path = format!("/proc/{process}/maps");
    // One that has ended has none.
    let mappings = unless_gone(Mappings::of(process));
    Ok(mappings.map_err(|source| kernel::Error::new("read", path, source))?.unwrap_or_default())
}

/// Which time namespace a process is in; nothing if it has ended, or the kernel has none.
fn times_of(process: &str) -> kernel::Result<Option<PathBuf>> {
    let path = format!("/proc/{process}/ns/time");
    unless_gone(fs::read_link(&path)).map_err(|source| kernel::Error::new("readlink", path, source))
}
