//! What the maps of all objects have in common: how they are written, and what is read from them.

use std::{io, os::fd::AsFd};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
};
use chaos_ebpf::abi::{Control, HookState, RuleState, map};

use super::{
    Error, Result,
    counters::{Counters, MapIds},
    sys,
};

/// A map as what it is.
///
/// # Errors
///
/// If there is no such map.
pub(super) fn typed<'a, M>(maps: &'a mut Ebpf, name: &'static str) -> Result<M>
where
    M: TryFrom<&'a mut Map>,
{
    maps.map_mut(name).and_then(|map| map.try_into().ok()).ok_or_else(|| missing(name))
}

/// Writes the first entries of an array.
///
/// # Errors
///
/// The kernel's.
pub(super) fn set_all<V: Pod>(maps: &mut Ebpf, name: &'static str, values: &[V]) -> Result<()> {
    let mut array: Array<_, V> = typed(maps, name)?;
    let mut entries = (0..).zip(values);
    entries
        .try_for_each(|(index, value)| array.set(index, value, 0))
        .map_err(|error| Error::aya("write", name, &error))
}

/// Writes an entry of an array that has one for each CPU: the first CPU's, and nothing for all others.
///
/// # Errors
///
/// The kernel's.
pub(super) fn set_first_cpu<V: Pod + Default>(
    maps: &mut Ebpf,
    name: &'static str,
    index: u32,
    value: V,
) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(file, source)| Error::new("read", file, source))?;
    let mut values = vec![V::default(); cpus];
    if let Some(first) = values.first_mut() {
        *first = value;
    }
    let mut array: PerCpuArray<_, V> = typed(maps, name)?;
    let values = PerCpuValues::try_from(values).map_err(|source| Error::new("write", name, source))?;
    array.set(index, values, 0).map_err(|error| Error::aya("write", name, &error))
}

/// Writes entries of a hash table.
///
/// # Errors
///
/// The kernel's.
pub(super) fn insert_all<K: Pod, V: Pod>(
    maps: &mut Ebpf,
    name: &'static str,
    entries: impl IntoIterator<Item = (K, V)>,
) -> Result<()> {
    let mut table: HashMap<_, K, V> = typed(maps, name)?;
    let mut entries = entries.into_iter();
    entries
        .try_for_each(|(key, value)| table.insert(key, value, 0))
        .map_err(|error| Error::aya("write", name, &error))
}

/// Arms, renews or disarms: one write.
///
/// # Errors
///
/// The kernel's.
pub(super) fn set_control(maps: &mut Ebpf, control: Control) -> Result<()> {
    set_all(maps, map::CONTROL, &[control])
}

/// The numbers of the maps by which other processes follow the run.
///
/// # Errors
///
/// The kernel's.
pub(super) fn ids(maps: &Ebpf) -> Result<MapIds> {
    let id = |name| match maps.map(name) {
        Some(Map::Array(data) | Map::PerCpuArray(data)) => Ok(sys::map_info(data.fd().as_fd())?.0),
        _ => Err(missing(name)),
    };
    Ok(MapIds { control: id(map::CONTROL)?, state: id(map::STATE)?, hooks: id(map::HOOKS)? })
}

/// The counts of so many rules, over all CPUs.
///
/// # Errors
///
/// The kernel's.
pub(super) fn counters(maps: &Ebpf, rules: u32) -> Result<Counters> {
    fn per_cpu<'a, V: Pod>(maps: &'a Ebpf, name: &'static str) -> Result<PerCpuArray<&'a MapData, V>> {
        maps.map(name).and_then(|map| map.try_into().ok()).ok_or_else(|| missing(name))
    }
    let state: PerCpuArray<_, RuleState> = per_cpu(maps, map::STATE)?;
    let hooks: PerCpuArray<_, HookState> = per_cpu(maps, map::HOOKS)?;
    Counters::read(&state, &hooks, rules)
}

pub(super) fn missing(name: &'static str) -> Error {
    Error::new("look-up", name, io::ErrorKind::NotFound.into())
}
