//! Whether a name matches a pattern with wildcards, with one step for each byte of the name.
//!
//! Places in the pattern are the bits of a number, and all that the name may be at are followed at once: the Shift-And
//! algorithm with wildcards (Baeza-Yates and Gonnet, CACM 35, 1992; Navarro and Raffinot, *Flexible Pattern Matching in
//! Strings*, 2002, section 4.2).

/// Most characters of a pattern, its stars aside: the bits of a number but one.
pub const LONGEST: usize = 63;

/// A pattern of one run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glob {
    /// The rules that want what matches.
    pub rules: u64,
    /// The place behind its last character.
    pub end: u64,
    /// The places at which any byte may be skipped.
    pub stays: u64,
    /// By byte, the places from which it leads on to the next.
    pub next: [u64; 256],
}

/// The places a name may be at before its first byte.
pub const START: u64 = 1;

impl Glob {
    /// Takes nothing.
    pub const NOTHING: Self = Self { rules: 0, end: 0, stays: 0, next: [0; 256] };

    /// The places a name may be at after one more byte.
    #[inline(always)]
    #[must_use]
    pub fn step(&self, places: u64, byte: u8) -> u64 {
        places & self.stays | (places & self.next[byte as usize]) << 1
    }
}
