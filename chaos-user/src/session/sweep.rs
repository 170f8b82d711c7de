//! Ending other owners' faults: asking those that live, and clearing away what the dead have left.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Begun, JournalError, Record, undo, verify, verify::Dirty};
use crate::kernel::change::Change;

/// How long an owner that was asked to end may take before it is killed; killing it ends the fault as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the kernel may take to end a killed process.
const KILL: Duration = Duration::from_secs(5);

/// How long an owner may take over the first line of its record.
const WRITING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(1);

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Ids of the dead owners' records that were cleared away.
    pub removed: Vec<String>,
    /// What could not be.
    pub left: Vec<Left>,
}

/// What a dead owner has left, and that could not be cleared away.
#[derive(Debug)]
pub struct Left {
    /// The id of its record, which stays.
    pub id: String,
    /// Why.
    pub error: SweepError,
    /// Whether it does nothing more wherever it is.
    pub is_inert: bool,
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
        "fault {id}: its owner lives, but is not process {pid} here: run `faultline stop {id}` in its pid namespace"
    )]
    Elsewhere {
        /// The fault.
        id: String,
        /// Its owner's number where that is.
        pid: i32,
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
    for record in Record::all()?.into_iter().filter(|record| !record.alive) {
        match clear(&record) {
            Ok(()) => swept.removed.push(record.id),
            Err(error) => {
                let is_inert = record.changes().iter().all(Change::is_inert_alone);
                swept.left.push(Left { id: record.id, error, is_inert });
            }
        }
    }
    Ok(swept)
}

/// Undoes what does not go with its owner, looks whether anything is left, and forgets the record.
fn clear(record: &Record) -> Result<(), SweepError> {
    let changes = record.changes();
    let take_back = |begun: &Begun| undo::take_back(&record.id, begun.netns, &changes);
    let _held = record.begun().map(take_back).transpose()?;
    let hooks = record.prepared().map_or(&[][..], |(hooks, _)| hooks);
    verify::gone(hooks, &changes)?;
    record.remove()?;
    Ok(())
}

/// Asks the owner to end its fault and waits until nothing of it is left. An owner that does not answer is
/// killed, which ends the fault as surely. If what it did becomes right by and by, that is told, and waited for.
///
/// # Errors
///
/// [`SweepError`].
pub fn stop(record: &Record, on_settling: impl FnOnce(Duration)) -> Result<(), SweepError> {
    let Some(record) = written(record)? else { return Ok(()) };
    let Some(begun) = record.begun() else { return clear(&record) };
    let pid = begun.owner.pid;
    let owner = |call| {
        let id = record.id.clone();
        move |source| SweepError::Owner { id, pid, call, source }
    };
    if let Some(handle) = begun.owner.open().map_err(owner("pidfd_open"))? {
        let signal = |signal| handle.signal(signal).map_err(owner("pidfd_send_signal"));
        signal(Signal::SIGTERM)?;
        // One that was stopped does not hear it before it goes on.
        signal(Signal::SIGCONT)?;
        let mut is_over = handle.wait(PATIENCE).map_err(owner("poll"))?;
        if !is_over && let Some(settling) = record.again()?.and_then(|record| record.settling()) {
            // It does what it was asked to; whoever asks it again has it end at once.
            on_settling(settling);
            is_over = handle.wait(settling * 2).map_err(owner("poll"))?;
        }
        if !is_over {
            signal(Signal::SIGKILL)?;
            if !handle.wait(KILL).map_err(owner("poll"))? {
                return Err(SweepError::Stuck { id: record.id.clone(), pid });
            }
        }
    } else if record.again()?.is_some_and(|record| record.alive) {
        return Err(SweepError::Elsewhere { id: record.id.clone(), pid });
    }
    clear(&record)
}

/// The record once its owner has written whose it is, which it does right after making it.
fn written(record: &Record) -> Result<Option<Record>, JournalError> {
    let deadline = Instant::now() + WRITING;
    loop {
        let now = record.again()?;
        let begins = now.as_ref().is_some_and(|record| record.alive && record.begun().is_none());
        if !begins || Instant::now() >= deadline {
            return Ok(now);
        }
        thread::sleep(PAUSE);
    }
}
