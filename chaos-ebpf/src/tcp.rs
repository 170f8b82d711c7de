//! TCP: what a packet says of its connection, and the resets it can be turned into.

use crate::packet::protocol;

/// Control bits (RFC 9293 section 3.1).
pub mod control {
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement number is one.
    pub const ACK: u8 = 1 << 4;
}

/// Length of a header without options, in bytes.
pub const HEADER: u32 = 20;

/// Where the [`control`] bits lie in the header.
pub const CONTROL: u32 = 13;

/// Where the checksum lies in the header.
pub const CHECKSUM: u32 = 16;

/// A segment that says nothing but that its connection is reset. Numbers are in network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    source_port: u16,
    destination_port: u16,
    sequence: u32,
    acknowledgement: u32,
}

impl Reset {
    /// The reset that goes the way opposite to a segment, by the segment's header.
    ///
    /// What the segment acknowledges, less `before`, is the reset's own number; what comes `after` so many bytes of the
    /// segment's is what it acknowledges. A reset counts only if it has exactly the number that is waited for (RFC 5961
    /// section 3.2). To the segment's sender that is what it has acknowledged: nothing is `before`, and its payload comes
    /// `after`. Turned once more, with the payload `before`, it is the reset to the receiver, which waits for the segment's
    /// own number.
    #[inline(always)]
    #[must_use]
    pub fn turned(header: &[u32; 5], before: u32, after: u32) -> Self {
        let [destination_port, source_port] = ports(header[0]);
        Self {
            source_port,
            destination_port,
            sequence: u32::from_be(header[2]).wrapping_sub(before).to_be(),
            acknowledgement: u32::from_be(header[1]).wrapping_add(after).to_be(),
        }
    }

    /// The header, with the [`sum`] of the addresses. With `partial` somebody else completes the checksum, which begins
    /// with that of the pseudo header.
    #[inline(always)]
    #[must_use]
    pub fn header(&self, addresses: u32, partial: bool) -> [u32; 5] {
        let Self { source_port, destination_port, sequence, acknowledgement } = *self;
        let offset_and_bits = HEADER >> 2 << 28 | u32::from(control::RST | control::ACK) << 16;
        let mut header =
            [words(source_port, destination_port), sequence, acknowledgement, offset_and_bits.to_be(), 0];
        let mut sum =
            addresses + u32::from(u16::from(protocol::TCP).to_be()) + u32::from((HEADER as u16).to_be());
        if !partial {
            sum += self::sum(&header);
        }
        let folded = fold(sum);
        header[4] = words(if partial { folded } else { !folded }, 0);
        header
    }
}

/// Two numbers in the order in which they lie in memory.
#[inline(always)]
fn words(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
fn ports(both: u32) -> [u16; 2] {
    let [a, b, c, d] = both.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// The sum of the 16-bit words of these, which is the same in either byte order (RFC 1071 section 2.B); so many that it
/// stays far below 2^32.
#[inline(always)]
#[must_use]
pub fn sum<const WORDS: usize>(words: &[u32; WORDS]) -> u32 {
    let mut sum = 0;
    for word in words {
        sum += (word & 0xffff) + (word >> 16);
    }
    sum
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the letter of RFC 1071: 16-bit words in network byte order.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum: u32 =
            bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn octets(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    proptest! {
        #[test]
        fn checksums_are_right(
            source: [u32; 4], destination: [u32; 4], v6: bool, header: [u32; 5], payload in 0_u32..65_536,
        ) {
            let cut = |address: [u32; 4]| if v6 { address } else { [address[0], 0, 0, 0] };
            let [source, destination] = [cut(source), cut(destination)];
            let addresses = sum(&source) + sum(&destination);
            let back = Reset::turned(&header, 0, payload);
            for reset in [back, Reset::turned(&back.header(addresses, false), payload, 0)] {
                let pseudo = [octets(&source), octets(&destination), vec![0, 6, 0, 20]].concat();
                let whole = octets(&reset.header(addresses, false));
                prop_assert_eq!(naive(&[pseudo.clone(), whole].concat()), 0xffff);
                let partial = octets(&reset.header(addresses, true));
                prop_assert_eq!(u16::from_be_bytes([partial[16], partial[17]]), naive(&pseudo));
            }
        }
    }

    #[test]
    fn each_end_gets_the_number_it_waits_for() {
        let header = [
            u32::from_ne_bytes([0x30, 0x39, 0, 80]),
            1000_u32.to_be(),
            7000_u32.to_be(),
            u32::from_ne_bytes([0x80, 0x18, 0, 0]),
            0,
        ];
        let back = Reset::turned(&header, 0, 100).header(0, false);
        let on = Reset::turned(&back, 100, 0).header(0, false);
        let [on, back] = [octets(&on), octets(&back)];
        assert_eq!(on[..4], [0x30, 0x39, 0, 80]);
        assert_eq!(back[..4], [0, 80, 0x30, 0x39]);
        let number = |bytes: &[u8], at: usize| {
            bytes[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        };
        assert_eq!([number(&on, 4), number(&on, 8)], [1000, 7000]);
        assert_eq!([number(&back, 4), number(&back, 8)], [7000, 1100]);
        for reset in [on, back] {
            assert_eq!(reset[12..16], [0x50, control::RST | control::ACK, 0, 0]);
        }
    }
}
