//! Taking changes back, and who may: a change that several owners share goes with the last of them.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, fcntl::Flock};

use super::{
    Record,
    folder::{DIRECTORY, Folder, Result, error},
    journal::Begun,
    namespaces::Namespaces,
    verify::Dirty,
};
use crate::{
    kernel::{
        self,
        change::{Change, Undone},
    },
    target::{self, Sought},
};

/// How long another owner may take over its changes; they take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Keeps all other owners from changing anything until it is dropped, or its holder dies.
///
/// # Errors
///
/// If another owner does not let go of it in time.
pub(super) fn hold(folder: &Folder) -> Result<Flock<OwnedFd>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(held) = folder.try_lock()? {
            return Ok(held);
        }
        if Instant::now() >= deadline {
            return Err(error("lock", Path::new(DIRECTORY))(io::Error::from(Errno::EWOULDBLOCK)));
        }
        thread::sleep(PAUSE);
    }
}

/// What other owners than `id` have written down of this network namespace. Beside a record that is not understood nothing
/// begins, so whose it is shares nothing.
pub(super) fn of_others(folder: &Folder, id: &str, netns: u64) -> Result<Vec<Change>> {
    let others = Record::all_in(folder)?.understood.into_iter().filter(|record| record.id != id);
    let here = others.filter(|record| record.begun().netns == netns);
    Ok(here.flat_map(|record| record.changes()).collect())
}

/// Takes back what the owner `id` has changed, the last first, and leaves what others share.
/// What is returned must be kept until the record is gone: two owners that end at once would each leave to the other
/// what they share.
///
/// # Errors
///
/// [`Dirty`] if something could not be taken back, or is not seen from here.
pub(super) fn take_back(
    id: &str,
    begun: &Begun,
    changes: &[Change],
) -> std::result::Result<Option<Flock<OwnedFd>>, Dirty> {
    if changes.is_empty() {
        return Ok(None);
    }
    let folder = Folder::make().map_err(Dirty::journal)?;
    let held = hold(&folder).map_err(Dirty::journal)?;
    let shared = of_others(&folder, id, begun.netns).map_err(Dirty::journal)?;
    let ours = changes.iter().rev().filter(|change| !(change.is_shared() && shared.contains(change)));
    let (there, here): (Vec<_>, Vec<_>) = ours.partition(|change| change.is_in_netns());
    // All of them, whatever becomes of one.
    let undone: Vec<_> = here.iter().map(|change| change.undo()).collect();
    let networks = if there.is_empty() { Ok(()) } else { in_networks(begun, &there) };
    undone.into_iter().collect::<kernel::Result<Vec<_>>>().map_err(Dirty::unknown)?;
    networks?;
    if let Some(change) = here.iter().find(|change| matches!(change, Change::Vdso(_)))
        && !Namespaces::own().map_err(Dirty::unknown)?.sees_processes_of(&begun.namespaces)
    {
        let what = "the processes of its target, if there are any left, are not seen from this pid namespace";
        return Err(Dirty::unseen(what, change));
    }
    Ok(Some(held))
}

/// Takes changes of interfaces back where these were, or have been moved to.
fn in_networks(begun: &Begun, changes: &[&Change]) -> std::result::Result<(), Dirty> {
    let undo = || changes.iter().map(|change| (*change, change.undo())).collect::<Vec<_>>();
    let all = || changes.iter().map(|change| (*change, Ok(Undone::NotHere))).collect::<Vec<_>>();
    let mut hidden = None;
    let done = match target::within_netns(begun.netns, undo).map_err(|error| Dirty::namespace(&error))? {
        Sought::Found(done) => done,
        Sought::Nowhere => all(),
        Sought::Hidden(what) => {
            hidden = Some(what);
            all()
        }
    };
    let mut first_error = None;
    for (change, done) in done {
        match done {
            Ok(Undone::Here) => continue,
            Err(error) => {
                first_error.get_or_insert(Dirty::unknown(error));
                continue;
            }
            Ok(Undone::NotHere) => {}
        }
        // A network namespace that is gone has taken its interfaces with all that was on them, but for those of hardware.
        let moved = match change.can_move() {
            true if change.is_known_elsewhere() => elsewhere(begun.netns, change)?,
            true => Sought::Hidden(
                "it has no link-layer address to be known by, should it have been moved".into(),
            ),
            false => Sought::Nowhere,
        };
        let unseen = match moved {
            Sought::Found(()) => continue,
            Sought::Hidden(what) => Some(what),
            Sought::Nowhere if is_renamed(begun.netns, change)? => continue,
            Sought::Nowhere => hidden.clone(),
        };
        let unseen = unseen.or_else(|| {
            let sees = Namespaces::own().is_ok_and(|own| own.sees_networks_of(&begun.namespaces));
            (!sees).then(|| "its network namespace is not seen from here".into())
        });
        if let Some(what) = unseen {
            first_error.get_or_insert(Dirty::unseen(&what, change));
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn is_renamed(netns: u64, change: &Change) -> std::result::Result<bool, Dirty> {
    match target::within_netns(netns, || change.undo_by_name()).map_err(|error| Dirty::namespace(&error))? {
        Sought::Found(done) => Ok(done.map_err(Dirty::unknown)? == Undone::Here),
        Sought::Nowhere | Sought::Hidden(_) => Ok(false),
    }
}

fn elsewhere(but: u64, change: &Change) -> std::result::Result<Sought<()>, Dirty> {
    let undo = || match change.undo_moved() {
        Ok(Undone::Here) => Some(Ok(())),
        Ok(Undone::NotHere) => None,
        Err(error) => Some(Err(error)),
    };
    Ok(match target::in_other_netns(but, undo).map_err(|error| Dirty::namespace(&error))? {
        Sought::Found(done) => Sought::Found(done.map_err(Dirty::unknown)?),
        Sought::Nowhere => Sought::Nowhere,
        Sought::Hidden(what) => Sought::Hidden(what),
    })
}
