//! Cgroups, and what is known by the cgroup it runs in: containers and systemd's units. No engine and no bus is asked:
//! the hierarchy says it all.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    host::{RightsError, namespaces},
    kernel::{
        self,
        cgroups::{below, leads_nowhere},
        probe,
    },
    spec::{Owner, shown},
};

/// A cgroup of the v2 hierarchy, with those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its folder.
    pub path: PathBuf,
    /// The kernel's number of it.
    pub id: u64,
    /// How deep it lies, the root being 0.
    pub level: u8,
}

/// A target that is not there, or not one.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2.
    #[error("{owner}: no cgroup2 file system is mounted here, and cgroup v1 does not number sockets' cgroups; {remedy}", remedy = kernel::mechanism::Mechanism::CgroupV2.remedy())]
    NoHierarchy {
        /// What was asked for.
        owner: Owner,
    },
    /// Nothing of that name.
    #[error("{owner}: there is no such {what} among the cgroups in {}{}", shown::name(root), partly(root))]
    Unknown {
        /// What was asked for.
        owner: Owner,
        /// What that is.
        what: &'static str,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// More than one.
    #[error(
        "{owner} is ambiguous: it could be {}; write more of it, or --cgroup with one of these",
        listed(found)
    )]
    Ambiguous {
        /// What was asked for.
        owner: Owner,
        /// Those it could be.
        found: Vec<PathBuf>,
    },
    /// Some, which anybody may have made.
    #[error(
        "{owner}: of that name there is only {}, where others than root may make cgroups and call them as they like; \
         write --cgroup with it if it is meant",
        listed(found)
    )]
    Delegated {
        /// What was asked for.
        owner: Owner,
        /// Those of that name.
        found: Vec<PathBuf>,
    },
    /// Nobody is in it.
    #[error("{owner}: there is no process in {place}: an empty target")]
    Empty {
        /// What was asked for.
        owner: Owner,
        /// Where nobody is.
        place: String,
    },
    /// Somebody is in it who has no number here.
    #[error(
        "{owner}: processes in {place} are in another pid namespace, and cannot be seen from this one; run it in the host's (hostPID: true, --pid host)"
    )]
    Unseen {
        /// What was asked for.
        owner: Owner,
        /// Where they are.
        place: String,
    },
    /// They cannot be looked at.
    #[error("{owner}: {error}")]
    Rights {
        /// What was asked for.
        owner: Owner,
        /// What is missing.
        error: RightsError,
    },
    /// No such process.
    #[error("{owner}: there is no such process, or it has ended")]
    NoProcess {
        /// What was asked for.
        owner: Owner,
    },
    /// Numbers that mean others.
    #[error(
        "{owner}: processes have other numbers in this pid namespace; run it in the host's (hostPID, --pid host)"
    )]
    PidNamespace {
        /// What was asked for.
        owner: Owner,
    },
    /// Its processes do not share one network.
    #[error("{owner}: its processes are in {count} network namespaces; say in which one with --netns")]
    Scattered {
        /// What was asked for.
        owner: Owner,
        /// How many.
        count: usize,
    },
    /// Too deep, or at too many depths.
    #[error("{owner}: {} lies outside of the cgroups that this process can number", shown::name(path))]
    Outside {
        /// What was asked for.
        owner: Owner,
        /// The cgroup.
        path: PathBuf,
    },
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// Where not all cgroups are to be seen, how they are.
fn partly(root: &Path) -> &'static str {
    if namespaces::is_topmost_cgroup(root) {
        return "";
    }
    ", which are only some of the host's: this is a cgroup namespace of its own; mount the host's /sys/fs/cgroup (hostPath), or use --cgroupns host"
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| shown::name(&path)).collect::<Vec<_>>().join(", ")
}

impl Cgroup {
    /// Finds the cgroup that is meant.
    ///
    /// # Errors
    ///
    /// [`CgroupError`]; nothing was changed.
    pub(super) fn find(owner: &Owner) -> Result<Self, CgroupError> {
        let root = probe::cgroup_root()?.ok_or_else(|| CgroupError::NoHierarchy { owner: owner.clone() })?;
        let unknown = |what| CgroupError::Unknown { owner: owner.clone(), what, root: root.clone() };
        let only = |what, found| one(owner, &root, found)?.ok_or_else(|| unknown(what));
        let path = match owner {
            Owner::Cgroup(name) => {
                let inside = if Path::new(name).starts_with(&root) {
                    PathBuf::from(name)
                } else {
                    root.join(name.trim_start_matches('/'))
                };
                // Links and dots lead out of what was counted.
                let failed = |call| {
                    let object = shown::name(&inside);
                    move |source: io::Error| match leads_nowhere(&source) {
                        true => unknown("cgroup"),
                        false => kernel::Error::new(call, object, source).into(),
                    }
                };
                let real = inside.canonicalize().map_err(failed("readlink"))?;
                let is_folder = real.metadata().map_err(failed("stat"))?.is_dir();
                (real.starts_with(&root) && is_folder).then_some(real).ok_or_else(|| unknown("cgroup"))?
            }
            Owner::Unit(name) => {
                let name = if name.contains('.') { name.clone() } else { format!("{name}.service") };
                only("unit", named(&root, |folder| folder == name)?)?
            }
            Owner::Container(id) => only("container", named(&root, |folder| is_container(folder, id))?)?,
            Owner::Process(_) => return Err(unknown("cgroup")),
        };
        let id = number(&path)?;
        let outside = || CgroupError::Outside { owner: owner.clone(), path: path.clone() };
        let below = path.strip_prefix(&root).map_or(0, |inside| inside.components().count());
        let base = probe::cgroup_level(number(&root)?)?.ok_or_else(outside)?;
        let level = u8::try_from(usize::from(base) + below).map_err(|_| outside())?;
        Ok(Self { path, id, level })
    }

