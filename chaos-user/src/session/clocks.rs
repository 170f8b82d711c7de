//! Those that see to the processes of a run: one thread to programs that are held as they are executed, which takes them
//! microseconds, and one to processes that have to be stopped.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use chaos_ebpf::time::{Block, ExecEvent};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::backoff::Backoff;
use crate::kernel::{
    self,
    hold::{self, Claim, Crew, Events, Holds, Work},
    memory::{Changed, ClockError, Memory, as_writer},
    vdso::Patch,
};

/// The processes of a run.
#[derive(Debug, Default)]
struct Processes {
    /// What is in force; without it clocks are right.
    block: Option<Block>,
    /// How often that has changed.
    turn: u64,
    changed: BTreeMap<u32, Arc<Changed>>,
    /// Those that cannot be, and why.
    refused: BTreeMap<u32, Refusal>,
    /// Those that were no longer of the target when that was last looked at.
    missing: BTreeSet<u32>,
    /// Those that somebody sees to just now, or is going to.
    busy: BTreeSet<u32>,
    /// How many programs there were, and how many of these had their clocks changed.
    met: u64,
    skewed: u64,
}

/// Why a process's clocks are as they were.
#[derive(Debug)]
struct Refusal {
    reason: String,
    /// When it may be otherwise, if it may.
    again: Option<Backoff>,
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
    /// What no process may be whose clocks are changed.
    own_program: PathBuf,
    own_times: Option<PathBuf>,
    processes: Mutex<Processes>,
    over: AtomicBool,
}

/// The threads, until they are told to end.
#[derive(Debug)]
pub(super) struct Hands {
    clocks: Arc<Clocks>,
    late: mpsc::Sender<u32>,
    held: Option<Crew>,
    thread: Option<JoinHandle<()>>,
}

