//! The stubs for 64-bit Arm. They were never run on one.
//!
//! An entry is one `b`, which is one store of four bytes. The instruction it replaces runs at the body's end, if it
//! means the same there.

mod a64;

use std::ops::Range;

use chaos_ebpf::time::MARGIN;

use super::{
    Function, Image, VdsoError,
    block::{BEFORE, LEN, LINES, MICROS, MICROS_SHIFT, OFFSET, SECOND, SECONDS, SECONDS_SHIFT, SLOPE, START},
    patch::{BLOCKS, CLOCKS, Code, Entry, HEADER, Kind, SEQ, SLOTS, Stubs},
};

/// The length of an instruction.
const WORD: usize = 4;

/// Numbers of system calls.
const CLOCK_GETTIME: u16 = 113;
const GETTIMEOFDAY: u16 = 169;

/// See [`Stubs`].
pub(super) struct Aarch64;

impl Stubs for Aarch64 {
    fn build(&self, image: &Image, kind: Kind, body: usize) -> Result<Code, VdsoError> {
        let functions = [&image.functions.clock_gettime, &image.functions.gettimeofday];
        let firsts = [First::new(image, functions[0])?, First::new(image, functions[1])?];
        let mut asm = Assembler { start: body + HEADER, words: Vec::new() };
        let starts = match kind {
            Kind::Call => [call(&mut asm, CLOCK_GETTIME), call(&mut asm, GETTIMEOFDAY)],
            Kind::Skew => skew(&mut asm, &firsts, body + SEQ),
        };
        let entry = |(first, start): (&First, usize)| {
            let jump = a64::b(distance(first.offset, start)).to_le_bytes().to_vec();
            Entry { cut: first.offset..first.offset + WORD, bytes: jump }
        };
        let entries = firsts.iter().zip(starts).map(entry).collect();
        Ok(Code { bytes: asm.words.into_iter().flat_map(u32::to_le_bytes).collect(), entries })
    }

    fn target(&self, image: &Image, function: &Function) -> Option<usize> {
        let offset = entry(image, function)?;
        let word = word(image, offset)?;
        a64::is_b(word).then(|| a64::target(word, offset))?
    }

    fn is_call(&self, _image: &Image, _function: &Function) -> bool {
        // Those too begin with a jump into the slack.
        false
    }
}

