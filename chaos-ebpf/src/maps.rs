//! The maps, and the look-ups in them. The owner sizes a map that nothing uses down to one entry.

use core::{
    ffi::c_void,
    ptr::{null, null_mut},
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use chaos_ebpf::{
    abi::{Control, DIRECTIONS, HOOKS, HookState, MAX_RULES, NameState, Rule, RuleState, Wire, table},
    classify::{AddressTables, End, Tables},
    figures::{MOST_PEERS, Peer},
};

use crate::asked::Question;

/// Look-up with preallocated entries would cost memory for the largest table there can be.
const NO_PREALLOC: u32 = 1;

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
pub(crate) static FL_HANDSHAKES: LruHashMap<u32, u32> = LruHashMap::with_max_entries(65536, 0);
#[map]
pub(crate) static FL_WIRES: Array<Wire> = Array::with_max_entries(MAX_RULES as u32, 0);
#[map]
pub(crate) static FL_LATENESS: Array<u64> = Array::with_max_entries(DIRECTIONS as u32, 0);
#[map]
pub(crate) static FL_DEVIATIONS: Array<i32> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_NAMES: Array<NameState> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FL_RECORDS: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_QUESTION: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);
#[map]
static FL_PROTOCOL: Array<u64> = Array::with_max_entries(256, 0);
#[map]
pub(crate) static FL_CGROUPS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FL_PROCESSES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
#[btf_map]
pub(crate) static FL_SOCKETS: Sockets = Sockets::new();
#[map]
static FL_REMOTE_PORT: Array<u64> = Array::with_max_entries(65536, 0);
#[map]
static FL_LOCAL_PORT: Array<u64> = Array::with_max_entries(65536, 0);
#[map]
static FL_REMOTE4: HashMap<u32, u64> = HashMap::with_max_entries(65536, 0);
#[map]
static FL_REMOTE4_NET: LpmTrie<u32, u64> = LpmTrie::with_max_entries(65536, NO_PREALLOC);
#[map]
static FL_REMOTE6: HashMap<[u32; 4], u64> = HashMap::with_max_entries(65536, 0);
#[map]
static FL_REMOTE6_NET: LpmTrie<[u32; 4], u64> = LpmTrie::with_max_entries(65536, NO_PREALLOC);
#[map]
static FL_LOCAL4: HashMap<u32, u64> = HashMap::with_max_entries(65536, 0);
#[map]
static FL_LOCAL4_NET: LpmTrie<u32, u64> = LpmTrie::with_max_entries(65536, NO_PREALLOC);
#[map]
static FL_LOCAL6: HashMap<[u32; 4], u64> = HashMap::with_max_entries(65536, 0);
#[map]
static FL_LOCAL6_NET: LpmTrie<[u32; 4], u64> = LpmTrie::with_max_entries(65536, NO_PREALLOC);
/// Twice as many as a profile has: while one takes another's place there may be those of both.
const PEERS: u32 = 2 * MOST_PEERS;
#[map]
pub(crate) static FL_PEERS4_IN: HashMap<u32, Peer> = HashMap::with_max_entries(PEERS, NO_PREALLOC);
#[map]
pub(crate) static FL_PEERS4_OUT: HashMap<u32, Peer> = HashMap::with_max_entries(PEERS, NO_PREALLOC);
#[map]
pub(crate) static FL_PEERS6_IN: HashMap<[u32; 4], Peer> = HashMap::with_max_entries(PEERS, NO_PREALLOC);
#[map]
pub(crate) static FL_PEERS6_OUT: HashMap<[u32; 4], Peer> = HashMap::with_max_entries(PEERS, NO_PREALLOC);
#[map]
pub(crate) static FL_OTHERS: Array<Peer> = Array::with_max_entries(DIRECTIONS as u32, 0);

/// What is kept with sockets, by a definition that the kernel finds in the BTF: the type, the flags and so on are the
/// lengths of arrays. A connection that is accepted has what its listener has.
#[repr(C)]
pub(crate) struct Sockets {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u64,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: there is nothing behind its pointers, and the kernel shares the map.
unsafe impl Sync for Sockets {}

impl Sockets {
    const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    /// What is kept with a socket, 0 for nothing.
    ///
    /// # Safety
    ///
    /// It must be a socket, or null.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, socket: *mut c_void) -> u64 {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        if socket.is_null() {
            return 0;
        }
        // SAFETY: as the caller warrants.
        let found = unsafe { bpf_sk_storage_get(map, socket, null_mut(), 0) };
        // SAFETY: in the map.
        if found.is_null() { 0 } else { unsafe { *found.cast::<u64>() } }
    }

    /// Keeps this with a socket, unless something is.
    ///
    /// # Safety
    ///
    /// It must be a socket.
    #[inline(always)]
    pub(crate) unsafe fn keep(&self, socket: *mut c_void, mut rules: u64) {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as the caller warrants.
        unsafe { bpf_sk_storage_get(map, socket, (&raw mut rules).cast(), flags) };
    }
}

/// The rule tables above.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn protocol(&self, protocol: u8) -> u64 {
        rules(FL_PROTOCOL.get(u32::from(protocol)))
    }

    #[inline(always)]
    fn port(&self, end: End, port: u16) -> u64 {
        rules(match end {
            End::Remote => FL_REMOTE_PORT.get(u32::from(port)),
            End::Local => FL_LOCAL_PORT.get(u32::from(port)),
        })
    }
}

impl AddressTables<u32> for Maps {
    #[inline(always)]
    fn bits(end: End) -> (u32, u32) {
        match end {
            End::Remote => (table::REMOTE4, table::REMOTE4_NET),
            End::Local => (table::LOCAL4, table::LOCAL4_NET),
        }
    }

    #[inline(always)]
    fn address(&self, end: End, address: &u32) -> u64 {
        let map = match end {
            End::Remote => &FL_REMOTE4,
            End::Local => &FL_LOCAL4,
        };
        // SAFETY: the owner never deletes an entry while a program can run.
        rules(unsafe { map.get(address) })
    }

    #[inline(always)]
    fn prefix(&self, end: End, address: &u32) -> u64 {
        let key = Key::new(32, *address);
        rules(match end {
            End::Remote => FL_REMOTE4_NET.get(&key),
            End::Local => FL_LOCAL4_NET.get(&key),
        })
    }
}

impl AddressTables<[u32; 4]> for Maps {
    #[inline(always)]
    fn bits(end: End) -> (u32, u32) {
        match end {
            End::Remote => (table::REMOTE6, table::REMOTE6_NET),
            End::Local => (table::LOCAL6, table::LOCAL6_NET),
        }
    }

    #[inline(always)]
    fn address(&self, end: End, address: &[u32; 4]) -> u64 {
        let map = match end {
            End::Remote => &FL_REMOTE6,
            End::Local => &FL_LOCAL6,
        };
        // SAFETY: the owner never deletes an entry while a program can run.
        rules(unsafe { map.get(address) })
    }

    #[inline(always)]
    fn prefix(&self, end: End, address: &[u32; 4]) -> u64 {
        let key = Key::new(128, *address);
        rules(match end {
            End::Remote => FL_REMOTE6_NET.get(&key),
            End::Local => FL_LOCAL6_NET.get(&key),
        })
    }
}

#[inline(always)]
fn rules(entry: Option<&u64>) -> u64 {
    entry.copied().unwrap_or(0)
}
