//! A process and those it has begun.

use std::{collections::BTreeMap, io, path::PathBuf};

use procfs::{
    ProcError, ProcResult,
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
        let start = start(pid)?.ok_or_else(|| CgroupError::NoProcess { owner: owner.clone() })?;
        Ok(Self { pid, start, folder })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        // Nothing but that it is not found says that it is gone.
        start(self.pid).map_or(true, |start| start == Some(self.start))
    }

    /// It, and those it has begun.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        // Another may have its number by now.
        if !self.exists() {
            return Ok(Vec::new());
        }
        let all = all_processes().map_err(unread)?;
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for process in all {
            let Some(stat) = unless_gone(process.and_then(|process| process.stat()))? else { continue };
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
fn start(pid: u32) -> Result<Option<u64>, CgroupError> {
    let stat = unless_gone(Process::new(pid.cast_signed()).and_then(|process| process.stat()))?;
    Ok(stat.filter(|stat| stat.state != 'Z').map(|stat| stat.starttime))
}

/// What was read of a process; nothing of one that is gone, as any may be at any time.
fn unless_gone<T>(read: ProcResult<T>) -> Result<Option<T>, CgroupError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(ProcError::NotFound(_)) => Ok(None),
        Err(ProcError::Io(error, _)) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(unread(error)),
    }
}

fn unread(error: ProcError) -> CgroupError {
    let source = match error {
        ProcError::Io(source, _) => source,
        other => io::Error::other(other),
    };
    CgroupError::Kernel(Error::new("read", "/proc", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_found_is_gone() {
        let io = |errno| Err::<(), _>(ProcError::Io(io::Error::from_raw_os_error(errno), None));
        assert_eq!(unless_gone(Ok(7)).ok(), Some(Some(7)));
        assert!(matches!(unless_gone::<()>(Err(ProcError::NotFound(None))), Ok(None)));
        assert!(matches!(unless_gone(io(libc::ESRCH)), Ok(None)));
        let error = unless_gone(io(libc::EMFILE)).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("/proc") && error.contains("Too many open files")));
    }
}