impl Clocks {
    /// Nobody's clock is changed yet.
    pub(super) fn new(patch: Patch) -> kernel::Result<Self> {
        const PROGRAM: &str = "/proc/self/exe";
        make_room()?;
        Ok(Self {
            patch,
            own_program: fs::read_link(PROGRAM)
                .map_err(|source| kernel::Error::new("readlink", PROGRAM, source))?,
            own_times: times_of("self")?,
            processes: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        // Nothing is left half done by whoever panicked: all that is written here is written at once.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the clocks of a process that runs, which has to stop for that.
    pub(super) fn adopt(&self, process: u32) -> Result<(), ClockError> {
        let made = self.check(process).and_then(|()| {
            let memory = Memory::open(process)?;
            Changed::new(memory, &self.patch, None)
        });
        self.take(process, made)
    }

    /// The same of one that is held by the kernel, with its vDSO there.
    fn adopt_held(&self, process: u32, vdso: u64, claim: &Claim<'_>) -> Result<(), ClockError> {
        let made = self.check(process).and_then(|()| {
            let memory = Memory::at(process, vdso)?;
            Changed::new(memory, &self.patch, Some(&|| claim.stands()))
        });
        self.take(process, made)
    }

    fn check(&self, process: u32) -> Result<(), ClockError> {
        let program = fs::read_link(format!("/proc/{process}/exe"));
        if program.is_ok_and(|program| program == self.own_program) {
            return Err(ClockError::Own);
        }
        if times_of(&process.to_string())? != self.own_times {
            // One that is gone has none either.
            return Err(if fs::exists(format!("/proc/{process}")).unwrap_or(false) {
                ClockError::TimeNamespace
            } else {
                ClockError::Gone
            });
        }
        Ok(())
    }

    fn take(&self, process: u32, made: Result<Changed, ClockError>) -> Result<(), ClockError> {
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
            let block = processes.block;
            drop(processes);
            // What was set a moment ago may be over by now.
            let done =
                block.map_or_else(|| changed.set_off(&self.patch), |block| changed.set(&self.patch, &block));
            if let Err(error) = done {
                set = Err(error);
            }
        };
        processes.busy.remove(&process);
        let before = processes.refused.remove(&process);
        let met_before = before.is_some();
        match set {
            Ok(changed) => {
                processes.met += u64::from(!met_before);
                processes.skewed += 1;
                processes.changed.insert(process, Arc::new(changed));
                Ok(())
            }
            Err(gone @ (ClockError::Gone | ClockError::NoMemory | ClockError::Own)) => Err(gone),
            Err(error) => {
                processes.met += u64::from(!met_before);
                let last = before.and_then(|before| before.again);
                let again = error.is_passing().then(|| Backoff::after(last, Instant::now()));
                processes.refused.insert(process, Refusal { reason: error.to_string(), again });
                Err(error)
            }
        }
    }

    /// Has all clocks go by a block, or be right; whether one could not be written to that may be in a moment.
    pub(super) fn set(&self, block: Option<&Block>) -> bool {
        let is_untold = Cell::new(false);
        let mut processes = self.lock();
        processes.block = block.copied();
        processes.turn += 1;
        let all: Vec<_> =
            processes.changed.iter().map(|(process, changed)| (*process, Arc::clone(changed))).collect();
        drop(processes);
        // One that cannot be written to just now is tried again the next time; its line ends by itself meanwhile.
        let is_lost = |changed: &Changed| {
            let done =
                block.map_or_else(|| changed.set_off(&self.patch), |block| changed.set(&self.patch, block));
            is_untold.set(is_untold.get() || done.as_ref().is_err_and(ClockError::is_soon_over));
            done.is_err_and(|error| !error.is_passing())
        };
        for (process, lost) in all.into_iter().filter(|(_, changed)| is_lost(changed)) {
            let mut processes = self.lock();
            // It is gone, or executes another program, which may have been seen to meanwhile.
            if processes.changed.get(&process).is_some_and(|changed| Arc::ptr_eq(changed, &lost)) {
                processes.changed.remove(&process);
            }
        }
        is_untold.get()
    }

    /// How many programs were met, and how many of them had their clocks changed.
    pub(super) fn counts(&self) -> (u64, u64) {
        let processes = self.lock();
        (processes.met, processes.skewed)
    }

    /// Why which processes are as they were.
    pub(super) fn refusals(&self) -> BTreeMap<String, Vec<u32>> {
        let mut reasons: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (process, refusal) in &self.lock().refused {
            reasons.entry(refusal.reason.clone()).or_default().push(*process);
        }
        reasons
    }

    /// Looks for those among these processes that nobody has seen to, or that are to be tried again. Those that are gone are
    /// forgotten.
    fn strangers(&self, now: &BTreeSet<u32>) -> Vec<u32> {
        let time = Instant::now();
        let mut processes = self.lock();
        processes.refused.retain(|process, _| now.contains(process));
        let Processes { changed, refused, busy, missing, .. } = &mut *processes;
        // One that came since these were listed is none that has gone: only who is missing twice.
        let absent: BTreeSet<_> = changed.keys().copied().filter(|process| !now.contains(process)).collect();
        let gone: Vec<_> =
            absent.intersection(missing).filter_map(|process| changed.remove(process)).collect();
        *missing = absent;
        let is_known = |process: &u32| {
            changed.contains_key(process)
                || busy.contains(process)
                || refused.get(process).is_some_and(|refusal| !refusal.is_due(time))
        };
        let strangers: Vec<_> = now.iter().copied().filter(|process| !is_known(process)).collect();
        busy.extend(&strangers);
        drop(processes);
        for left in gone {
            // Who has left the target and not ended is right again.
            let _ = left.set_off(&self.patch);
        }
        strangers
    }

    /// A program is executed: what its process had of ours is gone.
    fn forget(&self, process: u32) {
        let mut processes = self.lock();
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

impl Hands {
    /// Begins to see to whatever is executed.
    pub(super) fn begin(clocks: Arc<Clocks>, events: &Events, holds: &Holds) -> kernel::Result<Self> {
        let (late, later) = mpsc::channel();
        let work: Work = {
            let (clocks, late) = (Arc::clone(&clocks), late.clone());
            Arc::new(move |event, claim| see_to_held(&clocks, event, claim, &late))
        };
        let held = Crew::start(holds, events, &work)?;
        let all = Arc::clone(&clocks);
        let thread = thread::Builder::new().name("fl-late".into()).spawn(move || see_to_late(&all, &later));
        let thread = thread.map_err(|source| kernel::Error::new("clone", "a thread", source))?;
        Ok(Self { clocks, late, held: Some(held), thread: Some(thread) })
    }

    /// Sees to those among these processes that nobody has seen to yet.
    pub(super) fn look(&self, now: &BTreeSet<u32>) {
        for process in self.clocks.strangers(now) {
            // Nobody is there to take it only when all is over.
            let _ = self.late.send(process);
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.clocks.over.store(true, Ordering::Relaxed);
        self.held = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// How soon a thread sees that it is over.
const TURN: Duration = Duration::from_millis(50);

/// What is done for a program that is executed, held or not.
fn see_to_held(clocks: &Clocks, event: &ExecEvent, claim: Option<&Claim<'_>>, late: &mpsc::Sender<u32>) {
    clocks.forget(event.pid);
    let adopt = |claim| as_writer(event.pid, || clocks.adopt_held(event.pid, event.vdso, claim));
    // One that has gone on, or that another traces, has to be stopped.
    let has_gone_on = matches!(claim.map(adopt), None | Some(Err(ClockError::LetGo | ClockError::Stop(_))));
    if has_gone_on && clocks.lock().busy.insert(event.pid) {
        // Nobody is there to take it only when all is over.
        let _ = late.send(event.pid);
    }
}

fn see_to_late(clocks: &Clocks, late: &mpsc::Receiver<u32>) {
    // Nobody who keeps a CPU is to wait for what this thread has locked.
    hold::first();
    while !clocks.over.load(Ordering::Relaxed) {
        match late.recv_timeout(TURN) {
            Ok(process) => drop(clocks.adopt(process)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Which time namespace a process is in; nothing if it has ended, or the kernel has none.
fn times_of(process: &str) -> kernel::Result<Option<PathBuf>> {
    let path = format!("/proc/{process}/ns/time");
    match fs::read_link(&path) {
        Ok(times) => Ok(Some(times)),
        Err(none) if matches!(none.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(source) => Err(kernel::Error::new("readlink", path, source)),
    }
}
