//! Another profile for a run that has one.

use std::fs::File;

use chaos_ebpf::abi::Direction;

use super::{
    JournalError, Record,
    folder::{Byte, Folder, error, path_of},
};
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
    #[error(transparent)]
    Record(#[from] JournalError),
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

    /// Keeps others from applying theirs meanwhile.
    fn alone(&self) -> Result<File, ApplyError> {
        let id = &self.record.id;
        let folder = Folder::open()?;
        let file = folder.map_or(Ok(None), |folder| folder.open_to_lock(id))?.ok_or_else(|| self.ended())?;
        let taken = Byte::Profile.take(&file).map_err(|errno| error("lock", &path_of(id))(errno.into()))?;
        if taken { Ok(file) } else { Err(ApplyError::Busy { id: id.clone() }) }
    }
}
