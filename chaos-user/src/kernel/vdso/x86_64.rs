//! The stubs for x86-64.

use std::ops::Range;

use chaos_ebpf::time::MARGIN;
use iced_x86::{
    Code as Op, Decoder, DecoderOptions, IcedError, Instruction, MemoryOperand, OpKind, Register,
    code_asm::{
        CodeAssembler, CodeLabel, byte_ptr, cl, eax, ecx, edi, edx, ptr, qword_ptr, r8, r9, r9b, r9d, r10,
        r11, rax, rcx, rdi, rdx, rsi, rsp,
    },
};

use super::{
    Function, Image, VdsoError,
    block::{BEFORE, LEN, LINES, MICROS, MICROS_SHIFT, OFFSET, SECOND, SECONDS, SECONDS_SHIFT, SLOPE, START},
    patch::{BLOCKS, CLOCKS, Code, Entry, HEADER, Kind, SEQ, SLOTS, Stubs},
};

/// The address code is decoded and encoded at, for offset 0: what it refers to also lies before the image, and the
/// assembler's labels are small numbers.
const BASE: u64 = 1 << 40;
/// `jmp rel32`.
const JUMP: u8 = 0xe9;
const JUMP_LEN: usize = 5;
/// What is written at an entry: the most that one store can.
const ENTRY: usize = 8;

/// Numbers of system calls.
const GETTIMEOFDAY: u32 = 96;
const TIME: u32 = 201;
const CLOCK_GETTIME: u32 = 228;

const CLOCK_REALTIME_COARSE: u32 = 5;

/// See [`Stubs`].
pub(super) struct X86_64;

impl Stubs for X86_64 {
    fn build(&self, image: &Image, kind: Kind, body: usize) -> Result<Code, VdsoError> {
        match kind {
            Kind::Call => call(image, body),
            Kind::Skew => skew(image, body),
        }
    }

    fn target(&self, image: &Image, function: &Function) -> Option<usize> {
        let code = image.bytes[function.range.clone()].strip_prefix(&[JUMP])?;
        let next = function.range.start + JUMP_LEN;
        next.checked_add_signed(i32::from_le_bytes(*code.first_chunk()?) as isize)
    }

    fn is_call(&self, image: &Image, function: &Function) -> bool {
        numbers(image)
            .any(|(_, number)| image.bytes[function.range.clone()].starts_with(&system_call(number)))
    }
}

/// Each function, with its system call.
fn numbers(image: &Image) -> impl Iterator<Item = (&Function, u32)> {
    image.functions.all().zip([CLOCK_GETTIME, GETTIMEOFDAY, TIME])
}

/// `mov eax, number; syscall; ret`.
fn system_call(number: u32) -> [u8; ENTRY] {
    let [a, b, c, d] = number.to_le_bytes();
    [0xb8, a, b, c, d, 0x0f, 0x05, 0xc3]
}

/// `time` returns what it tells, where nobody can make it wrong: it asks `clock_gettime`, which writes it.
fn call(image: &Image, body: usize) -> Result<Code, VdsoError> {
    let start = body + HEADER;
    let bytes = assemble_time(start).map_err(|error| VdsoError::Code { cause: error.to_string() })?;
    let entry = |(function, number)| {
        let cut = Cut::new(image, function, ENTRY)?;
        let bytes = match number {
            TIME => jump(image, &cut, start),
            number => system_call(number).to_vec(),
        };
        Ok(Entry { cut: cut.range, bytes })
    };
    let entries = numbers(image).map(entry).collect::<Result<_, VdsoError>>()?;
    Ok(Code { bytes, entries })
}

/// `rdi` a `time_t` or 0.
fn assemble_time(start: usize) -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let mut end = asm.create_label();
    asm.push(rdi)?;
    asm.sub(rsp, 16)?;
    asm.mov(eax, CLOCK_GETTIME)?;
    asm.xor(edi, edi)?;
    asm.mov(rsi, rsp)?;
    asm.syscall()?;
    asm.pop(rax)?;
    asm.pop(rcx)?;
    asm.pop(rdi)?;
    asm.test(rdi, rdi)?;
    asm.je(end)?;
    asm.mov(qword_ptr(rdi), rax)?;
    asm.set_label(&mut end)?;
    asm.ret()?;
    asm.assemble(BASE + start as u64)
}

