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
    clock_gettime: CodeLabel,
    gettimeofday: CodeLabel,
    adjust: CodeLabel,
    done: CodeLabel,
    zero: CodeLabel,
}

/// The code after the header, and where in it each function begins.
fn assemble(cuts: &[Cut], body: usize) -> Result<(Vec<u8>, Vec<usize>), IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let mut common = Common {
        seq: BASE + (body + SEQ) as u64,
        clock_gettime: asm.create_label(),
        gettimeofday: asm.create_label(),
        adjust: asm.create_label(),
        done: asm.create_label(),
        zero: asm.create_label(),
    };
    let mut starts = [asm.create_label(), asm.create_label(), asm.create_label()];
    let [clock_gettime, gettimeofday, time] = &mut starts;
    asm.set_label(clock_gettime)?;
    stub_clock_gettime(&mut asm, &mut common)?;
    asm.set_label(gettimeofday)?;
    stub_gettimeofday(&mut asm, &common)?;
    asm.set_label(time)?;
    stub_time(&mut asm, &common)?;
    asm.set_label(&mut common.adjust)?;
    adjust(&mut asm, &common)?;
    for (cut, label) in cuts.iter().zip([&mut common.clock_gettime, &mut common.gettimeofday]) {
        asm.set_label(label)?;
        cut.relocated(&mut asm)?;
    }
    let start = BASE + (body + HEADER) as u64;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = asm.assemble_options(start, options)?;
    let starts: Vec<_> = starts
        .iter()
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

/// Keeps the sequence number: a clock is read while the block is in force that it is said by, or read again. Who is held
/// up between both would otherwise tell an old time by a new block.
fn push_seq(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    load_seq(asm, common)?;
    asm.movzx(eax, byte_ptr(r8))?;
    asm.push(rax)
}

/// `edi` the clock, `rsi` a `timespec`.
fn stub_clock_gettime(asm: &mut CodeAssembler, common: &mut Common) -> Result<(), IcedError> {
    let mut again = asm.create_label();
    // One place has one label.
    asm.nop()?;
    asm.set_label(&mut again)?;
    asm.push(rdi)?;
    asm.push(rsi)?;
    // The stack is a multiple of 16 at the call.
    push_seq(asm, common)?;
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
    asm.push(rdi)?;
    asm.imul_3(rdi, qword_ptr(rsi), SECOND as i32)?;
    asm.add(rdi, qword_ptr(rsi + 8))?;
    asm.call(common.adjust)?;
    asm.pop(rdi)?;
    asm.test(eax, eax)?;
    asm.js(again)?;
    asm.jne(common.zero)?;
    asm.mov(qword_ptr(rsi), rdx)?;
    asm.mov(qword_ptr(rsi + 8), r11)?;
    asm.set_label(&mut common.zero)?;
    asm.xor(eax, eax)?;
    asm.set_label(&mut common.done)?;
    asm.ret()
}

/// `rdi` a `timeval` or 0, `rsi` a `timezone` or 0.
fn stub_gettimeofday(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    let (mut again, mut told) = (asm.create_label(), asm.create_label());
    asm.test(rdi, rdi)?;
    asm.je(common.gettimeofday)?;
    asm.set_label(&mut again)?;
    asm.push(rdi)?;
    asm.push(rsi)?;
    push_seq(asm, common)?;
    asm.call(common.gettimeofday)?;
    asm.pop(r9)?;
    asm.pop(rcx)?;
    asm.pop(rsi)?;
    asm.test(eax, eax)?;
    asm.jne(common.done)?;
    asm.push(rcx)?;
    asm.imul_3(rdi, qword_ptr(rsi), SECOND as i32)?;
    asm.imul_3(rax, qword_ptr(rsi + 8), 1000)?;
    asm.add(rdi, rax)?;
    asm.xor(ecx, ecx)?;
    asm.call(common.adjust)?;
    asm.pop(rcx)?;
    asm.test(eax, eax)?;
    asm.jns(told)?;
    asm.mov(rdi, rsi)?;
    asm.mov(rsi, rcx)?;
    asm.jmp(again)?;
    asm.set_label(&mut told)?;
    asm.jne(common.zero)?;
    asm.imul_3(r11, r11, MICROS as i32)?;
    asm.shr(r11, u32::from(MICROS_SHIFT))?;
    asm.mov(qword_ptr(rsi), rdx)?;
    asm.mov(qword_ptr(rsi + 8), r11)?;
    asm.jmp(common.zero)
}

