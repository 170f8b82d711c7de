//! The folder of the records: root's own and nobody else's, so that nobody else can hold an owner's lock or plant what
//! the next command of root's would carry out.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open, openat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat},
};

use crate::spec::shown;

/// Where records lie.
pub(super) const DIRECTORY: &str = "/run/faultline";
/// What a record's name ends with.
const SUFFIX: &str = ".json";
/// What its owner alone may do with the folder, and with a record.
const FOLDER_MODE: Mode = Mode::S_IRWXU;
const RECORD_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// Whoever may write one of them has what root does in hand.
const OTHERS: u32 = 0o022;

/// A file operation on the journal that failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel refused it.
    #[error("{call} {}: {source}", shown::name(path))]
    Call {
        /// The operation.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not as Faultline makes it.
    #[error("{} {why}: only root makes what lies there, so it is not read; look whose it is, then remove it: rm {}{}",
        shown::name(path), if *is_folder { "-r " } else { "" }, shown::name(path))]
    Refused {
        /// What.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// Whether it is the folder of the records itself.
        is_folder: bool,
    },
}

pub(super) type Result<T> = std::result::Result<T, JournalError>;

pub(super) fn error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Call { call, path: path.into(), source }
}

fn errno(call: &'static str, path: &Path) -> impl FnOnce(Errno) -> JournalError {
    move |errno| error(call, path)(errno.into())
}

