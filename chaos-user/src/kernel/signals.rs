//! The signals by which somebody asks a run to end. They are heeded at any time: while nothing has begun, and after
//! everything has ended, they end the process at once; in between they are read, so that the fault ends in order.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{Error, Result};

/// Those that end a run.
const SIGNALS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The exit code of what a signal has ended.
const INTERRUPTED: i32 = 130;

/// With what a signal ends the process that is not being read.
static CODE: AtomicI32 = AtomicI32::new(INTERRUPTED);

/// Whatever the process waits for, a name server or a terminal, it has nothing to undo.
extern "C" fn end_at_once(_: libc::c_int) {
    // SAFETY: ends the process without running any code of it, which may be done at any time.
    unsafe { libc::_exit(CODE.load(Ordering::Relaxed)) }
}

/// The signals of a run, which end it at once as long as it has not begun.
#[derive(Debug)]
pub struct Waiting(SigSet);

impl Waiting {
    /// From here on they end the process with 130. One that the process was started to ignore, as `nohup` and the shells'
    /// `&` have it, is ignored.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take() -> Result<Self> {
        let mut taken = SigSet::empty();
        for signal in SIGNALS {
            if is_ignored(signal)? {
                continue;
            }
            let end = SigAction::new(SigHandler::Handler(end_at_once), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler does nothing but end the process.
            unsafe { sigaction(signal, &end) }.map_err(|errno| refused(signal, errno))?;
            taken.add(signal);
        }
        // Whoever started this may have blocked them, and one may have come already.
        mask(SigmaskHow::SIG_UNBLOCK, &taken)?;
        Ok(Self(taken))
    }

    /// From here on they are read: by the calling thread, which must be the only one but for [`thread`]s.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn hold(self) -> Result<Signals> {
        mask(SigmaskHow::SIG_BLOCK, &self.0)?;
        let held = SignalFd::with_flags(&self.0, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        held.map(Signals).map_err(|errno| Error::new("signalfd", "the signals that end a run", errno.into()))
    }
}

fn is_ignored(signal: Signal) -> Result<bool> {
    // SAFETY: all zeros is a value of it, and the kernel writes one.
    let mut now: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is changed, and there is room for what is written.
    let asked = unsafe { libc::sigaction(signal as i32, ptr::null(), &raw mut now) };
    Errno::result(asked).map_err(|errno| refused(signal, errno))?;
    Ok(now.sa_sigaction == libc::SIG_IGN)
}

fn refused(signal: Signal, errno: Errno) -> Error {
    Error::new("sigaction", signal.as_str(), errno.into())
}

fn mask(how: SigmaskHow, set: &SigSet) -> Result<()> {
    sigprocmask(how, Some(set), None)
        .map_err(|errno| Error::new("sigprocmask", "the signals that end a run", errno.into()))
}

/// The signals of a run that has begun.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal by which somebody asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which.
    pub signal: Signal,
    /// Whether the terminal sent it, to all of its foreground. That it hangs up is told to the first of them alone.
    pub by_terminal: bool,
}

/// What a wait has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A signal.
    Signal(Asked),
    /// The other end of what was watched is gone, or the process.
    Gone,
}

impl Signals {
    /// Waits for one of them or for the other end of `watched` to go, at most this long.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&self, watched: Option<BorrowedFd<'_>>, longest: Duration) -> Result<Option<News>> {
        // Nothing is asked of what is watched: that its other end is closed is said unasked.
        self.poll(watched.map(|watched| PollFd::new(watched, PollFlags::empty())), longest)
    }

    /// Waits for one of them or for a process to end.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait_for(&self, pidfd: BorrowedFd<'_>) -> Result<Option<News>> {
        self.poll(Some(PollFd::new(pidfd, PollFlags::POLLIN)), Duration::MAX)
    }

    fn poll(&self, watched: Option<PollFd<'_>>, longest: Duration) -> Result<Option<News>> {
        // Rounded up: a wait that ends too soon would spin until its time has come.
        let milliseconds = u16::try_from(longest.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut files = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        files.extend(watched);
        match poll(&mut files, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("poll", "the signals that end a run", errno.into())),
        }
        let read = self.0.read_signal().map_err(|errno| Error::new("read", "a signalfd", errno.into()))?;
        let known = read.and_then(|read| {
            let signal = Signal::try_from(read.ssi_signo.cast_signed()).ok()?;
            let is_key = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
            Some(News::Signal(Asked { signal, by_terminal: is_key && read.ssi_code == libc::SI_KERNEL }))
        });
        let is_gone = |file: &PollFd<'_>| file.revents().is_some_and(|events| !events.is_empty());
        Ok(known.or(files.get(1).is_some_and(is_gone).then_some(News::Gone)))
    }
}

/// Whether one of them has come that is not read yet.
#[must_use]
pub fn is_pending() -> bool {
    // SAFETY: all zeros is a set, and the kernel writes one.
    let pending = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigpending(&raw mut set);
        SigSet::from_sigset_t_unchecked(set)
    };
    SIGNALS.iter().any(|signal| pending.contains(*signal))
}

/// Everything has ended: from here on they end the process at once, with this code. Those that have come before asked for no
/// more than that.
pub fn end_with(code: u8) {
    CODE.store(code.into(), Ordering::Relaxed);
    let set: SigSet = SIGNALS.into_iter().collect();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a set and a time that live until it returns, and nowhere to write to.
    while unsafe { libc::sigtimedwait(set.as_ref(), ptr::null_mut(), &raw const at_once) } > 0 {}
    // What could fail here is an address, and this is one.
    let _ = mask(SigmaskHow::SIG_UNBLOCK, &set);
}

/// Starts a thread to which no signal is delivered: each goes to the thread that waits for it.
///
/// # Errors
///
/// The kernel's.
pub fn thread<T: Send + 'static>(
    name: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let mut before = SigSet::empty();
    let error = |call, source: io::Error| Error::new(call, format!("the thread \"{name}\""), source);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
        .map_err(|errno| error("sigprocmask", errno.into()))?;
    let thread = thread::Builder::new().name(name.into()).spawn(run);
    mask(SigmaskHow::SIG_SETMASK, &before)?;
    thread.map_err(|source| error("clone", source))
}