fn skew(image: &Image, body: usize) -> Result<Code, VdsoError> {
    let cuts = image.functions.all().map(|function| Cut::new(image, function, JUMP_LEN));
    let cuts: Vec<_> = cuts.collect::<Result<_, _>>()?;
    let start = body + HEADER;
    let (bytes, starts) =
        assemble(&cuts, body).map_err(|error| VdsoError::Code { cause: error.to_string() })?;
    let entry = |(cut, to): (Cut, usize)| Entry { bytes: jump(image, &cut, start + to), cut: cut.range };
    Ok(Code { bytes, entries: cuts.into_iter().zip(starts).map(entry).collect() })
}

/// What is written at an entry to lead elsewhere.
fn jump(image: &Image, cut: &Cut, to: usize) -> Vec<u8> {
    let start = cut.range.start;
    // The mapping is a few pages long.
    let way = to as i64 - (start + JUMP_LEN) as i64;
    let jump = [JUMP].into_iter().chain((way as i32).to_le_bytes());
    // What the jump leaves of the last instruction stays as it is: nobody comes there.
    jump.chain(image.bytes[start + JUMP_LEN..start + ENTRY].iter().copied()).collect()
}

/// The instructions at the start of a function that are changed.
struct Cut {
    range: Range<usize>,
    instructions: Vec<Instruction>,
}

impl Cut {
    /// Those of the first `least` bytes, if nothing but the function's start leads there.
    fn new(image: &Image, function: &Function, least: usize) -> Result<Self, VdsoError> {
        let refused = |cause| VdsoError::Prologue { function: function.name, cause };
        let Range { start, end } = function.range;
        if end - start < ENTRY {
            return Err(refused(format!("it has {} bytes", end - start)));
        }
        let code = &image.bytes[start..end];
        let all: Vec<_> =
            Decoder::with_ip(64, code, BASE + start as u64, DecoderOptions::NONE).iter().collect();
        if let Some(unknown) = all.iter().find(|it| it.is_invalid()) {
            return Err(refused(format!("there is no known instruction at {:#x}", unknown.ip() - BASE)));
        }
        let offset = |address: u64| address.wrapping_sub(BASE);
        let last = all.iter().position(|it| offset(it.next_ip()) >= (start + least) as u64);
        let last = last.ok_or_else(|| refused("it is too short".into()))?;
        let range = start..offset(all[last].next_ip()) as usize;
        let leads = |it: &&Instruction| referred(it).is_some_and(|to| range.contains(&(offset(to) as usize)));
        if let Some(back) = all.iter().find(leads) {
            return Err(refused(format!("what is at {:#x} leads there", offset(back.ip()))));
        }
        let instructions = all[..=last].to_vec();
        Ok(Self { range, instructions })
    }

    /// The same, to be run elsewhere, and the way back.
    fn relocated(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        for instruction in &self.instructions {
            let mut moved = *instruction;
            // By their addresses the assembler would take them for targets.
            moved.set_ip(0);
            asm.add_instruction(moved)?;
        }
        asm.jmp(BASE + self.range.end as u64)
    }
}

/// The address an instruction goes to, or takes.
fn referred(instruction: &Instruction) -> Option<u64> {
    if instruction.is_ip_rel_memory_operand() {
        return Some(instruction.ip_rel_memory_address());
    }
    let is_near = |kind| matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let is_branch = instruction.op_kinds().any(is_near);
    is_branch.then(|| instruction.near_branch_target())
}

/// The labels of what the stubs have in common.
struct Common {
    seq: u64,
    /// The functions as they were.
    clock_gettime: CodeLabel,
    gettimeofday: CodeLabel,
    /// `clock_gettime` skewed, by which the others are.
    skewed: CodeLabel,
    done: CodeLabel,
}

