//! A process and those it has begun.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use super::CgroupError;
use crate::{
    host::namespaces,
    kernel::{
        Error, probe,
        process::{self, Process, Stat},
    },
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
        let found = Process::find(pid).map_err(unread)?;
        let Process { start_time: start, .. } =
            found.ok_or_else(|| CgroupError::NoProcess { owner: owner.clone() })?;
        Ok(Self { pid, start, folder })
    }

    /// The process itself.
    #[must_use]
    pub fn root(&self) -> Process {
        Process { pid: self.pid, start_time: self.start }
    }

    /// Whether it is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        // Nothing but that it is not found says that it is gone.
        self.root().lives().unwrap_or(true)
    }

    /// It, and those it has begun.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn members(&self) -> Result<BTreeSet<Process>, CgroupError> {
        let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
        let mut tree = Vec::new();
        for pid in process::numbers().map_err(unread)? {
            let Some(stat) = Stat::of_process(pid).map_err(unread)?.filter(|stat| !stat.has_ended()) else {
                continue;
            };
            let found = Process { pid, start_time: stat.start_time };
            // Another may have its number by now.
            tree.extend((found == self.root()).then_some(found));
            children.entry(stat.parent).or_default().push(found);
        }
        let mut next = 0;
        while let Some(parent) = tree.get(next) {
            tree.extend(children.remove(&parent.pid).unwrap_or_default());
            next += 1;
        }
        Ok(tree.into_iter().collect())
    }

    /// Their numbers.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        Ok(self.members()?.iter().map(|process| process.pid).collect())
    }
}

fn unread(source: io::Error) -> CgroupError {
    CgroupError::Kernel(Error::new("read", "/proc", source))
}
