//! What all CPUs share.

use core::arch::asm;

/// Adds one to a number that all CPUs share and returns what it was.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_one(number: *mut u64) -> u64 {
    // SAFETY: as the caller warrants.
    unsafe { fetch_add(number, 1) }
}

/// Adds to a number that all CPUs share and returns what it was. `AtomicU64::fetch_add` is not there for targets without
/// compare-and-swap, which Rust takes BPF for.
///
/// # Safety
///
/// `number` must point to an aligned `u64` in a map.
#[inline(always)]
pub(crate) unsafe fn fetch_add(number: *mut u64, summand: u64) -> u64 {
    let before: u64;
    // SAFETY: as the caller warrants; the instruction touches nothing else.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({number} + 0), {value})",
            value = inlateout(reg) summand => before,
            number = in(reg) number,
        );
    }
    before
}
