//! Whoever a fault is aimed at.

use std::{collections::BTreeSet, fmt, fs, os::unix::fs::MetadataExt, path::Path};

use super::{Cgroup, CgroupError, Tree, cgroup::UNSEEN};
use crate::{
    host::{Use, rights},
    kernel,
    spec::{Owner, shown},
};

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
    /// [`CgroupError::Kernel`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        match self {
            Self::Cgroup(cgroup) => cgroup.processes(),
            Self::Process(tree) => tree.processes(),
        }
    }

    /// They, of whom there must be one; with `all`, nobody may be among them who cannot be seen from here.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Empty`], [`CgroupError::Unseen`].
    pub fn inhabitants(&self, owner: &Owner, all: bool) -> Result<Vec<u32>, CgroupError> {
        let mut found = match self {
            Self::Cgroup(cgroup) => cgroup.population()?,
            Self::Process(tree) => tree.processes()?,
        };
        let count = found.len();
        found.retain(|process| *process != UNSEEN);
        let place = || self.to_string();
        if found.len() < count && (all || found.is_empty()) {
            return Err(CgroupError::Unseen { owner: owner.clone(), place: place() });
        }
        if found.is_empty() {
            return Err(CgroupError::Empty { owner: owner.clone(), place: place() });
        }
        Ok(found)
    }

    /// Whether it is all processes of the machine.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.level == 0,
            Self::Process(tree) => tree.pid == 1,
        }
    }

    /// The same, where that was asked for.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unknown`]: all that is to be seen from here are some.
    pub fn require_everybody(&self, owner: &Owner) -> Result<(), CgroupError> {
        if self.is_everybody() {
            return Ok(());
        }
        let (owner, root) = (owner.clone(), self.folder().to_owned());
        Err(CgroupError::Unknown { owner, what: "cgroup of every process", root })
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
    /// [`CgroupError::Empty`], or that there are several, or that they cannot be looked at.
    pub fn network(&self, owner: &Owner) -> Result<u32, CgroupError> {
        let mut namespaces = BTreeSet::new();
        let (mut one, mut unseen) = (None, None);
        for process in self.inhabitants(owner, false)? {
            let path = format!("/proc/{process}/ns/net");
            let namespace = fs::metadata(&path);
            rights::explain(&namespace, &[Use::Processes])
                .map_err(|error| CgroupError::Rights { owner: owner.clone(), error })?;
            // A process may end at any time, and zombies have none.
            match namespace {
                Ok(namespace) => {
                    namespaces.insert(namespace.ino());
                    one = one.or(Some(process));
                }
                Err(ended) if matches!(ended.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
                Err(source) => {
                    let is_kept_from_all = rights::is_refusal(&source);
                    let error = kernel::Error::new("stat", path, source);
                    // The kernel shows some to nobody; the others say where they all are.
                    if !is_kept_from_all {
                        return Err(error.into());
                    }
                    unseen = unseen.or(Some(error));
                }
            }
        }
        match (one, namespaces.len()) {
            (Some(process), 1) => Ok(process),
            (Some(_), count) => Err(CgroupError::Scattered { owner: owner.clone(), count }),
            (None, _) => Err(unseen.map_or_else(
                || CgroupError::Empty { owner: owner.clone(), place: self.to_string() },
                CgroupError::from,
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(cgroup) => write!(f, "{}", shown::name(&cgroup.path)),
            Self::Process(tree) => write!(f, "process {}", tree.pid),
        }
    }
}
