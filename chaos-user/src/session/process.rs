//! Processes by what they hold, and signals that reach nobody else.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::fstat,
};

/// A running process.
#[derive(Debug)]
pub(super) struct Handle {
    /// Its number here.
    pub(super) pid: i32,
    fd: OwnedFd,
}

impl Handle {
    /// The process that holds a file locked by `flock`, whatever number it knows itself by; nothing if none is seen that does.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn of_holder(file: &File) -> io::Result<Option<Self>> {
        if !is_own_proc()? {
            return Ok(None);
        }
        let stat = fstat(file)?;
        let device = (libc::major(stat.st_dev), libc::minor(stat.st_dev));
        let holder = || Ok::<_, io::Error>(holder(&fs::read_to_string("/proc/locks")?, device, stat.st_ino));
        let Some(pid) = holder()? else { return Ok(None) };
        let Some(fd) = open(pid)? else { return Ok(None) };
        // The number is pinned now; is it still the holder's?
        Ok((holder()? == Some(pid)).then_some(Self { pid, fd }))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.fd);
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
    pub(super) fn wait(&self, longest: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + longest;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                result => return Ok(result? != 0),
            }
        }
    }
}

/// Whether the numbers in `/proc` are those by which this process can speak of others.
fn is_own_proc() -> io::Result<bool> {
    let own = fs::read_link("/proc/self")?;
    Ok(own.to_str().and_then(|name| name.parse().ok()) == Some(nix::unistd::getpid().as_raw()))
}

fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
    }
    // SAFETY: a new fd, which nobody else has.
    Ok(Some(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) }))
}

/// Who has a file locked by `flock`, in the text of `/proc/locks`; who waits for it has an arrow there, and who is not seen
/// in this pid namespace has no line.
fn holder(locks: &str, (major, minor): (u32, u32), inode: u64) -> Option<i32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, "WRITE", pid, name, ..] if name == file => {
                pid.parse().ok().filter(|pid| *pid > 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock() {
        let locks = "1: OFDLCK ADVISORY  WRITE -1 00:1a:5 0 0\n2: FLOCK  ADVISORY  READ 3 00:1a:5 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4 00:1a:5 0 EOF\n3: FLOCK  ADVISORY  WRITE 77 00:1a:5 0 EOF\n\
                     4: POSIX  ADVISORY  WRITE 78 00:1a:6 0 EOF\n";
        assert_eq!(holder(locks, (0, 0x1a), 5), Some(77));
        assert_eq!(holder(locks, (0, 0x1a), 6), None);
        assert_eq!(holder(locks, (8, 0x1a), 5), None);
    }

    #[test]
    fn a_lock_of_our_own() {
        use nix::fcntl::{Flock, FlockArg};
        let path = std::env::temp_dir().join(format!("fl-holder-{}", std::process::id()));
        let file = File::create(&path).expect("a file");
        assert!(Handle::of_holder(&file).expect("/proc/locks").is_none());
        let held = Flock::lock(file.try_clone().expect("dup"), FlockArg::LockExclusive).expect("flock");
        let found = Handle::of_holder(&file).expect("/proc/locks").map(|handle| handle.pid);
        assert_eq!(found, Some(std::process::id().cast_signed()));
        drop(held);
        fs::remove_file(path).expect("rm");
    }
}
