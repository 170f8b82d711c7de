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

use super::Process;
use crate::kernel::{counters::MapIds, filter::Trace, mechanism::Mechanism};

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
    /// Why by that.
    pub why: String,
    /// The kernel's number of the program.
    pub program_id: u32,
    /// The kernel's number of the link, if a link holds it.
    pub link_id: Option<u32>,
}

/// A rule of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleRecord {
    /// The fault as it was written.
    pub fault: String,
    /// Which packets it acts on.
    pub direction: Direction,
    /// The chance asked for, between 0 and 1.
    pub asked: f64,
}

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// Before anything is done: who, and what is going to be done.
    Begun(Begun),
    /// Before something is made that does not go with its owner: how to remove it.
    Undo(Trace),
    /// Everything is attached, disarmed.
    Prepared {
        /// The hooks.
        hooks: Vec<HookRecord>,
        /// The maps to follow it by.
        maps: MapIds,
    },
    /// It acts from now on.
    Armed {
        /// Since when, `CLOCK_MONOTONIC` nanoseconds.
        at_ns: u64,
        /// Until when, if that was said.
        until_ns: Option<u64>,
    },
}

/// Who does what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The owner.
    #[serde(flatten)]
    pub owner: Process,
    /// The interface's name.
    pub device: String,
    /// Its number.
    pub ifindex: u32,
    /// The network namespace it lies in, by inode number.
    pub netns: u64,
    /// The rules.
    pub rules: Vec<RuleRecord>,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// The owner's side of a record.
#[derive(Debug)]
pub(super) struct Journal {
    id: String,
    path: PathBuf,
    file: Flock<File>,
    traces: Vec<Trace>,
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
            let mut journal = Self { id, path, file, traces: Vec::new() };
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

    /// Writes down how to remove something, before it is made.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    pub(super) fn note(&mut self, trace: Trace) -> Result<()> {
        self.traces.push(trace);
        self.append(&Entry::Undo(trace))
    }

    /// What has been noted.
    pub(super) fn traces(&self) -> &[Trace] {
        &self.traces
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

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(error("remove", path)),
    }
}

/// Five letters and digits: short enough to type, and `create_new` sees to it that they are new.
fn new_id() -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; 5];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
    Ok(random.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect())
}
