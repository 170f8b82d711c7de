//! Processes that stand still for a moment, so that the code they run can be changed. It is done by ptrace, which the
//! kernel itself ends should the caller die: its tracees go on as if nothing had been.

mod partners;
mod task;
mod thread;
mod tracer;
mod turn;

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    time::{Duration, Instant},
};

use libc::pid_t;

pub(super) use self::tracer::traces;
use self::{partners::Partners, thread::Thread};
use super::{Error, hold, process::Stat, quiet::Quiet};

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
    partners: Partners,
    deadline: Instant,
}

/// How long it may take to become the tracer of a process that is to stop: nobody stands yet.
const SEIZE: Duration = Duration::from_millis(100);
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
    tracer::run(process, patience.min(SEIZE), || {
        // Those that are to stop may be many, and all want to run.
        hold::first();
        let deadline = Instant::now() + patience;
        let partners = Partners::ask(process, deadline)?;
        let mut stopped = Stopped { process, threads: Vec::new(), partners, deadline };
        let done = stopped.hold().and_then(|()| action(&mut stopped));
        stopped.let_go();
        done
    })
}

/// Does something as the tracer of a process, which goes on meanwhile: there are kernels that let nobody else write into memory
/// that its owner may not write to. To become that may take this long.
///
/// # Errors
///
/// [`StopError`]; nothing was done then.
pub fn while_traced<T: Send>(
    process: u32,
    patience: Duration,
    action: &(dyn Fn() -> T + Sync),
) -> Result<T, StopError> {
    tracer::run(process, patience, || {
        // Somebody may be held for as long.
        hold::first();
        // Until this thread ends.
        Thread::seize(process, process.cast_signed())?.ok_or(StopError::Gone)?;
        Ok(action())
    })
}

/// Whether a process runs in the memory of who began it, as one that `vfork` has made does until it executes a program. Who does
/// not now never will: it may begin others who do in its own.
///
/// # Errors
///
/// [`StopError::Gone`], or the kernel's.
pub fn is_in_anothers_memory(process: u32) -> Result<bool, StopError> {
    let stat = Stat::of_process(process);
    let stat = stat.map_err(|source| Error::new("read", format!("/proc/{process}/stat"), source))?;
    let parent = stat.ok_or(StopError::Gone)?.parent;
    Ok(parent != 0 && task::have_one_memory(process.cast_signed(), parent.cast_signed())?)
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
        self.partners.find(&held, self.deadline)?.map_or(Ok(()), |other| Err(StopError::Shared(other)))
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
            if Instant::now() >= self.deadline {
                return Err(StopError::Stuck(number));
            }
            // Nobody is stopped before all are traced: that takes as long as one of them takes to execute a program.
            let thread = Thread::seize(self.process, number)?;
            are_all &= thread.is_none() && number.cast_unsigned() == self.process;
            self.threads.extend(thread);
        }
        are_all &= self.wait()?;
        let stat = Stat::of_process(self.process);
        let stat =
            stat.map_err(|source| Error::new("read", format!("/proc/{}/stat", self.process), source))?;
        Ok(are_all && stat.is_some_and(|stat| stat.threads == listed.len()))
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
    /// Who was stopped by somebody stays so, and where it is. Whether there is one.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn leave(&mut self, is_inside: impl Fn(u64) -> bool) -> Result<bool, StopError> {
        loop {
            let mut has_gone_on = false;
            for thread in &mut self.threads {
                has_gone_on |= thread.leave(&is_inside, self.deadline)?;
            }
            if !has_gone_on {
                break;
            }
            self.hold()?;
        }
        for thread in &self.threads {
            if thread.is_in(&is_inside)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a handler of a signal runs that has interrupted a thread in one of these ranges, and goes back there: then its stack
    /// has what the kernel saved of the registers. On x86-64 that is told from what is left of other calls by its neighbours
    /// (`struct sigcontext`): flags, and the segment of user code; elsewhere any mention counts. A stack that others may write to
    /// is taken for one that has it.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn mentions(&self, ranges: &[Range<u64>]) -> Result<bool, StopError> {
        const DEPTH: u64 = 64 << 10;
        let memory = Quiet::of(self.process)?;
        let is_inside = |place: u64| ranges.iter().any(|range| range.contains(&place));
        for thread in &self.threads {
            if Instant::now() >= self.deadline {
                return Err(StopError::Stuck(thread.number));
            }
            let Some(place) = thread.place()? else { continue };
            let Some(runs) = memory.read(place.stack & !7, DEPTH)? else { return Ok(true) };
            if runs.iter().any(|run| has_saved(run, is_inside)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn let_go(&mut self) {
        self.threads.drain(..).filter(|thread| thread.stands).for_each(Thread::let_go);
    }
}

/// Whether there is a saved instruction pointer on a stack for which this holds.
fn has_saved(stack: &[u8], is_inside: impl Fn(u64) -> bool) -> bool {
    let words = stack.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let words: Vec<u64> = words.collect();
    words.windows(3).any(|saved| is_inside(saved[0]) && is_saved(saved[1], saved[2]))
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
