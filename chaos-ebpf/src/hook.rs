//! What every network hook does with a packet, written once.

use core::{arch::asm, hint::black_box};

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_jiffies64},
};
use chaos_ebpf::{
    abi::{Count, Direction, Setup},
    classify::classify,
    decide,
    packet::{self, Headers, Truncated, View},
};

use crate::maps::{FL_CONTROL, FL_HOOKS, FL_RULES, FL_SEQUENCE, FL_STATE, Maps};

/// Written by the owner before the load; see [`setup`].
#[unsafe(no_mangle)]
static FL_SETUP: Setup = Setup {
    direction: [0; 2],
    any_remote: 0,
    any_local: 0,
    any_protocol: 0,
    any_remote_port: 0,
    any_local_port: 0,
    tables: 0,
    owner_tgid: 0,
    tgid_offset: 0,
    ethernet: 0,
};

/// The load's constants. LLVM must not see that they are all zero here; the verifier sees what they became.
#[inline(always)]
fn setup() -> &'static Setup {
    black_box(&FL_SETUP)
}

/// What becomes of the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As if the program were not there.
    Pass,
    /// Gone, as if the wire had lost it.
    Drop,
}

/// A packet at one of the hooks.
pub(crate) trait Packet {
    /// Which way it goes.
    const DIRECTION: Direction;
    /// What of the frame can be read directly.
    fn frame(&self) -> Frame;
    /// Makes the headers readable if they were not; false if there is nothing more to read.
    fn pull(&self) -> bool;
    /// Length of the frame in bytes.
    fn length(&self) -> u64;
    /// How many packets it is on the wire; never 0.
    fn segments(&self) -> u32;
}

/// The directly readable part of a frame.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    /// Where it begins.
    pub(crate) data: usize,
    /// One past its last byte.
    pub(crate) end: usize,
}

impl packet::Frame for Frame {
    type View = Header;

    #[inline(always)]
    fn view(&self, offset: usize, length: usize) -> Option<Header> {
        let at = self.data + offset;
        (at + length <= self.end).then_some(Header { at })
    }
}

/// Part of a frame that is there. The programs may read at any alignment: the kernel lays headers out so that
/// this is good enough for itself, and the verifier refuses it where the machine does not.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    at: usize,
}

impl Header {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: within the view, as its maker checked and as the verifier proves once more.
        unsafe { *((self.at + offset) as *const T) }
    }
}

impl View for Header {
    #[inline(always)]
    fn u8(&self, offset: usize) -> u8 {
        self.read(offset)
    }
    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        self.read(offset)
    }
    #[inline(always)]
    fn u32(&self, offset: usize) -> u32 {
        self.read(offset)
    }
}

/// Decides on one packet: lease, owner, headers, rules, chance. `None`, a map that is not there, passes it.
#[inline(always)]
pub(crate) fn decide<P: Packet>(packet: &P) -> Option<Verdict> {
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_jiffies64() };
    if !decide::armed(FL_CONTROL.get(0)?, now) {
        return Some(Verdict::Pass);
    }
    let setup = setup();
    // What is received comes in while any task runs: that it is the owner says nothing of the packet.
    if matches!(P::DIRECTION, Direction::Out) && is_owner(setup) {
        return Some(Verdict::Pass);
    }
    let hook = FL_HOOKS.get_ptr_mut(P::DIRECTION as u32)?;
    // Nothing instead of an error: with `Result` LLVM lets an undefined payload reach the code behind it.
    let found = headers(packet, setup.ethernet != 0);
    let unparsed = found.is_none();
    let headers = found.unwrap_or(Headers::NONE);
    let segments = packet.segments();
    let bytes = wire_bytes(packet, &headers, segments);
    // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let hook = unsafe { &mut *hook };
    hook.seen.add(segments, bytes);
    if unparsed {
        hook.unparsed += 1;
        return Some(Verdict::Pass);
    }
    let mut candidates = classify(&headers, P::DIRECTION, setup, &Maps);
    for _ in 0..u64::BITS {
        if candidates == 0 {
            break;
        }
        let rule = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if apply(rule, now, segments, bytes)? == Verdict::Drop {
            return Some(Verdict::Drop);
        }
    }
    Some(Verdict::Pass)
}

/// Whether the injector itself is what runs now.
#[inline(always)]
fn is_owner(setup: &Setup) -> bool {
    // SAFETY: takes nothing; the task is the current one and stays.
    let task: *const task_struct = unsafe { bpf_get_current_task_btf() }.cast_const();
    // SAFETY: the offset is that of `tgid` in the running kernel's BTF, which the verifier checks.
    let tgid = unsafe { *task.cast::<u8>().add(setup.tgid_offset as usize).cast::<u32>() };
    tgid == setup.owner_tgid
}

#[inline(always)]
fn headers<P: Packet>(packet: &P, ethernet: bool) -> Option<Headers> {
    match packet::parse(&packet.frame(), ethernet) {
        Err(Truncated) if packet.pull() => packet::parse(&packet.frame(), ethernet).ok(),
        found => found.ok(),
    }
}

#[inline(always)]
fn wire_bytes<P: Packet>(packet: &P, headers: &Headers, segments: u32) -> u64 {
    if segments == 1 {
        return packet.length();
    }
    let repeated = packet::segment_header(&packet.frame(), headers);
    packet.length() + u64::from(segments - 1) * u64::from(repeated)
}

/// Counts a packet that matches `rule`, and says what the rule does with it.
#[inline(always)]
fn apply(index: u32, now: u64, segments: u32, bytes: u64) -> Option<Verdict> {
    let rule = FL_RULES.get(index)?;
    if now >= rule.expires_at {
        return Some(Verdict::Pass);
    }
    let state = FL_STATE.get_ptr_mut(index)?;
    // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let state = unsafe { &mut *state };
    count(&mut state.matched, segments, bytes);
    if rule.numbered != 0 {
        let sequence = FL_SEQUENCE.get_ptr_mut(index)?;
        // SAFETY: an aligned u64 in the map.
        let before = unsafe { fetch_add_one(sequence) };
        if !decide::in_window(&rule.window, before) {
            return Some(Verdict::Pass);
        }
    }
    if !decide::fires(rule.threshold, decide::random(&mut state.random)) {
        return Some(Verdict::Pass);
    }
    count(&mut state.fired, segments, bytes);
    Some(Verdict::Drop)
}

#[inline(always)]
fn count(count: &mut Count, segments: u32, bytes: u64) {
    count.add(segments, bytes);
}

/// Adds one to a number that all CPUs share and returns what it was. `AtomicU64::fetch_add` is not there for
/// targets without compare-and-swap, which Rust takes BPF for.
///
/// # Safety
///
/// `number` must point to an aligned `u64` in a map.
#[inline(always)]
unsafe fn fetch_add_one(number: *mut u64) -> u64 {
    let before: u64;
    // SAFETY: as the caller warrants; the instruction touches nothing else.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({number} + 0), {value})",
            value = inlateout(reg) 1u64 => before,
            number = in(reg) number,
        );
    }
    before
}
