//! A writer for the one archive format the kernel unpacks as its first root file system: cpio "newc".
//!
//! <https://github.com/torvalds/linux/blob/v6.12/Documentation/driver-api/early-userspace/buffer-format.rst>
//! Archives may follow one another in one initrd, which is what lets the slow-changing part be cached.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// What stands at a path in the archive.
#[derive(Debug)]
struct Node {
    mode: u32,
    data: Vec<u8>,
}

/// An archive being put together. Paths are absolute, as the guest will see them; parents are added by themselves.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    // Sorted, so that a folder always precedes what is in it and equal contents give equal bytes.
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// A folder.
    pub(crate) fn dir(&mut self, path: &str) {
        self.insert(path, S_IFDIR | 0o755, Vec::new());
    }

    /// A file with the given contents.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: impl Into<Vec<u8>>) {
        self.insert(path, S_IFREG | permissions, data.into());
    }

    /// A file copied from the host, executable.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let data = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, 0o755, data);
        Ok(())
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, S_IFLNK | 0o777, target.as_bytes().to_vec());
    }

    /// Whether something stands at this path already.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_matches('/'))
    }

    fn insert(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            let parent = Node { mode: S_IFDIR | 0o755, data: Vec::new() };
            self.nodes.entry(path[..end].to_owned()).or_insert(parent);
        }
        self.nodes.insert(path.to_owned(), Node { mode, data });
    }

    /// Writes the archive.
    pub(crate) fn write(&self, out: &mut impl Write) -> Result<()> {
        for (inode, (path, node)) in (1_u32..).zip(&self.nodes) {
            write_entry(out, inode, path, node.mode, &node.data)
                .with_context(|| format!("writing {path} to the archive"))?;
        }
        write_entry(out, 0, "TRAILER!!!", 0, &[]).context("ending the archive")
    }
}

fn write_entry(out: &mut impl Write, inode: u32, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
    let too_big = |_| io::Error::new(io::ErrorKind::FileTooLarge, "over 4 GiB");
    let size = u32::try_from(data.len()).map_err(too_big)?;
    let name_size = u32::try_from(path.len() + 1).map_err(too_big)?;
    let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
    // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        header.push_str(&format!("{field:08x}"));
    }
    header.push_str(path);
    header.push('\0');
    out.write_all(header.as_bytes())?;
    pad(out, header.len())?;
    out.write_all(data)?;
    pad(out, data.len())
}

/// Name and data each end on a multiple of four bytes.
fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_entries_are_aligned() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o644, "x");
        archive.symlink("/a/link", "b/c");
        assert!(archive.contains("/a/b"));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("writing to memory");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0") && at("a/b/c\0") < at("a/link\0"));
        assert!(at("a/link\0") < at("TRAILER!!!"));
    }
}
