//! What a run may leave changed beyond what it has loaded: interfaces' features and filters, cgroups' values, vDSOs,
//! processes and the network namespaces these hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

use chaos_user::kernel::{
    ethtool::{CHECKSUMS, Ethtool, SEGMENTATION},
    netlink::{Direction, Link, Netlink},
};

use super::Inventory;
use crate::{
    clocks::Image,
    error::{Context, Result},
    lab::Netns,
};

/// The values of a cgroup that somebody may have set.
const VALUES: [&str; 8] = [
    "io.max",
    "cgroup.freeze",
    "cgroup.subtree_control",
    "cpu.max",
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "pids.max",
];

/// Where to look.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// Namespaces, by the names they are told by.
    pub(crate) namespaces: &'a [(&'a str, &'a Netns)],
    /// A cgroup with those below it.
    pub(crate) cgroup: &'a Path,
    /// Processes whose vDSOs may be changed, by the names they are told by.
    pub(crate) processes: &'a [(&'a str, u32)],
}

impl Inventory {
    /// The same with all of this.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn with(mut self, surroundings: &Surroundings<'_>) -> Result<Self> {
        let Surroundings { namespaces, cgroup, processes } = surroundings;
        for (name, netns) in *namespaces {
            self.lines.extend(tuned(netns)?.into_iter().map(|line| format!("{line} of namespace {name}")));
        }
        values(cgroup, "", &mut self.lines)?;
        for (name, pid) in *processes {
            self.lines.insert(vdso(name, *pid));
        }
        residents(&mut self.lines)?;
        Ok(self)
    }

    /// What is tuned of the interfaces in these namespaces, in whichever of them each is, and nothing else.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn of_interfaces(namespaces: &[&Netns]) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for netns in namespaces {
            lines.extend(tuned(netns)?);
        }
        Ok(Self { lines, unheld: BTreeSet::new() })
    }

    /// What this has that `before` has not.
    #[must_use]
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        self.lines.difference(&before.lines).cloned().collect()
    }
}

/// Features and filters of the interfaces, and that they have a place for filters.
fn tuned(netns: &Netns) -> Result<Vec<String>> {
    let mut netlink = netns.netlink()?;
    let mut lines = Vec::new();
    for link in netlink.links()?.into_iter().filter(|link| link.name != "lo") {
        match tuned_of(netns, &mut netlink, &link) {
            Ok(found) => lines.extend(found),
            // The kernel takes the interfaces of a namespace away when it has time: this one has gone since it was listed.
            Err(_) if !netlink.links()?.iter().any(|left| left.index == link.index) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(lines)
}

fn tuned_of(netns: &Netns, netlink: &mut Netlink, link: &Link) -> Result<Vec<String>> {
    let (index, name) = (link.index, &link.name);
    let wanted = [SEGMENTATION, CHECKSUMS].concat();
    let features = netns.run(|| Ok(Ethtool::open(index)?.features(&wanted)?))?;
    let on: Vec<String> = features.into_iter().filter(|it| it.asked).map(|it| it.name).collect();
    let mut lines = vec![format!("features of {name}: {}", on.join(" "))];
    if !netlink.qdiscs(index)?.iter().any(|qdisc| qdisc.kind == "clsact") {
        return Ok(lines);
    }
    lines.push(format!("clsact on {name}"));
    for side in [Direction::Ingress, Direction::Egress] {
        for filter in netlink.filters(index, side)? {
            let what = filter.name.unwrap_or(filter.kind);
            lines.push(format!("filter {what} on {side:?} of {name}"));
        }
    }
    Ok(lines)
}

/// The cgroups and their values, by their paths from the first one on.
fn values(folder: &Path, name: &str, lines: &mut BTreeSet<String>) -> Result {
    lines.insert(format!("cgroup /{name}"));
    for file in VALUES {
        // Which files there are is up to the controllers that are on.
        if let Ok(value) = fs::read_to_string(folder.join(file)) {
            lines.insert(format!("{file} of cgroup /{name}: {}", value.trim().replace('\n', "; ")));
        }
    }
    for entry in fs::read_dir(folder).context(folder.display())?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let child = format!("{name}{}/", entry.file_name().to_string_lossy());
            values(&entry.path(), &child, lines)?;
        }
    }
    Ok(())
}

/// Whether a process has the kernel's own.
fn vdso(name: &str, pid: u32) -> String {
    let different = || -> Result<usize> {
        let (own, its) = (Image::of(process::id())?, Image::of(pid)?);
        let differ = own.bytes.iter().zip(&its.bytes).filter(|(own, its)| own != its).count();
        Ok(differ + own.bytes.len().abs_diff(its.bytes.len()))
    };
    match different() {
        Ok(0) => format!("vDSO of {name}: the kernel's"),
        Ok(bytes) => format!("vDSO of {name}: changed in {bytes} bytes"),
        Err(failure) => format!("vDSO of {name}: {failure}"),
    }
}

/// All processes that have the mounts of this one, but this one, and how many network namespaces they and this one have.
fn residents(lines: &mut BTreeSet<String>) -> Result {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut networks: BTreeSet<u64> = BTreeSet::new();
    for pid in neighbours()? {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        networks.extend(fs::metadata(folder.join("ns/net")).map(|file| file.ino()).ok());
        for file in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(file.path()).unwrap_or_default();
            let number: Option<u64> =
                target.to_str().and_then(|name| name.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
            networks.extend(number);
        }
        if pid != process::id() {
            let words = command_line(pid);
            // One that has ended has none.
            if !words.is_empty() {
                *counts.entry(words).or_default() += 1;
            }
        }
    }
    lines.extend(counts.into_iter().map(|(words, count)| format!("process {words}: {count}")));
    lines.insert(format!("network namespaces: {}", networks.len()));
    Ok(())
}

/// The first words of a process's command line; the first of all without the folders.
fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let words = text.trim_end_matches('\0').split('\0').take(3);
    let words: Vec<&str> = words.map(|word| word.rsplit('/').next().unwrap_or(word)).collect();
    words.join(" ")
}

/// The processes that have the mounts of this one, itself included.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub(crate) fn neighbours() -> Result<Vec<u32>> {
    const MOUNTS: &str = "ns/mnt";
    let own = fs::read_link(Path::new("/proc/self").join(MOUNTS)).context("readlink /proc/self/ns/mnt")?;
    let numbers = fs::read_dir("/proc").context("/proc")?.flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let same = |pid: &u32| fs::read_link(format!("/proc/{pid}/{MOUNTS}")).is_ok_and(|its| its == own);
    Ok(numbers.filter(same).collect())
}
