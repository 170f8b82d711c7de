//! Whether `/run/faultline` is the host's. One in a container goes with it, and with it the records of what is to be put back.
//!
//! Decided by facts. Who is in no container has the host's, or what was mounted there on purpose. In a container: a folder of
//! another's tmpfs, or one that mounts reach from outside, is the host's; what lies on the container's own root is not, nor is
//! what lies on another file system than `/run` of the host's first process, where that can be seen. Else it cannot be told.

use std::{env, fs, os::unix::fs::MetadataExt, path::Path};

use super::{
    mounts::{self, Mount},
    namespaces,
};

/// Says that the own `/run` is meant: `own`.
pub const VARIABLE: &str = "FAULTLINE_RUN";

const RECORDS: &str = "/run/faultline";

/// A record that would go with its container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this run changes what has to be put back should it be killed, and {RECORDS}, where that is written down, {where_it_is}; mount the host's (hostPath {RECORDS}, -v {RECORDS}:{RECORDS}), or set {VARIABLE}=own"
)]
pub struct RunError {
    where_it_is: &'static str,
}

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The host's, or one that is meant.
    Hosts,
    /// That cannot be told.
    Unknown,
    /// A container's, and where it is.
    Containers(&'static str),
}

/// What it is decided by.
#[derive(Debug, Default)]
struct Facts {
    /// Whether somebody has said that it is meant.
    is_meant: bool,
    /// Whether processes have the host's numbers.
    has_hosts_pids: bool,
    /// Whether the root is that of the first process, if that can be seen and is another container's or the host's.
    same_root: Option<bool>,
    /// Whether `/run` is on the file system of that of the same.
    same_run: Option<bool>,
    mounts: Vec<Mount>,
}

impl Facts {
    fn look() -> Self {
        let mounts = mounts::of(Path::new("/proc/self")).unwrap_or_default();
        let has_hosts_pids = namespaces::numbers_are_the_hosts();
        // The first process of this container itself says nothing of the host.
        let is_another = namespaces::number("1", "mnt") != namespaces::number("self", "mnt");
        let tells = has_hosts_pids || is_another;
        let identity = |path: &str| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
        let device = |path: &str| identity(path).map(|(device, _)| device);
        let same = |one: Option<u64>, other: Option<u64>| Some(one? == other?);
        let same_run = same(device("/proc/1/root/run"), device(RECORDS).or_else(|| device("/run")));
        let roots = identity("/proc/1/root/").zip(identity("/"));
        Self {
            is_meant: env::var_os(VARIABLE).is_some_and(|value| value == "own"),
            has_hosts_pids,
            same_root: roots.filter(|_| tells).map(|(first, own)| first == own),
            same_run: same_run.filter(|_| tells),
            mounts,
        }
    }

    /// The mount that a path is on.
    fn mount_of(&self, path: &Path) -> Option<&Mount> {
        let around = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        // Of two at one place the later hides the other.
        around.max_by_key(|mount| mount.point.components().count())
    }

    fn is_in_container(&self) -> bool {
        let is_layered = || self.mount_of(Path::new("/")).is_some_and(|root| root.kind.contains("overlay"));
        !self.has_hosts_pids || self.same_root.map_or_else(is_layered, |same| !same)
    }

    fn judge(&self) -> Run {
        if self.is_meant || !self.is_in_container() {
            return Run::Hosts;
        }
        let Some(mount) = self.mount_of(Path::new(RECORDS)) else { return Run::Unknown };
        if mount.point == Path::new("/") {
            return Run::Containers("is on this container's own root, and goes with the container");
        }
        if mount.root.to_string_lossy().contains("/kubernetes.io~empty-dir/") {
            return Run::Containers("is an emptyDir, and goes with the pod");
        }
        if mount.has_peers || self.same_run == Some(true) || mount.kind == "tmpfs" && mount.root != "/" {
            return Run::Hosts;
        }
        if self.has_hosts_pids && self.same_run == Some(false) {
            return Run::Containers("is not the host's, and goes with this container");
        }
        Run::Unknown
    }
}

