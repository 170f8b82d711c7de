//! What is mounted where.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::kernel::cgroups::leads_nowhere;

/// A mount, in the text of a `mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What of its file system is there.
    pub root: OsString,
    /// Where it is.
    pub point: PathBuf,
    /// The type of its file system.
    pub kind: String,
    /// Whether mounts reach it from elsewhere.
    pub has_peers: bool,
    /// The number of its file system, as of a device: major and minor.
    pub device: (u32, u32),
}

/// The mounts that a process sees, in the order in which they were made.
///
/// # Errors
///
/// If they cannot be read.
pub fn of(process: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read(process.join("mountinfo"))?))
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - type source options`; names may hold any bytes but zeros.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, point) = (unescaped(words.next()?), unescaped(words.next()?).into());
    let mut has_peers = false;
    for word in words.by_ref().skip(1).take_while(|word| *word != b"-") {
        has_peers |= word.starts_with(b"shared:") || word.starts_with(b"master:");
    }
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    Some(Mount { root, point, kind, has_peers, device })
}

/// `\040` is a space.
fn unescaped(word: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

impl Mount {
    /// Whether it is what is there: another may be mounted over it.
    ///
    /// # Errors
    ///
    /// The kernel's; that its path leads nowhere is none.
    pub fn is_seen(&self) -> io::Result<bool> {
        match identity(&self.point) {
            Ok((device, _)) => Ok((libc::major(device), libc::minor(device)) == self.device),
            Err(covered) if leads_nowhere(&covered) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The number of the network namespace that is mounted there, if one is.
    #[must_use]
    pub fn netns(&self) -> Option<u64> {
        let name = std::str::from_utf8(self.root.as_bytes()).ok()?;
        name.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
    }
}

/// The device and inode number of what is there, as far as they are known without being asked for: what somebody's file system may
/// never answer is not waited for.
///
/// # Errors
///
/// The kernel's.
pub fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: numbers, for which zeros are a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a string that ends with zero, and room for what is written.
    let done = unsafe {
        let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
        libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_INO, &raw mut found)
    };
    Errno::result(done)?;
    Ok((libc::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes() {
        let text = b"29 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     31 29 0:4 net:[4026532281] /run/netns/a\\040b\\012c\\134d\xff rw,nosuid shared:1 - nsfs nsfs rw\n\
                     32 29 0:4 mnt:[4026532282] /run/mnt rw master:2 propagate_from:3 - cgroup2 x rw\n\
                     nonsense\n\
                     33 29 0:5 /net:[1] /a\\9 rw unbindable - tmpfs - rw\n";
        let mounts = parse(text);
        let points: Vec<_> = mounts.iter().map(|mount| mount.point.as_os_str().as_bytes()).collect();
        assert_eq!(points, [&b"/"[..], b"/run/netns/a b\nc\\d\xff", b"/run/mnt", b"/a\\9"]);
        let kinds: Vec<_> = mounts.iter().map(|mount| (mount.kind.as_str(), mount.has_peers)).collect();
        assert_eq!(kinds, [("ext4", false), ("nsfs", true), ("cgroup2", true), ("tmpfs", false)]);
        assert_eq!(mounts[1].device, (0, 4));
        let netns: Vec<_> = mounts.iter().map(Mount::netns).collect();
        assert_eq!(netns, [None, Some(4026532281), None, None]);
    }

    #[test]
    fn the_own_ones() {
        let own = of(Path::new("/proc/self")).expect("mountinfo");
        assert!(own.iter().any(|mount| mount.point == Path::new("/proc") && mount.kind == "proc"));
    }
}
