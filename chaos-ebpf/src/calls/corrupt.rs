//! What was read, made wrong in the memory of whoever has read it. The file stays as it is.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user, bpf_probe_write_user};
use chaos_ebpf::call::{Rule, effect, nth, part};

use crate::{
    act::{Fate, count},
    maps::{FL_RULES, FL_STATE},
};

/// How many bytes are written at a time.
const CHUNK: u64 = 8;

/// What is being made wrong.
struct Work {
    /// Where it begins in the program's memory.
    to: u64,
    bytes: u64,
    random: u64,
    effects: u64,
}

/// Makes a part wrong of what lies in one buffer.
#[inline(always)]
pub(crate) fn corrupt(fate: &Fate, buffer: u64, length: u64) {
    if fate.corrupted_by == 0 || length == 0 {
        return;
    }
    let index = fate.corrupted_by - 1;
    let (Some(rule), Some(state)) = (FL_RULES.get(index), FL_STATE.get_ptr_mut(index)) else { return };
    if spoil(rule, fate.random, buffer, length) != 0 {
        // SAFETY: this CPU's slot; counted by an atomic instruction, as everywhere.
        unsafe { count(&raw mut (*state).fired) };
    }
}

/// How many bytes it makes wrong.
#[inline(never)]
fn spoil(rule: &Rule, random: u64, buffer: u64, length: u64) -> u64 {
    // The lower half has been used for the chance.
    let (start, bytes) = part(length, rule.bytes, rule.offset, nth(random, 0));
    let mut work = Work { to: buffer + start, bytes, random, effects: rule.effects.into() };
    let callback = change as unsafe extern "C" fn(u32, *mut Work) -> i64;
    let turns = chaos_ebpf::call::MOST_BYTES;
    // SAFETY: the function takes what it is given, which lives until the call is over.
    unsafe { bpf_loop(turns, callback as *mut c_void, (&raw mut work).cast(), 0) };
    bytes
}

/// Changes the next bytes; 1 if there are no more.
unsafe extern "C" fn change(turn: u32, work: *mut Work) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let work = unsafe { &mut *work };
    let done = u64::from(turn) * CHUNK;
    if done >= work.bytes {
        return 1;
    }
    let to = work.to + done;
    let left = work.bytes - done;
    let mut bytes = 0_u64;
    if work.effects & u64::from(effect::ZERO) == 0 {
        // SAFETY: the helper checks what it reads, and writes no more than there is room for.
        unsafe { bpf_probe_read_user((&raw mut bytes).cast(), CHUNK as u32, to as *const c_void) };
        let draw = nth(work.random, u64::from(turn) + 1);
        // One bit of each byte, or all of them by chance; in either case no byte stays as it was.
        let one = 0x0101_0101_0101_0101;
        bytes ^= if work.effects & u64::from(effect::FLIP) != 0 { one << (draw & 7) } else { draw | one };
    }
    if left >= CHUNK {
        write(to, &bytes, CHUNK as u32);
        return 0;
    }
    // The last ones, byte by byte: the helper wants a length it knows.
    for place in 0..CHUNK {
        if place < left {
            let byte = (bytes >> (8 * place)) as u8;
            write(to + place, &byte, 1);
        }
    }
    1
}

#[inline(always)]
fn write<T>(to: u64, from: &T, length: u32) {
    // SAFETY: the helper checks where it writes; nothing else of the program's is running meanwhile.
    unsafe { bpf_probe_write_user(to as *mut c_void, core::ptr::from_ref(from).cast(), length) };
}
