//! A process that opens, reads and writes a file a thousand times a second, and keeps account of how that went.

use std::{
    ffi::CString,
    fs::File,
    io::Error,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use chaos_user::kernel::clock;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, getppid},
};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::patience,
    traffic::{monotonic_ns, sleep_until_ns},
};

/// What is to be seen where a fault is.
pub(super) const ERRNO: i32 = libc::EIO;
/// From one attempt to the next.
const PERIOD_NS: u64 = 1_000_000;
/// Longer than any wait for attempts takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Memory that it shares with the test.
#[derive(Debug, Default)]
#[repr(C)]
struct Board {
    clean: AtomicU64,
    hit: AtomicU64,
    mixed: AtomicU64,
    foreign: AtomicU64,
    last_hit_at: AtomicU64,
}

/// How many attempts went how; each opens the file, and reads and writes one byte of it where it is open already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// All three calls worked.
    pub(super) clean: u64,
    /// All three failed as they were told to.
    pub(super) hit: u64,
    /// Some did: the fault began or ended in between.
    pub(super) mixed: u64,
    /// One failed for another reason.
    pub(super) foreign: u64,
    /// When the last attempt of which a call failed began, by the last tick, as the programs tell the time.
    pub(super) last_hit_at: u64,
}

impl Seen {
    fn all(self) -> u64 {
        self.clean + self.hit + self.mixed + self.foreign
    }

    /// Of what has been seen since.
    fn since(self, before: Self) -> Self {
        Self {
            clean: self.clean - before.clean,
            hit: self.hit - before.hit,
            mixed: self.mixed - before.mixed,
            foreign: self.foreign - before.foreign,
            last_hit_at: self.last_hit_at,
        }
    }

    /// Whether nothing ever failed.
    pub(super) fn is_clean(self) -> bool {
        (self.hit, self.mixed, self.foreign) == (0, 0, 0)
    }

    /// Whether nothing ever worked, and all failed as they were told to.
    pub(super) fn is_hit(self) -> bool {
        (self.clean, self.mixed, self.foreign) == (0, 0, 0)
    }
}

/// The process. Killed when dropped.
#[derive(Debug)]
pub(super) struct Watched {
    pid: Pid,
    board: &'static Board,
}

impl Watched {
    /// Starts it in a cgroup. This process must have one thread.
    pub(super) fn start(cgroup: &Cgroup, path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path).context(path.display())?;
        let path = CString::new(path.as_os_str().as_bytes()).context("a path with a NUL in it")?;
        let board = shared()?;
        let parent = nix::unistd::getpid();
        // SAFETY: this process has no other thread that could hold a lock across the fork.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, board }),
            ForkResult::Child => {
                let ready =
                    prctl::set_pdeathsig(Signal::SIGKILL).context("prctl").and_then(|()| cgroup.join());
                if ready.is_ok() && getppid() == parent {
                    attempts(board, &path, &file);
                }
                // SAFETY: ends this process without running anything of the test's.
                unsafe { libc::_exit(1) };
            }
        }
    }

    /// What it has seen so far.
    pub(super) fn seen(&self) -> Seen {
        let Board { clean, hit, mixed, foreign, last_hit_at } = self.board;
        let [clean, hit, mixed, foreign, last_hit_at] =
            [clean, hit, mixed, foreign, last_hit_at].map(|count| count.load(Ordering::SeqCst));
        Seen { clean, hit, mixed, foreign, last_hit_at }
    }

    /// What it sees in its next attempts, all of which begin after this call.
    pub(super) fn next(&self, attempts: u64) -> Result<Seen> {
        // One may be under way.
        let begun = self.reaches(self.seen().all() + 1)?;
        Ok(self.reaches(begun.all() + attempts)?.since(begun))
    }

    fn reaches(&self, attempts: u64) -> Result<Seen> {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            let seen = self.seen();
            if seen.all() >= attempts {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "process {} makes no more attempts: {seen:?}", self.pid);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until an attempt that begins from now on goes as wanted.
    pub(super) fn wait_until(&self, wanted: fn(Seen) -> bool, time: Duration) -> Result {
        let deadline = Instant::now() + time;
        loop {
            let seen = self.next(1)?;
            if wanted(seen) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{time:?} later: {seen:?}");
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// Zeroed memory that children have in common with us; as long as this process lives, which runs one test.
fn shared() -> Result<&'static Board> {
    // SAFETY: a new mapping wherever the kernel puts it.
    let at = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        libc::mmap(ptr::null_mut(), size_of::<Board>(), protection, flags, -1, 0)
    };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
    // SAFETY: mapped for good, zeroed by the kernel, page-aligned, and all of it is atomic.
    Ok(unsafe { &*at.cast::<Board>() })
}

fn attempts(board: &Board, path: &CString, file: &File) -> ! {
    let mut next = monotonic_ns();
    loop {
        let start = clock::monotonic();
        let errors = attempt(path, file);
        let failed = errors.iter().filter(|errno| **errno == ERRNO).count();
        let worked = errors.iter().filter(|errno| **errno == 0).count();
        if failed > 0 {
            board.last_hit_at.store(start, Ordering::SeqCst);
        }
        let count = match (worked, failed) {
            (3, 0) => &board.clean,
            (0, 3) => &board.hit,
            (worked, failed) if worked + failed == 3 => &board.mixed,
            _ => &board.foreign,
        };
        count.fetch_add(1, Ordering::SeqCst);
        // After a time in which it did not run it does not make up for it.
        next = (next + PERIOD_NS).max(monotonic_ns());
        sleep_until_ns(next);
    }
}

/// The errno of each call, or 0. System calls alone: what else a program does would be hit as well.
fn attempt(path: &CString, file: &File) -> [i32; 3] {
    let mut byte = 0_u8;
    let fd = file.as_raw_fd();
    let errno =
        |result: i64| if result < 0 { Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 };
    // SAFETY: a string that ends with NUL.
    let opened = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let open = errno(opened.into());
    if opened >= 0 {
        // SAFETY: a file descriptor that is ours alone.
        unsafe { libc::close(opened) };
    }
    // SAFETY: reads into one byte.
    let read = errno(unsafe { libc::pread(fd, (&raw mut byte).cast(), 1, 0) } as i64);
    // SAFETY: writes one byte.
    let write = errno(unsafe { libc::pwrite(fd, (&raw const byte).cast(), 1, 0) } as i64);
    [open, read, write]
}