/// The folder, checked; what is opened in it is opened by it.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens it, if there is one.
    ///
    /// # Errors
    ///
    /// [`JournalError::Refused`] if it is not root's own alone.
    pub(super) fn open() -> Result<Option<Self>> {
        let path = Path::new(DIRECTORY);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = match open(path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::ENOENT) => return Ok(None),
            // A link, or a file, where the folder would be.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let path = path.into();
                return Err(JournalError::Refused { path, why: "is not a folder", is_folder: false });
            }
            Err(other) => return Err(errno("open", path)(other)),
        };
        let stat = fstat(&folder).map_err(errno("stat", path))?;
        owned_by_root(&stat, path)?;
        Ok(Some(Self(folder)))
    }

    /// Has it be nobody else's: earlier versions let everybody look, and so lock.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn close_to_others(&self) -> Result<()> {
        let path = Path::new(DIRECTORY);
        let stat = fstat(&self.0).map_err(errno("stat", path))?;
        if stat.st_mode & 0o777 == FOLDER_MODE.bits() {
            return Ok(());
        }
        match fchmod(&self.0, FOLDER_MODE) {
            // What lies on something read-only nobody has written to.
            Ok(()) | Err(Errno::EROFS) => Ok(()),
            Err(other) => Err(errno("chmod", path)(other)),
        }
    }

    /// Opens it, and makes it where there is none. `/run` itself is not made: on a disk the records would outlive a boot,
    /// and with it what they speak of.
    ///
    /// # Errors
    ///
    /// [`JournalError`].
    pub(super) fn make() -> Result<Self> {
        let path = Path::new(DIRECTORY);
        loop {
            match mkdirat(nix::fcntl::AT_FDCWD, path, FOLDER_MODE) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(other) => return Err(errno("create", path)(other)),
            }
            if let Some(folder) = Self::open()? {
                folder.close_to_others()?;
                return Ok(folder);
            }
        }
    }

    /// Keeps all other owners from changing anything until the result is dropped; nothing while another does.
    pub(super) fn try_lock(&self) -> Result<Option<File>> {
        let path = Path::new(DIRECTORY);
        // A description of its own: a lock is that of what was opened.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let own = File::from(openat(&self.0, ".", flags, Mode::empty()).map_err(errno("open", path))?);
        match own.try_lock() {
            Ok(()) => Ok(Some(own)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(error("lock", path)(source)),
        }
    }

    /// The ids of the records in it, in order.
    pub(super) fn ids(&self) -> Result<Vec<String>> {
        let path = Path::new(DIRECTORY);
        let entries = fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        let mut ids = Vec::new();
        for entry in entries.map_err(error("list", path))? {
            let name = entry.map_err(error("list", path))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(str::to_owned));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Opens a record to read it, if it is there.
    ///
    /// # Errors
    ///
    /// [`JournalError::Refused`] if it is no plain file that is root's own alone.
    pub(super) fn open_record(&self, id: &str) -> Result<Option<File>> {
        // What is no plain file is not waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let Some(file) = self.open_file(id, flags)? else { return Ok(None) };
        let path = path_of(id);
        let stat = fstat(&file).map_err(errno("stat", &path))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(JournalError::Refused { path, why: "is not a file", is_folder: false });
        }
        owned_by_root(&stat, &path)?;
        Ok(Some(file))
    }

    /// Opens a record for a lock, which wants it open for writing.
    pub(super) fn open_to_lock(&self, id: &str) -> Result<Option<File>> {
        self.open_file(id, OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
    }

    fn open_file(&self, id: &str, flags: OFlag) -> Result<Option<File>> {
        let name = format!("{id}{SUFFIX}");
        match openat(&self.0, name.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENXIO) => {
                Err(JournalError::Refused { path: path_of(id), why: "is not a file", is_folder: false })
            }
            Err(other) => Err(errno("open", &path_of(id))(other)),
        }
    }

    /// A file that has no name yet.
    pub(super) fn unnamed(&self) -> Result<File> {
        let path = Path::new(DIRECTORY);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CLOEXEC;
        let file = openat(&self.0, ".", flags, RECORD_MODE).map_err(errno("create a record in", path))?;
        // The umask may have taken what its owner needs.
        fchmod(&file, RECORD_MODE).map_err(errno("chmod", path))?;
        Ok(file.into())
    }

    /// Gives such a file the name of a record; false if another has it.
    pub(super) fn name(&self, file: &impl AsFd, id: &str) -> Result<bool> {
        let from = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let to = format!("{id}{SUFFIX}");
        let flags = LinkatFlags::AT_SYMLINK_FOLLOW;
        match linkat(nix::fcntl::AT_FDCWD, from.as_str(), &self.0, to.as_str(), flags) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(other) => Err(errno("create", &path_of(id))(other)),
        }
    }

    /// Removes a record; false if somebody else has.
    pub(super) fn remove(&self, id: &str) -> Result<bool> {
        match unlinkat(&self.0, format!("{id}{SUFFIX}").as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(other) => Err(errno("remove", &path_of(id))(other)),
        }
    }
}

/// Where the record with this id lies.
pub(super) fn path_of(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id}{SUFFIX}"))
}

fn owned_by_root(stat: &FileStat, path: &Path) -> Result<()> {
    let why = if stat.st_uid != 0 {
        "is not root's own"
    } else if stat.st_mode & OTHERS != 0 {
        "may be written by others than root"
    } else {
        return Ok(());
    };
    Err(JournalError::Refused { path: path.into(), why, is_folder: path == Path::new(DIRECTORY) })
}

/// What is locked of a record, a byte each: these locks are of what was opened, and can be asked for without being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    /// By its owner, as long as that lives.
    Life = 0,
    /// By whoever changes the profile of its run.
    Profile = 1,
    /// By whoever clears away what its owner has left.
    Sweep = 2,
}

impl Byte {
    fn range(self) -> libc::flock {
        libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self as i64,
            l_len: 1,
            l_pid: 0,
        }
    }

    /// Takes it; false if somebody else has it.
    pub(super) fn take(self, file: &File) -> nix::Result<bool> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&self.range())) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether somebody has it.
    pub(super) fn is_taken(self, file: &File) -> nix::Result<bool> {
        let mut range = self.range();
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut range))?;
        Ok(range.l_type != libc::F_UNLCK as i16)
    }
}
