//! Other owners' records.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::journal::{Begun, DIRECTORY, Entry, HookRecord, Result, error, remove};
use crate::kernel::{change::Change, counters::MapIds, peers::ProfileIds, throttle::Tally};

/// Somebody's record, as far as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Whether its owner lives.
    pub alive: bool,
    /// Its lines; a last one that is cut off is left out.
    pub entries: Vec<Entry>,
    path: PathBuf,
}

impl Record {
    /// Reads all records. There may be none, nor a directory.
    ///
    /// # Errors
    ///
    /// If one that is there cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let directory = Path::new(DIRECTORY);
        let files = match fs::read_dir(directory) {
            Err(none) if none.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(error("list", directory))?,
        };
        let mut records = Vec::new();
        for file in files {
            let file = file.map_err(error("list", directory))?;
            // A record is a plain file; opening a pipe, say, would wait for somebody to write.
            if !file.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            if let Some(record) = Self::read(&file.path())? {
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Reads one; nothing if it has been removed meanwhile or is no record.
    fn read(path: &Path) -> Result<Option<Self>> {
        let Some(id) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else {
            return Ok(None);
        };
        let file = match File::open(path) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(error("open", path))?,
        };
        let lines = BufReader::new(&file).lines().map_while(io::Result::ok);
        let entries = lines.map_while(|line| serde_json::from_str(&line).ok()).collect();
        let alive = match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => false,
            Err((_, Errno::EWOULDBLOCK)) => true,
            Err((_, errno)) => return Err(error("lock", path)(errno.into())),
        };
        Ok(Some(Self { id: id.into(), alive, entries, path: path.into() }))
    }

    /// Who does what, if that much was written.
    #[must_use]
    pub fn begun(&self) -> Option<&Begun> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Begun(begun) => Some(begun),
            _ => None,
        })
    }

    /// The hooks in use, and the maps to follow the run by if it has any.
    #[must_use]
    pub fn prepared(&self) -> Option<(&[HookRecord], Option<MapIds>)> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Prepared { hooks, maps } => Some((&hooks[..], *maps)),
            _ => None,
        })
    }

    /// Its profile, and how many packets may wait, if it has one.
    #[must_use]
    pub fn profile(&self) -> Option<(ProfileIds, u32)> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Profile { ids, limit } => Some((*ids, *limit)),
            _ => None,
        })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What its owner changed, or was about to, that does not go back with it.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let changes = self.entries.iter().filter_map(|entry| match entry {
            Entry::Change(change) => Some(change.clone()),
            _ => None,
        });
        changes.collect()
    }

    /// Until when it acts, if that was said.
    #[must_use]
    pub fn until(&self) -> Option<u64> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Armed { until_ns, .. } => *until_ns,
            _ => None,
        })
    }

    /// How long it takes at about until what is asked to end has become right by and by, if it does.
    #[must_use]
    pub fn settling(&self) -> Option<Duration> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Settling { for_ns } => Some(Duration::from_nanos(*for_ns)),
            _ => None,
        })
    }

    /// What had been counted before it was armed of what its changes are about.
    #[must_use]
    pub fn counted(&self) -> &[Tally] {
        let armed = self.entries.iter().find_map(|entry| match entry {
            Entry::Armed { counted, .. } => Some(&counted[..]),
            _ => None,
        });
        armed.unwrap_or_default()
    }

    /// The record as it is now; nothing if it has been removed.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn again(&self) -> Result<Option<Self>> {
        Self::read(&self.path)
    }

    /// Removes a record whose owner is gone; false if it is not gone after all.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub fn remove(&self) -> Result<bool> {
        let file = match File::open(&self.path) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(true),
            file => file.map_err(error("open", &self.path))?,
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_held) => remove(&self.path).map(|()| true),
            Err((_, Errno::EWOULDBLOCK)) => Ok(false),
            Err((_, errno)) => Err(error("lock", &self.path)(errno.into())),
        }
    }
}
