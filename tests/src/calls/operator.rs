//! A process in a given cgroup that makes the system calls it is told to and says what they gave: the target of a
//! fault, and the bystander beside it.

use std::{
    cell::Cell,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};

use super::{
    board::{Board, DATA, MOST, Shared, tell, wait_for},
    servant::Who,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::die_with_parent,
};

/// Longer than any call here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is said of a child that a signal ended: this and the signal's number, in place of an errno.
pub(super) const KILLED: i32 = 1000;
/// Paths that an order can have.
const PATHS: usize = 3;
/// The room each of them has.
const PATH_ROOM: usize = 4096;
/// Where what calls read and write begins, behind the paths.
const BUFFER: usize = PATHS * PATH_ROOM;

/// What the current folder is for calls that take one.
pub(super) const HERE: u64 = libc::AT_FDCWD as u64;

/// What a call gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Took {
    /// `-errno` if it failed.
    pub(super) value: i64,
    /// How long it took.
    pub(super) ns: u64,
}

impl Took {
    /// 0 if it succeeded.
    pub(super) fn errno(self) -> i32 {
        errno(self.value)
    }
}

/// What a call's result says: 0 for success.
pub(super) fn errno(value: i64) -> i32 {
    if (-4095..0).contains(&value) { -value as i32 } else { 0 }
}

/// The process. Killed when dropped.
#[derive(Debug)]
pub(super) struct Operator {
    child: Child,
    shared: Shared,
    base: u64,
    orders: Cell<u32>,
    /// How long the slowest call has taken since this was set to nothing.
    pub(super) slowest: Cell<Duration>,
}

impl Operator {
    /// One in a cgroup.
    pub(super) fn new(cgroup: &Cgroup) -> Result<Self> {
        Self::with(cgroup, |_| {})
    }

