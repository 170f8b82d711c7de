//! What owners write down under `/run/faultline` so that others can see, stop and clean up after them.
//!
//! A record is a file of JSON lines that its owner appends to and holds locked (`flock`) as long as it lives.
//! The kernel lets go of the lock when the owner ends, however it ends and whatever pid namespace it was in:
//! a record that can be locked has no owner. Pid and start time say whom to ask while there is one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use chaos_ebpf::abi::Direction;

use super::{Process, undo};
use crate::kernel::{
    calls::Attached,
    change::{Change, Ledger, Unwritten},
    counters::MapIds,
    mechanism::Mechanism,
    peers::ProfileIds,
    throttle::Tally,
};

/// Where records lie.
pub(super) const DIRECTORY: &str = "/run/faultline";

/// A file operation on the journal that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", path.display())]
pub struct JournalError {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) type Result<T> = std::result::Result<T, JournalError>;

pub(super) fn error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError { call, path: path.into(), source }
}

/// A hook that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRecord {
    /// Which packets it sees.
    pub direction: Direction,
    /// By what it is held there.
    pub hook: Mechanism,
    /// The kernel's function, or its tracepoint, if it is at one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Why by that.
    pub why: String,
    /// The kernel's number of the program, if it is one.
    pub program_id: Option<u32>,
    /// The kernel's number of the link, if a link holds it.
    pub link_id: Option<u32>,
}

impl HookRecord {
    /// Of a program that acts on system calls.
    pub(super) fn of_call(it: &Attached) -> Self {
        Self {
            direction: Direction::Call,
            hook: it.site.mechanism,
            function: Some(it.site.function.clone()),
            why: it.why.clone(),
            program_id: Some(it.program),
            link_id: it.link,
        }
    }
}

/// A rule of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleRecord {
    /// The fault as it was written.
    pub fault: String,
    /// Which packets it acts on.
    pub direction: Direction,
    /// The chance asked for, between 0 and 1, if there is a single one.
    pub asked: Option<f64>,
}

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// Before anything is done: who, and what is going to be done.
    Begun(Begun),
    /// Before something is changed that does not go back with its owner.
    Change(Change),
    /// Everything is attached, disarmed.
    Prepared {
        /// The hooks.
        hooks: Vec<HookRecord>,
        /// The maps to follow it by, if it has programs.
        maps: Option<MapIds>,
    },
    /// Its profile, which others may change.
    Profile {
        /// Where that is.
        ids: ProfileIds,
        /// How many packets may wait in each direction.
        limit: u32,
    },
    /// It acts from now on.
    Armed {
        /// Since when, `CLOCK_MONOTONIC` nanoseconds.
        at_ns: u64,
        /// Until when, if that was said.
        until_ns: Option<u64>,
        /// What had been counted before of what its changes are about.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        counted: Vec<Tally>,
    },
    /// It has ended but for what becomes right by and by.
    Settling {
        /// How long that takes at about, in nanoseconds.
        for_ns: u64,
    },
}

/// Who does what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The owner.
    #[serde(flatten)]
    pub owner: Process,
    /// The interface's name, if it acts on one.
    pub device: Option<String>,
    /// Its number, or 0.
    pub ifindex: u32,
    /// The network namespace it lies in, by inode number.
    pub netns: u64,
    /// The rules.
    pub rules: Vec<RuleRecord>,
    /// Seed of the random numbers, if there are any.
    pub seed: Option<u64>,
}

/// The owner's side of a record.
#[derive(Debug)]
pub(super) struct Journal {
    id: String,
    path: PathBuf,
    file: Flock<File>,
    netns: u64,
    changes: Vec<Change>,
}

impl Journal {
    /// Begins a record under a new id.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made or written.
    pub(super) fn begin(begun: Begun) -> Result<Self> {
        let directory = Path::new(DIRECTORY);
        // Not /run itself: on a disk the records would outlive a boot, and with it what they speak of.
        match fs::create_dir(directory) {
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(error("create", directory))?,
        }
        let netns = begun.netns;
        let first = Entry::Begun(begun);
        loop {
            let id = new_id().map_err(error("read", Path::new("/dev/urandom")))?;
            let path = directory.join(format!("{id}.json"));
            let file = match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file.map_err(error("create", &path))?,
            };
            // Between its creation and this lock a sweep may take the record for a dead owner's and unlink it.
            let file = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| error("lock", &path)(errno.into()))?;
            if nix::sys::stat::fstat(file.as_fd()).is_ok_and(|stat| stat.st_nlink == 0) {
                continue;
            }
            let mut journal = Self { id, path, file, netns, changes: Vec::new() };
            if let Err(unwritten) = journal.append(&first) {
                journal.end()?;
                return Err(unwritten);
            }
            return Ok(journal);
        }
    }

    /// The record's id.
    #[must_use]
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Adds a line that is on disk when this returns.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<()> {
        let mut line =
            serde_json::to_vec(entry).map_err(io::Error::from).map_err(error("write", &self.path))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(error("write", &self.path))?;
        self.file.sync_data().map_err(error("fsync", &self.path))
    }

    /// The network namespace it is about.
    pub(super) fn netns(&self) -> u64 {
        self.netns
    }

    /// What has been changed.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Takes the changes back; see [`undo::take_back`].
    ///
    /// # Errors
    ///
    /// [`Dirty`](super::Dirty) if one could not be.
    pub(super) fn take_back(&self) -> std::result::Result<Option<Flock<File>>, super::Dirty> {
        undo::take_back(&self.id, self.netns, &self.changes)
    }

    /// Ends the record: nothing of what it speaks of is left.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub(super) fn end(self) -> Result<()> {
        remove(&self.path)
    }
}

impl Ledger for Journal {
    fn hold(&self) -> std::result::Result<Flock<File>, Unwritten> {
        Ok(undo::hold()?)
    }

    fn of_others(&self) -> std::result::Result<Vec<Change>, Unwritten> {
        Ok(undo::of_others(&self.id, self.netns)?)
    }

    fn note(&mut self, change: Change) -> std::result::Result<(), Unwritten> {
        self.changes.push(change.clone());
        Ok(self.append(&Entry::Change(change))?)
    }
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(error("remove", path)),
    }
}

/// Five letters and digits: short enough to type, and `create_new` sees to it that they are new.
fn new_id() -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    Ok(random::<5>()?.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect())
}

/// Bytes that nobody else has drawn.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}
