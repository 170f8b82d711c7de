//! The parameters of a skew as the stubs read them, and what they come to.

use std::mem::offset_of;

use chaos_ebpf::time::{Block, SlotLine};

/// The length of a block, in bytes; the window is at its start.
pub(super) const LEN: usize = size_of::<Block>();
/// Where the lines lie.
pub(super) const LINES: usize = offset_of!(Block, slots);
/// The length of a line.
pub(super) const LINE_LEN: usize = size_of::<SlotLine>();
/// Where a line's start lies in it, its offset, and its slopes.
pub(super) const START: usize = offset_of!(SlotLine, start);
/// See [`START`].
pub(super) const OFFSET: usize = offset_of!(SlotLine, offset);
/// See [`START`].
pub(super) const SLOPE: usize = offset_of!(SlotLine, slope);
/// See [`START`].
pub(super) const BEFORE: usize = offset_of!(SlotLine, before);

/// As the stubs read it: all numbers of 64 bits, least byte first.
pub(super) fn to_bytes(block: &Block) -> [u8; LEN] {
    let lines = block
        .slots
        .iter()
        .flat_map(|line| [line.start, line.offset as u64, line.slope as u64, line.before as u64]);
    let mut bytes = [0; LEN];
    for (place, word) in bytes.chunks_exact_mut(8).zip([block.window].into_iter().chain(lines)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Nanoseconds in a second.
pub(super) const SECOND: u64 = 1_000_000_000;
/// What the stubs do instead of a division by [`SECOND`]: `(value >> SHIFT.0) * SECONDS >> 64 >> SHIFT.1`, exact for
/// all 64 bits.
pub(super) const SECONDS: u64 = 0x0044_B82F_A09B_5A53;
/// See [`SECONDS`].
pub(super) const SECONDS_SHIFT: (u8, u8) = (9, 11);
/// What the stubs do instead of a division by 1000, for less than a second: `value * MICROS >> MICROS_SHIFT`.
pub(super) const MICROS: u32 = 0x1062_4DD3;
/// See [`MICROS`].
pub(super) const MICROS_SHIFT: u8 = 38;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(value: u64) -> u64 {
        let (before, after) = SECONDS_SHIFT;
        let product = u128::from(value >> before) * u128::from(SECONDS);
        ((product >> 64) as u64) >> after
    }

    fn micros(value: u64) -> u64 {
        (value * u64::from(MICROS)) >> MICROS_SHIFT
    }

    #[test]
    fn multiplications_divide_at_the_edges() {
        let near = |middle: u64| (-2..=2).map(move |by| middle.wrapping_add_signed(by));
        let multiples = [1, 2, 1 << 20, (1 << 33) - 1, u64::MAX / SECOND].map(|times| times * SECOND);
        let powers = (0..64).map(|power| 1 << power);
        for value in multiples.into_iter().chain(powers).chain([0]).flat_map(near) {
            assert_eq!(seconds(value), value / SECOND, "{value}");
        }
        for value in 0..SECOND / 1000 {
            let first = value * 1000;
            assert_eq!([first, first + 999].map(micros), [value; 2], "{value}");
        }
    }

    proptest! {
        #[test]
        fn multiplications_divide(value: u64, below in 0..SECOND) {
            prop_assert_eq!(seconds(value), value / SECOND);
            prop_assert_eq!(micros(below), below / 1000);
        }
    }
}