    /// One in a cgroup, changed before it is started.
    pub(super) fn with(cgroup: &Cgroup, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let memory = memfd_create(c"board", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        ftruncate(&memory, size_of::<Board>() as i64).context("ftruncate")?;
        let shared = Shared::map(memory.as_fd())?;
        let child = start(cgroup, memory, prepare)?;
        let (orders, slowest) = (Cell::new(1), Cell::default());
        let mut operator = Self { child, shared, base: 0, orders, slowest };
        operator.wait()?;
        operator.base = operator.board().base.load(SeqCst);
        Ok(operator)
    }

    fn board(&self) -> &Board {
        self.shared.board()
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a call.
    pub(super) fn call(&self, number: i64, arguments: &[u64]) -> Result<i64> {
        self.call_by(Who::Itself, number, arguments)
    }

    /// Makes a call that cannot fail.
    pub(super) fn must(&self, what: &str, number: i64, arguments: &[u64]) -> Result<u64> {
        let value = self.call(number, arguments)?;
        ensure!(errno(value) == 0, "{what} of {arguments:?} gives errno {}", errno(value));
        Ok(value as u64)
    }

    /// Has a call made by somebody of the process. What a child has opened is gone with it.
    pub(super) fn call_by(&self, who: Who, number: i64, arguments: &[u64]) -> Result<i64> {
        Ok(self.order(who, 1, number, arguments)?[0].value)
    }

    /// Makes a call again and again.
    pub(super) fn repeat(&self, count: usize, number: i64, arguments: &[u64]) -> Result<Vec<Took>> {
        self.order(Who::Itself, count, number, arguments)
    }

    /// Forks a child, which ends at once: 0, or why it could not.
    pub(super) fn fork(&self) -> Result<i32> {
        self.give(Who::Child, 0, libc::SYS_getpid, &[])?;
        Ok(self.board().childless.load(SeqCst).cast_signed())
    }

    /// The same by somebody of the process.
    pub(super) fn order(&self, who: Who, count: usize, number: i64, arguments: &[u64]) -> Result<Vec<Took>> {
        let began = Instant::now();
        self.give(who, count, number, arguments)?;
        let order = began.elapsed();
        let board = self.board();
        let (begun, errno) = (board.begun.load(SeqCst) as usize, board.childless.load(SeqCst));
        ensure!(begun == count, "{begun} of {count} calls were made; fork gave errno {errno}");
        let read = |(value, time): &(AtomicI64, AtomicU64)| Took {
            value: value.load(SeqCst),
            ns: time.load(SeqCst),
        };
        let mut results: Vec<Took> = board.results[..count].iter().map(read).collect();
        let slowest = results.iter().map(|took| Duration::from_nanos(took.ns)).max().unwrap_or_default();
        // One that does not come back, `execve`, says no time.
        let slowest = if slowest.is_zero() { order } else { slowest };
        self.slowest.set(slowest.max(self.slowest.get()));
        let signal = board.status.load(SeqCst) & 0x7f;
        if let Some(last) = results.last_mut().filter(|_| signal != 0) {
            last.value = -i64::from(KILLED) - i64::from(signal);
        }
        Ok(results)
    }

    fn give(&self, who: Who, count: usize, number: i64, arguments: &[u64]) -> Result {
        ensure!(count <= MOST && arguments.len() <= 6, "{count} calls with {arguments:?}");
        let board = self.board();
        for (place, argument) in board.arguments.iter().enumerate() {
            argument.store(arguments.get(place).copied().unwrap_or(0), SeqCst);
        }
        board.number.store(number, SeqCst);
        board.count.store(count as u32, SeqCst);
        board.who.store(who as u32, SeqCst);
        board.begun.store(0, SeqCst);
        board.status.store(0, SeqCst);
        board.childless.store(0, SeqCst);
        let order = self.orders.get();
        self.orders.set(order + 1);
        tell(&board.order, order);
        self.wait()
    }

    /// Until all orders so far are done.
    fn wait(&self) -> Result {
        let done = wait_for(&self.board().done, self.orders.get(), PATIENCE);
        ensure!(done, "process {} has not done what it was told to within {PATIENCE:?}", self.pid());
        Ok(())
    }

    /// Where in its memory this path now is, of the few that an order can have.
    pub(super) fn path(&self, which: usize, path: impl AsRef<Path>) -> Result<u64> {
        let bytes = path.as_ref().as_os_str().as_bytes();
        ensure!(which < PATHS && bytes.len() < PATH_ROOM, "a path of {} bytes", bytes.len());
        let at = which * PATH_ROOM;
        self.put(at, bytes);
        self.put(at + bytes.len(), &[0]);
        Ok(self.base + self.data_at(at))
    }

    /// Where in its memory these bytes now are: what a call writes, or a structure it takes.
    pub(super) fn bytes(&self, offset: usize, bytes: &[u8]) -> Result<u64> {
        ensure!(BUFFER + offset + bytes.len() <= DATA, "{} bytes at {offset}", bytes.len());
        self.put(BUFFER + offset, bytes);
        Ok(self.buffer(offset))
    }

    /// Where in its memory there is room for what a call reads.
    pub(super) fn buffer(&self, offset: usize) -> u64 {
        self.base + self.data_at(BUFFER + offset)
    }

    /// What is there now.
    pub(super) fn read_back(&self, offset: usize, length: usize) -> Vec<u8> {
        let data = &self.board().data[BUFFER + offset..][..length];
        data.iter().map(|byte| byte.load(SeqCst)).collect()
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        for (to, byte) in self.board().data[at..].iter().zip(bytes) {
            to.store(*byte, SeqCst);
        }
    }

    fn data_at(&self, at: usize) -> u64 {
        (std::mem::offset_of!(Board, data) + at) as u64
    }
}

/// The calls that come before most others.
impl Operator {
    /// Opens a file, and says its descriptor.
    pub(super) fn open(&self, path: impl AsRef<Path>, flags: i32) -> Result<u64> {
        let path = path.as_ref();
        let at = self.path(0, path)?;
        let arguments = [HERE, at, flags.cast_unsigned().into(), 0o644];
        self.must(&format!("open {}", path.display()), libc::SYS_openat, &arguments)
    }

    /// Whatever else wants the CPU waits from now on: a busy wait uses its time slice up.
    pub(super) fn come_first(&self) -> Result {
        let priority = self.bytes(0, &1_i32.to_ne_bytes())?;
        let arguments = [0, libc::SCHED_FIFO as u64, priority];
        self.must("sched_setscheduler", libc::SYS_sched_setscheduler, &arguments).map(drop)
    }

    /// Closes a descriptor.
    pub(super) fn close(&self, fd: u64) -> Result {
        self.must("close", libc::SYS_close, &[fd]).map(drop)
    }

    /// Reads the first bytes of an open file: 0, or why it could not.
    pub(super) fn read(&self, fd: u64) -> Result<i32> {
        Ok(errno(self.call(libc::SYS_pread64, &[fd, self.buffer(0), 16, 0])?))
    }

    /// Opens a file, which must succeed, reads from it and closes it: 0, or why it could not be read.
    pub(super) fn reads(&self, path: impl AsRef<Path>) -> Result<i32> {
        let fd = self.open(path, libc::O_RDONLY)?;
        let read = self.read(fd);
        self.close(fd)?;
        read
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(cgroup: &Cgroup, memory: OwnedFd, prepare: impl FnOnce(&mut Command)) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--obey").stdin(memory).stdout(Stdio::null());
    die_with_parent(&mut command);
    prepare(&mut command);
    cgroup.run(|| command.spawn().context("start a process that obeys"))
}

/// A target and a bystander in cgroups of their own.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) target: Operator,
    pub(super) bystander: Operator,
    pub(super) cgroup: Cgroup,
    /// That of the bystander.
    pub(super) other: Cgroup,
}

impl Pair {
    pub(super) fn new() -> Result<Self> {
        let (cgroup, other) = (Cgroup::new()?, Cgroup::new()?);
        Ok(Self { target: Operator::new(&cgroup)?, bystander: Operator::new(&other)?, cgroup, other })
    }

    /// The option that names the target's cgroup.
    pub(super) fn option(&self) -> String {
        format!("--cgroup {}", self.cgroup.path().display())
    }
}