/// Whose `/run/faultline` is.
#[must_use]
pub fn look() -> Run {
    Facts::look().judge()
}

/// Refuses to have what must be put back written down where it is lost.
///
/// # Errors
///
/// [`RunError`].
pub fn require() -> Result<(), RunError> {
    match look() {
        Run::Containers(where_it_is) => Err(RunError { where_it_is }),
        Run::Hosts | Run::Unknown => Ok(()),
    }
}

/// What is to be said of a run that begins all the same.
#[must_use]
pub fn warning() -> Option<String> {
    let told = match look() {
        Run::Hosts => return None,
        Run::Unknown => "may not be the host's: that cannot be told from this container",
        Run::Containers(where_it_is) => where_it_is,
    };
    Some(format!(
        "{RECORDS} {told}; nobody else can list or stop this fault: mount the host's (hostPath {RECORDS}, -v {RECORDS}:{RECORDS}), or set {VARIABLE}=own"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, root: &str, kind: &str, has_peers: bool) -> Mount {
        Mount { point: point.into(), root: root.into(), kind: kind.into(), has_peers, device: (0, 1) }
    }

    /// A container without the host's processes, with these mounts on its root.
    fn container(mounts: &[Mount]) -> Facts {
        let root = mount("/", "/", "overlay", false);
        Facts { mounts: [&[root], mounts].concat(), ..Facts::default() }
    }

    #[test]
    fn containers() {
        let lost = |facts: &Facts| matches!(facts.judge(), Run::Containers(_));
        assert!(lost(&container(&[])), "on its own root");
        let own = mount("/run", "/", "tmpfs", false);
        assert_eq!(
            container(std::slice::from_ref(&own)).judge(),
            Run::Unknown,
            "-v /run:/run looks the same"
        );
        let empty = mount(
            "/run/faultline",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/r",
            "ext4",
            false,
        );
        assert!(lost(&container(&[empty])));
        for hosts in [
            mount("/run/faultline", "/faultline", "tmpfs", false),
            mount("/run/faultline", "/faultline/node-1", "tmpfs", false),
            mount("/run", "/", "tmpfs", true),
        ] {
            assert_eq!(container(&[hosts]).judge(), Run::Hosts);
        }
        // With the host's processes, whose first says which is the host's.
        let seen = |same_run| Facts {
            has_hosts_pids: true,
            same_root: Some(false),
            same_run: Some(same_run),
            ..container(std::slice::from_ref(&own))
        };
        assert!(lost(&seen(false)));
        assert_eq!(seen(true).judge(), Run::Hosts);
        assert_eq!(Facts { is_meant: true, ..seen(false) }.judge(), Run::Hosts);
        // The same, where the first process may not be looked at.
        let unseen = Facts { same_root: None, same_run: None, ..seen(false) };
        assert_eq!(unseen.judge(), Run::Unknown);
    }

    #[test]
    fn hosts() {
        // A service with mounts of its own, and a mount namespace with a /run that somebody has made on purpose.
        for run in [mount("/run", "/", "tmpfs", true), mount("/run", "/", "tmpfs", false)] {
            let mounts = vec![mount("/", "/", "ext4", false), run];
            for (same_root, same_run) in [(Some(true), Some(false)), (None, None), (Some(true), Some(true))] {
                let mounts = mounts.clone();
                let facts = Facts { has_hosts_pids: true, same_root, same_run, mounts, ..Facts::default() };
                assert_eq!(facts.judge(), Run::Hosts);
            }
        }
        // One whose own root is an overlay, as live systems have it.
        let mounts = vec![mount("/", "/", "overlay", true)];
        let facts = Facts { has_hosts_pids: true, same_root: Some(true), mounts, ..Facts::default() };
        assert_eq!(facts.judge(), Run::Hosts);
    }
}
