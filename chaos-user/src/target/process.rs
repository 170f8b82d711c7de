//! A process and those it has begun.

use std::{collections::BTreeMap, io, path::PathBuf};

use procfs::{
    ProcError,
    process::{Process, all_processes},
};

use super::CgroupError;
use crate::{
    host::namespaces,
    kernel::{Error, probe},
    spec::Owner,
};

/// A process with its children, theirs and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its number.
    pub pid: u32,
    /// Since when, which tells it from another of that number.
    start: u64,
    /// The folder of the cgroup that it and all it may begin are in, wherever that moves: the hierarchy's root.
    pub folder: PathBuf,
}

impl Tree {
    /// Finds the process that is meant.
    ///
    /// # Errors
    ///
    /// [`CgroupError`]; nothing was changed.
    pub(super) fn find(owner: &Owner, pid: u32) -> Result<Self, CgroupError> {
        // The programs know processes by the numbers of the first namespace alone.
        if !namespaces::numbers_are_the_hosts() {
            return Err(CgroupError::PidNamespace { owner: owner.clone() });
        }
        let folder =
            probe::cgroup_root()?.ok_or_else(|| CgroupError::NoHierarchy { owner: owner.clone() })?;
        let start = start(pid).ok_or_else(|| CgroupError::NoProcess { owner: owner.clone() })?;
        Ok(Self { pid, start, folder })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        start(self.pid) == Some(self.start)
    }

    /// It, and those it has begun.
    ///
    /// # Errors
    ///
    /// If `/proc` is not mounted.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        // Another may have its number by now.
        if !self.exists() {
            return Ok(Vec::new());
        }
        let all = all_processes().map_err(|error| {
            let source = match error {
                ProcError::Io(source, _) => source,
                other => io::Error::other(other),
            };
            CgroupError::Kernel(Error::new("readdir", "/proc", source))
        })?;
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        // Processes end at any time.
        for stat in all.flatten().filter_map(|process| process.stat().ok()) {
            children.entry(stat.ppid).or_default().push(stat.pid);
        }
        let mut tree = vec![self.pid.cast_signed()];
        let mut next = 0;
        while let Some(parent) = tree.get(next) {
            tree.extend(children.remove(parent).unwrap_or_default());
            next += 1;
        }
        Ok(tree.into_iter().map(i32::cast_unsigned).collect())
    }
}

/// When a process began that has not ended, in clock ticks after boot.
fn start(pid: u32) -> Option<u64> {
    let stat = Process::new(pid.cast_signed()).ok()?.stat().ok()?;
    (stat.state != 'Z').then_some(stat.starttime)
}
