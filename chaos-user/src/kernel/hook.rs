//! Which hooks an operation is, by each mechanism: the one table that the planner, the loader and the doctor read.

use chaos_ebpf::{
    abi::Direction,
    call::{NO_KIND, Within, kind, program},
};
use syscalls::Sysno;

use super::{
    btf::KernelTypes,
    mechanism::{Fault, Mechanism, ways},
};
use crate::spec::Op;

/// What the kernel asks its security modules about an operation.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The operation.
    pub op: Op,
    /// As security modules know it.
    pub name: &'static str,
    /// The program for what it passes.
    pub program: &'static str,
    /// Which of the things it is asked for this is, a [`kind`].
    pub kind: usize,
    /// Within which system calls it is this operation; all if there are none.
    pub within: &'static [Sysno],
    /// Or within which it is not.
    pub never_within: &'static [Sysno],
}

const fn hook(op: Op, name: &'static str, program: &'static str) -> Hook {
    Hook { op, name, program, kind: kind::READ, within: &[], never_within: &[] }
}

const fn asked(op: Op, name: &'static str, kind: usize) -> Hook {
    Hook { kind, ..hook(op, name, program::ACCESS) }
}

/// All of them. An operation with several has those that the kernel has: `file_truncate`, say, is `path_truncate` before
/// Linux 6.2.
#[rustfmt::skip]
pub const HOOKS: &[Hook] = &[
    hook(Op::Open,     "file_open",           program::FILE),
    asked(Op::Read,    "file_permission",     kind::READ),
    asked(Op::Write,   "file_permission",     kind::WRITE),
    asked(Op::Readdir, "file_permission",     kind::LIST),
    hook(Op::Mmap,     "mmap_file",           program::FILE),
    hook(Op::Create,   "inode_create",        program::DENTRY[1]),
    hook(Op::Mknod,    "inode_mknod",         program::DENTRY[1]),
    hook(Op::Unlink,   "inode_unlink",        program::DENTRY[1]),
    hook(Op::Rename,   "inode_rename",        program::RENAME),
    hook(Op::Mkdir,    "inode_mkdir",         program::DENTRY[1]),
    hook(Op::Rmdir,    "inode_rmdir",         program::DENTRY[1]),
    hook(Op::Link,     "inode_link",          program::LINK),
    hook(Op::Symlink,  "inode_symlink",       program::DENTRY[1]),
    hook(Op::Readlink, "inode_readlink",      program::DENTRY[0]),
    hook(Op::Truncate, "path_truncate",       program::PATH),
    hook(Op::Truncate, "file_truncate",       program::FILE),
    hook(Op::Stat,     "inode_getattr",       program::PATH),
    hook(Op::Xattr,    "inode_getxattr",      program::DENTRY[0]),
    hook(Op::Xattr,    "inode_setxattr",      program::DENTRY[1]),
    hook(Op::Xattr,    "inode_listxattr",     program::DENTRY[0]),
    hook(Op::Xattr,    "inode_removexattr",   program::DENTRY[1]),
    hook(Op::Chmod,    "path_chmod",          program::PATH),
    hook(Op::Chown,    "path_chown",          program::PATH),
    hook(Op::Lock,     "file_lock",           program::FILE),
    hook(Op::Ioctl,    "file_ioctl",          program::FILE),
    hook(Op::Exec,     "bprm_check_security", program::EXEC),
    hook(Op::Socket,   "socket_create",       program::SOCKET),
    hook(Op::Bind,     "socket_bind",         program::BARE),
    hook(Op::Listen,   "socket_listen",       program::BARE),
    hook(Op::Accept,   "socket_accept",       program::BARE),
    hook(Op::Connect,  "socket_connect",      program::BARE),
    hook(Op::Sendmsg,  "socket_sendmsg",      program::BARE),
    hook(Op::Recvmsg,  "socket_recvmsg",      program::BARE),
    // A program that is executed is mapped as well, and would not live to see an error.
    Hook { within: &[Sysno::mmap], ..hook(Op::Map, "mmap_file", program::BARE) },
    // Asked for stacks, forks and much else as well; its verdict is the kernel's own, not a module's.
    Hook { within: &[Sysno::brk],  ..hook(Op::Brk, "vm_enough_memory", program::BARE) },
    // A program is opened to be executed, for which no descriptor is needed.
    Hook { never_within: &[Sysno::execve, Sysno::execveat],
           ..hook(Op::Fd, "file_alloc_security", program::BARE) },
    hook(Op::Fork,     "task_alloc",          program::BARE),
];

