//! The clocks the programs and the lease are measured by.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_getres, clock_gettime};

use super::{Error, Result, probe};
use crate::spec::Clock;

/// `CLOCK_MONOTONIC` as of the last tick, in nanoseconds. What is now by the exact clock is in the future for the
/// programs, which know ticks only.
#[must_use]
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// `CLOCK_MONOTONIC` to the nanosecond.
#[must_use]
pub fn exact() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// `CLOCK_BOOTTIME`, which goes on while the machine sleeps, in nanoseconds.
#[must_use]
pub fn boottime() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// What all clocks tell that can be wrong, in the order of [`Clock::ALL`], as close together as they can be read.
#[must_use]
pub fn readings() -> [u64; 5] {
    Clock::ALL.map(|clock| {
        nanoseconds(match clock {
            Clock::Realtime => ClockId::CLOCK_REALTIME,
            Clock::Tai => ClockId::CLOCK_TAI,
            Clock::Monotonic => ClockId::CLOCK_MONOTONIC,
            Clock::Raw => ClockId::CLOCK_MONOTONIC_RAW,
            Clock::Boottime => ClockId::CLOCK_BOOTTIME,
        })
    })
}

fn nanoseconds(clock: ClockId) -> u64 {
    // These clocks are always there and never negative.
    clock_gettime(clock).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// How the programs tell the time: in ticks of `jiffies_64`, which the verifier turns into one load. Every helper
/// that reads a clock in nanoseconds is a call, and costs more than the rest of a decision that nothing matches.
///
/// Ticks and `CLOCK_MONOTONIC` go on together and stand still together: the kernel counts the one from the other
/// (<https://elixir.bootlin.com/linux/v6.12/source/kernel/time/tick-sched.c#L57>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    jiffies: u64,
    monotonic: u64,
    /// Nanoseconds.
    length: u64,
}

impl Ticks {
    /// Reads both clocks within one tick.
    ///
    /// # Errors
    ///
    /// The kernel's; that they do not agree for two seconds.
    pub fn read() -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(2);
        const PAUSE: Duration = Duration::from_micros(500);
        let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
            .map_err(|errno| Error::new("clock_getres", "CLOCK_MONOTONIC_COARSE", errno.into()))?;
        let length = Duration::from(length).as_nanos() as u64;
        // Loaded once: in a guest that alone may take longer than a tick.
        let question = probe::jiffies()?;
        let deadline = Instant::now() + PATIENCE;
        while length > 0 && Instant::now() < deadline {
            let monotonic = monotonic();
            let jiffies = question.ask()?;
            if agree(monotonic, self::monotonic(), exact(), length) {
                return Ok(Self { jiffies, monotonic, length });
            }
            thread::sleep(PAUSE);
        }
        Err(Error::new("read", "jiffies and CLOCK_MONOTONIC_COARSE", io::ErrorKind::TimedOut.into()))
    }

    /// The first tick at or after a time in `CLOCK_MONOTONIC` nanoseconds; [`u64::MAX`] is never.
    #[must_use]
    pub fn at(self, monotonic: u64) -> u64 {
        if monotonic == u64::MAX {
            return u64::MAX;
        }
        let difference = i128::from(monotonic) - i128::from(self.monotonic);
        let length = i128::from(self.length);
        let ticks =
            i128::from(self.jiffies) + difference.div_euclid(length) + i128::from(difference % length != 0);
        ticks.clamp(0, i128::from(u64::MAX)) as u64
    }
}

/// Whether no tick was counted between two looks at the clock that goes by them, and none was being counted: the kernel counts
/// `jiffies_64` first, and the CPU that does so may be an emulated one that stands still in between. After a tick the clock is less
/// than two of them behind the exact one.
fn agree(before: u64, after: u64, exact: u64, length: u64) -> bool {
    before == after && exact.saturating_sub(after) < 2 * length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_read_while_a_tick_is_counted_do_not_agree() {
        let agrees = [(8, 8, 8), (8, 8, 15)].map(|(before, after, exact)| agree(before, after, exact, 4));
        assert_eq!(agrees, [true; 2]);
        let differs = [(8, 12, 12), (8, 8, 16), (8, 8, 108)];
        assert_eq!(differs.map(|(before, after, exact)| agree(before, after, exact, 4)), [false; 3]);
    }

    #[test]
    fn ticks_round_up() {
        let ticks = Ticks { jiffies: 1_000, monotonic: 50_000_000, length: 4_000_000 };
        let at =
            [50_000_000, 50_000_001, 54_000_000, 54_000_001, 46_000_000, 47_000_000, 45_999_999, u64::MAX];
        assert_eq!(at.map(|time| ticks.at(time)), [1_000, 1_001, 1_001, 1_002, 999, 1_000, 999, u64::MAX]);
        assert_eq!(Ticks { jiffies: 1, ..ticks }.at(0), 0);
    }
}
