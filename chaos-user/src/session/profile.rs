//! Another profile for a run that has one.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
};

use chaos_ebpf::abi::Direction;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

use super::Record;
use crate::{
    fault::{
        Peers,
        net::{TooManyWaiting, check_profile},
    },
    kernel::{
        self,
        peers::{Applied, ProfileIds},
    },
    spec::Profile,
};

/// Why a profile could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nobody has any.
    #[error("no run has a profile; `faultline net --profile FILE --dev IFACE` begins one")]
    Nobody,
    /// Which of them is not said.
    #[error("there are {} runs with a profile: {}; say which by --id", ids.len(), ids.join(", "))]
    Several {
        /// Theirs.
        ids: Vec<String>,
    },
    /// One that was named has none.
    #[error("the fault {id} has no profile; only that of `faultline net --profile` can be changed")]
    Without {
        /// Its id.
        id: String,
    },
    /// Its links need more room than it has.
    #[error("--profile: {0}")]
    Room(#[from] TooManyWaiting),
    /// Somebody else is about it.
    #[error("another `faultline profile apply` is about the fault {id} at the moment; try again")]
    Busy {
        /// Its id.
        id: String,
    },
    /// It has ended meanwhile.
    #[error("the fault {id} has ended meanwhile, and its profile with it")]
    Ended {
        /// Its id.
        id: String,
    },
    /// Its record.
    #[error("{call} {}: {errno}", path.display())]
    Record {
        /// The operation.
        call: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// A run whose profile can be changed.
#[derive(Debug)]
pub struct Target {
    record: Record,
    ids: ProfileIds,
    limit: u32,
}

impl Target {
    /// The run with this id, or the only one with a profile.
    ///
    /// # Errors
    ///
    /// [`ApplyError`].
    pub fn find(records: Vec<Record>, id: Option<&str>) -> Result<Self, ApplyError> {
        let named = |record: &Record| id.is_none_or(|id| record.id == id);
        let living = records.into_iter().filter(|record| record.alive && named(record));
        let with = |record: Record| record.profile().map(|(ids, limit)| Self { record, ids, limit });
        let mut found: Vec<Self> = living.filter_map(with).collect();
        match (found.len(), id) {
            (0, Some(id)) => Err(ApplyError::Without { id: id.into() }),
            (0 | 1, _) => found.pop().ok_or(ApplyError::Nobody),
            _ => Err(ApplyError::Several { ids: found.into_iter().map(|target| target.record.id).collect() }),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Whether it hits packets going this way.
    #[must_use]
    pub fn acts(&self, direction: Direction) -> bool {
        self.ids.acts(direction)
    }

    /// Puts a profile in the place of the one it has; see [`ProfileIds::apply`].
    ///
    /// # Errors
    ///
    /// [`ApplyError`].
    pub fn apply(&self, profile: &Profile) -> Result<Applied, ApplyError> {
        check_profile(profile, self.limit)?;
        let _alone = self.alone()?;
        let mut most = Applied::default();
        for direction in [Direction::In, Direction::Out].into_iter().filter(|way| self.acts(*way)) {
            // The same peers both ways.
            match self.ids.apply(direction, &Peers::new(profile, direction)) {
                Err(error) if error.errno() == libc::ENOENT => return Err(self.ended()),
                applied => most = applied?,
            }
        }
        // Its maps live as long as they are held here.
        match self.record.again() {
            Ok(Some(record)) if record.alive => Ok(most),
            _ => Err(self.ended()),
        }
    }

    fn ended(&self) -> ApplyError {
        ApplyError::Ended { id: self.record.id.clone() }
    }

    /// Keeps others from applying theirs meanwhile, by a lock that is none of those of the record's owner (`flock`).
    fn alone(&self) -> Result<File, ApplyError> {
        let path = self.record.path();
        let error = |call, errno| ApplyError::Record { call, path: path.into(), errno };
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT) => self.ended(),
            errno => error("open", Errno::from_raw(errno.unwrap_or(0))),
        })?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(file),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(ApplyError::Busy { id: self.record.id.clone() }),
            Err(errno) => Err(error("lock", errno)),
        }
    }
}
