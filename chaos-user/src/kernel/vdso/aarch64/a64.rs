//! The few instructions of A64 that the stubs need, as words. Registers are numbers; sizes are 64 bits where the name
//! does not say `w`, or `b` for a byte. Distances and offsets are in bytes.
//! <https://developer.arm.com/documentation/ddi0602/latest/Base-Instructions>

/// `xzr`, or `wzr`.
pub(super) const ZERO: u32 = 31;
/// `sp`, where that is meant by the number.
const SP: u32 = 31;

/// RET, to `x30`.
pub(super) const RET: u32 = 0xd65f_03c0;
/// SVC #0.
pub(super) const SVC: u32 = 0xd400_0001;
/// DMB ISHLD: what was read before is read before what is read or written after.
pub(super) const DMB_ISHLD: u32 = 0xd503_39bf;

/// A condition, by its number.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    /// EQ.
    Equal = 0,
    /// NE.
    NotEqual = 1,
    /// HS, which is carry.
    HigherOrSame = 2,
    /// PL: positive, or zero.
    Positive = 5,
}

/// A signed number of so many bits, in units of a word.
const fn signed(way: i32, bits: u32) -> u32 {
    (way >> 2).cast_unsigned() & ((1 << bits) - 1)
}

/// B.
pub(super) const fn b(way: i32) -> u32 {
    0x1400_0000 | signed(way, 26)
}

/// BL.
pub(super) const fn bl(way: i32) -> u32 {
    0x9400_0000 | signed(way, 26)
}

/// B.cond.
pub(super) const fn b_if(condition: Condition, way: i32) -> u32 {
    0x5400_0000 | signed(way, 19) << 5 | condition as u32
}

/// CBZ.
pub(super) const fn cbz_x(t: u32, way: i32) -> u32 {
    0xb400_0000 | signed(way, 19) << 5 | t
}

/// CBNZ, 32 bits.
pub(super) const fn cbnz_w(t: u32, way: i32) -> u32 {
    0x3500_0000 | signed(way, 19) << 5 | t
}

/// TBNZ, of a bit below 32.
pub(super) const fn tbnz(t: u32, bit: u32, way: i32) -> u32 {
    0x3700_0000 | bit << 19 | signed(way, 14) << 5 | t
}

/// ADR.
pub(super) const fn adr(d: u32, way: i32) -> u32 {
    let way = way.cast_unsigned();
    0x1000_0000 | (way & 3) << 29 | (way >> 2 & 0x7_ffff) << 5 | d
}

/// MOVZ, shifted left by `part` times 16.
pub(super) const fn movz(d: u32, value: u16, part: u32) -> u32 {
    0xd280_0000 | part << 21 | (value as u32) << 5 | d
}

/// MOVK, shifted likewise.
pub(super) const fn movk(d: u32, value: u16, part: u32) -> u32 {
    0xf280_0000 | part << 21 | (value as u32) << 5 | d
}

/// A number of 8-byte units in the place of LDP and STP.
const fn pairs(offset: i32) -> u32 {
    ((offset >> 3).cast_unsigned() & 0x7f) << 15
}

/// STP, [sp, #offset]!.
pub(super) const fn stp_before(t: u32, u: u32, offset: i32) -> u32 {
    0xa980_0000 | pairs(offset) | u << 10 | SP << 5 | t
}

/// LDP, [sp], #offset.
pub(super) const fn ldp_after(t: u32, u: u32, offset: i32) -> u32 {
    0xa8c0_0000 | pairs(offset) | u << 10 | SP << 5 | t
}

/// STP, [sp, #offset].
pub(super) const fn stp(t: u32, u: u32, offset: i32) -> u32 {
    0xa900_0000 | pairs(offset) | u << 10 | SP << 5 | t
}

/// LDP, [sp, #offset].
pub(super) const fn ldp(t: u32, u: u32, offset: i32) -> u32 {
    0xa940_0000 | pairs(offset) | u << 10 | SP << 5 | t
}

/// STP, [n].
pub(super) const fn stp_at(t: u32, u: u32, n: u32) -> u32 {
    0xa900_0000 | u << 10 | n << 5 | t
}

/// LDP, [n].
pub(super) const fn ldp_at(t: u32, u: u32, n: u32) -> u32 {
    0xa940_0000 | u << 10 | n << 5 | t
}

/// LDR, [n, #offset], the offset a multiple of 8.
pub(super) const fn ldr(t: u32, n: u32, offset: u32) -> u32 {
    0xf940_0000 | (offset >> 3) << 10 | n << 5 | t
}

/// LDRB, [n].
pub(super) const fn ldrb(t: u32, n: u32) -> u32 {
    0x3940_0000 | n << 5 | t
}

/// LDRB, [n, m, UXTW].
pub(super) const fn ldrb_at_w(t: u32, n: u32, m: u32) -> u32 {
    0x3860_4800 | m << 16 | n << 5 | t
}

