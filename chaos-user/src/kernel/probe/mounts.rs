//! Files of kernel file systems, mounted or not.

use std::{
    ffi::CStr,
    fs,
    io::{self, Read as _},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use crate::{
    host::mounts,
    kernel::{Error, Result},
    spec::shown,
};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where a file system of this type is mounted first, and is to be seen.
///
/// # Errors
///
/// The kernel's.
pub(super) fn find(kind: &str) -> Result<Option<PathBuf>> {
    let all = mounts::of(Path::new("/proc/self")).map_err(|source| Error::new("open", MOUNTINFO, source))?;
    for mount in all.into_iter().filter(|mount| mount.kind == kind) {
        let is_seen = mount.is_seen();
        if is_seen.map_err(|source| Error::new("stat", shown::name(&mount.point), source))? {
            return Ok(Some(mount.point));
        }
    }
    Ok(None)
}

/// One file of a kernel file system: where it is mounted, or else through a mount that nobody else can see and
/// that goes with its fd.
pub(super) fn read(kind: &'static CStr, usual: &str, file: &str) -> Result<String> {
    let path = Path::new(usual).join(file);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            read_unmounted(kind, file).map_err(|source| Error::new("open", shown::name(&path), source))
        }
        result => result.map_err(|source| Error::new("open", shown::name(&path), source)),
    }
}

fn read_unmounted(kind: &'static CStr, file: &str) -> io::Result<String> {
    let root = detached(kind)?;
    let fd = openat(&root, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    fs::File::from(fd).read_to_string(&mut text)?;
    Ok(text)
}

/// A mount of this file system that is part of no tree.
fn detached(kind: &'static CStr) -> io::Result<OwnedFd> {
    // SAFETY: the strings end in zero and outlive the calls; each call returns a new fd or -1.
    unsafe {
        let context = fd(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC))?;
        let (nothing, number) = (std::ptr::null::<libc::c_char>(), 0);
        let create = libc::FSCONFIG_CMD_CREATE;
        if libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), create, nothing, nothing, number) < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::FSMOUNT_CLOEXEC;
        fd(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), flags, libc::MOUNT_ATTR_RDONLY))
    }
}

fn fd(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only called with what has just been returned as a new fd.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
