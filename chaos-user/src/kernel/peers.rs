//! The peers of a profile in the kernel: filled when a run begins, and changed by anyone while it lasts.

use std::{
    collections::HashSet,
    hash::Hash,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData},
};
use chaos_ebpf::{
    abi::{DIRECTIONS, Direction, map},
    figures::{Change, Figures, Peer, whose},
};
use serde::{Deserialize, Serialize};

use super::{Error, Result, sys};
use crate::fault::Peers;

/// The maps of one direction, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Maps {
    v4: u32,
    v6: u32,
}

/// By what another process finds the profile of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileIds {
    maps: [Option<Maps>; DIRECTIONS],
    /// The program that changes figures.
    program: u32,
}

/// What became of the peers of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Peers that have new figures, or the same again.
    pub changed: usize,
    /// Peers that had none.
    pub added: usize,
    /// Peers that have none any more.
    pub removed: usize,
}

/// Writes the peers of a run that is being prepared.
///
/// # Errors
///
/// The kernel's.
pub(super) fn fill(ebpf: &mut Ebpf, direction: Direction, peers: &Peers) -> Result<()> {
    let way = direction as usize;
    add(hash(ebpf, map::PEERS4[way])?, map::PEERS4[way], &peers.v4)?;
    add(hash(ebpf, map::PEERS6[way])?, map::PEERS6[way], &peers.v6)?;
    let others = ebpf.map_mut(map::OTHERS).and_then(|map| map.try_into().ok());
    let mut others: aya::maps::Array<_, Peer> = others.ok_or_else(|| missing(map::OTHERS))?;
    others.set(way as u32, peers.others, 0).map_err(|error| Error::aya("write", map::OTHERS, &error))
}

/// The numbers of what [`fill`] has filled in these directions.
///
/// # Errors
///
/// The kernel's.
pub(super) fn ids(
    ebpf: &Ebpf,
    program: BorrowedFd<'_>,
    directions: [bool; DIRECTIONS],
) -> Result<ProfileIds> {
    let mut ids = ProfileIds { maps: [None; DIRECTIONS], program: sys::program_info(program)?.id };
    for (way, _) in directions.iter().enumerate().filter(|(_, used)| **used) {
        let [v4, v6] = [hash(ebpf, map::PEERS4[way])?, hash(ebpf, map::PEERS6[way])?];
        ids.maps[way] = Some(Maps { v4: sys::map_info(v4)?.0, v6: sys::map_info(v6)?.0 });
    }
    Ok(ids)
}

fn hash<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>> {
    match ebpf.map(name) {
        Some(Map::HashMap(data)) => Ok(data.fd().as_fd()),
        _ => Err(missing(name)),
    }
}

fn missing(name: &'static str) -> Error {
    Error::new("look-up", name, io::ErrorKind::NotFound.into())
}

/// Adds entries, all at once.
fn add<K: Pod>(map: BorrowedFd<'_>, name: &'static str, peers: &[(K, Peer)]) -> Result<()> {
    let (keys, values): (Vec<K>, Vec<Peer>) = peers.iter().copied().unzip();
    sys::update_batch(map, name, &keys, &values)
}

impl ProfileIds {
    /// Whether packets going this way are hit.
    #[must_use]
    pub fn acts(&self, direction: Direction) -> bool {
        self.maps[direction as usize].is_some()
    }

    /// Gives the peers of a direction new figures. At each moment each peer has those it had or those it gets: those
    /// that stay are changed in place, new ones come before the figures of all others change, and those that are gone
    /// go last.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` if the run has ended.
    pub fn apply(&self, direction: Direction, peers: &Peers) -> Result<Applied> {
        let mut applied = Applied::default();
        let Some(Maps { v4, v6 }) = self.maps[direction as usize] else { return Ok(applied) };
        let way = direction as usize;
        let gone =
            || Error::new("open", "the profile of the run", io::Error::from_raw_os_error(libc::ENOENT));
        let program = sys::open(sys::Kind::Program, self.program)?.ok_or_else(gone)?;
        let change = |whose, address: [u32; 4], figures: Figures| {
            let change = Change { whose, address, figures, direction: direction as u32, ..Change::default() };
            sys::test_run(program.as_fd(), sys::bytes_of(&change), 1).map(|run| run.verdict != 0)
        };
        let v4 = Family::open(v4, map::PEERS4[way])?;
        let v6 = Family::open(v6, map::PEERS6[way])?;
        v4.put(&peers.v4, |key, figures| change(whose::V4, [key, 0, 0, 0], figures), &mut applied)?;
        v6.put(&peers.v6, |key, figures| change(whose::V6, key, figures), &mut applied)?;
        change(whose::OTHERS, [0; 4], peers.others.figures)?;
        v4.remove_others(&peers.v4, &mut applied)?;
        v6.remove_others(&peers.v6, &mut applied)?;
        Ok(applied)
    }
}

/// The map of one family, and whose entries were in it.
struct Family<K: Pod> {
    name: &'static str,
    fd: OwnedFd,
    map: HashMap<MapData, K, Peer>,
    there: HashSet<K>,
}

impl<K: Pod + Eq + Hash> Family<K> {
    fn open(id: u32, name: &'static str) -> Result<Self> {
        let gone = || Error::new("open", name, io::Error::from_raw_os_error(libc::ENOENT));
        let fd = sys::open(sys::Kind::Map, id)?.ok_or_else(gone)?;
        let data = MapData::from_id(id).map_err(|error| Error::aya("open", name, &error))?;
        let map: HashMap<MapData, K, Peer> =
            Map::HashMap(data).try_into().map_err(|error| Error::aya("open", name, &error))?;
        let there = map.keys().collect::<std::result::Result<_, _>>();
        let there = there.map_err(|error| Error::aya("list", name, &error))?;
        Ok(Self { name, fd, map, there })
    }

    /// Changes those that are there, and adds the others.
    fn put(
        &self,
        peers: &[(K, Peer)],
        change: impl Fn(K, Figures) -> Result<bool>,
        applied: &mut Applied,
    ) -> Result<()> {
        let (mut new, mut changed) = (Vec::new(), 0);
        for (key, peer) in peers {
            if self.there.contains(key) && change(*key, peer.figures)? {
                changed += 1;
            } else {
                new.push((*key, *peer));
            }
        }
        add(self.fd.as_fd(), self.name, &new)?;
        applied.changed += changed;
        applied.added += new.len();
        Ok(())
    }

    /// Removes those that were there and are not among these.
    fn remove_others(mut self, peers: &[(K, Peer)], applied: &mut Applied) -> Result<()> {
        let stay: HashSet<K> = peers.iter().map(|(key, _)| *key).collect();
        for key in self.there.difference(&stay) {
            self.map.remove(key).map_err(|error| Error::aya("delete", self.name, &error))?;
            applied.removed += 1;
        }
        Ok(())
    }
}