fn word(image: &Image, offset: usize) -> Option<u32> {
    image.bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Where a function is changed: after a landing pad for indirect calls, which has to stay.
fn entry(image: &Image, function: &Function) -> Option<usize> {
    let Range { start, end } = function.range;
    let offset = if a64::is_landing_pad(word(image, start)?) { start + WORD } else { start };
    (offset + WORD <= end).then_some(offset)
}

/// From one instruction to another, in bytes. A vDSO is a few pages long.
fn distance(from: usize, to: usize) -> i32 {
    (to as i64 - from as i64) as i32
}

/// The instruction that is replaced.
struct First {
    offset: usize,
    word: u32,
}

impl First {
    fn new(image: &Image, function: &Function) -> Result<Self, VdsoError> {
        let refused = |cause: String| VdsoError::Prologue { function: function.name, cause };
        let offset = entry(image, function).ok_or_else(|| refused("it is too short".into()))?;
        let word_at = |offset| word(image, offset).ok_or_else(|| refused("it is too short".into()));
        let first = word_at(offset)?;
        if a64::is_signing(first) {
            return Err(refused("it signs the return address there, which is also a landing pad".into()));
        }
        if a64::is_relative(first) {
            return Err(refused(format!("{first:#010x} means something else in another place")));
        }
        for from in function.range.clone().step_by(WORD).filter(|from| from + WORD <= function.range.end) {
            if a64::target(word_at(from)?, from) == Some(offset) {
                return Err(refused(format!("what is at {from:#x} leads there")));
            }
        }
        Ok(Self { offset, word: first })
    }
}

/// Instructions one after the other.
struct Assembler {
    /// Where the first lies in the image.
    start: usize,
    words: Vec<u32>,
}

/// An instruction that leads to a place not known yet.
struct Ahead {
    index: usize,
    make: fn(i32) -> u32,
}

impl Assembler {
    fn here(&self) -> usize {
        self.start + self.words.len() * WORD
    }

    fn put(&mut self, words: &[u32]) {
        self.words.extend(words);
    }

    /// One that leads to an offset in the image.
    fn to(&mut self, target: usize, make: impl Fn(i32) -> u32) {
        self.words.push(make(distance(self.here(), target)));
    }

    fn ahead(&mut self, make: fn(i32) -> u32) -> Ahead {
        self.words.push(0);
        Ahead { index: self.words.len() - 1, make }
    }

    /// Lets it lead to what comes next.
    fn land(&mut self, ahead: &Ahead) {
        let way = (self.words.len() - ahead.index) * WORD;
        self.words[ahead.index] = (ahead.make)(way as i32);
    }

    /// A register becomes a number.
    fn number(&mut self, register: u32, number: u64) {
        let parts = (0..4_u32).map(|part| (part, (number >> (16 * part)) as u16));
        let mut parts = parts.filter(|(_, part)| *part != 0);
        let (part, value) = parts.next().unwrap_or((0, 0));
        self.words.push(a64::movz(register, value, part));
        self.words.extend(parts.map(|(part, value)| a64::movk(register, value, part)));
    }
}

/// `mov x8, number; svc 0; ret`: where it begins.
fn call(asm: &mut Assembler, number: u16) -> usize {
    let start = asm.here();
    asm.put(&[a64::movz(8, number, 0), a64::SVC, a64::RET]);
    start
}

/// Where the functions begin.
fn skew(asm: &mut Assembler, firsts: &[First; 2], seq: usize) -> [usize; 2] {
    let originals = firsts.each_ref().map(|first| {
        let start = asm.here();
        asm.put(&[first.word]);
        asm.to(first.offset + WORD, a64::b);
        start
    });
    let adjust = adjust(asm, seq);
    [stub_clock_gettime(asm, originals[0], adjust, seq), stub_gettimeofday(asm, originals[1], adjust, seq)]
}

/// Keeps the sequence number: a clock is read while the block is in force that it is said by, or read again. Who is held
/// up between both would otherwise tell an old time by a new block. `x0` and `x1` are those that were given.
fn keep_seq(asm: &mut Assembler, seq: usize) {
    use a64::*;
    asm.put(&[ldp(0, 1, 16)]);
    asm.to(seq, |way| adr(5, way));
    asm.put(&[ldarb(5, 5), stp(5, 5, 32)]);
}

/// `x0` the clock, `x1` a `timespec`.
fn stub_clock_gettime(asm: &mut Assembler, original: usize, adjust: usize, seq: usize) -> usize {
    use a64::{Condition::*, *};
    let start = asm.here();
    asm.put(&[stp_before(29, 30, -48), stp(0, 1, 16)]);
    let again = asm.here();
    keep_seq(asm, seq);
    asm.to(original, bl);
    asm.put(&[ldp(4, 1, 16)]);
    let failed = asm.ahead(|way| cbnz_w(0, way));
    asm.put(&[cmp_w_number(4, CLOCKS as u32)]);
    let unknown = asm.ahead(|way| b_if(HigherOrSame, way));
    asm.to(seq + SLOTS - SEQ, |way| adr(5, way));
    // The upper half of x4 is the caller's rubbish.
    asm.put(&[ldrb_at_w(3, 5, 4)]);
    let none = asm.ahead(|way| tbnz(3, 7, way));
    asm.put(&[ldp_at(6, 7, 1)]);
    asm.number(8, SECOND);
    asm.put(&[madd(2, 6, 8, 7)]);
    asm.to(adjust, bl);
    asm.to(again, |way| b_if(NotEqual, way));
    asm.put(&[cmp(10, 2)]);
    let same = asm.ahead(|way| b_if(Equal, way));
    asm.put(&[stp_at(6, 7, 1)]);
    asm.land(&same);
    asm.put(&[movz(0, 0, 0)]);
    for ahead in [failed, unknown, none] {
        asm.land(&ahead);
    }
    asm.put(&[ldp_after(29, 30, 48), RET]);
    start
}

/// `x0` a `timeval` or 0, `x1` a `timezone` or 0.
fn stub_gettimeofday(asm: &mut Assembler, original: usize, adjust: usize, seq: usize) -> usize {
    use a64::{Condition::*, *};
    let start = asm.here();
    asm.to(original, |way| cbz_x(0, way));
    asm.put(&[stp_before(29, 30, -48), stp(0, 1, 16)]);
    let again = asm.here();
    keep_seq(asm, seq);
    asm.to(original, bl);
    asm.put(&[ldp(1, 4, 16)]);
    let failed = asm.ahead(|way| cbnz_w(0, way));
    asm.put(&[ldp_at(6, 7, 1)]);
    asm.number(8, 1000);
    asm.put(&[madd(7, 7, 8, ZERO)]);
    asm.number(8, SECOND);
    asm.put(&[madd(2, 6, 8, 7), movz(3, 0, 0)]);
    asm.to(adjust, bl);
    asm.to(again, |way| b_if(NotEqual, way));
    asm.put(&[cmp(10, 2)]);
    let same = asm.ahead(|way| b_if(Equal, way));
    asm.number(8, u64::from(MICROS));
    asm.put(&[madd(7, 7, 8, ZERO), lsr(7, 7, u32::from(MICROS_SHIFT)), stp_at(6, 7, 1)]);
    asm.land(&same);
    asm.put(&[movz(0, 0, 0)]);
    asm.land(&failed);
    asm.put(&[ldp_after(29, 30, 48), RET]);
    start
}

/// What [`Block::skewed`](chaos_ebpf::time::Block::skewed) says, and its division: `x2` the value, `x3` half of where its
/// line lies, and on the stack the sequence number from before it was read; then "not equal" if there is another by now, or
/// else `x10` the new value, `x6` its seconds and `x7` nanoseconds. `x1` and `x2` stay.
fn adjust(asm: &mut Assembler, seq: usize) -> usize {
    use a64::{Condition::*, *};
    let start = asm.here();
    asm.to(seq, |way| adr(4, way));
    asm.put(&[add(3, 3, 3), ldp(5, 6, 32), and_w_one(6, 5), movz(7, LEN as u16, 0), madd(6, 6, 7, 4)]);
    asm.put(&[add_number(6, 6, (BLOCKS - SEQ) as u32), add(7, 6, 3)]);
    asm.put(&[ldr(8, 6, 0), ldr(9, 7, (LINES + START) as u32), sub(9, 2, 9), mov(10, 2), cmp(9, 8)]);
    let outside = asm.ahead(|way| b_if(HigherOrSame, way));
    asm.put(&[
        ldr(11, 7, (LINES + SLOPE) as u32),
        ldr(12, 7, (LINES + OFFSET) as u32),
        ldr(14, 7, (LINES + BEFORE) as u32),
    ]);
    asm.number(13, MARGIN);
    asm.put(&[subs(9, 9, 13), csel(11, 11, 14, HigherOrSame)]);
    asm.put(&[madd(13, 9, 11, ZERO), smulh(14, 9, 11), extr(13, 14, 13, 32), add(13, 13, 12)]);
    asm.put(&[adds(10, 2, 13), csel(10, 10, ZERO, Positive)]);
    asm.land(&outside);
    let (before, after) = SECONDS_SHIFT;
    asm.put(&[lsr(6, 10, u32::from(before))]);
    asm.number(7, SECONDS);
    asm.put(&[umulh(6, 6, 7), lsr(6, 6, u32::from(after))]);
    asm.number(8, SECOND);
    asm.put(&[msub(7, 6, 8, 10), DMB_ISHLD, ldrb(9, 4), cmp_w(5, 9), RET]);
    start
}

#[cfg(test)]
mod tests;
