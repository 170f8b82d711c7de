//! Who belongs to a target, told from whoever has their numbers later.

use std::{collections::BTreeSet, io};

use crate::{
    kernel::{self, process::Process, roll::Roll},
    target::{CgroupError, Target},
};

/// The processes of a run on clocks.
#[derive(Debug)]
pub(super) struct Members {
    targets: Vec<Target>,
    /// Those of trees, as the programs keep them.
    followed: Roll,
    /// The owner, and whoever else is of it.
    but: Vec<u32>,
}

impl Members {
    pub(super) fn new(targets: Vec<Target>, followed: Roll, but: Vec<u32>) -> Self {
        Self { targets, followed, but }
    }

    /// Their numbers now.
    fn numbers(&self) -> kernel::Result<BTreeSet<u32>> {
        let mut all = self.followed.numbers()?;
        for target in &self.targets {
            if let Target::Cgroup(cgroup) = target {
                all.extend(cgroup.processes().map_err(unlisted)?);
            }
        }
        // Who began all others is hit only by name.
        let is_first = |target: &Target| matches!(target, Target::Process(tree) if tree.pid == 1);
        if !self.targets.iter().any(is_first) {
            all.remove(&1);
        }
        all.retain(|number| !self.but.contains(number));
        Ok(all)
    }

    /// Those that belong to it now. Whoever was looked up by a number that a member had given up is not among them: the number
    /// is a member's still, or again, after it was looked up.
    pub(super) fn now(&self) -> kernel::Result<BTreeSet<Process>> {
        let mut found = BTreeSet::new();
        for number in self.numbers()? {
            found.extend(find(number)?);
        }
        let after = self.numbers()?;
        found.retain(|process| after.contains(&process.pid));
        Ok(found)
    }

    /// The one with this number, if it belongs to it.
    pub(super) fn find(&self, number: u32) -> kernel::Result<Option<Process>> {
        let Some(process) = find(number)? else { return Ok(None) };
        Ok(self.numbers()?.contains(&number).then_some(process))
    }
}

fn unlisted(error: CgroupError) -> kernel::Error {
    match error {
        CgroupError::Kernel(error) => error,
        other => kernel::Error::new("list", "the processes of the target", io::Error::other(other)),
    }
}

fn find(number: u32) -> kernel::Result<Option<Process>> {
    Process::find(number).map_err(|source| kernel::Error::new("read", format!("/proc/{number}/stat"), source))
}
