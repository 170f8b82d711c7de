//! The clocks the programs and the lease are measured by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` as of the last tick, in nanoseconds: what the programs read by `bpf_ktime_get_coarse_ns`.
/// What is now by the exact clock is in the future for them.
#[must_use]
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// `CLOCK_BOOTTIME`, which goes on while the machine sleeps, in nanoseconds.
#[must_use]
pub fn boottime() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    // Both clocks are always there and never negative.
    clock_gettime(clock).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