/// The code after the header, and where in it each function begins.
fn assemble(cuts: &[Cut], body: usize) -> Result<(Vec<u8>, Vec<usize>), IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let mut common = Common {
        seq: BASE + (body + SEQ) as u64,
        clock_gettime: asm.create_label(),
        gettimeofday: asm.create_label(),
        skewed: asm.create_label(),
        done: asm.create_label(),
    };
    let mut others = [asm.create_label(), asm.create_label()];
    stub_clock_gettime(&mut asm, &mut common)?;
    let [gettimeofday, time] = &mut others;
    asm.set_label(gettimeofday)?;
    stub_gettimeofday(&mut asm, &common)?;
    asm.set_label(time)?;
    stub_time(&mut asm, &common)?;
    for (cut, label) in cuts.iter().zip([&mut common.clock_gettime, &mut common.gettimeofday]) {
        asm.set_label(label)?;
        cut.relocated(&mut asm)?;
    }
    let start = BASE + (body + HEADER) as u64;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = asm.assemble_options(start, options)?;
    let starts: Vec<_> = [common.skewed]
        .iter()
        .chain(&others)
        .map(|label| Ok((result.label_ip(label)? - start) as usize))
        .collect::<Result<_, IcedError>>()?;
    Ok((result.inner.code_buffer, starts))
}

/// `r8` = the address of the sequence number.
fn load_seq(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    // The assembler takes an address for what is relative to the next instruction.
    let memory = MemoryOperand::with_base_displ(Register::RIP, common.seq as i64);
    asm.add_instruction(Instruction::with2(Op::Lea_r64_m, Register::R8, memory)?)
}

/// `edi` the clock, `rsi` a `timespec`.
///
/// A clock is read while the block is in force that it is said by, or read again. Who is held up between both would otherwise
/// tell an old time by a new block.
fn stub_clock_gettime(asm: &mut CodeAssembler, common: &mut Common) -> Result<(), IcedError> {
    let (mut again, mut told) = (asm.create_label(), asm.create_label());
    let (mut kept, mut zero) = (asm.create_label(), asm.create_label());
    asm.set_label(&mut common.skewed)?;
    // One place has one label.
    asm.nop()?;
    asm.set_label(&mut again)?;
    asm.push(rdi)?;
    asm.push(rsi)?;
    // The stack is a multiple of 16 at the call.
    load_seq(asm, common)?;
    asm.movzx(eax, byte_ptr(r8))?;
    asm.push(rax)?;
    asm.call(common.clock_gettime)?;
    asm.pop(r9)?;
    asm.pop(rsi)?;
    asm.pop(rdi)?;
    asm.test(eax, eax)?;
    asm.jne(common.done)?;
    asm.cmp(edi, CLOCKS as u32)?;
    asm.jae(common.done)?;
    load_seq(asm, common)?;
    // The upper half of rdi is the caller's rubbish.
    asm.mov(ecx, edi)?;
    asm.movzx(ecx, byte_ptr(r8 + rcx + (SLOTS - SEQ)))?;
    asm.test(cl, cl)?;
    asm.js(common.done)?;
    skew_value(asm, kept)?;
    asm.set_label(&mut told)?;
    asm.cmp(r9b, byte_ptr(r8))?;
    asm.jne(again)?;
    asm.cmp(r11, rcx)?;
    asm.je(zero)?;
    divide(asm)?;
    asm.set_label(&mut zero)?;
    asm.xor(eax, eax)?;
    asm.set_label(&mut common.done)?;
    asm.ret()?;
    asm.set_label(&mut kept)?;
    asm.mov(rcx, r11)?;
    asm.jmp(told)
}

