//! The state of a slot, which the owner changes from outside.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

use chaos_ebpf::time::HoldSlot;

/// What it is now.
///
/// # Safety
///
/// The slot must lie in a map.
#[inline(always)]
pub(super) unsafe fn state(slot: *const HoldSlot) -> u32 {
    // SAFETY: as the caller warrants.
    unsafe { (&raw const (*slot).state).read_volatile() }
}

/// Makes it `to` if it is `from`, and says what it was. As for `atomic`, Rust does not know that BPF can.
///
/// # Safety
///
/// As for [`state`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(super) unsafe fn exchange(slot: *mut HoldSlot, from: u32, to: u32) -> u32 {
    let before: u32;
    // SAFETY: as the caller warrants; the instruction touches nothing else.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32({state} + 0, w0, {to})",
            inlateout("w0") from => before,
            state = in(reg) &raw mut (*slot).state,
            to = in(wreg) to,
        );
    }
    before
}

/// The same where the lint reads it: elsewhere the registers are others.
///
/// # Safety
///
/// As for [`state`].
#[cfg(not(target_arch = "bpf"))]
pub(super) unsafe fn exchange(slot: *mut HoldSlot, from: u32, to: u32) -> u32 {
    use core::sync::atomic::{AtomicU32, Ordering};
    // SAFETY: as the caller warrants.
    let state = unsafe { AtomicU32::from_ptr(&raw mut (*slot).state) };
    state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|before| before)
}