/// LDARB: what is read or written after is so after this.
pub(super) const fn ldarb(t: u32, n: u32) -> u32 {
    0x08df_fc00 | n << 5 | t
}

/// AND, 32 bits, #1.
pub(super) const fn and_w_one(d: u32, n: u32) -> u32 {
    0x1200_0000 | n << 5 | d
}

/// ADD, #number below 4096.
pub(super) const fn add_number(d: u32, n: u32, number: u32) -> u32 {
    0x9100_0000 | number << 10 | n << 5 | d
}

/// ADD.
pub(super) const fn add(d: u32, n: u32, m: u32) -> u32 {
    0x8b00_0000 | m << 16 | n << 5 | d
}

/// ADDS.
pub(super) const fn adds(d: u32, n: u32, m: u32) -> u32 {
    0xab00_0000 | m << 16 | n << 5 | d
}

/// SUB.
pub(super) const fn sub(d: u32, n: u32, m: u32) -> u32 {
    0xcb00_0000 | m << 16 | n << 5 | d
}

/// SUBS.
pub(super) const fn subs(d: u32, n: u32, m: u32) -> u32 {
    0xeb00_0000 | m << 16 | n << 5 | d
}

/// CMP.
pub(super) const fn cmp(n: u32, m: u32) -> u32 {
    subs(ZERO, n, m)
}

/// CMP, 32 bits.
pub(super) const fn cmp_w(n: u32, m: u32) -> u32 {
    0x6b00_0000 | m << 16 | n << 5 | ZERO
}

/// CMP, 32 bits, #number below 4096.
pub(super) const fn cmp_w_number(n: u32, number: u32) -> u32 {
    0x7100_0000 | number << 10 | n << 5 | ZERO
}

/// MOV, which is ORR.
pub(super) const fn mov(d: u32, m: u32) -> u32 {
    0xaa00_0000 | m << 16 | ZERO << 5 | d
}

/// CSEL: `n` if the condition holds, or else `m`.
pub(super) const fn csel(d: u32, n: u32, m: u32, condition: Condition) -> u32 {
    0x9a80_0000 | m << 16 | (condition as u32) << 12 | n << 5 | d
}

/// MADD: `a + n * m`.
pub(super) const fn madd(d: u32, n: u32, m: u32, a: u32) -> u32 {
    0x9b00_0000 | m << 16 | a << 10 | n << 5 | d
}

/// MSUB: `a - n * m`.
pub(super) const fn msub(d: u32, n: u32, m: u32, a: u32) -> u32 {
    0x9b00_8000 | m << 16 | a << 10 | n << 5 | d
}

/// SMULH: the upper half of a signed product.
pub(super) const fn smulh(d: u32, n: u32, m: u32) -> u32 {
    0x9b40_7c00 | m << 16 | n << 5 | d
}

/// UMULH: that of one without signs.
pub(super) const fn umulh(d: u32, n: u32, m: u32) -> u32 {
    0x9bc0_7c00 | m << 16 | n << 5 | d
}

/// EXTR: 64 bits of `n:m`, from the bit on.
pub(super) const fn extr(d: u32, n: u32, m: u32, bit: u32) -> u32 {
    0x93c0_0000 | m << 16 | bit << 10 | n << 5 | d
}

/// LSR, #shift, which is UBFM.
pub(super) const fn lsr(d: u32, n: u32, shift: u32) -> u32 {
    0xd340_fc00 | shift << 16 | n << 5 | d
}

/// Whether it is BTI, which an indirect call has to find.
pub(super) const fn is_landing_pad(word: u32) -> bool {
    word & 0xffff_ff3f == 0xd503_241f
}

/// Whether it is PACIASP or PACIBSP, which that may find as well.
pub(super) const fn is_signing(word: u32) -> bool {
    word & 0xffff_ffbf == 0xd503_233f
}

/// Whether it is B.
pub(super) const fn is_b(word: u32) -> bool {
    word & 0xfc00_0000 == 0x1400_0000
}

/// Whether where it lies matters to it: ADR and ADRP, LDR of a literal, and [`target`]'s.
pub(super) fn is_relative(word: u32) -> bool {
    word & 0x1f00_0000 == 0x1000_0000 || word & 0x3b00_0000 == 0x1800_0000 || target(word, 1 << 30).is_some()
}

/// Where a branch leads that says so itself: B, BL, B.cond, CBZ, CBNZ, TBZ and TBNZ.
pub(super) fn target(word: u32, offset: usize) -> Option<usize> {
    let way = |at: u32, bits: u32| {
        let field = word >> at << (32 - bits);
        (field.cast_signed() >> (32 - bits)) << 2
    };
    let way = if word & 0x7c00_0000 == 0x1400_0000 {
        way(0, 26)
    } else if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        way(5, 19)
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        way(5, 14)
    } else {
        return None;
    };
    offset.checked_add_signed(way as isize)
}
