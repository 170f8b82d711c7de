//! Bare programs that `cargo xtask bench` measures the real ones against: the least that any program with the
//! same look-ups could do.

#![no_std]
#![no_main]

mod end;

use core::hint::black_box;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_UNSPEC, xdp_action},
    helpers::generated::{bpf_clone_redirect, bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::{classifier, map, xdp},
    maps::{HashMap, LpmTrie, ProgramArray, lpm_trie::Key},
    programs::{TcContext, XdpContext},
};
use chaos_ebpf::figures::{MOST_PEERS, Peer};

/// Where the source address lies in an IPv4 packet on Ethernet.
const SOURCE: usize = 14 + 12;
/// Where the destination address does.
const DESTINATION: usize = 14 + 16;

/// Whole addresses, as the real programs keep them.
#[map]
static FL_ADDRESSES: HashMap<u32, u64> = HashMap::with_max_entries(65536, 0);

/// Prefixes, likewise.
#[map]
static FL_PREFIXES: LpmTrie<u32, u64> = LpmTrie::with_max_entries(65536, 1);

/// The peers of a profile, likewise.
#[map]
static FL_PEERS: HashMap<u32, Peer> = HashMap::with_max_entries(2 * MOST_PEERS, 1);

/// The program that runs on the packets `fl_random_peer` makes.
#[map]
static FL_NEXT_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The program that runs on the packets `fl_random_key` makes.
#[map]
static FL_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// How many source addresses `fl_random_key` draws from; at most 65,536.
#[unsafe(no_mangle)]
static FL_KEYS: u32 = 0;

/// Passes everything.
#[xdp]
fn fl_bare_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops everything.
#[xdp]
fn fl_bare_drop(_context: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Passes everything.
#[classifier]
fn fl_bare_tc(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Drops what comes from a whole address in the map.
#[xdp]
fn fl_bare_hash(context: XdpContext) -> u32 {
    let Some(source) = source(&context) else { return xdp_action::XDP_PASS };
    // SAFETY: the source address, as found; nothing changes the map while the programs run.
    verdict(unsafe { FL_ADDRESSES.get(*source) })
}

/// Drops what comes from a prefix in the map.
#[xdp]
fn fl_bare_lpm(context: XdpContext) -> u32 {
    let Some(source) = source(&context) else { return xdp_action::XDP_PASS };
    // SAFETY: the source address, as found.
    verdict(FL_PREFIXES.get(Key::new(32, unsafe { *source })))
}

/// Gives the packet the source address 10.x.y.1 with a random x.y below `FL_KEYS`, and goes on with the program
/// in `FL_NEXT`: a test run has one packet, and this one varies.
#[xdp]
fn fl_random_key(context: XdpContext) -> u32 {
    let Some(source) = source(&context) else { return xdp_action::XDP_PASS };
    // SAFETY: takes nothing, returns a number.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    let key = (random * u64::from(*black_box(&FL_KEYS))) >> 32;
    // SAFETY: the source address, as found, and nobody else has it now.
    unsafe { *source = (10 << 24 | (key as u32) << 8 | 1).to_be() };
    // SAFETY: returns only if there is no program.
    unsafe { FL_NEXT.tail_call(&context, 0) };
    xdp_action::XDP_ABORTED
}

/// Looks the destination up among the peers, and at what it finds.
#[classifier]
fn fl_bare_peer(context: TcContext) -> i32 {
    let found = destination(&context).map_or(0, wait_of);
    if found == 0 { TC_ACT_OK } else { TC_ACT_UNSPEC }
}

/// Also reads the clock, and hands the packet to an interface that is not there: the helpers without which no packet
/// waits.
#[classifier]
fn fl_bare_wait(context: TcContext) -> i32 {
    let found = destination(&context).map_or(0, wait_of);
    // SAFETY: takes nothing, returns a number.
    let at = unsafe { bpf_ktime_get_ns() } + found;
    let skb = context.skb.skb;
    // SAFETY: the context the kernel called us with; its control block is the programs' own.
    unsafe {
        (*skb).cb[0] = at as u32;
        (*skb).cb[1] = (at >> 32) as u32;
        bpf_clone_redirect(skb, 0, 0);
    }
    TC_ACT_UNSPEC
}

/// As `fl_random_key`, of the destination, for tc.
#[classifier]
fn fl_random_peer(context: TcContext) -> i32 {
    let Some(destination) = destination(&context) else { return TC_ACT_OK };
    // SAFETY: takes nothing, returns a number.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    let key = (random * u64::from(*black_box(&FL_KEYS))) >> 32;
    // SAFETY: the destination address, as found, and nobody else has it now.
    unsafe { *destination = (10 << 24 | (key as u32) << 8 | 1).to_be() };
    // SAFETY: returns only if there is no program.
    unsafe { FL_NEXT_TC.tail_call(&context, 0) };
    TC_ACT_OK
}

/// How long a packet to this address is to wait, 0 for one that is not in the map.
#[inline(always)]
fn wait_of(destination: *mut u32) -> u64 {
    // SAFETY: the destination address, as found; nothing changes the map while the programs run.
    unsafe { FL_PEERS.get(*destination) }.map_or(0, |peer| peer.figures.wait)
}

/// The destination address, if the packet is long enough to have one.
#[inline(always)]
fn destination(context: &TcContext) -> Option<*mut u32> {
    let at = context.data() + DESTINATION;
    (at + 4 <= context.data_end()).then_some(at as *mut u32)
}

/// The source address, if the packet is long enough to have one.
#[inline(always)]
fn source(context: &XdpContext) -> Option<*mut u32> {
    let at = context.data() + SOURCE;
    (at + 4 <= context.data_end()).then_some(at as *mut u32)
}

#[inline(always)]
fn verdict(found: Option<&u64>) -> u32 {
    if found.is_some() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}