impl Hook {
    /// The function that asks the modules; its result can be replaced (`fmod_ret`).
    #[must_use]
    pub fn function(&self) -> String {
        match self.name {
            "bprm_check_security" => "security_bprm_check".into(),
            "file_alloc_security" => "security_file_alloc".into(),
            "vm_enough_memory" => "security_vm_enough_memory_mm".into(),
            name => format!("security_{name}"),
        }
    }

    /// The function that a security module in BPF stands behind, unless what modules say there is not what counts.
    #[must_use]
    pub fn module_function(&self) -> Option<String> {
        (self.op != Op::Brk).then(|| format!("bpf_lsm_{}", self.name))
    }

    /// What the program at this hook tells apart.
    #[must_use]
    pub fn calls(&self) -> (Vec<Within>, u32) {
        let all = |calls: &[Sysno], kind| {
            calls.iter().map(|call| Within { number: call.id().cast_unsigned(), kind }).collect()
        };
        if self.never_within.is_empty() {
            let others = if self.within.is_empty() { kind::READ as u32 } else { NO_KIND };
            (all(self.within, kind::READ as u32), others)
        } else {
            (all(self.never_within, NO_KIND), kind::READ as u32)
        }
    }
}

/// The system calls that do an operation to a file whose descriptor is their first argument, where they all are such.
#[must_use]
pub fn calls_of(op: Op) -> &'static [Sysno] {
    match op {
        Op::Read => &[Sysno::read, Sysno::pread64, Sysno::readv, Sysno::preadv, Sysno::preadv2],
        Op::Write => &[Sysno::write, Sysno::pwrite64, Sysno::writev, Sysno::pwritev, Sysno::pwritev2],
        Op::Readdir => &[Sysno::getdents, Sysno::getdents64],
        Op::Ioctl => &[Sysno::ioctl],
        Op::Fsync => &[Sysno::fsync, Sysno::fdatasync, Sysno::sync_file_range, Sysno::syncfs],
        _ => &[],
    }
}

/// Whether a system call's first argument is a file's descriptor, by which its path is known.
#[must_use]
pub fn takes_fd(call: Sysno) -> bool {
    const OTHERS: [Sysno; 27] = [
        Sysno::close,
        Sysno::lseek,
        Sysno::fstat,
        Sysno::fcntl,
        Sysno::flock,
        Sysno::ftruncate,
        Sysno::fchmod,
        Sysno::fchown,
        Sysno::fallocate,
        Sysno::fadvise64,
        Sysno::readahead,
        Sysno::fgetxattr,
        Sysno::fsetxattr,
        Sysno::flistxattr,
        Sysno::fremovexattr,
        Sysno::fstatfs,
        Sysno::fchdir,
        Sysno::dup,
        Sysno::dup2,
        Sysno::dup3,
        Sysno::sendfile,
        Sysno::copy_file_range,
        Sysno::splice,
        Sysno::tee,
        Sysno::vmsplice,
        Sysno::recvmsg,
        Sysno::sendmsg,
    ];
    let by_op = [Op::Read, Op::Write, Op::Readdir, Op::Ioctl, Op::Fsync];
    by_op.into_iter().flat_map(calls_of).chain(&OTHERS).any(|known| *known == call)
}

/// The kernel's function for a system call of this machine's processes.
#[must_use]
pub fn function_of(call: Sysno) -> String {
    format!("__x64_sys_{}", call.name())
}