/// What [`Block::skewed`](chaos_ebpf::time::Block::skewed) says: `rcx` becomes the value of the `timespec` at `rsi`, and `r11` the
/// skewed one, where `rcx` is half of where its line lies, `r8` the address of the sequence number and `r9` that from before it
/// was read. Goes to `kept` with the value in `r11` if it is beyond the window.
fn skew_value(asm: &mut CodeAssembler, kept: CodeLabel) -> Result<(), IcedError> {
    let mut grown = asm.create_label();
    asm.imul_3(r11, qword_ptr(rsi), SECOND as i32)?;
    asm.add(r11, qword_ptr(rsi + 8))?;
    asm.mov(eax, r9d)?;
    asm.and(eax, 1)?;
    asm.imul_3(eax, eax, LEN as i32)?;
    asm.lea(r10, ptr(r8 + rax + (BLOCKS - SEQ)))?;
    asm.mov(rax, r11)?;
    asm.sub(rax, qword_ptr(r10 + rcx * 2 + (LINES + START)))?;
    asm.cmp(rax, qword_ptr(r10))?;
    asm.jae(kept)?;
    asm.mov(rdx, qword_ptr(r10 + rcx * 2 + (LINES + SLOPE)))?;
    asm.sub(rax, MARGIN as i32)?;
    asm.jae(grown)?;
    asm.mov(rdx, qword_ptr(r10 + rcx * 2 + (LINES + BEFORE)))?;
    asm.set_label(&mut grown)?;
    asm.imul(rdx)?;
    asm.shrd(rax, rdx, 32)?;
    asm.add(rax, qword_ptr(r10 + rcx * 2 + (LINES + OFFSET)))?;
    asm.mov(rcx, r11)?;
    asm.xor(edx, edx)?;
    asm.add(r11, rax)?;
    asm.cmovs(r11, rdx)
}

/// Stores the seconds and nanoseconds of `r11` at `rsi`.
fn divide(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    let (before, after) = SECONDS_SHIFT;
    asm.mov(rax, r11)?;
    asm.shr(rax, u32::from(before))?;
    asm.mov(rdx, SECONDS)?;
    asm.mul(rdx)?;
    asm.shr(rdx, u32::from(after))?;
    asm.mov(qword_ptr(rsi), rdx)?;
    asm.imul_3(rax, rdx, SECOND as i32)?;
    asm.sub(r11, rax)?;
    asm.mov(qword_ptr(rsi + 8), r11)
}

/// `rdi` a `timeval` or 0, `rsi` a `timezone` or 0, which alone is the original's to tell.
fn stub_gettimeofday(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    let mut no_zone = asm.create_label();
    asm.test(rdi, rdi)?;
    asm.je(common.gettimeofday)?;
    asm.push(rdi)?;
    asm.sub(rsp, 16)?;
    asm.test(rsi, rsi)?;
    asm.je(no_zone)?;
    asm.xor(edi, edi)?;
    asm.call(common.gettimeofday)?;
    asm.set_label(&mut no_zone)?;
    // CLOCK_REALTIME.
    asm.xor(edi, edi)?;
    asm.mov(rsi, rsp)?;
    asm.call(common.skewed)?;
    asm.pop(rdx)?;
    asm.pop(rcx)?;
    asm.pop(rdi)?;
    asm.test(eax, eax)?;
    asm.jne(common.done)?;
    asm.imul_3(rcx, rcx, MICROS as i32)?;
    asm.shr(rcx, u32::from(MICROS_SHIFT))?;
    asm.mov(qword_ptr(rdi), rdx)?;
    asm.mov(qword_ptr(rdi + 8), rcx)?;
    asm.ret()
}

/// `rdi` a `time_t` or 0.
fn stub_time(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    let (mut failed, mut end) = (asm.create_label(), asm.create_label());
    asm.push(rdi)?;
    asm.sub(rsp, 16)?;
    asm.mov(edi, CLOCK_REALTIME_COARSE)?;
    asm.mov(rsi, rsp)?;
    asm.call(common.skewed)?;
    asm.test(eax, eax)?;
    asm.pop(rax)?;
    asm.pop(rcx)?;
    asm.pop(rdi)?;
    asm.jne(failed)?;
    asm.test(rdi, rdi)?;
    asm.je(end)?;
    asm.mov(qword_ptr(rdi), rax)?;
    asm.set_label(&mut end)?;
    asm.ret()?;
    // That this clock cannot be read has never been seen.
    asm.set_label(&mut failed)?;
    asm.mov(eax, TIME)?;
    asm.syscall()?;
    asm.ret()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
