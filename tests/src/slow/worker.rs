//! A process in a cgroup that reads and writes a disk when it is told to, past the page cache.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::{
        fs::{FileExt, OpenOptionsExt},
        net::UnixStream,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Failure, Result},
};

/// Longer than what is asked for ever takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of the disk is used.
const AREA: u64 = 8 << 20;
/// The most that is read at once.
const MOST: usize = 64 << 10;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// What was done, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Reads or writes.
    pub(super) ios: u64,
    /// Bytes.
    pub(super) bytes: u64,
    /// How fast over all of the time.
    pub(super) mean: Speed,
    /// How fast when it was fastest: a machine that others use as well stands still for a while, for whatever is not
    /// limited too.
    pub(super) peak: Speed,
}

/// What was done in several times.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    /// Reads or writes.
    pub(super) ios: u64,
    /// Bytes.
    pub(super) bytes: u64,
}

/// What is measured.
pub(super) type Unit = fn(Speed) -> f64;

/// How long a slow disk is used to see how fast it is, and how often at most.
pub(super) const LONG: Duration = Duration::from_secs(3);
const TRIES: u32 = 4;
/// How far a rate may be from what was asked.
const OFF: f64 = 0.15;

/// In one second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// Reads or writes.
    pub(super) iops: f64,
    /// Bytes.
    pub(super) rate: f64,
}

/// A tenth of a second: how many were done in each of those that follow one another.
const BIN: Duration = Duration::from_millis(100);
/// More of them than are ever asked for.
const BINS: usize = 100;

/// How many there are at once, so that there is always one that waits: what is let through late is made up for.
const AT_ONCE: usize = 8;

#[repr(align(4096))]
struct Buffer([u8; MOST]);

#[derive(Debug)]
pub(super) struct Worker {
    pid: Pid,
    orders: UnixStream,
    size: usize,
}

impl Worker {
    /// In a cgroup, with a disk or a file open. For a process with one thread.
    pub(super) fn new(cgroup: &Cgroup, path: &Path) -> Result<Self> {
        let (orders, answers) = UnixStream::pair().context("socketpair")?;
        orders.set_read_timeout(Some(PATIENCE)).context("a timeout")?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.context(path.display())?;
        // The child must not come back from in there: it would go where this process goes then.
        let child = cgroup.run(|| {
            // SAFETY: there is no other thread that could hold a lock across the fork.
            match unsafe { fork() }.context("fork")? {
                ForkResult::Child => {
                    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                    let served = serve(&file, answers);
                    // SAFETY: ends the process. What the parent would do at its end is not for the child to do.
                    unsafe { libc::_exit(i32::from(served.is_none())) }
                }
                ForkResult::Parent { child } => Ok(child),
            }
        })?;
        Ok(Self { pid: child, orders, size: 0 })
    }

    /// Has it read or write so much at once, one after the other, for this long.
    pub(super) fn start(&mut self, way: Way, size: usize, time: Duration) -> Result {
        ensure!(size <= MOST && time < BIN * BINS as u32, "{size} bytes at once for {time:?}");
        self.size = size;
        let words = [u64::from(way == Way::Write), size as u64, time.as_nanos() as u64];
        self.orders.write_all(&words.map(u64::to_le_bytes).concat()).context("order")
    }

    /// Waits until that is done.
    pub(super) fn finish(&mut self) -> Result<Done> {
        let mut answer = [0; 8 * (BINS + 1)];
        self.orders.read_exact(&mut answer).context("the answer of a process that uses a disk")?;
        let [time, bins @ ..] = words::<{ BINS + 1 }>(&answer);
        let (ios, most) = (bins.iter().sum::<u64>(), bins.into_iter().max().unwrap_or(0));
        ensure!(ios > 0, "its disk does not work");
        let size = self.size as f64;
        let speed = |ios: u64, time: Duration| {
            let iops = ios as f64 / time.as_secs_f64();
            Speed { iops, rate: iops * size }
        };
        let (mean, peak) = (speed(ios, Duration::from_nanos(time)), speed(most, BIN));
        Ok(Done { ios, bytes: ios * self.size as u64, mean, peak })
    }

    /// Has it do so until it is as fast as was asked: a machine that others use as well stands still for a while, and what
    /// is not done then is not made up for. What was done in all, and how fast at last.
    pub(super) fn reach(&mut self, way: Way, size: usize, asked: f64, unit: Unit) -> Result<(Total, f64)> {
        let mut total = Total::default();
        for _ in 0..TRIES {
            let done = self.run(way, size, LONG)?;
            (total.ios, total.bytes) = (total.ios + done.ios, total.bytes + done.bytes);
            let speed = unit(done.mean);
            ensure!(speed < asked * (1.0 + OFF), "{asked} asked: {done:?}");
            if speed > asked * (1.0 - OFF) {
                return Ok((total, speed));
            }
            println!("{asked} asked, {speed:.0} had; again");
        }
        Err(Failure::new(format!("{asked} asked, and not reached in {TRIES} times {LONG:?}")))
    }

    /// Both.
    pub(super) fn run(&mut self, way: Way, size: usize, time: Duration) -> Result<Done> {
        self.start(way, size, time)?;
        self.finish()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

/// Nothing if the disk or the other end does not answer; ends with the latter.
fn serve(file: &File, mut orders: UnixStream) -> Option<()> {
    let mut order = [0; 24];
    while orders.read_exact(&mut order).is_ok() {
        let [writes, size, time] = words(&order);
        let (start, time) = (Instant::now(), Duration::from_nanos(time));
        let bins = [const { AtomicU64::new(0) }; BINS];
        let next = AtomicU64::new(0);
        let use_it = || {
            let mut buffer = Box::new(Buffer([0; MOST]));
            let part = &mut buffer.0[..size as usize];
            while start.elapsed() < time {
                let at = next.fetch_add(size, Ordering::Relaxed) % AREA;
                let done = if writes == 1 { file.write_at(part, at) } else { file.read_at(part, at) };
                if done.ok()? as u64 != size {
                    return None;
                }
                // The last may have taken longer than was asked for.
                let bin = (start.elapsed().as_nanos() / BIN.as_nanos()) as usize;
                bins[bin.min(BINS - 1)].fetch_add(1, Ordering::Relaxed);
            }
            Some(())
        };
        thread::scope(|scope| {
            let threads = [(); AT_ONCE].map(|()| scope.spawn(use_it));
            threads.into_iter().try_for_each(|thread| thread.join().ok()?)
        })?;
        let mut answer = (start.elapsed().as_nanos() as u64).to_le_bytes().to_vec();
        answer.extend(bins.iter().flat_map(|bin| bin.load(Ordering::Relaxed).to_le_bytes()));
        orders.write_all(&answer).ok()?;
    }
    Some(())
}
