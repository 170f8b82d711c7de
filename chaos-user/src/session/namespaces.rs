//! From where an owner saw what it changed. Somebody elsewhere may not see that; what is not seen is not gone.

use std::{fs, os::unix::fs::MetadataExt};

use serde::{Deserialize, Serialize};

use crate::{host::namespaces::FIRST_PID, kernel};

/// The namespaces that decide what a process can see, by inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Which processes.
    pub pid: u64,
    /// Which files, and network namespaces by name.
    pub mnt: u64,
    /// Which cgroups by path.
    pub cgroup: u64,
}

impl Namespaces {
    /// Those of the calling process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn own() -> kernel::Result<Self> {
        let inode = |name| {
            let path = format!("/proc/self/ns/{name}");
            let file = fs::metadata(&path).map_err(|source| kernel::Error::new("stat", path, source))?;
            Ok(file.ino())
        };
        Ok(Self { pid: inode("pid")?, mnt: inode("mnt")?, cgroup: inode("cgroup")? })
    }

    /// Whether every process is seen from here that can have been seen from there: those of a pid namespace are seen in all
    /// above it.
    pub(super) fn sees_processes_of(&self, there: &Self) -> bool {
        self.pid == FIRST_PID || self.pid == there.pid || has_processes_of(there.pid)
    }

    /// Whether all is looked at from here that can hold a network namespace which was seen from there: a process, or a mount
    /// in a mount namespace that some process has.
    pub(super) fn sees_networks_of(&self, there: &Self) -> bool {
        self.pid == FIRST_PID || (self.pid, self.mnt) == (there.pid, there.mnt)
    }
}

fn has_processes_of(pid: u64) -> bool {
    let of = |process: fs::DirEntry| fs::metadata(process.path().join("ns/pid")).map(|file| file.ino());
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| of(process).is_ok_and(|it| it == pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_whom() {
        let there = Namespaces { pid: 7, mnt: 8, cgroup: 9 };
        let here = |pid, mnt| Namespaces { pid, mnt, cgroup: 9 };
        assert!(here(FIRST_PID, 1).sees_processes_of(&there) && here(7, 1).sees_processes_of(&there));
        assert!(!here(6, 8).sees_processes_of(&there));
        assert!(here(FIRST_PID, 1).sees_networks_of(&there) && here(7, 8).sees_networks_of(&there));
        assert!(!here(7, 1).sees_networks_of(&there) && !here(6, 8).sees_networks_of(&there));
    }
}
