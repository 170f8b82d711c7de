//! The thread that traces: its tracees are let go of by the kernel as it ends, also those that would not stop.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::thread::JoinHandleExt,
    ptr,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use libc::{c_int, pid_t};

// Who joins a thread that has ended so would wait for ever there.
#[cfg(target_env = "musl")]
compile_error!("threads that end by themselves are joined: build for gnu");

use super::{StopError, task, thread::AWHILE, turn::Turns};
use crate::kernel::{Error, hold};

/// A process has one tracer at a time: another thread of this process's waits for its turn.
static TRACED_NOW: Turns = Turns::new();

/// What is known of a tracer beside it.
#[derive(Debug, Default)]
struct Seat {
    /// How often it has begun, or come back from, what [`seizing`] does: an odd number while it is in there.
    turns: AtomicU64,
    /// What its tracees were about to be told, and have not been. It may end before they are.
    untold: Mutex<BTreeMap<pid_t, VecDeque<c_int>>>,
}

thread_local! {
    static TRACED: Cell<Option<u32>> = const { Cell::new(None) };
    static SEAT: Cell<*const Seat> = const { Cell::new(ptr::null()) };
}

/// Whether the calling thread is one by which a process is traced.
pub(in crate::kernel) fn traces(process: u32) -> bool {
    TRACED.get() == Some(process)
}

/// Does something in a thread of its own, as the tracer of a process. It is waited for, but no longer than this for what
/// [`seizing`] waits for. See [`task::bury`] for what this one does meanwhile.
///
/// # Errors
///
/// [`StopError`]: its own, or that nobody can become the tracer now.
pub(super) fn run<T: Send>(
    process: u32,
    longest: Duration,
    action: impl FnOnce() -> Result<T, StopError> + Send,
) -> Result<T, StopError> {
    let _turn = TRACED_NOW.take(process, longest)?;
    listen();
    let seat = Untold { process, seat: Arc::default() };
    let seat = &seat.seat;
    let (running, over) = mpsc::channel::<()>();
    let (begun, number) = mpsc::channel();
    let run = {
        let seat = Arc::clone(seat);
        move || {
            let _running = running;
            TRACED.set(Some(process));
            SEAT.set(Arc::as_ptr(&seat));
            // SAFETY: takes nothing.
            let _ = begun.send(unsafe { libc::gettid() });
            heed();
            action()
        }
    };
    // SAFETY: what it borrows lives as long as it does: it is joined below, or is seen to be no more.
    let tracer = hold::as_urgent(|| unsafe { thread::Builder::new().spawn_unchecked(run) });
    let tracer = tracer
        .map_err(|source| Error::new("clone", format!("a thread to trace process {process}"), source))?;
    let number = number.recv().unwrap_or(0);
    let mut seizes = (0, Instant::now());
    while over.recv_timeout(AWHILE) == Err(mpsc::RecvTimeoutError::Timeout) {
        task::bury(process);
        let now = seat.turns.load(Ordering::Relaxed);
        if now != seizes.0 {
            seizes = (now, Instant::now());
        }
        if now % 2 == 1 && seizes.1.elapsed() >= longest && is_ended(number) {
            // SAFETY: a thread that is no more, and that nobody else joins.
            unsafe { libc::pthread_join(tracer.into_pthread_t(), ptr::null_mut()) };
            return Err(StopError::Stuck(process.cast_signed()));
        }
    }
    let nothing = || Error::new("ptrace", process.to_string(), io::ErrorKind::Other.into()).into();
    tracer.join().unwrap_or_else(|_| Err(nothing()))
}

/// Does what waits for as long as somebody else takes to execute a program: a disk's time, or for ever where that lies on a server
/// that is gone. It is one system call and nothing else, for the thread may end in the middle of it.
pub(super) fn seizing<T>(call: impl FnOnce() -> T) -> T {
    let seat = SEAT.get();
    let next = || {
        // SAFETY: its thread keeps it.
        unsafe { seat.as_ref() }.map(|seat| seat.turns.fetch_add(1, Ordering::Relaxed))
    };
    next();
    let done = call();
    next();
    done
}

/// Keeps a signal that a tracee was about to be told, until it goes on.
pub(super) fn keep(thread: pid_t, signal: c_int) {
    with_untold(|untold| untold.entry(thread).or_default().push_back(signal));
}

/// The first of these, which it is told now.
pub(super) fn next_for(thread: pid_t) -> Option<c_int> {
    with_untold(|untold| untold.get_mut(&thread)?.pop_front()).flatten()
}

fn with_untold<T>(action: impl FnOnce(&mut BTreeMap<pid_t, VecDeque<c_int>>) -> T) -> Option<T> {
    // SAFETY: its thread keeps it.
    let seat = unsafe { SEAT.get().as_ref() }?;
    Some(action(&mut seat.untold.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Tells the tracees of a tracer that is no more what is left.
struct Untold {
    process: u32,
    seat: Arc<Seat>,
}

impl Drop for Untold {
    fn drop(&mut self) {
        let untold = std::mem::take(&mut *self.seat.untold.lock().unwrap_or_else(PoisonError::into_inner));
        for (thread, signals) in untold {
            for signal in signals {
                // SAFETY: three integers.
                unsafe { libc::syscall(libc::SYS_tgkill, self.process, thread, signal) };
            }
        }
    }
}

/// By which a tracer is told that its time is over. It is heeded within [`seizing`] alone, whose call the kernel would otherwise
/// begin again (`ERESTARTNOINTR`).
fn signal() -> c_int {
    libc::SIGRTMIN() + 6
}

extern "C" fn end_here(_: c_int) {
    // SAFETY: its thread keeps it.
    let seizes =
        unsafe { SEAT.get().as_ref() }.is_some_and(|seat| seat.turns.load(Ordering::Relaxed) % 2 == 1);
    if seizes {
        // SAFETY: ends this thread alone. It holds no lock and owns nothing that has to be given back but its stack, which is
        // freed by whoever joins it; what its tracees are still to be told is told by that one.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is a value of it; the handler ends a thread, or does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = end_here as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// The calling thread hears of it, whatever whoever began it has blocked.
fn heed() {
    // SAFETY: a set that is made here and lives until the call is over.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
    }
}

/// Ends a thread of this process if it waits where it may be ended; whether it is no more.
fn is_ended(thread: pid_t) -> bool {
    // SAFETY: integers.
    let told = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal()) };
    told != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}
