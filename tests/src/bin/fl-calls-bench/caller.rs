//! The process whose calls are measured. It is told what to do by other calls than those.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use faultline_tests::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    traffic::monotonic_ns,
};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

/// Of the file that is read: as long as calls are made at a time.
pub(super) const SIZE: usize = 64 * 1024;
const PAGE: usize = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// `read()` of one byte after the other.
    Byte,
    /// `pread()` of one page again and again.
    Page,
}

impl Call {
    pub(super) const ALL: [Self; 2] = [Self::Byte, Self::Page];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Byte => "READ() OF 1 BYTE",
            Self::Page => "PREAD() OF 4 KIB",
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) nanoseconds: u64,
    pub(super) failed: u32,
}

/// It. Killed when dropped.
#[derive(Debug)]
pub(super) struct Caller {
    pid: Pid,
    orders: OwnedFd,
}

impl Caller {
    /// Starts it in a cgroup. This process must have one thread.
    pub(super) fn start(cgroup: &Cgroup, path: &Path) -> Result<Self> {
        let file = File::open(path).context(path.display())?;
        let (orders, obeyed) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("socketpair")?;
        // SAFETY: this process has no other thread that could hold a lock across the fork.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, orders }),
            ForkResult::Child => {
                let ready =
                    prctl::set_pdeathsig(Signal::SIGKILL).context("prctl").and_then(|()| cgroup.join());
                if ready.is_ok() {
                    obey(&obeyed, &file);
                }
                // SAFETY: ends this process without running anything of the parent's.
                unsafe { libc::_exit(1) };
            }
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Has it make so many calls.
    pub(super) fn make(&self, call: Call, count: u32) -> Result<Took> {
        let mut order = [0; 8];
        order[..4].copy_from_slice(&(call as u32).to_ne_bytes());
        order[4..].copy_from_slice(&count.to_ne_bytes());
        send(self.orders.as_raw_fd(), &order, MsgFlags::MSG_NOSIGNAL).context("send")?;
        let (mut nanoseconds, mut answer) = ([0; 8], [0; 12]);
        let length = recv(self.orders.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv")?;
        ensure!(length == answer.len(), "the caller is gone");
        nanoseconds.copy_from_slice(&answer[..8]);
        let failed = [answer[8], answer[9], answer[10], answer[11]];
        Ok(Took { nanoseconds: u64::from_ne_bytes(nanoseconds), failed: u32::from_ne_bytes(failed) })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Until there are no more orders.
fn obey(orders: &OwnedFd, file: &File) {
    let mut order = [0; 8];
    while recv(orders.as_raw_fd(), &mut order, MsgFlags::empty()) == Ok(order.len()) {
        let count = u32::from_ne_bytes([order[4], order[5], order[6], order[7]]);
        let took = if order[0] == Call::Byte as u8 { bytes(file, count) } else { pages(file, count) };
        let mut answer = [0; 12];
        answer[..8].copy_from_slice(&took.nanoseconds.to_ne_bytes());
        answer[8..].copy_from_slice(&took.failed.to_ne_bytes());
        if send(orders.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL).is_err() {
            return;
        }
    }
}

fn bytes(file: &File, count: u32) -> Took {
    let fd = file.as_raw_fd();
    // SAFETY: three integers; from the beginning again.
    unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
    let mut byte = 0_u8;
    // SAFETY: reads into one byte.
    timed(count, || unsafe { libc::read(fd, (&raw mut byte).cast(), 1) == 1 })
}

fn pages(file: &File, count: u32) -> Took {
    let mut page = [0; PAGE];
    timed(count, || file.read_at(&mut page, 0).is_ok_and(|length| length == PAGE))
}

fn timed(count: u32, mut call: impl FnMut() -> bool) -> Took {
    let (start, mut failed) = (monotonic_ns(), 0);
    for _ in 0..count {
        failed += u32::from(!call());
    }
    Took { nanoseconds: monotonic_ns() - start, failed }
}
