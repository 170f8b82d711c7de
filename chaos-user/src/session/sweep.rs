//! Ending other owners' faults: asking those that live, and clearing away what the dead have left.

use std::{
    fs::File,
    io, thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::signal::Signal};

use super::{
    JournalError, Record,
    folder::{Byte, Folder, error, path_of},
    process::Handle,
    record::{Kept, Records},
    undo, verify,
    verify::Dirty,
};
use crate::{
    host,
    kernel::change::{Change, LONGEST},
};

/// How long an owner that was asked to end may take before it is killed; killing it ends the fault as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much longer another may take to clear a record away.
const BEYOND: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1);

/// How long the kernel may take to end a killed process.
const KILL: Duration = Duration::from_secs(5);

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Ids of the dead owners' records that were cleared away; whoever else cleared one away has told of it.
    pub removed: Vec<String>,
    /// What could not be.
    pub left: Vec<Left>,
}

/// What an owner has left, and that could not be cleared away.
#[derive(Debug)]
pub struct Left {
    /// The id of its record, which stays.
    pub id: String,
    /// Why.
    pub error: SweepError,
    /// Whether it does nothing more wherever it is.
    pub is_inert: bool,
    /// Whether its owner lives.
    pub alive: bool,
}

/// A fault that could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something is left.
    #[error(transparent)]
    Dirty(#[from] Dirty),
    /// A record that is left as it is.
    #[error(transparent)]
    Kept(#[from] Kept),
    /// The owner.
    #[error("fault {id}: {call} on its owner, process {pid}: {source}")]
    Owner {
        /// The fault.
        id: String,
        /// Its owner.
        pid: i32,
        /// What was tried.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is there, but not to be found.
    #[error(
        "fault {id}: its owner lives and is not seen here (it is process {pid} in pid namespace {namespace}): \
         run `faultline stop {id}` on the host, or in its pid namespace"
    )]
    Elsewhere {
        /// The fault.
        id: String,
        /// Its owner's number where that is.
        pid: i32,
        /// Where that is, by inode number.
        namespace: u64,
    },
    /// It would not end.
    #[error(
        "fault {id}: its owner, process {pid}, does not end even when killed; `kill -9 {pid}` again later"
    )]
    Stuck {
        /// The fault.
        id: String,
        /// Its owner.
        pid: i32,
    },
}

/// Clears away what dead owners have left: all of it that can be, whatever becomes of one.
///
/// # Errors
///
/// If the journal cannot be read.
pub fn sweep() -> Result<Swept, SweepError> {
    let mut swept = Swept::default();
    let Some(folder) = Folder::open()? else { return Ok(swept) };
    folder.close_to_others()?;
    let Records { understood, kept } = Record::all_in(&folder)?;
    // All of them together.
    let end = Instant::now() + LONGEST;
    for kept in kept {
        let (id, alive) = (kept.id.clone(), kept.alive);
        swept.left.push(Left { id, error: kept.into(), is_inert: false, alive });
    }
    for record in understood.into_iter().filter(|record| !record.alive) {
        match clear(&folder, &record, end) {
            Ok(true) => swept.removed.push(record.id),
            Ok(false) => {}
            Err(error) => {
                let is_inert = record.changes().iter().all(Change::is_inert_alone);
                swept.left.push(Left { id: record.id, error: error.into(), is_inert, alive: false });
            }
        }
    }
    Ok(swept)
}

/// Undoes what does not go with its owner, which is dead, looks whether anything is left, and forgets the record. False if
/// somebody else has.
fn clear(folder: &Folder, record: &Record, end: Instant) -> Result<bool, Dirty> {
    // What was changed before the machine started again has gone with that, and what there is now is others'.
    let before = record.begun().boot_id.as_ref();
    if let (Ok(Some(now)), Some(before)) = (host::boot_id(), before)
        && now != *before
    {
        return folder.remove(&record.id).map_err(Dirty::journal);
    }
    // One at a time, or whoever comes second finds processes that another holds.
    let Some(_turn) = turn(folder, &record.id, end).map_err(Dirty::journal)? else { return Ok(false) };
    let changes = record.changes();
    undo::take_back(folder, &record.id, record.begun(), &changes, record.is_undone(), end)?;
    let hooks = record.prepared().map_or(&[][..], |(hooks, _)| hooks);
    verify::gone(hooks, &changes)?;
    folder.remove(&record.id).map_err(Dirty::journal)
}

/// Keeps all others from clearing this record away until it is dropped; nothing if one of them has done so.
fn turn(folder: &Folder, id: &str, end: Instant) -> Result<Option<File>, JournalError> {
    let deadline = end + BEYOND;
    loop {
        let Some(file) = folder.open_to_lock(id)? else { return Ok(None) };
        let locked = Byte::Sweep.take(&file);
        if locked.map_err(|errno| error("lock", &path_of(id))(errno.into()))? {
            // Whoever had it may have removed it since it was opened.
            return Ok(folder.open_to_lock(id)?.map(|_| file));
        }
        if Instant::now() >= deadline {
            return Err(error("lock", &path_of(id))(io::Error::from(Errno::EWOULDBLOCK)));
        }
        thread::sleep(PAUSE);
    }
}

/// Asks the owner to end its fault and waits until nothing of it is left. An owner that does not answer is
/// killed, which ends the fault as surely. If what it did becomes right by and by, that is told, and waited for.
///
/// # Errors
///
/// [`SweepError`].
pub fn stop(record: &Record, on_settling: impl FnOnce(Duration)) -> Result<(), SweepError> {
    let Some(folder) = Folder::open()? else { return Ok(()) };
    if record.alive {
        end(&folder, record, on_settling)?;
    }
    // What it has written since it was read.
    if let Some(record) = Record::read(&folder, &record.id)? {
        clear(&folder, &record, Instant::now() + LONGEST)?;
    }
    Ok(())
}

/// Has the owner end, one way or the other.
fn end(folder: &Folder, record: &Record, on_settling: impl FnOnce(Duration)) -> Result<(), SweepError> {
    let id = &record.id;
    let Some(file) = folder.open_record(id)? else { return Ok(()) };
    // Its number there, until it is known here.
    let there = record.begun().owner.pid.cast_signed();
    let failed = |call, pid| move |source| SweepError::Owner { id: id.clone(), pid, call, source };
    let Some(handle) = Handle::of_holder(&file).map_err(failed("look for the lock", there))? else {
        return match record.again()? {
            Some(now) if now.alive => Err(SweepError::Elsewhere {
                id: id.clone(),
                pid: there,
                namespace: now.begun().namespaces.pid,
            }),
            _ => Ok(()),
        };
    };
    let pid = handle.pid;
    let signal = |signal| handle.signal(signal).map_err(failed("pidfd_send_signal", pid));
    let wait = |longest| handle.wait(longest).map_err(failed("poll", pid));
    signal(Signal::SIGTERM)?;
    // One that was stopped does not hear it before it goes on.
    signal(Signal::SIGCONT)?;
    let mut is_over = wait(PATIENCE)?;
    if !is_over && let Some(settling) = record.again()?.and_then(|record| record.settling()) {
        // It does what it was asked to; whoever asks it again has it end at once.
        on_settling(settling);
        is_over = wait(settling * 2)?;
    }
    if !is_over {
        signal(Signal::SIGKILL)?;
        if !wait(KILL)? {
            return Err(SweepError::Stuck { id: id.clone(), pid });
        }
    }
    Ok(())
}
