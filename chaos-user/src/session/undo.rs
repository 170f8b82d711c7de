//! Taking changes back, and who may: a change that several owners share goes with the last of them.

use std::{
    fs::File,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;

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
    target::{self, NetnsId, Sought},
};

/// How long another owner may take over its changes; they take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Keeps all other owners from changing anything until it is dropped, or its holder dies.
///
/// # Errors
///
/// If another owner does not let go of it in time.
pub(super) fn hold(folder: &Folder) -> Result<File> {
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

/// What other owners than `id` have written down of this network namespace and not taken back. Beside a record that is not
/// understood nothing begins, so whose it is shares nothing.
pub(super) fn of_others(folder: &Folder, id: &str, netns: NetnsId) -> Result<Vec<Change>> {
    let others = Record::all_in(folder)?.understood.into_iter().filter(|record| record.id != id);
    let here = others.filter(|record| record.begun().netns == netns && !record.is_undone());
    Ok(here.flat_map(|record| record.changes()).collect())
}

/// Takes back what the owner `id` has changed, the last first, and leaves what others share. Only for that is everybody kept from
/// changing anything: what is of processes or of a cgroup is nobody else's, and processes may take until `end`. That the rest is taken
/// back is written down before others go on: two owners that end at once would each leave to the other what they share.
///
/// # Errors
///
/// [`Dirty`] if something could not be taken back, or is not seen from here.
pub(super) fn take_back(
    folder: &Folder,
    id: &str,
    begun: &Begun,
    changes: &[Change],
    is_undone: bool,
    end: Instant,
) -> std::result::Result<(), Dirty> {
    let (mut there, here): (Vec<_>, Vec<_>) = changes.iter().rev().partition(|change| change.is_in_netns());
    if is_undone {
        // That is so since, and may have been changed by others.
        there.clear();
    }
    // All of them, whatever becomes of one.
    let undone: Vec<_> = here.iter().map(|change| change.undo(end)).collect();
    let networks = if there.is_empty() { Ok(()) } else { take_back_networks(folder, id, begun, &there, end) };
    undone.into_iter().collect::<kernel::Result<Vec<_>>>().map_err(Dirty::unknown)?;
    networks?;
    if let Some(change) = here.iter().find(|change| matches!(change, Change::Vdso(_)))
        && !Namespaces::own().map_err(Dirty::unknown)?.sees_processes_of(&begun.namespaces)
    {
        let what = "the processes of its target, if there are any left, are not seen from this pid namespace";
        return Err(Dirty::unseen(what, change));
    }
    Ok(())
}

fn take_back_networks(
    folder: &Folder,
    id: &str,
    begun: &Begun,
    changes: &[&Change],
    end: Instant,
) -> std::result::Result<(), Dirty> {
    let _held = hold(folder).map_err(Dirty::journal)?;
    let shared = of_others(folder, id, begun.netns).map_err(Dirty::journal)?;
    let ours = changes.iter().copied().filter(|change| !(change.is_shared() && shared.contains(change)));
    in_networks(begun, &ours.collect::<Vec<_>>(), end)?;
    match Record::set_undone(folder, id) {
        // There is nobody who would leave to this one what they share.
        Err(_) if shared.is_empty() => Ok(()),
        noted => noted.map_err(Dirty::journal),
    }
}

/// Takes changes of interfaces back where these were, or have been moved to; all of them, whatever becomes of one.
fn in_networks(begun: &Begun, changes: &[&Change], end: Instant) -> std::result::Result<(), Dirty> {
    let undo = || changes.iter().map(|change| change.undo(end)).collect::<Vec<_>>();
    let there = target::within_netns(begun.netns, undo).map_err(Dirty::unknown)?;
    let (done, hidden) = match there {
        Sought::Found(done) => (done, None),
        Sought::Nowhere => (changes.iter().map(|_| Ok(Undone::NotHere)).collect(), None),
        Sought::Hidden(what) => (changes.iter().map(|_| Ok(Undone::NotHere)).collect(), Some(what)),
    };
    let each = changes.iter().zip(done).map(|(change, done)| match done.map_err(Dirty::unknown)? {
        Undone::Here => Ok(()),
        Undone::NotHere => follow(begun, change, hidden.as_deref()),
    });
    let each: Vec<_> = each.collect();
    each.into_iter().collect()
}

/// Looks for what was changed where it may have been moved to, and takes it back there. `hidden` is what could not be looked at
/// on the way to where it was.
fn follow(begun: &Begun, change: &Change, hidden: Option<&str>) -> std::result::Result<(), Dirty> {
    // A network namespace that is gone has taken its interfaces with all that was on them, but for those of hardware.
    let moved = match change.moves_with() {
        Some(interface) if interface.has_address() => elsewhere(begun.netns, change)?,
        Some(_) => {
            Sought::Hidden("it has no link-layer address to be known by, should it have been moved".into())
        }
        None => Sought::Nowhere,
    };
    let unseen = match moved {
        Sought::Found(()) => return Ok(()),
        Sought::Hidden(what) => what,
        Sought::Nowhere if is_known_by_number(begun.netns, change)? => return Ok(()),
        Sought::Nowhere => match hidden {
            Some(what) => what.to_owned(),
            None if Namespaces::own().map_err(Dirty::unknown)?.sees_networks_of(&begun.namespaces) => {
                return Ok(());
            }
            None => "its network namespace is not seen from here".into(),
        },
    };
    Err(Dirty::unseen(&unseen, change))
}

fn is_known_by_number(netns: NetnsId, change: &Change) -> std::result::Result<bool, Dirty> {
    match target::within_netns(netns, || change.undo_by_number()).map_err(Dirty::unknown)? {
        Sought::Found(done) => Ok(done.map_err(Dirty::unknown)? == Undone::Here),
        Sought::Nowhere | Sought::Hidden(_) => Ok(false),
    }
}

fn elsewhere(but: NetnsId, change: &Change) -> std::result::Result<Sought<()>, Dirty> {
    let undo = || match change.undo_moved() {
        Ok(Undone::Here) => Some(Ok(())),
        Ok(Undone::NotHere) => None,
        Err(error) => Some(Err(error)),
    };
    let found = target::in_other_netns(but, undo).map_err(Dirty::unknown)?;
    found.transpose().map_err(Dirty::unknown)
}
