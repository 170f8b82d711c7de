//! Fields of the kernel's structures, by their place, and what becomes of a program that reads one which this kernel has not.

/// In place of the offset of a field that was not found.
pub const MISSING: u32 = u32::MAX;

/// A helper that no kernel has, as the verifier writes it.
///
/// A program that reads a field which was not found calls it, and is refused for that. One that would only read it with other
/// constants is not: what a load's constants leave unreached the verifier does not look at. libbpf does the same where it cannot
/// resolve a relocation.
pub const REFUSED: u32 = 0x000f_1e1d;

/// Bytes from the start of a structure to a field.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[must_use]
pub fn at(offset: u32) -> usize {
    if offset != MISSING {
        return offset as usize;
    }
    // SAFETY: that is how helpers are called, by their number in place of an address; this one never is.
    let none: extern "C" fn() -> u64 = unsafe { core::mem::transmute(REFUSED as usize) };
    none() as usize
}

/// The same where nothing is loaded.
#[cfg(not(target_arch = "bpf"))]
#[must_use]
pub fn at(offset: u32) -> usize {
    offset as usize
}
