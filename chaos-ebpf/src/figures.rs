//! What a profile says of a peer, and the state of the wire to it, in one entry: one look-up finds both.

use crate::abi::{Delay, Rate, Wire};

/// Most peers of a profile.
pub const MOST_PEERS: u32 = 65_536;

/// A unit of 16 nanoseconds: 60 seconds of them are 32 bits.
const WAIT_SHIFT: u32 = 4;

/// A peer's figures. They change while packets come by, each word for itself: what belongs together is in one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The delay, and in the lower half the jitter, both in units of 16 nanoseconds.
    pub wait: u64,
    /// Nanoseconds a byte takes on the wire, times 2^20; 0 for no time.
    pub byte_time: u64,
    /// How much may wait before the wire, in nanoseconds.
    pub limit: u64,
    /// Of a packet to be lost; see [`decide::fires`](crate::decide::fires).
    pub loss: u32,
    /// 0 if there are none after all.
    pub there: u32,
}

impl Figures {
    /// `wait` for this delay and jitter in nanoseconds, below 2^36.
    #[must_use]
    pub const fn wait(delay: u64, jitter: u64) -> u64 {
        (delay >> WAIT_SHIFT) << 32 | jitter >> WAIT_SHIFT
    }

    /// The delay of packets with this `wait`.
    #[inline(always)]
    #[must_use]
    pub const fn delay(wait: u64) -> Delay {
        let time = (wait >> 32) << WAIT_SHIFT;
        let jitter = (wait & 0xffff_ffff) << WAIT_SHIFT;
        Delay { time, jitter, correlation: 0, table: 0, entries: 0, pad: 0 }
    }

    /// The wire of packets with this `byte_time` and `limit`.
    #[inline(always)]
    #[must_use]
    pub const fn rate(byte_time: u64, limit: u64) -> Rate {
        Rate { byte_time, burst: 0, limit, overhead: 0, pad: 0 }
    }
}

/// All there is of a peer in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// What the profile says.
    pub figures: Figures,
    /// The packets' own doing.
    pub wire: Wire,
}

/// Whose figures a [`Change`] is of.
pub mod whose {
    /// An IPv4 address's.
    pub const V4: u32 = 0;
    /// An IPv6 address's.
    pub const V6: u32 = 1;
    /// Those of all addresses without figures of their own.
    pub const OTHERS: u32 = 2;
}

/// Figures in the place of others, which leaves the state of the wire: what [`FIGURES`](crate::abi::program::FIGURES)
/// is given for a packet. It returns 1 if there was an entry to be changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The kernel takes what lies here for an Ethernet header.
    pub header: [u32; 4],
    /// In network byte order, that of IPv4 being the first word.
    pub address: [u32; 4],
    /// See [`whose`].
    pub whose: u32,
    /// A [`Direction`](crate::abi::Direction).
    pub direction: u32,
    /// The new ones.
    pub figures: Figures,
}

const _: () = assert!(size_of::<Figures>() == 32);
const _: () = assert!(size_of::<Peer>() == 48);
const _: () = assert!(size_of::<Change>() == 72);

#[cfg(feature = "user")]
mod pod {
    use super::{Change, Peer};

    // SAFETY: `#[repr(C)]`, integers only, and the sizes asserted above leave no padding.
    unsafe impl aya::Pod for Peer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Change {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// To the unit, and neither disturbs the other.
        #[test]
        fn delays_come_back(delay in 0..1_u64 << 36, jitter in 0..1_u64 << 36) {
            let Delay { time, jitter: spread, .. } = Figures::delay(Figures::wait(delay, jitter));
            prop_assert!(time <= delay && delay - time < 16);
            prop_assert!(spread <= jitter && jitter - spread < 16);
        }
    }
}
