//! A program that has just been executed is held before its first instruction until the owner has seen to its vDSO: that
//! is a new one, which nobody can have seen to before.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns, bpf_loop, bpf_ringbuf_output,
};
use chaos_ebpf::{
    call::Setup,
    decide,
    time::{ExecEvent, HoldSlot, hold},
};

use super::slot::{exchange, state};
use crate::{
    act::candidate,
    atomic::{fetch_add, fetch_add_one},
    kernel::{Reach, Typed, setup},
    maps::{FL_CONTROL, FL_EVENTS, FL_HOLDERS, FL_HOLDS, FL_RULES, FL_TALLY},
};

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    GivenUp,
    Stuck,
    Crowded,
    Untold,
}

/// `sched_process_exec`: the task that runs has executed a program. Its memory is the new one, and the CPU is its own until
/// this is over.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sched_process_exec")]
extern "C" fn fl_execed(_arguments: *const u64) -> i64 {
    let setup = setup();
    let Some(candidate) = candidate(setup, setup.rules[0]) else { return 0 };
    // Its time may be over while its owner is not there to say so.
    if FL_RULES.get(0).is_none_or(|rule| candidate.now >= rule.expires_at) {
        return 0;
    }
    let Some(tally) = FL_TALLY.get_ptr_mut(0) else { return 0 };
    let memory = Typed::object(candidate.task, setup.at.task_mm);
    let vdso = if memory.is_null() { 0 } else { Typed::long(memory, setup.at.mm_vdso) };
    let pid = Typed::int(candidate.task, setup.at.task_tgid);
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let mut event = ExecEvent { cpu, pid, vdso, held: 0, pad: 0 };
    let end = match held(setup, &mut event) {
        Some(end) => end,
        None if tell(&event) => End::Crowded,
        None => End::Untold,
    };
    // SAFETY: this CPU's, counted by atomic instructions as everywhere.
    unsafe {
        fetch_add_one(&raw mut (*tally).execs);
        fetch_add_one(match end {
            End::Done => &raw mut (*tally).held,
            End::GivenUp => &raw mut (*tally).given_up,
            End::Stuck => &raw mut (*tally).stuck,
            End::Crowded => &raw mut (*tally).crowded,
            End::Untold => &raw mut (*tally).untold,
        });
    }
    0
}

/// Tells the owner; `false` if the ring is full.
#[inline(always)]
fn tell(event: &ExecEvent) -> bool {
    /// `BPF_RB_FORCE_WAKEUP`: an owner that sleeps is waked, whatever else it has not read yet.
    const WAKE: u64 = 2;
    let (ring, size) = ((&raw const FL_EVENTS).cast_mut().cast(), size_of::<ExecEvent>() as u64);
    // SAFETY: a ring, and so many bytes to read.
    unsafe { bpf_ringbuf_output(ring, core::ptr::from_ref(event).cast_mut().cast(), size, WAKE) == 0 }
}

/// Holds the program; `None` if it cannot be, because all CPUs but one are taken, or this one is not known.
#[inline(always)]
fn held(setup: &Setup, event: &mut ExecEvent) -> Option<End> {
    let slot = FL_HOLDS.get_ptr_mut(event.cpu)?;
    let holders = FL_HOLDERS.get_ptr_mut(0)?;
    // SAFETY: in the map.
    let before = unsafe { fetch_add_one(holders) };
    let mut end = None;
    if before < u64::from(setup.watch.most) {
        // SAFETY: as above.
        end = unsafe { wait(setup, slot, event) };
    }
    // SAFETY: as above.
    unsafe { fetch_add(holders, u64::MAX) };
    end
}

/// A program while it is held.
struct Holding {
    cpu: u32,
    /// How it ended, as [`End`] has it.
    end: End,
    /// When it goes on if the owner has not begun.
    until: u64,
    /// When it goes on if the owner has.
    last: u64,
}

/// # Safety
///
/// The slot must be this CPU's.
#[inline(always)]
unsafe fn wait(setup: &Setup, slot: *mut HoldSlot, event: &mut ExecEvent) -> Option<End> {
    /// Most turns of one loop (`BPF_MAX_LOOPS`).
    const TURNS: u32 = 1 << 23;
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as the caller warrants; nobody looks at the rest of a slot that is free.
    unsafe {
        if state(slot) != hold::FREE {
            return None;
        }
        (*slot).pid = event.pid;
        (*slot).vdso = event.vdso;
        (*slot).since_ns = now;
        if exchange(slot, hold::FREE, hold::WAITING) != hold::FREE {
            return None;
        }
    }
    event.held = 1;
    let is_told = tell(event);
    // An owner that has not been told may have seen it all the same: otherwise it goes on at once.
    let until = if is_told { now + setup.watch.hold_ns } else { 0 };
    let mut holding = Holding { cpu: event.cpu, end: End::Stuck, until, last: now + setup.watch.stuck_ns };
    let callback = look as unsafe extern "C" fn(u32, *mut Holding) -> i64;
    // SAFETY: the function takes what it is given, which lives until the call is over.
    unsafe { bpf_loop(TURNS, callback as *mut c_void, (&raw mut holding).cast(), 0) };
    // SAFETY: as above.
    unsafe { (&raw mut (*slot).state).write_volatile(hold::FREE) };
    if !is_told && holding.end == End::GivenUp { Some(End::Untold) } else { Some(holding.end) }
}

/// 1 once it has come to an end.
unsafe extern "C" fn look(_turn: u32, holding: *mut Holding) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let holding = unsafe { &mut *holding };
    let Some(slot) = FL_HOLDS.get_ptr_mut(holding.cpu) else { return 1 };
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: in the map.
    match unsafe { state(slot) } & hold::STATE {
        hold::WAITING => {
            let Some(control) = FL_CONTROL.get(0) else { return 1 };
            // SAFETY: as above.
            if now < holding.until && decide::armed(control, unsafe { bpf_jiffies64() }) {
                return 0;
            }
            // SAFETY: as above. If the owner has begun in this moment, it is waited for.
            if unsafe { exchange(slot, hold::WAITING, hold::FREE) } != hold::WAITING {
                return 0;
            }
            holding.end = End::GivenUp;
            1
        }
        hold::WORKING => i64::from(now >= holding.last),
        _ => {
            holding.end = End::Done;
            1
        }
    }
}