    /// The processes in it and below it that have a number here.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Kernel`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut processes = self.population()?;
        processes.retain(|process| *process != UNSEEN);
        Ok(processes)
    }

    /// The same with one [`UNSEEN`] for each that has none.
    pub(super) fn population(&self) -> Result<Vec<u32>, CgroupError> {
        let mut processes = Vec::new();
        for folder in below(&self.path)?.into_iter().chain([self.path.clone()]) {
            let path = folder.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => processes.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // Gone meanwhile, or a threaded cgroup, whose processes are listed above it.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                    ) => {}
                Err(source) => {
                    return Err(kernel::Error::new("read", shown::name(&path), source).into());
                }
            }
        }
        Ok(processes)
    }

    /// The kernel's numbers of it and of those below it.
    ///
    /// # Errors
    ///
    /// If they cannot be listed.
    pub fn numbers(&self) -> kernel::Result<Vec<u64>> {
        let mut numbers = vec![self.id];
        for path in below(&self.path)? {
            match number(&path) {
                // What goes meanwhile has no number any more.
                Err(error) if leads_nowhere(&error.source) => {}
                found => numbers.push(found?),
            }
        }
        Ok(numbers)
    }

    /// Whether it is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        match fs::metadata(&self.path) {
            Ok(folder) => folder.ino() == self.id,
            // Nothing else says that it is gone.
            Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)),
        }
    }
}

/// What the kernel says in place of the number of a process that is in no pid namespace below the reader's.
pub(super) const UNSEEN: u32 = 0;

/// The kernel's number of the cgroup whose folder this is.
fn number(path: &Path) -> kernel::Result<u64> {
    let error = |source| kernel::Error::new("stat", shown::name(&path), source);
    fs::metadata(path).map(|folder| folder.ino()).map_err(error)
}

/// The only one of these, if there is any. To whom a part of the hierarchy is delegated can make another of any name in there: that
/// is neither taken for the one that is meant, nor in its way.
fn one(owner: &Owner, root: &Path, found: Vec<PathBuf>) -> Result<Option<PathBuf>, CgroupError> {
    let (mut found, mut others) = (Vec::new(), found);
    for path in &others {
        if is_made_by_root(root, path)? {
            found.push(path.clone());
        }
    }
    if found.len() > 1 {
        found.sort();
        return Err(CgroupError::Ambiguous { owner: owner.clone(), found });
    }
    if found.is_empty() && !others.is_empty() {
        others.sort();
        return Err(CgroupError::Delegated { owner: owner.clone(), found: others });
    }
    Ok(found.pop())
}

/// Whether nobody but root may make cgroups in any of those above this one.
fn is_made_by_root(root: &Path, path: &Path) -> kernel::Result<bool> {
    for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
        match fs::metadata(folder) {
            Ok(folder) if folder.uid() == 0 && folder.mode() & 0o022 == 0 => {}
            // What is gone meanwhile is nobody's.
            Ok(_) => return Ok(false),
            Err(error) if leads_nowhere(&error) => return Ok(false),
            Err(source) => return Err(kernel::Error::new("stat", shown::name(&folder), source)),
        }
    }
    Ok(true)
}

/// Those of these names, without what lies below another of them: a container's own cgroups may be named after it.
fn named(root: &Path, is_name: impl Fn(&str) -> bool) -> kernel::Result<Vec<PathBuf>> {
    let mut found = below(root)?;
    found.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&is_name));
    let all = found.clone();
    found.retain(|path| !all.iter().any(|other| path != other && path.starts_with(other)));
    Ok(found)
}

/// Fewest characters of an id that say which it is.
const SHORTEST: usize = 4;

/// Whether a cgroup's folder is a container's: `ID`, or as the engines have it with systemd, `docker-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, `runc-ID.scope`. An id of hexadecimal digits may be cut
/// short. The engines' own watchers (`libpod-conmon-ID`, `crio-conmon-ID`) are not the container.
fn is_container(folder: &str, id: &str) -> bool {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    let (engine, whole) = match ["docker-", "cri-containerd-", "crio-", "libpod-", "runc-", "lxc-"]
        .iter()
        .find_map(|engine| Some((*engine, name.strip_prefix(engine)?)))
    {
        Some((engine, rest)) => (engine, rest),
        None => ("", name),
    };
    let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_id = whole.len() == 64 && hexadecimal(whole);
    let cut_short = is_id && id.len() >= SHORTEST && hexadecimal(id) && whole.starts_with(id);
    // A name of the user's own choice is what runc has; a slice or a unit of that name is none.
    let named = whole == id && (!engine.is_empty() || !folder.contains('.'));
    named || cut_short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_by_the_names_of_their_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        let short = &id[..12];
        for folder in [
            format!("docker-{id}.scope"),
            format!("cri-containerd-{id}.scope"),
            format!("crio-{id}.scope"),
            format!("libpod-{id}.scope"),
            format!("libpod-{id}"),
            id.clone(),
        ] {
            assert!(is_container(&folder, short) && is_container(&folder, &id), "{folder}");
            assert!(!is_container(&folder, "123456789abc") && !is_container(&folder, "012"), "{folder}");
        }
        for folder in
            [format!("libpod-conmon-{id}.scope"), format!("crio-conmon-{id}"), "system.slice".into()]
        {
            assert!(!is_container(&folder, short), "{folder}");
        }
        assert!(is_container("runc-web.scope", "web") && is_container("web", "web"));
        assert!(!is_container("web.service", "web") && !is_container("website", "web"));
        assert!(!is_container("web.slice", "web.slice"));
    }
}
