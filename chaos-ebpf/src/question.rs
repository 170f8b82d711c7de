//! What a DNS query asks for, and the header of an answer to it (RFC 1035 section 4.1).
//!
//! All names that rules want are one automaton ([`NameState`](crate::abi::NameState)), which takes a name as it lies in
//! the packet: the length that begins a label is the dot before it, letters of either case are one.

/// Bytes of a message's header, as six numbers.
pub const HEADER: u32 = 12;

/// Most bytes of a name, its last length included (RFC 1035 section 2.3.4).
pub const LONGEST_NAME: u32 = 255;

/// Most bytes of a question: a name, a type and a class.
pub const LONGEST_QUESTION: u32 = LONGEST_NAME + 4;

/// Longest label.
const LONGEST_LABEL: u8 = 63;

/// Kinds of bytes that names can be told apart by, and room for more: as many as make a bound that is a mask.
pub const CLASSES: usize = 64;

/// Of a byte that no pattern can name.
pub const OTHER: u8 = 0;

/// Of the dot between two labels. One within a label is no such dot, and of no pattern.
pub const DOT: u8 = 39;

/// The class of each byte of a label.
pub static CLASS_OF: [u8; 256] = class_of();

const fn class_of() -> [u8; 256] {
    let mut classes = [OTHER; 256];
    let mut letter = 0;
    while letter < 26 {
        classes[(b'a' + letter) as usize] = 1 + letter;
        classes[(b'A' + letter) as usize] = 1 + letter;
        letter += 1;
    }
    let mut digit = 0;
    while digit < 10 {
        classes[(b'0' + digit) as usize] = 27 + digit;
        digit += 1;
    }
    classes[b'-' as usize] = 37;
    classes[b'_' as usize] = 38;
    classes
}

/// What a byte of a name is to the automaton: a class, or one of these.
pub mod step {
    /// The length of the first label: nothing yet.
    pub const FIRST: u32 = 64;
    /// The end of the name.
    pub const END: u32 = 65;
    /// No name as it must be: compressed, say, which the name of a question cannot be.
    pub const BAD: u32 = 66;
}

/// Takes the next byte of a name, at `place` in it; `left` is how many bytes the label still has.
#[inline(always)]
#[must_use]
pub fn step(place: u32, byte: u8, left: &mut u32, class_of: &[u8; 256]) -> u32 {
    if *left != 0 {
        *left -= 1;
        return u32::from(class_of[usize::from(byte)]);
    }
    *left = u32::from(byte);
    if byte == 0 {
        step::END
    } else if byte > LONGEST_LABEL {
        step::BAD
    } else if place == 0 {
        step::FIRST
    } else {
        u32::from(DOT)
    }
}

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;

/// Whether a message with this header, as it lies in the packet, is a standard query with one question and no answer.
#[inline(always)]
#[must_use]
pub fn is_query(header: &[u16; 6]) -> bool {
    u16::from_be(header[1]) & (RESPONSE | OPCODE) == 0
        && u16::from_be(header[2]) == 1
        && header[3] == 0
        && header[4] == 0
}

/// The flags, as they lie in the packet, of an answer without records to a query with these flags.
#[inline(always)]
#[must_use]
pub fn answered(flags: u16, rcode: u32) -> u16 {
    let kept = u16::from_be(flags) & (RECURSION_DESIRED | CHECKING_DISABLED);
    (RESPONSE | RECURSION_AVAILABLE | kept | rcode as u16 & 0xf).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classes of a name in wire format, or why there are none.
    fn walk(name: &[u8]) -> Result<Vec<u32>, u32> {
        let (mut left, mut classes) = (0, Vec::new());
        for (place, byte) in (0..).zip(name) {
            match step(place, *byte, &mut left, &CLASS_OF) {
                step::END => return Ok(classes),
                step::FIRST => {}
                step::BAD => return Err(step::BAD),
                class => classes.push(class),
            }
        }
        Err(step::FIRST)
    }

    #[test]
    fn names() {
        assert_eq!(walk(b"\x01a\x02Z9\x00"), Ok(vec![1, 39, 26, 36]));
        assert_eq!(walk(b"\x00"), Ok(vec![]));
        // A dot within a label, and bytes that are no letters.
        assert_eq!(walk(b"\x04.-_\xff\x00"), Ok(vec![0, 37, 38, 0]));
        // Compressed, and without an end.
        assert_eq!(walk(b"\x01a\xc0\x0c"), Err(step::BAD));
        assert_eq!(walk(b"\x40a"), Err(step::BAD));
        assert_eq!(walk(b"\x03ab"), Err(step::FIRST));
    }

    #[test]
    fn classes_fit_a_row() {
        assert!(CLASS_OF.iter().all(|class| *class < DOT) && usize::from(DOT) < CLASSES);
    }

    #[test]
    fn queries() {
        let header = |flags: u16, counts: [u16; 4]| {
            let [a, b, c, d] = counts.map(u16::to_be);
            [7, flags.to_be(), a, b, c, d]
        };
        assert!(is_query(&header(0x0120, [1, 0, 0, 1])) && is_query(&header(0, [1, 0, 0, 0])));
        // An answer, an update, no question, two, an answer in a query.
        for (flags, counts) in [
            (0x8100, [1, 0, 0, 0]),
            (0x2800, [1, 0, 0, 0]),
            (0, [0; 4]),
            (0, [2, 0, 0, 0]),
            (0, [1, 1, 0, 0]),
        ] {
            assert!(!is_query(&header(flags, counts)), "{flags:x} {counts:?}");
        }
    }

    #[test]
    fn answers() {
        // What dig sends: recursion desired, authentic data understood.
        assert_eq!(answered(0x0120_u16.to_be(), 3), 0x8183_u16.to_be());
        assert_eq!(answered(0x0010_u16.to_be(), 0), 0x8090_u16.to_be());
    }
}
