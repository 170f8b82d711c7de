//! What both halves share of faults in the clocks of processes: how a clock goes wrong, and how a program that has just
//! been executed waits in the kernel until its owner has seen to it.
//!
//! Times are in nanoseconds.

/// Program names: at most 15 bytes.
pub mod program {
    /// A program has been executed, and has not begun.
    pub const EXECED: &str = "fl_execed";
    /// The end of the system call `clock_gettime`.
    pub const GETTIME: &str = "fl_gettime";
    /// The end of the system call `gettimeofday`.
    pub const TIMEOFDAY: &str = "fl_timeofday";
}

/// Map names, where they are not those of [`abi::map`](crate::abi::map).
pub mod map {
    /// [`HoldSlot`](super::HoldSlot) by CPU, in memory that the owner shares.
    pub const HOLDS: &str = "FL_HOLDS";
    /// [`ExecEvent`](super::ExecEvent)s, in a ring.
    pub const EVENTS: &str = "FL_EVENTS";
    /// How many programs are being held, over all CPUs.
    pub const HOLDERS: &str = "FL_HOLDERS";
    /// Per CPU, one [`Tally`](super::Tally).
    pub const TALLY: &str = "FL_TALLY";
    /// Two [`Block`](super::Block)s: that of the [`TURN`], and that of the next one.
    pub const BLOCKS: &str = "FL_BLOCKS";
    /// How many blocks have been written; the last bit says which is in force.
    pub const TURN: &str = "FL_TURN";
}

/// Most CPUs whose programs can be held; on further ones they go on at once.
pub const MAX_CPUS: u32 = 1024;

/// Bytes of the ring of events: a power of two, and whole pages.
pub const EVENT_BYTES: u32 = 1 << 18;

/// Longest that a program is held before the owner has begun to see to it.
pub const HOLD_CAP: u64 = 20_000_000;

/// Longest that it is held at all: an owner that has begun is waited for, unless it is no more.
pub const STUCK_CAP: u64 = 100_000_000;

/// [`HoldSlot::state`]. The program makes `WAITING` of `FREE`, the owner `WORKING` of that and then `DONE`, and the program
/// `FREE` again. At its cap the program makes `FREE` of `WAITING`; each step is one compare-and-exchange, so that either
/// it or the owner succeeds.
///
/// Above the bits of `WORKING` there is a number that the owner has for one claim alone: a thread of it that was stopped for
/// long finds out that the program it has claimed is no longer the one that is held there.
pub mod hold {
    /// The bits of a state.
    pub const STATE: u32 = 3;
    /// Nobody is held.
    pub const FREE: u32 = 0;
    /// Somebody is.
    pub const WAITING: u32 = 1;
    /// The owner sees to it.
    pub const WORKING: u32 = 2;
    /// The owner has.
    pub const DONE: u32 = 3;
}

/// A program that is held. It keeps its CPU, so each CPU has at most one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldSlot {
    /// One of [`hold`], with its number.
    pub state: u32,
    /// Its process's number, as the kernel has it.
    pub pid: u32,
    /// Where its vDSO lies; 0 without.
    pub vdso: u64,
    /// Since when, by `CLOCK_MONOTONIC`.
    pub since_ns: u64,
    /// Not used: each CPU has a cache line of its own.
    pub pad: [u64; 5],
}

/// A program that has been executed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecEvent {
    /// Where.
    pub cpu: u32,
    /// Its process's number, as the kernel has it.
    pub pid: u32,
    /// Where its vDSO lies; 0 without.
    pub vdso: u64,
    /// 1 if it is held in that CPU's slot, 0 if it has gone on.
    pub held: u32,
    /// Not used.
    pub pad: u32,
}

/// What was counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Programs that were executed in the target.
    pub execs: u64,
    /// Of these, those that were held until the owner had seen to them.
    pub held: u64,
    /// Those that went on because the owner had not begun in time.
    pub given_up: u64,
    /// Those that were not held, for want of a CPU to run the owner on.
    pub crowded: u64,
    /// Those that went on although the owner had begun: it took too long.
    pub stuck: u64,
    /// Those the owner was not told of, because the ring was full.
    pub untold: u64,
    /// Reads of clocks, by system calls, that were looked at.
    pub reads: u64,
    /// Those that were given a wrong time.
    pub rewritten: u64,
}

