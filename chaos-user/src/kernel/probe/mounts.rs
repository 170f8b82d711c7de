//! Files of kernel file systems, mounted or not.

use std::{
    ffi::CStr,
    fs,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use crate::kernel::{Error, Result, cgroups::leads_nowhere};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where a file system of this type is mounted first, and is to be seen: another may be mounted over it.
///
/// # Errors
///
/// The kernel's; of a path that leads nowhere it says no more than that.
pub(super) fn find(kind: &str) -> Result<Option<PathBuf>> {
    let text = fs::read_to_string(MOUNTINFO).map_err(|source| Error::new("open", MOUNTINFO, source))?;
    for (path, device) in parse(&text, kind) {
        match fs::metadata(&path) {
            Ok(there) if (libc::major(there.dev()), libc::minor(there.dev())) == device => {
                return Ok(Some(path));
            }
            Ok(_) => {}
            Err(covered) if leads_nowhere(&covered) => {}
            Err(source) => return Err(Error::new("stat", path.display().to_string(), source)),
        }
    }
    Ok(None)
}

/// One file of a kernel file system: where it is mounted, or else through a mount that nobody else can see and
/// that goes with its fd.
pub(super) fn read(kind: &'static CStr, usual: &str, file: &str) -> Result<String> {
    let path = Path::new(usual).join(file);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => read_unmounted(kind, file)
            .map_err(|source| Error::new("open", path.display().to_string(), source)),
        result => result.map_err(|source| Error::new("open", path.display().to_string(), source)),
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

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - type source options`, spaces in paths as `\040`: where those of this type
/// are, and their devices.
fn parse(mountinfo: &str, kind: &str) -> impl Iterator<Item = (PathBuf, (u32, u32))> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (file_system.split(' ').next() == Some(kind)).then_some(())?;
        let mut words = mount.split(' ').skip(2);
        let (major, minor) = words.next()?.split_once(':')?;
        Some((PathBuf::from(unescape(words.nth(1)?)), (major.parse().ok()?, minor.parse().ok()?)))
    })
}

fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/with\\040space rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn finds_a_mount_by_its_type() {
        let first = |text, kind| parse(text, kind).next();
        assert_eq!(first(HYBRID, "cgroup2"), Some((PathBuf::from("/sys/fs/cgroup/with space"), (0, 27))));
        assert_eq!(first(HYBRID, "cgroup"), Some((PathBuf::from("/sys/fs/cgroup/systemd"), (0, 28))));
        assert_eq!(first(HYBRID, "tracefs"), None);
        assert_eq!(first("", "cgroup2"), None);
    }
}
