//! Taking changes back, and who may: a change that several owners share goes with the last of them.

use std::{
    fs::File,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    Record,
    journal::{DIRECTORY, Result, error},
    verify::Dirty,
};
use crate::{
    kernel::{self, change::Change},
    target,
};

/// How long another owner may take over its changes; they take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Keeps all other owners from changing anything until it is dropped, or its holder dies.
///
/// # Errors
///
/// If another owner does not let go of it in time.
pub(super) fn hold() -> Result<Flock<File>> {
    let directory = Path::new(DIRECTORY);
    let mut file = File::open(directory).map_err(error("open", directory))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((again, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = again,
            Err((_, errno)) => return Err(error("lock", directory)(io::Error::from(errno))),
        }
        thread::sleep(PAUSE);
    }
}

/// What other owners than `id` have written down of this network namespace.
pub(super) fn of_others(id: &str, netns: u64) -> Result<Vec<Change>> {
    let others = Record::all()?.into_iter().filter(|record| record.id != id);
    let here = others.filter(|record| record.begun().is_some_and(|begun| begun.netns == netns));
    Ok(here.flat_map(|record| record.changes()).collect())
}

/// Takes back what the owner `id` has changed in a network namespace, the last first, and leaves what others share.
/// What is returned must be kept until the record is gone: two owners that end at once would each leave to the other
/// what they share.
///
/// # Errors
///
/// [`Dirty`] if something could not be taken back.
pub(super) fn take_back(
    id: &str,
    netns: u64,
    changes: &[Change],
) -> std::result::Result<Option<Flock<File>>, Dirty> {
    if changes.is_empty() {
        return Ok(None);
    }
    let held = hold().map_err(Dirty::journal)?;
    let shared = of_others(id, netns).map_err(Dirty::journal)?;
    let ours = changes.iter().rev().filter(|change| !(change.is_shared() && shared.contains(change)));
    let (there, here): (Vec<_>, Vec<_>) = ours.partition(|change| change.is_in_netns());
    let undone = undo(&here);
    if !there.is_empty() {
        // A namespace that is gone has taken its interfaces with all that was on them.
        let done = target::within_netns(netns, || undo(&there)).map_err(|error| Dirty::namespace(&error))?;
        done.unwrap_or(Ok(())).map_err(Dirty::unknown)?;
    }
    undone.map_err(Dirty::unknown)?;
    Ok(Some(held))
}

/// All of them, whatever becomes of one.
fn undo(changes: &[&Change]) -> kernel::Result<()> {
    let undone: Vec<_> = changes.iter().map(|change| change.undo()).collect();
    undone.into_iter().collect()
}