/// What the programs are told of a run, a part of [`call::Setup`](crate::call::Setup).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// As [`HOLD_CAP`].
    pub hold_ns: u64,
    /// As [`STUCK_CAP`].
    pub stuck_ns: u64,
    /// How many may be held at once.
    pub most: u32,
    /// 1 if what a vDSO reads by system calls is to be rewritten as well, 0 if it sees to that itself.
    pub rewrite_all: u32,
}

/// The clocks that go wrong each in their own way: real time, TAI, monotonic, raw, and since boot.
pub const SLOTS: usize = 5;

/// How long before its beginning a [`SlotLine`] takes a time for its own.
pub const MARGIN: u64 = 1 << 30;

/// How wrong the clock of a slot is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLine {
    /// [`MARGIN`] before it begins to be wrong, by its own right time; [`NEVER`] if it does not.
    pub start: u64,
    /// By how much it is wrong at once.
    pub offset: i64,
    /// What it gains, in 2^-32 of the time that passes from [`MARGIN`] behind `start` on: from its beginning on.
    pub slope: i64,
    /// The same up to there, so that a clock which must not jump can be told of a change before it comes.
    pub before: i64,
}

/// [`SlotLine::start`] of a clock that goes right.
pub const NEVER: u64 = u64::MAX / 2;

impl SlotLine {
    /// Of a clock that goes right.
    pub const RIGHT: Self = Self { start: NEVER, offset: 0, slope: 0, before: 0 };
}

/// How wrong all clocks are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// How long, from [`SlotLine::start`].
    pub window: u64,
    /// By slot.
    pub slots: [SlotLine; SLOTS],
}

impl Default for Block {
    fn default() -> Self {
        Self::RIGHT
    }
}

/// The slot of a clock, by the number that `clock_gettime` has for it; `None` if it never goes wrong.
#[inline(always)]
#[must_use]
pub const fn slot_of(clock: u32) -> Option<usize> {
    /// Four bits a clock. Real time and its coarse one, monotonic, two of processors, raw, coarse, since boot, two alarms,
    /// one that is no more, TAI.
    const SLOT: u64 = 0x1fff_4203_ff20;
    if clock > 11 {
        return None;
    }
    // Neither LLVM nor the verifier is to know which: both would make more of it than a comparison.
    let slot = (SLOT >> (4 * clock) & 15) as usize;
    if slot < SLOTS { Some(slot) } else { None }
}

impl Block {
    /// All clocks go right.
    pub const RIGHT: Self = Self { window: 0, slots: [SlotLine::RIGHT; SLOTS] };

    /// What the clock of a slot says when it should say `value`.
    #[inline(always)]
    #[must_use]
    pub fn skewed(&self, slot: usize, value: u64) -> u64 {
        match self.slots.get(slot) {
            Some(line) => line.skewed(self.window, value),
            None => value,
        }
    }
}

impl SlotLine {
    /// What a clock on this line says when it should say `value`: as [`Block::skewed`].
    #[inline(always)]
    #[must_use]
    pub fn skewed(&self, window: u64, value: u64) -> u64 {
        let elapsed = value.wrapping_sub(self.start);
        if elapsed >= window {
            return value;
        }
        let gained = if elapsed >= MARGIN {
            gained(elapsed - MARGIN, self.slope)
        } else {
            gained(MARGIN - elapsed, self.before.wrapping_neg())
        };
        let skewed = value.cast_signed().wrapping_add(self.offset).wrapping_add(gained);
        if skewed < 0 { 0 } else { skewed.cast_unsigned() }
    }
}

