//! Whoever a fault is aimed at.

use std::{collections::BTreeSet, fmt, fs, os::unix::fs::MetadataExt, path::Path};

use super::{Cgroup, CgroupError, Tree};
use crate::spec::Owner;

/// Some processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those in a cgroup.
    Cgroup(Cgroup),
    /// One, and those it has begun.
    Process(Tree),
}

impl Target {
    /// Finds those that are meant.
    ///
    /// # Errors
    ///
    /// [`CgroupError`]; nothing was changed.
    pub fn find(owner: &Owner) -> Result<Self, CgroupError> {
        match owner {
            Owner::Process(pid) => Tree::find(owner, *pid).map(Self::Process),
            _ => Cgroup::find(owner).map(Self::Cgroup),
        }
    }

    /// Whether they are still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.exists(),
            Self::Process(tree) => tree.exists(),
        }
    }

    /// They, as they are now.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        match self {
            Self::Cgroup(cgroup) => cgroup.processes(),
            Self::Process(tree) => tree.processes(),
        }
    }

    /// The folder of their cgroup.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match self {
            Self::Cgroup(cgroup) => &cgroup.path,
            Self::Process(tree) => &tree.folder,
        }
    }

    /// A process by whose `/proc` folder the one network namespace of all of them can be entered.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Empty`], or that there are several.
    pub fn network(&self, owner: &Owner) -> Result<u32, CgroupError> {
        let mut namespaces = BTreeSet::new();
        let mut one = None;
        for process in self.processes()? {
            // A process may end at any time, and zombies have none.
            if let Ok(namespace) = fs::metadata(format!("/proc/{process}/ns/net")) {
                namespaces.insert(namespace.ino());
                one = one.or(Some(process));
            }
        }
        match (one, namespaces.len()) {
            (Some(process), 1) => Ok(process),
            (Some(_), count) => Err(CgroupError::Scattered { owner: owner.clone(), count }),
            (None, _) => Err(CgroupError::Empty { owner: owner.clone(), place: self.to_string() }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(cgroup) => write!(f, "{}", cgroup.path.display()),
            Self::Process(tree) => write!(f, "process {}", tree.pid),
        }
    }
}
