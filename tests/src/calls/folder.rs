//! A folder of a test's own, with files in it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::mount::{MntFlags, umount2};

use crate::error::{Context, Result};

/// What is in each file.
pub(super) const CONTENT: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-";

/// The folder, on the file system of `/tmp`. Removed when dropped, with all that is in it and
/// whatever is mounted there.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Self> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("fl-calls-{}-{number}", process::id()));
        fs::create_dir(&path).context(path.display())?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in here.
    pub(super) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a file in here that holds [`CONTENT`], and the folders it lies in.
    pub(super) fn file(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.at(name);
        write(&path, CONTENT)?;
        Ok(path)
    }

    /// Makes a folder in here.
    pub(super) fn folder(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.at(name);
        fs::create_dir_all(&path).context(path.display())?;
        Ok(path)
    }

    /// Makes a program in here that does nothing, and does it well.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.at(name);
        write(&path, &elf())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context(path.display())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is mounted on what is mounted comes later in the list.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(point).starts_with(&self.0) {
                let _ = umount2(point, MntFlags::MNT_DETACH);
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a file, and makes the folders it lies in.
pub(super) fn write(path: &Path, content: &[u8]) -> Result {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(folder.display())?;
    }
    fs::write(path, content).context(path.display())
}

/// The smallest static program: `exit(0)`.
fn elf() -> Vec<u8> {
    const START: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // xor edi, edi; mov eax, 60; syscall
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, x86-64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [START + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; sizes of the headers, one of programs and none of sections.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // Load all of it, to be read and executed.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = HEADERS + CODE.len() as u64;
    for word in [0, START, START, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}