/// `rdi` a `time_t` or 0.
fn stub_time(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    let (mut again, mut once) = (asm.create_label(), asm.create_label());
    let (mut told, mut failed, mut end) = (asm.create_label(), asm.create_label(), asm.create_label());
    asm.nop()?;
    asm.set_label(&mut again)?;
    asm.push(rdi)?;
    push_seq(asm, common)?;
    asm.sub(rsp, 24)?;
    asm.mov(edi, CLOCK_REALTIME_COARSE)?;
    asm.mov(rsi, rsp)?;
    asm.call(common.clock_gettime)?;
    asm.pop(rsi)?;
    asm.pop(rdi)?;
    asm.pop(rcx)?;
    asm.pop(r9)?;
    asm.test(eax, eax)?;
    asm.jne(failed)?;
    asm.imul_3(rax, rsi, SECOND as i32)?;
    asm.add(rdi, rax)?;
    asm.xor(ecx, ecx)?;
    asm.call(common.adjust)?;
    asm.test(eax, eax)?;
    asm.jns(once)?;
    asm.pop(rdi)?;
    asm.jmp(again)?;
    asm.set_label(&mut once)?;
    asm.jne(told)?;
    asm.mov(rsi, rdx)?;
    asm.set_label(&mut told)?;
    asm.mov(rax, rsi)?;
    asm.pop(rdi)?;
    asm.test(rdi, rdi)?;
    asm.je(end)?;
    asm.mov(qword_ptr(rdi), rax)?;
    asm.set_label(&mut end)?;
    asm.ret()?;
    // That this clock cannot be read has never been seen.
    asm.set_label(&mut failed)?;
    asm.pop(rdi)?;
    asm.mov(eax, TIME)?;
    asm.syscall()?;
    asm.ret()
}

/// What [`Block::skewed`](chaos_ebpf::time::Block::skewed) says, and its division: `rdi` the value, `rcx` half of where its
/// line lies, `r9` the sequence number from before it was read; then `eax` is below zero if there is another by now, above
/// if the value stays as it is, or else 0, `rdx` seconds and `r11` nanoseconds. `rsi` stays.
fn adjust(asm: &mut CodeAssembler, common: &Common) -> Result<(), IcedError> {
    let (mut grown, mut checked, mut same, mut moved) =
        (asm.create_label(), asm.create_label(), asm.create_label(), asm.create_label());
    load_seq(asm, common)?;
    asm.mov(eax, r9d)?;
    asm.and(eax, 1)?;
    asm.imul_3(eax, eax, LEN as i32)?;
    asm.lea(r10, ptr(r8 + rax + (BLOCKS - SEQ)))?;
    asm.mov(rax, rdi)?;
    asm.sub(rax, qword_ptr(r10 + rcx * 2 + (LINES + START)))?;
    asm.mov(r11, rdi)?;
    asm.cmp(rax, qword_ptr(r10))?;
    asm.jae(checked)?;
    asm.mov(rdx, qword_ptr(r10 + rcx * 2 + (LINES + SLOPE)))?;
    asm.sub(rax, MARGIN as i32)?;
    asm.jae(grown)?;
    asm.mov(rdx, qword_ptr(r10 + rcx * 2 + (LINES + BEFORE)))?;
    asm.set_label(&mut grown)?;
    asm.imul(rdx)?;
    asm.shrd(rax, rdx, 32)?;
    asm.add(rax, qword_ptr(r10 + rcx * 2 + (LINES + OFFSET)))?;
    asm.xor(edx, edx)?;
    asm.add(r11, rax)?;
    asm.cmovs(r11, rdx)?;
    asm.set_label(&mut checked)?;
    asm.cmp(r9b, byte_ptr(r8))?;
    asm.jne(moved)?;
    asm.cmp(r11, rdi)?;
    asm.je(same)?;
    let (before, after) = SECONDS_SHIFT;
    asm.mov(rax, r11)?;
    asm.shr(rax, u32::from(before))?;
    asm.mov(rdx, SECONDS)?;
    asm.mul(rdx)?;
    asm.shr(rdx, u32::from(after))?;
    asm.imul_3(rax, rdx, SECOND as i32)?;
    asm.sub(r11, rax)?;
    asm.xor(eax, eax)?;
    asm.ret()?;
    asm.set_label(&mut same)?;
    asm.mov(eax, 1)?;
    asm.ret()?;
    asm.set_label(&mut moved)?;
    asm.or(eax, -1)?;
    asm.ret()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
