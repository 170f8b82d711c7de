//! Commands that are started with less than a test has: without capabilities, in other namespaces.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::error::{Context, Result};

/// The nothing that `mount` takes.
const NONE: Option<&CStr> = None;
const PROC: &CStr = c"/proc";
/// The last that any kernel has by now.
const LAST: u32 = 40;

/// What a command has done to itself between fork and exec. Nothing in it allocates.
fn before_exec(command: &mut Command, action: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the callers' actions are system calls on what was made before the fork.
    unsafe { command.pre_exec(action) };
}

/// Takes away those capabilities that `is_kept` does not keep.
pub(super) fn keep(command: &mut Command, is_kept: impl Fn(u32) -> bool) {
    let dropped: Vec<u32> = (0..=LAST).filter(|number| !is_kept(*number)).collect();
    before_exec(command, move || {
        for number in &dropped {
            // SAFETY: numbers. What exec gives root is what this leaves.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *number, 0, 0, 0) } != 0 {
                let error = io::Error::last_os_error();
                // A kernel that does not know it.
                if error.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error);
                }
            }
        }
        Ok(())
    });
}

/// Makes it root of a user namespace, and of nothing else.
pub(super) fn in_user_namespace(command: &mut Command) {
    before_exec(command, || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", b"0 0 1")?;
        write(c"/proc/self/gid_map", b"0 0 1")
    });
}

fn write(file: &CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: a string that ends with NUL, and bytes that live; what is opened is closed by exec.
    let written = unsafe {
        let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        libc::write(fd, text.as_ptr().cast(), text.len())
    };
    if written == text.len().cast_signed() { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes it the first process of a pid namespace, with mounts of its own and `/proc` as it is there; in this root, if one is
/// given. Whoever waits for the command waits for one that waits for it.
pub(super) fn in_pid_namespace(command: &mut Command, root: Option<&Path>) -> Result {
    let root = root.map(|root| CString::new(root.as_os_str().as_bytes())).transpose().context("the root")?;
    before_exec(command, move || {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
        // SAFETY: the child goes on to exec, the parent only waits and ends.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            child => wait_for(child),
        }
        if let Some(root) = &root {
            nix::unistd::chroot(root.as_c_str())?;
            nix::unistd::chdir(c"/")?;
        }
        mount(Some(c"proc"), PROC, Some(c"proc"), MsFlags::empty(), NONE)?;
        Ok(())
    });
    Ok(())
}

/// Ends as a child does, when it does.
fn wait_for(child: i32) -> ! {
    let mut status = 0;
    // SAFETY: a number that lives, and the end of this process, which has nothing to clean up.
    unsafe {
        while libc::waitpid(child, &raw mut status, 0) < 0 && *libc::__errno_location() == libc::EINTR {}
        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 })
    }
}

/// Gives it a cgroup namespace, of which its cgroup is the root, and nothing but that mounted at `point`.
pub(super) fn in_cgroup_namespace(command: &mut Command, point: &Path) -> Result {
    let point = CString::new(point.as_os_str().as_bytes()).context("the mount point")?;
    before_exec(command, move || {
        unshare(CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS)?;
        // The kernel mounts no file system a second time at one place.
        umount2(point.as_c_str(), MntFlags::MNT_DETACH)?;
        mount(Some(c"none"), point.as_c_str(), Some(c"cgroup2"), MsFlags::empty(), NONE)?;
        Ok(())
    });
    Ok(())
}
