//! The sockets that a process has open.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use super::{
    Error, Result,
    process::{Process, unless_gone},
    signals,
};

/// How long a process may keep others from one.
const PATIENCE: Duration = Duration::from_millis(500);

/// Does something with each, as a file descriptor of our own, one after the other: there may be more than we may have
/// open. A process that has ended has none. The kernel has whoever asks for a file of another process wait for the end of an
/// `execve`, and that may be waiting for a server that is gone.
///
/// # Errors
///
/// The kernel's, and the action's; the process keeps its sockets from others.
pub fn each(whose: Process, mut action: impl FnMut(&OwnedFd) -> Result<()>) -> Result<()> {
    let (found, sockets) = mpsc::sync_channel::<Result<OwnedFd>>(1);
    let find = move || {
        let told = found.clone();
        // Whoever asked may not be there any more.
        let done = of(whose, |socket| told.send(Ok(socket)).is_ok());
        if let Err(error) = done {
            let _ = found.send(Err(error));
        }
    };
    signals::thread("fl-sockets", find)?;
    loop {
        match sockets.recv_timeout(PATIENCE) {
            Ok(socket) => action(&socket?)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                let late = io::Error::other("it keeps others from its sockets; it may be waiting for a disk");
                return Err(Error::new("pidfd_getfd", format!("process {}", whose.pid), late));
            }
        }
    }
}

/// Tells of each, as long as they are heard.
fn of(whose: Process, tell: impl Fn(OwnedFd) -> bool) -> Result<()> {
    let process = whose.pid;
    let error = |call, source| Error::new(call, format!("process {process}"), source);
    let failed = || io::Error::last_os_error();
    // SAFETY: takes numbers; a new fd, if it is one, which nobody else has.
    let handle = match unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) } {
        -1 => {
            return unless_closed::<()>(Err(failed()))
                .map(drop)
                .map_err(|source| error("pidfd_open", source));
        }
        // SAFETY: as above.
        fd => unsafe { OwnedFd::from_raw_fd(fd as i32) },
    };
    // Whoever has its number later is another's handle.
    if !whose.lives().map_err(|source| error("read the stat of", source))? {
        return Ok(());
    }
    let files = unless_closed(fs::read_dir(format!("/proc/{process}/fd")));
    for file in files.map_err(|source| error("readdir", source))?.into_iter().flatten() {
        let file = unless_closed(file).map_err(|source| error("readdir", source))?;
        let Some(file) = file else { return Ok(()) };
        // Files are closed at any time.
        let link = unless_closed(fs::read_link(file.path())).map_err(|source| error("readlink", source))?;
        let is_socket = link.is_some_and(|link| link.as_os_str().as_bytes().starts_with(b"socket:"));
        let number = file.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(number) = number.filter(|_| is_socket) else { continue };
        // SAFETY: as above.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, handle.as_raw_fd(), number, 0) };
        let fd = unless_closed(if fd < 0 { Err(failed()) } else { Ok(fd) });
        // SAFETY: as above.
        let socket = fd.map(|fd| fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) }));
        if socket.map_err(|source| error("pidfd_getfd", source))?.is_some_and(|socket| !tell(socket)) {
            return Ok(());
        }
    }
    Ok(())
}

/// Nothing of what was closed meanwhile, or went with its process.
fn unless_closed<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(closed) if closed.raw_os_error() == Some(libc::EBADF) => Ok(None),
        found => unless_gone(found),
    }
}
