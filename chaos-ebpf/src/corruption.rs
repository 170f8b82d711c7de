//! Where bits of a packet are flipped, and what must be put right for it.

use crate::packet::protocol;

/// Where a bit is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which byte of the frame.
    pub byte: u32,
    /// Which bit of it, 0..8.
    pub bit: u32,
}

impl Place {
    /// Any bit of the bytes from `start` to `end`, by two random numbers.
    #[inline(always)]
    #[must_use]
    pub fn random(start: u32, end: u32, byte: u32, bit: u32) -> Self {
        let among = u64::from(end.wrapping_sub(start));
        Self { byte: start.wrapping_add(((u64::from(byte) * among) >> 32) as u32), bit: bit & 7 }
    }

    /// The `number`-th bit from the byte `offset` on.
    #[inline(always)]
    #[must_use]
    pub fn at(start: u32, offset: u32, number: u32) -> Self {
        Self { byte: start.wrapping_add(offset).wrapping_add(number >> 3), bit: number & 7 }
    }

    /// Where the two bytes begin that the checksum sums as one, of a transport header that begins there.
    #[inline(always)]
    #[must_use]
    pub fn word(self, transport: u32) -> u32 {
        self.byte.wrapping_sub(self.byte.wrapping_sub(transport) & 1)
    }

    /// The bit within these, as they are read from the packet.
    #[inline(always)]
    #[must_use]
    pub fn mask(self, transport: u32) -> u16 {
        let second = self.byte.wrapping_sub(transport) & 1;
        let bit = 1u16 << self.bit;
        // In the order of the packet's bytes, whatever the machine's.
        u16::from_be(if second == 0 { bit << 8 } else { bit })
    }
}

/// How far behind the beginning of the transport header the checksum lies; 0 if there is none that we know.
#[inline(always)]
#[must_use]
pub fn checksum(protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => 16,
        protocol::UDP | protocol::UDPLITE => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => 0,
    }
}

/// How long the transport header is; `data_offset` is the 13th byte of TCP's.
#[inline(always)]
#[must_use]
pub fn payload(protocol: u8, data_offset: u8) -> u32 {
    match protocol {
        protocol::TCP => u32::from(data_offset >> 4) * 4,
        protocol::UDP | protocol::UDPLITE | protocol::ICMP | protocol::ICMPV6 => 8,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_random_place_lies_in_the_packet(start in 0..2000u32, more in 1..9000u32, byte: u32, bit: u32) {
            let place = Place::random(start, start + more, byte, bit);
            prop_assert!((start..start + more).contains(&place.byte) && place.bit < 8);
        }

        /// Flipping by words is flipping the byte.
        #[test]
        fn words_and_bytes(packet in proptest::collection::vec(any::<u8>(), 42..60), transport in 0..20u32, byte in 20..40u32, bit in 0..8u32) {
            let place = Place { byte, bit };
            let at = place.word(transport) as usize;
            let mut flipped = packet.clone();
            let word = u16::from_ne_bytes([packet[at], packet[at + 1]]) ^ place.mask(transport);
            flipped[at..at + 2].copy_from_slice(&word.to_ne_bytes());
            let mut expected = packet;
            expected[byte as usize] ^= 1 << bit;
            prop_assert_eq!(flipped, expected);
            prop_assert_eq!((place.word(transport) - transport) % 2, 0);
        }
    }

    #[test]
    fn bits_in_a_row() {
        assert_eq!(Place::at(100, 7, 0), Place { byte: 107, bit: 0 });
        assert_eq!(Place::at(100, 7, 9), Place { byte: 108, bit: 1 });
    }
}
