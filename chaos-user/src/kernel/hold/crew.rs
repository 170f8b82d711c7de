//! The threads of the owner that see to what is held.
//!
//! Who is held keeps a CPU, and the scheduler does not know that: a thread that it wakes there comes too late. So there is a
//! thread on each of several CPUs, and always one more of them than programs are held.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use chaos_ebpf::time::ExecEvent;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{Claim, Events, Holds};
use crate::kernel::{Error, Result, reach};

/// Most threads: as many, less one, are held at once, and each is waked by each program that is executed.
const MOST: usize = 8;

/// How often a thread looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long their ends may take.
const LONGEST: Duration = Duration::from_secs(1);

/// The threads; they end when this is dropped.
pub struct Crew {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

/// What is to be done for a program; while it is held, if it is.
pub type Work = Arc<dyn Fn(&ExecEvent, Option<&Claim<'_>>) + Send + Sync>;

impl Crew {
    /// The CPUs that its threads will run on: those this process may run on, up to a few.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn cpus() -> Result<Vec<usize>> {
        let allowed = sched_getaffinity(Pid::from_raw(0))
            .map_err(|errno| Error::new("sched_getaffinity", "this thread", errno.into()))?;
        Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).take(MOST).collect())
    }

    /// Has threads see to what is executed.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn start(holds: &Holds, events: &Events, work: &Work) -> Result<Self> {
        let mut crew = Self { ends: Arc::default(), threads: Vec::new() };
        let (ready, all_ready) = mpsc::channel::<()>();
        for cpu in Self::cpus()? {
            let (holds, events, work, ends) =
                (holds.clone(), events.clone(), work.clone(), crew.ends.clone());
            let ready = ready.clone();
            let thread = thread::Builder::new().name("fl-hold".into()).spawn(move || {
                settle(cpu);
                drop(ready);
                while !ends.load(Ordering::Relaxed) {
                    // What the kernel refuses here it refuses again; programs then go on at their cap, which is counted.
                    let Ok(event) = events.next(PATIENCE) else { return };
                    if let Some(event) = event {
                        see_to(&holds, &event, &work);
                    }
                }
            });
            crew.threads.push(thread.map_err(|source| Error::new("clone", "a thread", source))?);
        }
        drop(ready);
        // Nobody says anything: it is over when all have let go of it. What is executed now is seen to.
        let _ = all_ready.recv();
        Ok(crew)
    }
}

fn see_to(holds: &Holds, event: &ExecEvent, work: &Work) {
    let claim = (event.held != 0).then(|| holds.claim(event.cpu, event.pid)).flatten();
    // One that has gone on by now is seen to all the same, late.
    work(event, claim.as_ref());
}

/// Has this thread run on that CPU, and before whatever else wants to. It may be refused either, and then comes later.
fn settle(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
    first();
}

/// Has the calling thread run before all that is not urgent, if it may.
pub fn first() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads its argument, and is about the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const first) };
}

/// Has a thread that is begun here run before all that is not urgent from its start on, if the calling one does: it would wait for
/// its first turn behind whoever keeps the CPUs.
pub fn as_urgent<T>(begin: impl FnOnce() -> T) -> T {
    // SAFETY: about the calling thread, and takes nothing more.
    let is_first = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    if !is_first {
        return begin();
    }
    let inherited = libc::sched_param { sched_priority: 1 };
    // SAFETY: as in `first`.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const inherited) };
    let done = begin();
    first();
    done
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // One may be kept by the program that it sees to.
        reach::join(self.threads.drain(..), Instant::now() + LONGEST);
    }
}
