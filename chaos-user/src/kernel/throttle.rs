//! A cgroup's limits on what it does with a block device: `io.max`, and `io.stat`, which counts it.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, fstat},
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    cgroups::{below, leads_nowhere},
    counters::{Counters, RuleCount},
    probe,
};
use crate::{host::namespaces, spec::shown};
use chaos_ebpf::abi::{Count, Direction};

pub(crate) const LIMITS: &str = "io.max";
const COUNTS: &str = "io.stat";
/// What the kernel calls no limit.
const NONE: &str = "max";

/// A block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockDevice {
    /// The number of its kind.
    pub major: u32,
    /// Its own among these.
    pub minor: u32,
}

impl fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Limits in one second; no limit where there is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rbps: Option<u64>,
    /// Bytes written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wbps: Option<u64>,
    /// Reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub riops: Option<u64>,
    /// Writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiops: Option<u64>,
}

impl Limits {
    const NAMES: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

    fn values(self) -> [Option<u64>; 4] {
        [self.rbps, self.wbps, self.riops, self.wiops]
    }

    fn from_values([rbps, wbps, riops, wiops]: [Option<u64>; 4]) -> Self {
        Self { rbps, wbps, riops, wiops }
    }

    /// Those of a device in the text of an `io.max`.
    fn parse(text: &str, device: BlockDevice) -> Self {
        let value = |name| field(text, device, name).and_then(|value| value.parse().ok());
        Self::from_values(Self::NAMES.map(value))
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Self::NAMES.into_iter().zip(self.values());
        let set: Vec<_> = set.filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
        f.write_str(&set.join(" "))
    }
}

/// What a cgroup has done with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
}

impl Tally {
    fn parse(text: &str, device: BlockDevice) -> Self {
        let value = |name| field(text, device, name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Self { rios: value("rios"), wios: value("wios"), rbytes: value("rbytes"), wbytes: value("wbytes") }
    }

    fn since(self, before: Self) -> Self {
        Self {
            rios: self.rios.saturating_sub(before.rios),
            wios: self.wios.saturating_sub(before.wios),
            rbytes: self.rbytes.saturating_sub(before.rbytes),
            wbytes: self.wbytes.saturating_sub(before.wbytes),
        }
    }
}

/// `8:0 rbps=1048576 wbps=max riops=max wiops=max`: what follows a name in a device's line.
fn field<'a>(text: &'a str, device: BlockDevice, name: &str) -> Option<&'a str> {
    let start = format!("{device} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The limits of one cgroup on one device that one owner sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// The cgroup's folder, as its owner sees it.
    #[serde(with = "any_path")]
    pub folder: PathBuf,
    /// The kernel's number of the cgroup, which is never given again.
    pub cgroup: u64,
    /// The device.
    pub device: BlockDevice,
    /// What its owner sets; what has no number here is left as it is.
    pub limits: Limits,
    /// As they were before.
    pub before: Limits,
}

/// Text, or bytes if it is none.
mod any_path {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt, OsStringExt},
        path::{Path, PathBuf},
    };

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(PathBuf),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => to.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::Text(path) => path,
            Either::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limits of {} on {}", shown::name(&self.folder), self.device)
    }
}

