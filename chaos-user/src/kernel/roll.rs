//! The table of those who belong to processes, by number, with the rules that want each. The programs keep it: whoever is begun by
//! one who is in there is added, and whoever ends is removed.

use std::{collections::BTreeSet, os::fd::AsFd};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use chaos_ebpf::abi::map::PROCESSES;

use super::{Error, Result, maps};

/// The table, for whichever thread wants it.
#[derive(Debug)]
pub struct Roll(HashMap<MapData, u32, u64>);

impl Roll {
    /// That of an object's programs.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn of(programs: &Ebpf) -> Result<Self> {
        let Some(Map::HashMap(map)) = programs.map(PROCESSES) else {
            return Err(maps::missing(PROCESSES));
        };
        let own = map.fd().as_fd().try_clone_to_owned();
        let own = own.map_err(|source| Error::new("dup", PROCESSES, source))?;
        let map = MapData::from_fd(own).and_then(Map::from_map_data).and_then(HashMap::try_from);
        map.map(Self).map_err(|error| Error::aya("open", PROCESSES, &error))
    }

    /// All who are in there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn numbers(&self) -> Result<BTreeSet<u32>> {
        // Where one goes meanwhile the kernel begins again.
        let all: std::result::Result<_, _> = self.0.keys().collect();
        all.map_err(|error| Error::aya("read", PROCESSES, &error))
    }

    /// The rules that want a process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn rules(&self, process: u32) -> Result<u64> {
        match self.0.get(&process, 0) {
            Err(MapError::KeyNotFound) => Ok(0),
            rules => rules.map_err(|error| Error::aya("read", PROCESSES, &error)),
        }
    }

    /// Has these rules want a process, with all it begins from now on.
    ///
    /// # Errors
    ///
    /// The kernel's; `E2BIG` if they are too many.
    pub fn set(&mut self, process: u32, rules: u64) -> Result<()> {
        self.0.insert(process, rules, 0).map_err(|error| Error::aya("write", PROCESSES, &error))
    }

    /// Has none want it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn remove(&mut self, process: u32) -> Result<()> {
        match self.0.remove(&process) {
            Err(MapError::KeyNotFound) => Ok(()),
            removed => removed.map_err(|error| Error::aya("delete", PROCESSES, &error)),
        }
    }
}