/// `run * slope / 2^32`, rounded down, in the 64 bits there are: BPF has no longer product. Each of the four products of
/// halves that matter is whole, and only the last one is cut.
#[inline(always)]
fn gained(run: u64, slope: i64) -> i64 {
    let (high, low) = ((run >> 32).cast_signed(), (run & 0xffff_ffff).cast_signed());
    let (whole, part) = (slope >> 32, slope.cast_unsigned() & 0xffff_ffff);
    let fraction = (low.cast_unsigned().wrapping_mul(part) >> 32).cast_signed();
    high.wrapping_mul(slope).wrapping_add(low.wrapping_mul(whole)).wrapping_add(fraction)
}

const _: () = assert!(size_of::<HoldSlot>() == 64);
const _: () = assert!(size_of::<ExecEvent>() == 24);
const _: () = assert!(size_of::<Tally>() == 64);
const _: () = assert!(size_of::<Watch>() == 24);
const _: () = assert!(size_of::<SlotLine>() == 32);
const _: () = assert!(size_of::<Block>() == 168);

#[cfg(feature = "user")]
mod pod {
    use super::{Block, ExecEvent, HoldSlot, Tally};

    // SAFETY: `#[repr(C)]`, integers only, and the sizes asserted above leave no padding.
    unsafe impl aya::Pod for HoldSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ExecEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Block {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn clocks_have_their_slots() {
        let slots: Vec<_> = (0..13).map(slot_of).collect();
        let [real, tai, monotonic, raw, boot] = [0, 1, 2, 3, 4].map(Some);
        let expected = [real, monotonic, None, None, raw, real, monotonic, boot, None, None, None, tai, None];
        assert_eq!(slots, expected);
        assert_eq!(slot_of(u32::MAX), None);
    }

    #[test]
    fn a_clock_that_goes_right_is_left_alone() {
        for value in [0, 1, SECOND, 1_800_000_000 * SECOND, u64::MAX] {
            assert_eq!(Block::RIGHT.skewed(2, value), value);
            let mut block = Block { window: NEVER - 1, ..Block::RIGHT };
            block.slots[0].slope = 1 << 32;
            assert_eq!(block.skewed(0, value.min(NEVER - 1)), value.min(NEVER - 1));
            assert_eq!(block.skewed(SLOTS, value), value);
        }
    }

    #[test]
    fn steps_and_drifts() {
        let start = 1_000 * SECOND;
        let mut block = Block { window: 100 * SECOND, slots: [SlotLine::RIGHT; SLOTS] };
        block.slots[0] = SlotLine { start: start - MARGIN, offset: -30, slope: 0, before: 0 };
        assert_eq!(
            [start - MARGIN - 1, start - MARGIN].map(|value| block.skewed(0, value)),
            [start - MARGIN - 1, start - MARGIN - 30]
        );
        assert_eq!(block.skewed(1, start), start, "another clock");
        // Twice as fast, and at half the speed.
        block.slots[0].slope = 1 << 32;
        assert_eq!(block.skewed(0, start + 7), start + 14 - 30);
        block.slots[0].slope = -1 << 31;
        assert_eq!(block.skewed(0, start + 7), start + 7 - 4 - 30, "rounded down");
        block.slots[0].offset = i64::MIN / 2;
        assert_eq!(block.skewed(0, start), 0);
    }

    proptest! {
        /// Against the product of 128 bits.
        #[test]
        fn products_are_whole(run: u64, slope: i64) {
            let expected = (i128::from(run) * i128::from(slope)) >> 32;
            prop_assert_eq!(gained(run, slope), expected as i64);
        }

        /// Against the definition, wherever that has room.
        #[test]
        fn as_defined(value in 0..1u64 << 62, before in 0..1u64 << 40, window: u64, slope in -1i64 << 34..1i64 << 34, offset in -1i64 << 61..1i64 << 61) {
            let start = value.wrapping_sub(before);
            let mut block = Block { window, ..Block::RIGHT };
            block.slots[3] = SlotLine { start, offset, slope, before: slope / 3 };
            let run = i128::from(before) - (1 << 30);
            let slope = if run < 0 { slope / 3 } else { slope };
            let skewed = i128::from(value) + i128::from(offset) + ((run * i128::from(slope)) >> 32);
            let expected = if before >= window { value } else { skewed.max(0) as u64 };
            prop_assert_eq!(block.skewed(3, value), expected);
        }
    }
}
