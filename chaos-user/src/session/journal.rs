//! What owners write down under `/run/faultline` so that others can see, stop and clean up after them.
//!
//! A record is a file of JSON lines that its owner appends to and holds locked as long as it lives, twice: by a byte that
//! others can ask for without taking it, and by `flock`, of which `/proc/locks` says who has it. The kernel lets go of both
//! when the owner ends, however it ends and whatever pid namespace it was in.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use chaos_ebpf::abi::Direction;

use super::{
    folder::{Byte, Folder, Result, error, path_of},
    namespaces::Namespaces,
    undo,
};
use crate::{
    kernel::{
        calls::Attached,
        change::{Change, Family, LONGEST, Ledger, Unwritten},
        counters::MapIds,
        mechanism::Mechanism,
        peers::ProfileIds,
        process::Process,
        throttle::Tally,
    },
    target::NetnsId,
};

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
    Change {
        /// Of what kind of fault.
        family: Family,
        /// How that writes its changes down.
        version: u32,
        /// What.
        change: Change,
    },
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
    /// What others may share of its changes is taken back.
    Undone,
}

impl Entry {
    fn change(change: Change) -> Self {
        let family = change.family();
        Self::Change { family, version: family.version(), change }
    }
}

/// What is written in the first line, so that other versions know what they cannot read.
pub const FORMAT: u32 = 2;

/// Who does what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// How records are written: [`FORMAT`].
    pub format: u32,
    /// From where its owner sees what it changes.
    pub namespaces: Namespaces,
    /// The owner, by its number in its own pid namespace.
    #[serde(flatten)]
    pub owner: Process,
    /// The interface's name, if it acts on one.
    pub device: Option<String>,
    /// Its number, or 0.
    pub ifindex: u32,
    /// The network namespace it lies in.
    #[serde(flatten)]
    pub netns: NetnsId,
    /// The start of the machine in which it was begun: whatever it speaks of has gone with that.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// The rules.
    pub rules: Vec<RuleRecord>,
    /// Seed of the random numbers, if there are any.
    pub seed: Option<u64>,
}

/// What a record is called that has no name yet.
const NEW: &str = "a new record in /run/faultline";

/// The owner's side of a record.
#[derive(Debug)]
pub(super) struct Journal {
    id: String,
    folder: Folder,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    begun: Begun,
    changes: Vec<Change>,
}

impl Journal {
    /// Begins a record under a new id. It has its first line and its owner's locks before anybody can see it.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made or written, or others may write it.
    pub(super) fn begin(begun: Begun) -> Result<Self> {
        let folder = Folder::make()?;
        let file = folder.unnamed()?;
        let locked = |source| error("lock", Path::new(NEW))(source);
        // Nobody else has it.
        Byte::Life.take(&file).map_err(|errno| locked(errno.into()))?;
        file.lock().map_err(locked)?;
        let mut journal =
            Self { id: String::new(), folder, file, length: 0, begun: begun.clone(), changes: Vec::new() };
        journal.append(&Entry::Begun(begun))?;
        loop {
            journal.id = new_id().map_err(error("read", Path::new("/dev/urandom")))?;
            if journal.folder.name(&journal.file, &journal.id)? {
                return Ok(journal);
            }
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
    /// If it cannot be written; nothing of it is there then.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<()> {
        let path = self.path();
        let mut line = serde_json::to_vec(entry).map_err(io::Error::from).map_err(error("write", &path))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).map_err(error("write", &path));
        let written = written.and_then(|()| self.file.sync_data().map_err(error("fsync", &path)));
        match written {
            Ok(()) => self.length += line.len() as u64,
            // What comes after half a line would not be understood by anybody.
            Err(_) => self.file.set_len(self.length).map_err(error("truncate", &path))?,
        }
        written
    }

    /// Where it lies, once it has a name.
    fn path(&self) -> PathBuf {
        if self.id.is_empty() { PathBuf::from(NEW) } else { path_of(&self.id) }
    }

    /// Who does what.
    pub(super) fn begun(&self) -> &Begun {
        &self.begun
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
    pub(super) fn take_back(&self) -> std::result::Result<(), super::Dirty> {
        let end = Instant::now() + LONGEST;
        undo::take_back(&self.folder, &self.id, &self.begun, &self.changes, false, end)
    }

    /// Ends the record: nothing of what it speaks of is left.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub(super) fn end(self) -> Result<()> {
        self.folder.remove(&self.id).map(drop)
    }
}

impl Ledger for Journal {
    fn hold(&self) -> std::result::Result<File, Unwritten> {
        Ok(undo::hold(&self.folder)?)
    }

    fn of_others(&self) -> std::result::Result<Vec<Change>, Unwritten> {
        Ok(undo::of_others(&self.folder, &self.id, self.begun.netns)?)
    }

    fn note(&mut self, change: Change) -> std::result::Result<(), Unwritten> {
        self.changes.push(change.clone());
        Ok(self.append(&Entry::change(change))?)
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
