//! What a system call has read of a clock, made wrong in the memory of whoever has read it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_probe_read_user, bpf_probe_write_user},
};
use chaos_ebpf::{
    call::Setup,
    time::{SlotLine, slot_of},
};

use crate::{
    Arguments,
    act::candidate,
    atomic::fetch_add_one,
    kernel::{Object, Reach, Typed, setup},
    maps::{FL_BLOCKS, FL_TALLY, FL_TURN},
    number, object,
};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of a microsecond.
const MICROSECOND: u64 = 1_000;

/// The end of `clock_gettime`: the clock, and where its time has been written to.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/fl_gettime")]
extern "C" fn fl_gettime(arguments: Arguments) -> i64 {
    let pt_regs { rdi, rsi, rip, .. } = registers(arguments);
    if number::<1>(arguments) == 0
        && let Some(slot) = slot_of(*rdi as u32)
    {
        rewrite(*rip, *rsi, slot, 1);
    }
    0
}

/// The end of `gettimeofday`: where the time has been written to, if anywhere.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/fl_timeofday")]
extern "C" fn fl_timeofday(arguments: Arguments) -> i64 {
    /// `CLOCK_REALTIME`.
    const REAL_TIME: u32 = 0;
    let pt_regs { rdi, rip, .. } = registers(arguments);
    if number::<1>(arguments) == 0
        && *rdi != 0
        && let Some(slot) = slot_of(REAL_TIME)
    {
        rewrite(*rip, *rdi, slot, MICROSECOND);
    }
    0
}

/// What the process had in its registers: the only argument of a system call's function.
#[inline(always)]
fn registers<'a>(arguments: Arguments) -> &'a pt_regs {
    // SAFETY: they lie at the end of the stack until the call is over; the verifier knows their type.
    unsafe { &*object::<0>(arguments).cast::<pt_regs>() }
}

/// Makes a time wrong that lies there: seconds, and then parts of one, so many nanoseconds each.
#[inline(always)]
fn rewrite(from: u64, to: u64, slot: usize, part: u64) -> Option<()> {
    let setup = setup();
    let candidate = candidate(setup, setup.rules[0])?;
    if setup.watch.rewrite_all == 0 && is_in_vdso(setup, candidate.task, from) {
        return None;
    }
    let tally = FL_TALLY.get_ptr_mut(0)?;
    // SAFETY: this CPU's, counted by atomic instructions as everywhere.
    unsafe { fetch_add_one(&raw mut (*tally).reads) };
    let Way { window, line } = way(slot)?;
    let mut time = [0_u64; 2];
    let size = size_of_val(&time) as u32;
    // SAFETY: the helper checks what it reads, and writes as many bytes as there are.
    if unsafe { bpf_probe_read_user(time.as_mut_ptr().cast(), size, to as *const c_void) } != 0 {
        return None;
    }
    let right = time[0].wrapping_mul(SECOND).wrapping_add(time[1].wrapping_mul(part));
    let wrong = line.skewed(window, right);
    if wrong == right {
        return None;
    }
    time = [wrong / SECOND, wrong % SECOND / part];
    // SAFETY: the helper checks where it writes, and reads as many bytes as there are.
    if unsafe { bpf_probe_write_user(to as *mut c_void, time.as_ptr().cast(), size) } == 0 {
        // SAFETY: as above.
        unsafe { fetch_add_one(&raw mut (*tally).rewritten) };
    }
    Some(())
}

/// Whether the process's own vDSO has made the call: then it makes the time wrong itself, which once is enough.
#[inline(always)]
fn is_in_vdso(setup: &Setup, task: Object, address: u64) -> bool {
    let memory = Typed::object(task, setup.at.task_mm);
    if memory.is_null() {
        return false;
    }
    let image = Typed::object(memory, setup.at.mm_vdso_image);
    if image.is_null() {
        return false;
    }
    let start = Typed::long(memory, setup.at.mm_vdso);
    address.wrapping_sub(start) < Typed::long(image, setup.at.image_size)
}

/// What is in force of one clock.
struct Way {
    window: u64,
    line: SlotLine,
}

/// What is in force: read again if the owner has put another block in force meanwhile, for it may be writing to this one.
#[inline(always)]
fn way(slot: usize) -> Option<Way> {
    const ATTEMPTS: usize = 3;
    let turn = FL_TURN.get_ptr(0)?;
    // SAFETY: in the map.
    let mut before = unsafe { turn.read_volatile() };
    for _ in 0..ATTEMPTS {
        let block = FL_BLOCKS.get_ptr(before as u32 & 1)?;
        // SAFETY: as above; the place is one of those there are.
        let way = unsafe {
            Way {
                window: (&raw const (*block).window).read_volatile(),
                line: (&raw const (*block).slots).cast::<SlotLine>().add(slot).read_volatile(),
            }
        };
        // SAFETY: as above.
        let after = unsafe { turn.read_volatile() };
        if after == before {
            return Some(way);
        }
        before = after;
    }
    None
}
