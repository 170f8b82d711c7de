//! Every operation of `--ops` that is done to a file, each by the system calls that do it.

use std::{
    ffi::CString,
    fs::{self, Metadata},
    os::unix::{self, ffi::OsStrExt},
    path::{Path, PathBuf},
};

use super::{
    folder::{CONTENT, Folder, write},
    operator::{HERE, Operator, errno},
    servant::Who,
};
use crate::{
    ensure,
    error::{Context, Result, check},
};

/// One call that does an operation, all else being prepared and undone by the test.
#[derive(Debug)]
pub(super) struct Case {
    /// What the operation is called.
    pub(super) op: &'static str,
    /// What the call is called.
    pub(super) call: &'static str,
    run: fn(&Hand<'_>) -> Result<i64>,
}

impl Case {
    /// Makes the call: 0, or its errno. Whether it really did something is checked as well.
    pub(super) fn run(&self, hand: &Hand<'_>) -> Result<i32> {
        let value = (self.run)(hand).context(format_args!("{} by {}", self.call, hand.name))?;
        Ok(errno(value))
    }
}

const fn case(op: &'static str, call: &'static str, run: fn(&Hand<'_>) -> Result<i64>) -> Case {
    Case { op, call, run }
}

const READ_WRITE: u64 = libc::O_RDWR as u64;
const CREATE: u64 = (libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY) as u64;
const FIFO: u64 = (libc::S_IFIFO | 0o644) as u64;
const FIONREAD: u64 = libc::FIONREAD;
const SHARED_LOCK: u64 = (libc::LOCK_SH | libc::LOCK_NB) as u64;
const NO_WAITING_LOCK: u64 = libc::F_SETLK as u64;
const LENGTH: u64 = CONTENT.len() as u64;
/// Of a file: a name that every file system knows, to root.
const ATTRIBUTE: &std::ffi::CStr = c"trusted.fl";

/// All of them.
#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    case("open", "openat", |h| h.opens(libc::SYS_openat, &[HERE, h.common()?, 0, 0])),
    case("open", "openat O_RDWR", |h| h.opens(libc::SYS_openat, &[HERE, h.common()?, READ_WRITE, 0])),
    case("open", "open", |h| h.opens(libc::SYS_open, &[h.common()?, READ_WRITE, 0])),
    case("open", "openat of a folder", |h| h.opens(libc::SYS_openat, &[HERE, h.path(0, &h.sub())?, libc::O_DIRECTORY as u64, 0])),
    case("read", "read", |h| { h.rewind()?; h.call(libc::SYS_read, &[h.file, h.buffer(), 16]) }),
    case("read", "pread64", |h| h.call(libc::SYS_pread64, &[h.file, h.buffer(), 16, 0])),
    case("read", "readv", |h| { h.rewind()?; h.call(libc::SYS_readv, &[h.file, h.vector()?, 1]) }),
    case("read", "preadv2", |h| h.call(libc::SYS_preadv2, &[h.file, h.vector()?, 1, 0, 0, 0])),
    case("write", "write", |h| { h.rewind()?; h.call(libc::SYS_write, &[h.file, h.content()?, LENGTH]) }),
    case("write", "pwrite64", |h| h.call(libc::SYS_pwrite64, &[h.file, h.content()?, LENGTH, 0])),
    case("write", "pwritev", |h| { h.content()?; h.call(libc::SYS_pwritev, &[h.file, h.vector()?, 1, 0, 0]) }),
    case("mmap", "mmap", maps),
    case("create", "openat O_CREAT", |h| h.makes(|path| h.opens(libc::SYS_openat, &[HERE, path, CREATE, 0o644]))),
    case("create", "creat", |h| h.makes(|path| h.opens(libc::SYS_creat, &[path, 0o644]))),
    case("mknod", "mknodat", |h| h.makes(|path| h.call(libc::SYS_mknodat, &[HERE, path, FIFO, 0]))),
    case("mkdir", "mkdirat", |h| h.makes(|path| h.call(libc::SYS_mkdirat, &[HERE, path, 0o755]))),
    case("mkdir", "mkdir", |h| h.makes(|path| h.call(libc::SYS_mkdir, &[path, 0o755]))),
    case("link", "linkat", |h| h.makes(|path| h.call(libc::SYS_linkat, &[HERE, h.path(1, &h.data())?, HERE, path, 0]))),
    case("symlink", "symlinkat", |h| h.makes(|path| h.call(libc::SYS_symlinkat, &[h.path(1, Path::new("to"))?, HERE, path]))),
    case("unlink", "unlinkat", |h| h.takes(false, |path| h.call(libc::SYS_unlinkat, &[HERE, path, 0]))),
    case("unlink", "unlink", |h| h.takes(false, |path| h.call(libc::SYS_unlink, &[path]))),
    case("rmdir", "unlinkat AT_REMOVEDIR", |h| h.takes(true, |path| h.call(libc::SYS_unlinkat, &[HERE, path, libc::AT_REMOVEDIR as u64]))),
    case("rmdir", "rmdir", |h| h.takes(true, |path| h.call(libc::SYS_rmdir, &[path]))),
    case("rename", "renameat2", |h| h.moves(|from, to| h.call(libc::SYS_renameat2, &[HERE, from, HERE, to, 0]))),
    case("rename", "rename", |h| h.moves(|from, to| h.call(libc::SYS_rename, &[from, to]))),
    case("readlink", "readlinkat", |h| h.call(libc::SYS_readlinkat, &[HERE, h.path(0, &h.link())?, h.buffer(), 100])),
    case("truncate", "truncate", |h| h.call(libc::SYS_truncate, &[h.common()?, LENGTH])),
    case("truncate", "ftruncate", |h| h.call(libc::SYS_ftruncate, &[h.file, LENGTH])),
    case("stat", "fstat", |h| h.call(libc::SYS_fstat, &[h.file, h.buffer()])),
    case("stat", "newfstatat", |h| h.call(libc::SYS_newfstatat, &[HERE, h.common()?, h.buffer(), 0])),
    case("stat", "statx", |h| h.call(libc::SYS_statx, &[HERE, h.common()?, 0, 0xfff, h.buffer()])),
    case("readdir", "getdents64", |h| { h.seek(h.folder)?; h.call(libc::SYS_getdents64, &[h.folder, h.buffer(), 4096]) }),
    case("xattr", "setxattr", |h| h.call(libc::SYS_setxattr, &[h.common()?, h.attribute()?, h.content()?, 4, 0])),
    case("xattr", "getxattr", |h| h.call(libc::SYS_getxattr, &[h.common()?, h.attribute()?, h.buffer(), 100])),
    case("xattr", "listxattr", |h| h.call(libc::SYS_listxattr, &[h.common()?, h.buffer(), 100])),
    case("xattr", "removexattr", takes_attribute),
    case("chmod", "fchmodat", |h| h.call(libc::SYS_fchmodat, &[HERE, h.common()?, 0o600])),
    case("chmod", "fchmod", |h| h.call(libc::SYS_fchmod, &[h.file, 0o644])),
    case("chown", "fchownat", |h| h.call(libc::SYS_fchownat, &[HERE, h.common()?, 0, 0, 0])),
    case("chown", "fchown", |h| h.call(libc::SYS_fchown, &[h.file, 0, 0])),
    case("lock", "fcntl F_SETLK", |h| h.call(libc::SYS_fcntl, &[h.file, NO_WAITING_LOCK, h.bytes(&[0; 32])?])),
    case("lock", "flock", |h| h.call(libc::SYS_flock, &[h.file, SHARED_LOCK])),
    case("ioctl", "ioctl FIONREAD", |h| h.call(libc::SYS_ioctl, &[h.file, FIONREAD, h.buffer()])),
    case("exec", "execve", executes),
    case("fsync", "fsync", |h| h.call(libc::SYS_fsync, &[h.file])),
    case("fsync", "fdatasync", |h| h.call(libc::SYS_fdatasync, &[h.file])),
];

/// The operations, each once.
pub(super) fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = CASES.iter().map(|case| case.op).collect();
    names.dedup();
    names
}

