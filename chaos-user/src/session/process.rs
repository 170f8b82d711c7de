//! Processes by number and start time, and signals that reach nobody else.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};

/// A process, told from all that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl Process {
    /// The calling process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn current() -> io::Result<Self> {
        let pid = nix::unistd::getpid().as_raw();
        let start_time = start_time(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_time })
    }

    /// A handle on it that stays its own, or nothing if it is gone.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open(self) -> io::Result<Option<Handle>> {
        // SAFETY: two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        // SAFETY: a new fd, which nobody else has.
        let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) };
        // The number is pinned now; whose is it?
        Ok((start_time(self.pid)? == Some(self.start_time)).then_some(Handle(fd)))
    }
}

fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        stat => stat?,
    };
    // The second field is in brackets and may hold anything, brackets and spaces included.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()))
}

/// A running process.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        // SAFETY: three integers and a null pointer, which the call allows.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits until it has ended, at most this long; says whether it has.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&self, longest: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + longest;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                result => return Ok(result? != 0),
            }
        }
    }
}
