//! What the programs have counted, over all CPUs; read by the owner and by anyone who asks after it.

use std::{borrow::Borrow, io};

use aya::{
    Pod,
    maps::{Array, Map, MapData, PerCpuArray},
};
use chaos_ebpf::abi::{Control, Count, HOOKS, HookState, RuleState, map};

use super::{Error, Result};

/// One rule's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Packets that met its conditions.
    pub matched: Count,
    /// Packets it acted on.
    pub fired: Count,
    /// Packets among these that hosts and switches send of their own accord.
    pub background: u64,
    /// What it did to these.
    pub effects: Effects,
}

/// What a rule did, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Effects {
    /// Lost by chance.
    pub lost: u64,
    /// Lost because too much waited for the wire.
    pub overlimit: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Corrupted.
    pub corrupted: u64,
    /// Let past others.
    pub reordered: u64,
    /// Made to wait.
    pub delayed: u64,
}

impl Effects {
    fn add(&mut self, state: &RuleState) {
        self.lost += state.lost;
        self.overlimit += state.overlimit;
        self.duplicated += state.duplicated;
        self.corrupted += state.corrupted;
        self.reordered += state.reordered;
        self.delayed += state.delayed;
    }
}

/// All counts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By rule number.
    pub rules: Vec<RuleCount>,
    /// Packets seen while armed, by [`Direction`](chaos_ebpf::abi::Direction).
    pub seen: [Count; HOOKS],
    /// Packets among them whose headers could not be made out.
    pub unparsed: u64,
    /// Packets that rules would have hit, and that are protected.
    pub spared: u64,
}

impl Counters {
    /// Reads the counts of the first `rules` rules.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read<T: Borrow<MapData>>(
        state: &PerCpuArray<T, RuleState>,
        hooks: &PerCpuArray<T, HookState>,
        rules: u32,
    ) -> Result<Self> {
        let mut counters = Self::default();
        for rule in 0..rules {
            let mut sum = RuleCount::default();
            for cpu in per_cpu(state, rule, map::STATE)? {
                add(&mut sum.matched, cpu.matched);
                add(&mut sum.fired, cpu.fired);
                sum.background += cpu.background;
                sum.effects.add(&cpu);
            }
            counters.rules.push(sum);
        }
        for (direction, seen) in (0..).zip(&mut counters.seen) {
            for cpu in per_cpu(hooks, direction, map::HOOKS)? {
                add(seen, cpu.seen);
                counters.unparsed += cpu.unparsed;
                counters.spared += cpu.spared;
            }
        }
        Ok(counters)
    }
}

fn per_cpu<T: Borrow<MapData>, V: Pod>(
    array: &PerCpuArray<T, V>,
    index: u32,
    name: &'static str,
) -> Result<Vec<V>> {
    let values = array.get(&index, 0).map_err(|error| Error::aya("read", name, &error))?;
    Ok(values.to_vec())
}

fn add(sum: &mut Count, count: Count) {
    let Count { packets, segments, bytes } = count;
    sum.packets += packets;
    sum.segments += segments;
    sum.bytes += bytes;
}

/// The maps of somebody else's run, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MapIds {
    /// [`map::CONTROL`].
    pub control: u32,
    /// [`map::STATE`].
    pub state: u32,
    /// [`map::HOOKS`].
    pub hooks: u32,
}

impl MapIds {
    /// The control block and the counts of the first `rules` rules.
    ///
    /// # Errors
    ///
    /// The kernel's; the maps go when their owner does.
    pub fn read(self, rules: u32) -> Result<(Control, Counters)> {
        fn open<M: TryFrom<Map>>(id: u32, name: &'static str, wrap: impl Fn(MapData) -> Map) -> Result<M> {
            let data = MapData::from_id(id).map_err(|error| Error::aya("open", name, &error))?;
            M::try_from(wrap(data)).map_err(|_| Error::new("open", name, io::ErrorKind::InvalidData.into()))
        }
        let control: Array<MapData, Control> = open(self.control, map::CONTROL, Map::Array)?;
        let state: PerCpuArray<MapData, RuleState> = open(self.state, map::STATE, Map::PerCpuArray)?;
        let hooks: PerCpuArray<MapData, HookState> = open(self.hooks, map::HOOKS, Map::PerCpuArray)?;
        let control = control.get(&0, 0).map_err(|error| Error::aya("read", map::CONTROL, &error))?;
        Ok((control, Counters::read(&state, &hooks, rules)?))
    }
}