/// A place a program can be attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// By what.
    pub mechanism: Mechanism,
    /// To which function or tracepoint.
    pub function: String,
    /// The program.
    pub program: &'static str,
}

/// What a fault does, as far as the mechanisms differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Calls fail.
    Fail,
    /// They wait.
    Wait,
    /// What they have read is changed.
    Spoil,
}

/// The mechanisms by which operations and system calls can be hit, the best first.
pub fn mechanisms(effect: Effect) -> impl Iterator<Item = Mechanism> {
    let faults: &[Fault] = match effect {
        Effect::Fail => &[Fault::IoError, Fault::SysError],
        Effect::Wait => &[Fault::IoDelay],
        Effect::Spoil => &[Fault::IoCorrupt],
    };
    faults.iter().flat_map(|fault| ways(*fault, Direction::Call)).map(|way| way.mechanism)
}

/// The tracepoint of all system calls.
pub const ENTER: &str = "sys_enter";

/// Where an operation can be hit by a mechanism on a kernel with these types; nowhere if it cannot.
#[must_use]
pub fn sites(op: Op, mechanism: Mechanism, types: &KernelTypes) -> Vec<(Site, Option<&'static Hook>)> {
    let site = |function: String, program| Site { mechanism, function, program };
    let there = |function: &String| types.function(function).is_ok();
    let hooks = HOOKS.iter().filter(|hook| hook.op == op);
    match mechanism {
        Mechanism::Lsm => hooks
            .filter_map(|hook| Some((hook.module_function().filter(there)?, hook)))
            .map(|(function, hook)| (site(function, hook.program), Some(hook)))
            .collect(),
        Mechanism::FmodRetSecurity => hooks
            .map(|hook| (hook.function(), hook))
            .filter(|(function, _)| there(function))
            .map(|(function, hook)| (site(function, hook.program), Some(hook)))
            .collect(),
        Mechanism::Fexit if op == Op::Read => {
            let [readv, preadv] = program::READ_VECTOR;
            [("vfs_read", program::READ), ("do_readv", readv), ("do_preadv", preadv)]
                .into_iter()
                .map(|(function, program)| (site(function.into(), program), None))
                .filter(|(site, _)| there(&site.function))
                .collect()
        }
        _ => calls_of(op)
            .iter()
            .flat_map(|call| site_of(*call, mechanism, types))
            .map(|it| (it, None))
            .collect(),
    }
}

/// Where a system call can be hit by a mechanism, if it can.
#[must_use]
pub fn site_of(call: Sysno, mechanism: Mechanism, types: &KernelTypes) -> Option<Site> {
    let program = match mechanism {
        Mechanism::FmodRetSyscall | Mechanism::Fentry => program::CALL,
        Mechanism::KprobeOverride => program::PROBED_CALL,
        Mechanism::RawTracepoint => {
            return Some(Site { mechanism, function: ENTER.into(), program: program::ANY_CALL });
        }
        _ => return None,
    };
    let function = function_of(call);
    // The types leave out functions that take nothing, for which a breakpoint is enough.
    let is_there =
        types.function(&function).is_ok() || mechanism == Mechanism::KprobeOverride && is_symbol(&function);
    is_there.then_some(Site { mechanism, function, program })
}

/// Whether the kernel has a function of this name.
fn is_symbol(name: &str) -> bool {
    let Ok(symbols) = std::fs::read_to_string("/proc/kallsyms") else { return false };
    symbols.lines().any(|line| line.split(' ').nth(2) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_hook() {
        for op in [&Op::OF_FILES[..], &Op::OF_SOCKETS, &Op::OF_MEMORY, &[Op::Fd, Op::Fork]].concat() {
            let has = HOOKS.iter().any(|hook| hook.op == op) || !calls_of(op).is_empty();
            assert!(has, "{op}");
        }
    }

    #[test]
    fn descriptors() {
        assert!(takes_fd(Sysno::fsync) && takes_fd(Sysno::read) && takes_fd(Sysno::ftruncate));
        assert!(!takes_fd(Sysno::openat) && !takes_fd(Sysno::getpid));
    }
}
