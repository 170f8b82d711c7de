//! Processes that stand still for a moment, so that the code they run can be changed. It is done by ptrace, which the
//! kernel itself ends should the caller die: its tracees go on as if nothing had been.

mod task;
mod thread;

use std::{
    cell::Cell,
    collections::BTreeSet,
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use libc::pid_t;

use self::{
    task::Stat,
    thread::{AWHILE, Thread},
};
use super::{Error, hold};

/// Why a process does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// It may not be traced, or another does so.
    #[error("thread {thread} cannot be held: {source}; a debugger or strace may have it")]
    Refused {
        /// The thread.
        thread: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A thread that is within the kernel and does not come back, or that does not leave what is to be changed.
    #[error("thread {0} does not come to where it can be held; it may wait in the kernel for something")]
    Stuck(i32),
    /// Another process runs in the same memory: one that `vfork` has made and that has not executed its program yet, or one
    /// that `clone` has made to stay there.
    #[error("process {0} runs in the same memory, and would go on meanwhile; it may be about to leave it")]
    Shared(u32),
    /// Anything else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// All threads of a process, standing still.
#[derive(Debug)]
pub struct Stopped {
    process: u32,
    threads: Vec<Thread>,
    deadline: Instant,
}

/// How long one waits for a thread that is about to be gone, or to be there.
const PAUSE: Duration = Duration::from_micros(20);

/// Does something while all threads of a process stand still, at most that long.
///
/// # Errors
///
/// [`StopError`]; the process goes on at any rate.
pub fn while_stopped<T: Send>(
    process: u32,
    patience: Duration,
    action: impl FnOnce(&mut Stopped) -> Result<T, StopError> + Send,
) -> Result<T, StopError> {
    let traced = |_: &Start| {
        // Those that are to stop may be many, and all want to run.
        hold::first();
        let mut stopped = Stopped { process, threads: Vec::new(), deadline: Instant::now() + patience };
        let done = stopped.hold().and_then(|()| action(&mut stopped));
        stopped.let_go();
        done
    };
    let turn = Turn::take(process, patience)?;
    // SAFETY: never given up.
    unsafe { by_a_tracer(turn, None, traced) }
}

/// Does something as the tracer of a process, which goes on meanwhile: there are kernels that let nobody else write into memory
/// that its owner may not write to. Who executes a program cannot be traced before that is done, which may take as long as a disk
/// does: it is not waited for any longer than this.
///
/// # Errors
///
/// [`StopError`]; nothing was done then.
pub fn while_traced<T: Send>(
    process: u32,
    patience: Duration,
    action: &(dyn Fn() -> T + Sync),
) -> Result<T, StopError> {
    let traced = |start: &Start| {
        // Somebody may be held for as long.
        hold::first();
        let Some(_traced) = Thread::seize(process, process.cast_signed())? else {
            return Err(StopError::Gone);
        };
        if start.decide(Start::BEGUN) { Ok(action()) } else { Err(Turn::stuck(process)) }
    };
    let end = Instant::now() + patience;
    let turn = Turn::take(process, patience)?;
    // SAFETY: what is borrowed is looked at only once it has begun.
    unsafe { by_a_tracer(turn, Some(end), traced) }
}

/// Whether the calling thread is the one by which [`while_stopped`] or [`while_traced`] traces a process.
pub(super) fn traces(process: u32) -> bool {
    TRACED.get() == Some(process)
}

thread_local! {
    static TRACED: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whether a tracer has begun, or was given up before: it decides, or who waits for it.
#[derive(Default)]
struct Start(AtomicU8);

impl Start {
    const BEGUN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn decide(&self, what: u8) -> bool {
        self.0.compare_exchange(0, what, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Does something in a thread of its own, whose tracees are let go of by the kernel as it ends, also those that would not
/// stop. It is waited for, unless it has not begun by this time. See [`task::bury`] for what this one does meanwhile.
///
/// # Safety
///
/// What it borrows it may look at only as long as it cannot be given up, or has decided that it begins; and it owns nothing that
/// does.
unsafe fn by_a_tracer<T: Send>(
    turn: Turn,
    end: Option<Instant>,
    traced: impl FnOnce(&Start) -> Result<T, StopError> + Send,
) -> Result<T, StopError> {
    let process = turn.0;
    let start = Arc::<Start>::default();
    let (running, over) = mpsc::channel::<()>();
    let run = {
        let start = Arc::clone(&start);
        move || {
            let (_turn, _running) = (turn, running);
            TRACED.set(Some(process));
            traced(&start)
        }
    };
    // SAFETY: as the caller warrants; it is joined below unless it was given up, and nothing in between panics.
    let tracer = unsafe { std::thread::Builder::new().spawn_unchecked(run) };
    let tracer = tracer
        .map_err(|source| Error::new("clone", format!("a thread to trace process {process}"), source))?;
    while over.recv_timeout(AWHILE) == Err(mpsc::RecvTimeoutError::Timeout) {
        task::bury(process);
        if end.is_some_and(|end| Instant::now() >= end) && start.decide(Start::GIVEN_UP) {
            return Err(Turn::stuck(process));
        }
    }
    let nothing = || Error::new("ptrace", process.to_string(), io::ErrorKind::Other.into()).into();
    tracer.join().unwrap_or_else(|_| Err(nothing()))
}

/// A process has one tracer at a time: another thread of this process's waits for its turn.
struct Turn(u32);

static TURNS: (Mutex<BTreeSet<u32>>, Condvar) = (Mutex::new(BTreeSet::new()), Condvar::new());

impl Turn {
    fn take(process: u32, patience: Duration) -> Result<Self, StopError> {
        let (traced, ended) = &TURNS;
        let traced = traced.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ended.wait_timeout_while(traced, patience, |traced| !traced.insert(process));
        let (_traced, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() { Err(Self::stuck(process)) } else { Ok(Self(process)) }
    }

    fn stuck(process: u32) -> StopError {
        StopError::Stuck(process.cast_signed())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (traced, ended) = &TURNS;
        traced.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        ended.notify_all();
    }
}

impl Stopped {
    /// Has all threads stand still.
    fn hold(&mut self) -> Result<(), StopError> {
        while !self.hold_new()? {
            if Instant::now() >= self.deadline {
                return Err(StopError::Stuck(self.process.cast_signed()));
            }
            std::thread::sleep(PAUSE);
        }
        if self.threads.is_empty() {
            return Err(StopError::Gone);
        }
        let held: Vec<_> = self.threads.iter().map(|thread| thread.number).collect();
        task::partner(self.process, &held).map_or(Ok(()), |other| Err(StopError::Shared(other)))
    }

    /// Holds those threads that are not held yet; whether there were none.
    ///
    /// A thread that is not held may have begun another before it ended, and the kernel's list ends early where a thread ends
    /// that it has just come to. So all that are listed have to be held, and to be as many as there are: who is held does
    /// not end. One is listed although it has ended: the first, as long as there are others.
    fn hold_new(&mut self) -> Result<bool, StopError> {
        let listed = task::threads(self.process)?;
        let held: BTreeSet<pid_t> = self.threads.iter().map(|thread| thread.number).collect();
        let mut are_all = true;
        for number in listed.difference(&held).copied() {
            // Nobody is stopped before all are traced: that takes as long as one of them takes to execute a program.
            let thread = Thread::seize(self.process, number)?;
            are_all &= thread.is_none() && number.cast_unsigned() == self.process;
            self.threads.extend(thread);
        }
        are_all &= self.wait()?;
        Ok(are_all && Stat::of_process(self.process).is_some_and(|stat| stat.threads == listed.len()))
    }

    /// Has those who do not stand yet stand; whether there were none.
    fn wait(&mut self) -> Result<bool, StopError> {
        let running = || self.threads.iter().filter(|thread| !thread.stands);
        if running().next().is_none() {
            return Ok(true);
        }
        running().try_for_each(Thread::interrupt)?;
        for thread in self.threads.iter_mut().filter(|thread| !thread.stands) {
            thread.wait(self.deadline)?;
        }
        self.threads.retain(|thread| thread.stands);
        Ok(false)
    }

    /// Has each thread go on, and stand again, until it is out of where it must not be. Not by single steps: a thread whose
    /// tracer dies in the middle of one is killed by it.
    ///
    /// Who goes on may begin another, which runs: so all is as before only when nobody has. `PTRACE_O_TRACECLONE` would have
    /// the kernel hold those, but not one whose making began before its maker was seized, so that all would have to be listed
    /// again as well; and it would attach processes, which would have to be told apart and let go of.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn leave(&mut self, is_inside: impl Fn(u64) -> bool) -> Result<(), StopError> {
        loop {
            let mut has_gone_on = false;
            for thread in &mut self.threads {
                has_gone_on |= thread.leave(&is_inside, self.deadline)?;
            }
            if !has_gone_on {
                return Ok(());
            }
            self.hold()?;
        }
    }

    /// Whether a handler of a signal runs that has interrupted a thread in this range, and goes back there: then its stack
    /// has what the kernel saved of the registers. On x86-64 that is told from what is left of other calls by its neighbours
    /// (`struct sigcontext`): flags, and the segment of user code; elsewhere any mention counts.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn mentions(
        &self,
        range: &std::ops::Range<u64>,
        read: impl Fn(u64, &mut [u8]) -> usize,
    ) -> Result<bool, StopError> {
        const DEPTH: usize = 64 << 10;
        let mut bytes = vec![0; DEPTH];
        for thread in &self.threads {
            let Some(place) = thread.place()? else { continue };
            let length = read(place.stack & !7, &mut bytes);
            let words = bytes[..length].chunks_exact(8);
            let words: Vec<u64> = words.map(|word| word.try_into().map_or(0, u64::from_ne_bytes)).collect();
            if words.windows(3).any(|saved| range.contains(&saved[0]) && is_saved(saved[1], saved[2])) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn let_go(&mut self) {
        self.threads.drain(..).filter(|thread| thread.stands).for_each(Thread::let_go);
    }
}

/// Whether these come behind a saved instruction pointer.
fn is_saved(flags: u64, segments: u64) -> bool {
    /// Of which the second is always set, and none is beyond the 22nd.
    const ALWAYS: u64 = 1 << 1;
    const USER_CODE: u64 = 0x33;
    !cfg!(target_arch = "x86_64") || flags & ALWAYS != 0 && flags < 1 << 22 && segments & 0xffff == USER_CODE
}

#[cfg(test)]
pub(super) mod tests;
