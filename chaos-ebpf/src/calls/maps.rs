//! The maps. The owner sizes one that nothing uses down to one entry.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use chaos_ebpf::{
    abi::{Control, HOOKS, HookState, MAX_RULES, RuleState},
    call::{CALLS, Inode, Name, Place, Rule},
    glob::Glob,
    time::{Block, HoldSlot, Tally},
};

/// `BPF_F_MMAPABLE`: the owner has it in its own memory.
const SHARED: u32 = 1 << 10;

/// The least a ring can have: a page.
const LEAST: u32 = 4096;

#[map]
pub(crate) static FL_CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_RULES: Array<Rule> = Array::with_max_entries(MAX_RULES as u32, 0);
#[map]
pub(crate) static FL_STATE: PerCpuArray<RuleState> = PerCpuArray::with_max_entries(MAX_RULES as u32, 0);
#[map]
pub(crate) static FL_HOOKS: PerCpuArray<HookState> = PerCpuArray::with_max_entries(HOOKS as u32, 0);
#[map]
pub(crate) static FL_SEQUENCE: Array<u64> = Array::with_max_entries(MAX_RULES as u32, 0);
#[map]
pub(crate) static FL_DEVIATIONS: Array<i32> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_CGROUPS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_PROCESSES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_PLACES: HashMap<Inode, Place> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_GLOBS: Array<Glob> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_FOUND: Array<Inode> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_USERS: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_COMMS: HashMap<Name, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_FILE_SYSTEMS: HashMap<Name, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_DEVICES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_CALLS: Array<u64> = Array::with_max_entries(CALLS, 0);
#[map]
pub(crate) static FL_HOLDS: Array<HoldSlot> = Array::with_max_entries(1, SHARED);
#[map]
pub(crate) static FL_HOLDERS: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_EVENTS: RingBuf = RingBuf::with_byte_size(LEAST, 0);
#[map]
pub(crate) static FL_TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static FL_BLOCKS: Array<Block> = Array::with_max_entries(2, 0);
#[map]
pub(crate) static FL_TURN: Array<u64> = Array::with_max_entries(1, 0);
