//! The sockets that a process has open.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{Error, Result};

/// Does something with each, as a file descriptor of our own, one after the other: there may be more than we may have
/// open. A process that has ended has none.
///
/// # Errors
///
/// The kernel's, and the action's.
pub fn each(process: u32, mut action: impl FnMut(&OwnedFd) -> Result<()>) -> Result<()> {
    let error = |call, source| Error::new(call, format!("process {process}"), source);
    // SAFETY: takes numbers; a new fd, if it is one, which nobody else has.
    let handle = match unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) } {
        -1 => return gone(io::Error::last_os_error()).map_err(|source| error("pidfd_open", source)),
        // SAFETY: as above.
        fd => unsafe { OwnedFd::from_raw_fd(fd as i32) },
    };
    let files = match fs::read_dir(format!("/proc/{process}/fd")) {
        Ok(files) => files,
        Err(source) => return gone(source).map_err(|source| error("readdir", source)),
    };
    for file in files {
        let file = match file {
            Ok(file) => file,
            Err(source) => return gone(source).map_err(|source| error("readdir", source)),
        };
        // Files are closed at any time.
        let is_socket = match fs::read_link(file.path()) {
            Ok(link) => link.to_string_lossy().starts_with("socket:"),
            Err(source) => gone(source).map(|()| false).map_err(|source| error("readlink", source))?,
        };
        let Some(number) = file.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if is_socket {
            // SAFETY: as above.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, handle.as_raw_fd(), number, 0) };
            match fd {
                -1 => {
                    gone(io::Error::last_os_error()).map_err(|source| error("pidfd_getfd", source))?;
                }
                // SAFETY: as above.
                fd => action(&unsafe { OwnedFd::from_raw_fd(fd as i32) })?,
            }
        }
    }
    Ok(())
}

/// Nothing, where the process or the file is not there any more.
fn gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT | libc::EBADF) => Ok(()),
        _ => Err(error),
    }
}