/// Why a cgroup cannot be limited.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// It has no limits.
    #[error("{}: {cause}; {remedy}", shown::name(folder))]
    Unlimited {
        /// Its folder.
        folder: PathBuf,
        /// Why not.
        cause: String,
        /// What to change.
        remedy: String,
    },
    /// It would be let do more than it may.
    #[error(
        "{}: it is limited to {before} on {device} already; ask for less, or `--ops` for what is not",
        shown::name(folder)
    )]
    Loosened {
        /// Its folder.
        folder: PathBuf,
        /// The device.
        device: BlockDevice,
        /// What it is limited to.
        before: Limits,
    },
    /// Somebody else limits it.
    #[error("{}: fault {id} limits it on {device}; end that first: faultline stop {id}", shown::name(folder))]
    Taken {
        /// Its folder.
        folder: PathBuf,
        /// The device.
        device: BlockDevice,
        /// Whose fault does.
        id: String,
    },
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl Throttle {
    /// What these limits come to, looked up and not set yet.
    ///
    /// # Errors
    ///
    /// [`ThrottleError`] if they cannot be set, or the cgroup may do less than that already.
    pub fn new(
        folder: &Path,
        cgroup: u64,
        device: BlockDevice,
        limits: Limits,
    ) -> std::result::Result<Self, ThrottleError> {
        let folder = folder.to_owned();
        if let Some((cause, remedy)) = missing(&folder)? {
            return Err(ThrottleError::Unlimited { folder, cause, remedy });
        }
        let mut throttle = Self { folder, cgroup, device, limits, before: Limits::default() };
        throttle.before = throttle.present()?.unwrap_or_default();
        let pairs = limits.values().into_iter().zip(throttle.before.values());
        if pairs.into_iter().any(|(ours, before)| before.is_some_and(|before| ours >= Some(before))) {
            let Self { folder, before, .. } = throttle;
            return Err(ThrottleError::Loosened { folder, device, before });
        }
        Ok(throttle)
    }

    /// Sets the limits.
    ///
    /// # Errors
    ///
    /// The kernel's, or that somebody else has changed them since they were looked at.
    pub fn set(&self) -> Result<()> {
        if self.present()? != Some(self.before) {
            let changed = io::Error::other("somebody else has changed it meanwhile, or the cgroup is gone");
            return Err(self.error("write", LIMITS, changed));
        }
        self.write(self.limits.values().map(|value| value.map(Some)))
    }

    /// Puts back what it has set. What somebody else has set since then stays, and what is gone is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn undo(&self) -> Result<()> {
        let Some(present) = self.present()? else { return Ok(()) };
        let all = self.limits.values().into_iter().zip(present.values()).zip(self.before.values());
        let mut back = [None; 4];
        for (back, ((ours, present), before)) in back.iter_mut().zip(all) {
            *back = (ours.is_some() && ours == present).then_some(before);
        }
        match self.write(back) {
            Err(gone) if matches!(gone.errno(), libc::ENODEV | libc::ENOENT) => Ok(()),
            written => written,
        }
    }

    /// Whether any of what it sets is in force.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_set(&self) -> Result<bool> {
        Ok(self.present()?.is_some_and(|present| self.is_among(present).any(|set| set)))
    }

    /// Whether all of what it sets is in force; nothing if the cgroup is gone.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_whole(&self) -> Result<Option<bool>> {
        Ok(self.present()?.map(|present| self.is_among(present).all(|set| set)))
    }

    /// The command that puts back what it has set.
    #[must_use]
    pub fn remedy(&self) -> String {
        let file = self.folder.join(LIMITS);
        let ours = Limits::NAMES.into_iter().zip(self.limits.values().into_iter().zip(self.before.values()));
        let words = ours.filter_map(|(name, (ours, before))| ours.map(|_| word(name, before)));
        format!("echo {} {} > {}", self.device, words.collect::<Vec<_>>().join(" "), shown::name(&file))
    }

    /// What the cgroup has done with the device so far; nothing if the cgroup is gone.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn tally(&self) -> Result<Option<Tally>> {
        Ok(self.read(COUNTS)?.map(|text| Tally::parse(&text, self.device)))
    }

    /// Of each limit it sets, whether it is there.
    fn is_among(&self, present: Limits) -> impl Iterator<Item = bool> {
        let pairs = self.limits.values().into_iter().zip(present.values());
        pairs.filter_map(|(ours, present)| ours.map(|ours| present == Some(ours)))
    }

    fn present(&self) -> Result<Option<Limits>> {
        Ok(self.read(LIMITS)?.map(|text| Limits::parse(&text, self.device)))
    }

    /// Writes those limits for which there is a value, in one call.
    fn write(&self, values: [Option<Option<u64>>; 4]) -> Result<()> {
        let words = Limits::NAMES.into_iter().zip(values);
        let words: Vec<_> = words.filter_map(|(name, value)| Some(word(name, value?))).collect();
        if words.is_empty() {
            return Ok(());
        }
        let Some(mut file) = self.open(LIMITS, OFlag::O_WRONLY)? else {
            return Err(self.error("open", LIMITS, io::Error::from_raw_os_error(libc::ENOENT)));
        };
        let line = format!("{} {}", self.device, words.join(" "));
        file.write_all(line.as_bytes()).map_err(|source| self.error("write", LIMITS, source))
    }

    fn read(&self, name: &'static str) -> Result<Option<String>> {
        let Some(mut file) = self.open(name, OFlag::O_RDONLY)? else { return Ok(None) };
        let mut text = String::new();
        match file.read_to_string(&mut text) {
            Err(gone) if gone.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            read => read.map(|_| Some(text)).map_err(|source| self.error("read", name, source)),
        }
    }

    /// A file of the cgroup; nothing if the cgroup is gone.
    fn open(&self, name: &'static str, flags: OFlag) -> Result<Option<File>> {
        let Some(folder) = self.open_folder()? else { return Ok(None) };
        match openat(&folder, name, flags | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(nix::Error::ENOENT | nix::Error::ENODEV) => Ok(None),
            Err(errno) => Err(self.error("open", name, errno.into())),
        }
    }

    /// Where its owner saw it, or else by its number: the hierarchy may be mounted elsewhere here.
    fn open_folder(&self) -> Result<Option<OwnedFd>> {
        if let Ok(Some(folder)) = self.open_at(&self.folder) {
            return Ok(Some(folder));
        }
        let root = probe::cgroup_root()?;
        let unseen = || io::Error::other("no cgroup2 file system is seen here; sweep where its owner ran");
        let root = root.ok_or_else(|| self.error("find", "", unseen()))?;
        let mount = File::open(&root).map_err(|source| Error::new("open", shown::name(&root), source));
        match by_number(mount?.as_fd(), self.cgroup) {
            Ok(folder) => Ok(Some(folder)),
            Err(gone) if gone.raw_os_error() == Some(libc::ESTALE) => Ok(None),
            // Not every kernel can, nor may everybody. What is not seen is gone where all cgroups are.
            Err(source) => match self.search(&root)? {
                None if namespaces::is_topmost_cgroup(&root) => Ok(None),
                Some(found) => Ok(Some(found)),
                None => Err(self.error("open_by_handle_at", "", source)),
            },
        }
    }

    /// Opens a folder if it is the cgroup's; nothing if it is another's, or not there.
    fn open_at(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let error = |call| move |errno: nix::Error| Error::new(call, shown::name(&path), errno.into());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = match open(path, flags, Mode::empty()) {
            Err(errno) if leads_nowhere(&errno.into()) => return Ok(None),
            folder => folder.map_err(error("open"))?,
        };
        let number = fstat(&folder).map_err(error("fstat"))?.st_ino;
        Ok((number == self.cgroup).then_some(folder))
    }

    /// Looks at every cgroup that can be seen from here.
    fn search(&self, root: &Path) -> Result<Option<OwnedFd>> {
        for folder in [root.to_owned()].into_iter().chain(below(root)?) {
            if let Some(found) = self.open_at(&folder)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn error(&self, call: &'static str, name: &str, source: io::Error) -> Error {
        Error::new(call, shown::name(&self.folder.join(name)), source)
    }
}

fn word(name: &str, value: Option<u64>) -> String {
    value.map_or_else(|| format!("{name}={NONE}"), |value| format!("{name}={value}"))
}

/// Opens a cgroup by its number.
fn by_number(mount: std::os::fd::BorrowedFd<'_>, number: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` with room for what kernfs has.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        number: [u8; 8],
    }
    /// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/exportfs.h>
    const FILEID_KERNFS: i32 = 0xfe;
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, number: number.to_ne_bytes() };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle is as long as it says and lives until the call is over.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new fd, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Why a cgroup has no limits, and what to change; nothing if it has.
///
/// # Errors
///
/// The kernel's.
pub fn missing(folder: &Path) -> Result<Option<(String, String)>> {
    const CONTROLLERS: &str = "cgroup.controllers";
    const ENABLED: &str = "cgroup.subtree_control";
    if folder.join(LIMITS).exists() {
        return Ok(None);
    }
    let root = probe::cgroup_root()?.unwrap_or_default();
    let has = |folder: &Path, file| {
        let path = folder.join(file);
        let text = fs::read_to_string(&path);
        let text = text.map_err(|source| Error::new("read", shown::name(&path), source))?;
        Ok::<_, Error>(text.split_whitespace().any(|name| name == "io"))
    };
    if !has(&root, CONTROLLERS)? {
        let cause = format!(
            "there is no io in {}: cgroup v1 has it as blkio, or the kernel has none",
            shown::name(&root.join(CONTROLLERS))
        );
        return Ok(Some((cause, super::mechanism::Mechanism::IoMax.remedy().into())));
    }
    let mut off = Vec::new();
    for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(&root)) {
        if !has(above, ENABLED)? {
            off.push(format!("echo +io > {}", shown::name(&above.join(ENABLED))));
        }
    }
    off.reverse();
    Ok(Some(match &off[..] {
        [] => ("the kernel has no io.max".into(), super::mechanism::Mechanism::IoMax.remedy().into()),
        off => ("the io controller is not on for it".into(), format!("switch it on: {}", off.join("; "))),
    }))
}

