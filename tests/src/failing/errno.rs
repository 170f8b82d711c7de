//! With what a call can fail where nothing is wrong with its arguments: what its manual page says of memory, descriptors, space,
//! rights and disks.

use nix::errno::Errno;

use super::trace::Call;

/// The errnos that a call is made to fail with, one after the other.
pub(super) fn of(call: &Call) -> &'static [Errno] {
    use Errno::{
        E2BIG, EACCES, EAGAIN, EBUSY, EEXIST, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOLCK, ENOMEM,
        ENOSPC, EPERM, EROFS, ESRCH,
    };
    match (&*call.name, &*call.what) {
        // A map that is full.
        ("bpf", "BPF_MAP_UPDATE_ELEM" | "BPF_MAP_UPDATE_BATCH") => &[E2BIG, ENOMEM],
        ("bpf", "BPF_LINK_CREATE") => &[ENOMEM, EBUSY],
        ("bpf", what) if what.starts_with("BPF_MAP_CREATE") || what.starts_with("BPF_PROG_LOAD") => {
            &[ENOMEM, EPERM]
        }
        ("bpf", _) => &[EMFILE, EPERM],
        ("openat" | "open", _) => &[EMFILE, EACCES],
        (
            "socket" | "pipe2" | "memfd_create" | "signalfd4" | "eventfd2" | "timerfd_create" | "dup"
            | "dup2",
            _,
        ) => &[EMFILE],
        ("pidfd_open" | "pidfd_getfd" | "perf_event_open" | "socketpair" | "epoll_create1", _) => {
            &[EMFILE, EPERM]
        }
        ("write" | "pwrite64" | "writev", _) => &[ENOSPC, EIO],
        ("fdatasync" | "fsync", _) => &[EIO],
        ("read" | "pread64" | "readv", _) => &[EIO, EINTR],
        ("getdents64", _) => &[EIO],
        ("ioctl", _) => &[ENOMEM, EPERM],
        ("sendto" | "sendmsg", _) => &[ENOBUFS, EPERM],
        ("recvfrom" | "recvmsg", _) => &[ENOBUFS, EINTR],
        ("poll" | "ppoll" | "epoll_wait" | "epoll_pwait", _) => &[ENOMEM, EINTR],
        ("flock", _) | ("fcntl", "F_OFD_SETLK" | "F_OFD_GETLK" | "F_OFD_SETLKW") => &[ENOLCK],
        ("fcntl", "F_DUPFD_CLOEXEC" | "F_DUPFD") => &[EMFILE],
        ("mkdir" | "mkdirat", _) => &[ENOSPC, EROFS],
        ("unlink" | "unlinkat" | "rmdir", _) => &[EROFS],
        ("statx" | "newfstatat" | "fstat" | "readlink" | "readlinkat" | "access" | "faccessat2", _) => {
            &[ENOMEM, EACCES]
        }
        ("clone" | "clone3" | "fork" | "vfork", _) => &[EAGAIN],
        ("execve", _) => &[ENOENT, ENOMEM],
        ("unshare" | "setns", _) => &[EPERM, ENOSPC],
        (
            "ptrace" | "process_vm_readv" | "process_vm_writev" | "kill" | "tgkill" | "pidfd_send_signal",
            _,
        ) => &[EPERM, ESRCH],
        ("wait4" | "waitid" | "clock_nanosleep" | "nanosleep", _) => &[EINTR],
        ("accept4" | "connect" | "bind" | "listen", _) => &[ENOBUFS],
        ("mount", _) => &[ENOMEM],
        ("link" | "linkat" | "rename" | "renameat2" | "symlink", _) => &[ENOSPC, EEXIST],
        ("mmap" | "mremap" | "munmap" | "mprotect" | "madvise", _) => &[ENOMEM],
        ("inotify_init1" | "fanotify_init", _) => &[EMFILE, ENFILE],
        _ => &[EPERM],
    }
}

/// As the C library says it.
pub(super) fn text(errno: Errno) -> String {
    let said = std::io::Error::from(errno).to_string();
    said.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_can_fail() {
        let call = |name: &str, what: &str| Call { name: name.into(), nth: 1, what: what.into() };
        assert_eq!(of(&call("bpf", "BPF_MAP_UPDATE_ELEM")), [Errno::E2BIG, Errno::ENOMEM]);
        assert_eq!(of(&call("no_such_call", "")), [Errno::EPERM]);
        assert_eq!(text(Errno::ENOMEM), "Cannot allocate memory");
    }
}
