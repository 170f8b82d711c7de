//! `fl-clock`, told what to do.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use super::{From, Order, Reading, Source, Wait, Waited, Watched, Way};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::sibling,
    harness::{die_with_parent, patience},
};

/// Longer than anything it is told to do takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How far a clock may be from what it should say.
const NEAR: i64 = 1_000_000;

/// What everything is compared with where nothing else is said: what hardly anybody skews.
pub const REFERENCE: Source = Source::MonotonicRaw;

/// A process that reads clocks. Killed when dropped.
#[derive(Debug)]
pub struct Clock {
    child: Child,
    orders: UnixStream,
    answers: BufReader<UnixStream>,
}

/// Where it is: beside this program.
///
/// # Errors
///
/// If it has ended, or cannot.
pub fn path() -> Result<PathBuf> {
    sibling("fl-clock")
}

impl Clock {
    /// Starts it, in a cgroup or where this process is.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn start(cgroup: Option<&Cgroup>) -> Result<Self> {
        let (orders, other) = UnixStream::pair().context("socketpair")?;
        orders.set_read_timeout(Some(patience(PATIENCE))).context("SO_RCVTIMEO")?;
        let path = path()?;
        let mut command = Command::new(&path);
        let copy = other.try_clone().context("dup")?;
        command.stdin(OwnedFd::from(other)).stdout(OwnedFd::from(copy));
        die_with_parent(&mut command);
        if let Some(cgroup) = cgroup {
            cgroup.admit(&mut command)?;
        }
        let child = command.spawn().context(path.display())?;
        let answers = BufReader::new(orders.try_clone().context("dup")?);
        let mut clock = Self { child, orders, answers };
        // It is there, with nothing left to be loaded.
        clock.one(Source::Realtime, Way::Raw)?;
        Ok(clock)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, order: &Order) -> Result {
        let line = serde_json::to_string(order).context("JSON")? + "\n";
        self.orders.write_all(line.as_bytes()).context("tell a clock what to do")
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context(format_args!("the answer of process {}", self.pid()))?;
        ensure!(!line.is_empty(), "process {} has ended: {:?}", self.pid(), self.child.try_wait());
        serde_json::from_str(&line).context(line)
    }

    fn ask<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        self.tell(order)?;
        self.hear()
    }

    /// All of its clocks in all ways.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn read(&mut self, by: From, reference: Source) -> Result<Vec<Reading>> {
        let readings: Vec<Reading> = self.ask(&Order::Read { by, reference })?;
        ensure!(readings.len() == Source::ALL.len() * Way::ALL.len(), "not all clocks: {readings:?}");
        Ok(readings)
    }

    /// One of its clocks in one way, beside [`REFERENCE`].
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn one(&mut self, source: Source, way: Way) -> Result<Reading> {
        self.ask(&Order::One { source, way, reference: REFERENCE })
    }

    /// How far its `CLOCK_REALTIME` is ahead of the right one, as the vDSO tells.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn ahead(&mut self) -> Result<i64> {
        self.one(Source::Realtime, Way::Vdso)?.skew()
    }

    /// Reads one for so long.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn sample(&mut self, source: Source, time: Duration, pause: Duration) -> Result<Vec<Reading>> {
        self.begin_sample(source, time, pause)?;
        self.end_sample()
    }

    /// The same in two steps.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn begin_sample(&mut self, source: Source, time: Duration, pause: Duration) -> Result {
        let (milliseconds, pause_us) = (time.as_millis() as u64, pause.as_micros() as u64);
        self.tell(&Order::Sample { source, reference: REFERENCE, milliseconds, pause_us })
    }

    /// The second of them.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn end_sample(&mut self) -> Result<Vec<Reading>> {
        self.hear()
    }

    /// Has threads read clocks, which may be right or ahead by so much.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn watch(&mut self, threads: usize, skew: i64) -> Result {
        self.ask::<Watched>(&Order::Watch { threads, skew }).map(drop)
    }

    /// What the threads have seen.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn seen(&mut self) -> Result<Watched> {
        self.ask(&Order::Seen)
    }

    /// The same, and they end.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn halt(&mut self) -> Result<Watched> {
        self.ask(&Order::Halt)
    }

    /// Has it become itself; its first reading then.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn exec(&mut self) -> Result<Reading> {
        self.ask(&Order::Exec { reference: REFERENCE })
    }

    /// Has it wait until a clock says so many milliseconds more; how that went.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn wait(&mut self, how: Wait, clock: Source, milliseconds: u64) -> Result<Waited> {
        self.ask(&Order::Wait { how, clock, milliseconds })
    }

    /// Has it write to a file; the time in its inode.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn touch(&mut self, path: PathBuf) -> Result<i64> {
        self.ask(&Order::Touch { path })
    }

    /// Waits until its `CLOCK_REALTIME` is ahead by so much; how long that took.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn until(&mut self, skew: i64, time: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let ahead = self.ahead()?;
            if (ahead - skew).abs() <= NEAR {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < time, "{time:?} later it is {ahead} ns ahead, not {skew}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    ///
    /// If it has ended, or cannot.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("waitpid")?.is_none())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