/// What has been done since the tallies `before`, each throttle a rule: seen is everything, matched what is limited.
/// Whether any of it was held up the kernel does not say: all that is matched counts as fired.
#[must_use]
pub fn counters(throttles: &[Throttle], before: &[Tally], now: &[Tally]) -> Counters {
    let mut counters = Counters::default();
    let count = |ios, bytes| Count { packets: ios, segments: ios, bytes };
    for ((throttle, before), now) in throttles.iter().zip(before).zip(now) {
        let Tally { rios, wios, rbytes, wbytes } = now.since(*before);
        let Limits { rbps, wbps, riops, wiops } = throttle.limits;
        let of = |is: bool, number: u64| if is { number } else { 0 };
        let (reads, writes) = (rbps.or(riops).is_some(), wbps.or(wiops).is_some());
        let matched = count(of(reads, rios) + of(writes, wios), of(reads, rbytes) + of(writes, wbytes));
        counters.rules.push(RuleCount { matched, fired: matched, ..RuleCount::default() });
        let seen = &mut counters.seen[Direction::Call as usize];
        *seen = count(seen.packets + rios + wios, seen.bytes + rbytes + wbytes);
    }
    counters
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    const DISK: BlockDevice = BlockDevice { major: 8, minor: 1 };

    #[test]
    fn any_folder_is_written_down() {
        for name in [&b"/a"[..], b"/a\xff\n"] {
            let folder = PathBuf::from(OsStr::from_bytes(name));
            let limits = Limits { rbps: Some(1), ..Limits::default() };
            let throttle = Throttle { folder, cgroup: 7, device: DISK, limits, before: Limits::default() };
            let text = serde_json::to_string(&throttle).expect("text");
            assert_eq!(serde_json::from_str::<Throttle>(&text).expect("a throttle"), throttle, "{text}");
        }
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let text = "8:16 rbps=1 wbps=2 riops=3 wiops=4\n8:1 rbps=2097152 wbps=max riops=max wiops=120\n";
        let found = Limits::parse(text, DISK);
        assert_eq!(found, Limits { rbps: Some(2_097_152), wiops: Some(120), ..Limits::default() });
        assert_eq!(found.to_string(), "rbps=2097152 wiops=120");
        assert_eq!(Limits::parse("", DISK), Limits::default());
        assert_eq!(Limits::parse("18:1 rbps=1 wbps=1 riops=1 wiops=1", DISK), Limits::default());
    }

    #[test]
    fn what_is_limited_is_what_counts() {
        let text = "8:1 rbytes=4096 wbytes=1024 rios=4 wios=1 dbytes=0 dios=0\n";
        let (before, now) = (Tally::default(), Tally::parse(text, DISK));
        assert_eq!(now, Tally { rios: 4, wios: 1, rbytes: 4096, wbytes: 1024 });
        let limits = Limits { riops: Some(1), ..Limits::default() };
        let throttle =
            Throttle { folder: "/x".into(), cgroup: 7, device: DISK, limits, before: Limits::default() };
        let counters = counters(std::slice::from_ref(&throttle), &[before], &[now]);
        let count = |ios, bytes| Count { packets: ios, segments: ios, bytes };
        assert_eq!(counters.seen[Direction::Call as usize], count(5, 5120));
        assert_eq!((counters.rules[0].matched, counters.rules[0].fired), (count(4, 4096), count(4, 4096)));
        assert_eq!(throttle.remedy(), "echo 8:1 riops=max > /x/io.max");
    }
}