/// Somebody who does the operations, with what is open beforehand.
#[derive(Debug)]
pub(super) struct Hand<'a> {
    operator: &'a Operator,
    place: &'a Folder,
    name: &'static str,
    /// Open to be read and written.
    file: u64,
    /// Open as well.
    folder: u64,
}

/// Makes what all hands work on.
pub(super) fn furnish(place: &Folder) -> Result {
    place.file("data")?;
    place.file("sub/file")?;
    place.program("program")?;
    unix::fs::symlink("data", place.at("link")).context("symlink")?;
    set_attribute(&place.at("data"))
}

impl<'a> Hand<'a> {
    pub(super) fn new(operator: &'a Operator, place: &'a Folder, name: &'static str) -> Result<Self> {
        let file = operator.open(place.at("data"), libc::O_RDWR)?;
        let folder = operator.open(place.at("sub"), libc::O_RDONLY)?;
        Ok(Self { operator, place, name, file, folder })
    }

    fn call(&self, number: i64, arguments: &[u64]) -> Result<i64> {
        self.operator.call(number, arguments)
    }

    fn path(&self, which: usize, path: &Path) -> Result<u64> {
        self.operator.path(which, path)
    }

    fn buffer(&self) -> u64 {
        self.operator.buffer(0)
    }

    fn bytes(&self, bytes: &[u8]) -> Result<u64> {
        self.operator.bytes(0, bytes)
    }

