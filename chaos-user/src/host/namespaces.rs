//! Which of the machine's namespaces this process is in: the first, or others.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// The numbers of the first namespaces, the same on all kernels.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/proc_ns.h#L39>
const FIRST_USER: u64 = 0xEFFF_FFFD;
/// In this one all processes are seen.
pub(crate) const FIRST_PID: u64 = 0xEFFF_FFFC;
/// The number of the folder of the one cgroup that is all others' parent.
const TOPMOST_CGROUP: u64 = 1;

/// The number of a namespace of a process.
pub(super) fn number(process: &str, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{process}/ns/{kind}")).ok().map(|namespace| namespace.ino())
}

/// Whether this process is in the user namespace that owns the machine. What cannot be told is taken for it.
#[must_use]
pub fn owns_the_machine() -> bool {
    number("self", "user").is_none_or(|number| number == FIRST_USER)
}

/// Whether processes have the host's numbers here. What cannot be told is taken for it.
#[must_use]
pub fn numbers_are_the_hosts() -> bool {
    number("self", "pid").is_none_or(|number| number == FIRST_PID)
}

/// Whether a folder is the topmost of all cgroups, and not that of a cgroup namespace.
#[must_use]
pub fn is_topmost_cgroup(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|folder| folder.ino() == TOPMOST_CGROUP)
}