    fn content(&self) -> Result<u64> {
        self.bytes(CONTENT)
    }

    /// An `iovec` of what is in the buffer.
    fn vector(&self) -> Result<u64> {
        let words = [self.buffer(), LENGTH];
        self.operator.bytes(16384, &words.map(u64::to_ne_bytes).concat())
    }

    fn attribute(&self) -> Result<u64> {
        self.operator.bytes(20000, ATTRIBUTE.to_bytes_with_nul())
    }

    fn data(&self) -> PathBuf {
        self.place.at("data")
    }

    fn sub(&self) -> PathBuf {
        self.place.at("sub")
    }

    fn link(&self) -> PathBuf {
        self.place.at("link")
    }

    /// The path of the file that all work on.
    fn common(&self) -> Result<u64> {
        self.path(0, &self.data())
    }

    fn own(&self, what: &str) -> PathBuf {
        self.place.at(format!("{what}-{}", self.name))
    }

    fn rewind(&self) -> Result {
        self.seek(self.file)
    }

    fn seek(&self, fd: u64) -> Result {
        self.operator.must("lseek", libc::SYS_lseek, &[fd, 0, 0]).map(drop)
    }

    fn opens(&self, number: i64, arguments: &[u64]) -> Result<i64> {
        let value = self.call(number, arguments)?;
        if errno(value) == 0 {
            self.operator.close(value as u64)?;
        }
        Ok(value)
    }

    /// Something that is there afterwards, unless it failed.
    fn makes(&self, action: impl FnOnce(u64) -> Result<i64>) -> Result<i64> {
        let path = self.own("new");
        let value = action(self.path(0, &path)?)?;
        check_presence(&path, errno(value) == 0)?;
        remove(&path)?;
        Ok(value)
    }

    /// Something that is no longer there afterwards, unless it failed.
    fn takes(&self, folder: bool, action: impl FnOnce(u64) -> Result<i64>) -> Result<i64> {
        let path = self.own("old");
        if folder {
            fs::create_dir(&path).context(path.display())?;
        } else {
            write(&path, CONTENT)?;
        }
        let value = action(self.path(0, &path)?)?;
        check_presence(&path, errno(value) != 0)?;
        remove(&path)?;
        Ok(value)
    }

    fn moves(&self, action: impl FnOnce(u64, u64) -> Result<i64>) -> Result<i64> {
        let (from, to) = (self.own("from"), self.own("to"));
        write(&from, CONTENT)?;
        let value = action(self.path(0, &from)?, self.path(1, &to)?)?;
        check_presence(&from, errno(value) != 0)?;
        check_presence(&to, errno(value) == 0)?;
        remove(&from)?;
        remove(&to)?;
        Ok(value)
    }
}

fn maps(hand: &Hand<'_>) -> Result<i64> {
    let arguments = [0, 4096, libc::PROT_READ as u64, libc::MAP_SHARED as u64, hand.file, 0];
    let value = hand.call(libc::SYS_mmap, &arguments)?;
    if errno(value) == 0 {
        hand.operator.must("munmap", libc::SYS_munmap, &[value as u64, 4096])?;
    }
    Ok(value)
}

fn takes_attribute(hand: &Hand<'_>) -> Result<i64> {
    let path = hand.own("attributed");
    write(&path, CONTENT)?;
    set_attribute(&path)?;
    let value = hand.call(libc::SYS_removexattr, &[hand.path(0, &path)?, hand.attribute()?])?;
    remove(&path)?;
    Ok(value)
}

fn executes(hand: &Hand<'_>) -> Result<i64> {
    let path = hand.path(0, &hand.place.at("program"))?;
    let words = hand.bytes(&[path, 0].map(u64::to_ne_bytes).concat())?;
    hand.operator.call_by(Who::Child, libc::SYS_execve, &[path, words, 0])
}

fn check_presence(path: &Path, expected: bool) -> Result {
    let there = path.symlink_metadata().is_ok();
    ensure!(there == expected, "{} is {}there", path.display(), if there { "" } else { "not " });
    Ok(())
}

fn remove(path: &Path) -> Result {
    let removed = match path.symlink_metadata().as_ref().map(Metadata::is_dir) {
        Ok(true) => fs::remove_dir(path),
        Ok(false) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.context(path.display())
}

fn set_attribute(path: &Path) -> Result {
    let name = CString::new(path.as_os_str().as_bytes()).context(path.display())?;
    // SAFETY: two strings and one byte.
    let result = unsafe { libc::setxattr(name.as_ptr(), ATTRIBUTE.as_ptr(), c"x".as_ptr().cast(), 1, 0) };
    check(result.into(), format_args!("setxattr on {}", path.display())).map(drop)
}
