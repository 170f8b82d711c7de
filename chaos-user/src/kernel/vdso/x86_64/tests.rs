use std::{
    mem, ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use iced_x86::code_asm::{r11d, r12, r13, r14, r15, rbp, rbx, xmm0, xmmword_ptr};
use proptest::prelude::*;

use chaos_ebpf::time::{Block, MARGIN, NEVER, SLOTS, SlotLine, slot_of};

use super::*;
use crate::kernel::vdso::{
    Functions, Machine,
    patch::{Patch, Piece},
};

const LEN: usize = 0x2000;
const SLACK: usize = 0x1000;
/// Where the fakes read what they tell and return, and write what they were asked.
const DATA: usize = 0x40;
const FUNCTIONS: [usize; 3] = [0x100, 0x200, 0x300];
const CALLER: usize = 0x400;
const TOKEN: u64 = 0x1234_5678_9abc_def0;
/// What is in memory that nobody is to write.
const UNTOUCHED: [i64; 2] = [-77, -78];

type Asm = Result<CodeAssembler, IcedError>;

fn code(at: usize, write: impl FnOnce(CodeAssembler) -> Asm) -> Vec<u8> {
    let made = CodeAssembler::new(64).and_then(write).and_then(|mut asm| asm.assemble(BASE + at as u64));
    made.expect("the test's code")
}

/// `r10` = the fakes' data.
fn load_data(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    let memory = MemoryOperand::with_base_displ(Register::RIP, (BASE as usize + DATA) as i64);
    asm.add_instruction(Instruction::with2(Op::Lea_r64_m, Register::R10, memory)?)
}

/// Stores two numbers at `to`, unless what is to be returned is not 0, and spoils what a function may.
fn tell(mut asm: CodeAssembler, to: iced_x86::code_asm::AsmRegister64) -> Asm {
    let mut end = asm.create_label();
    // This faults if the stack is not a multiple of 16 at the call.
    asm.movaps(xmm0, xmmword_ptr(rsp + 8))?;
    asm.mov(eax, iced_x86::code_asm::dword_ptr(r10 + 16))?;
    asm.test(eax, eax)?;
    asm.jne(end)?;
    for at in [0, 8] {
        asm.mov(rcx, qword_ptr(r10 + at))?;
        asm.mov(qword_ptr(to + at), rcx)?;
    }
    asm.set_label(&mut end)?;
    for spoilt in [rcx, rdx, rsi, rdi, r8, r11] {
        asm.mov(spoilt, -1_i64)?;
    }
    asm.mov(r9d, -1)?;
    asm.mov(r11d, -1)?;
    asm.ret()?;
    Ok(asm)
}

/// Begins with what is relative to the next instruction.
fn fake_clock_gettime(mut asm: CodeAssembler) -> Asm {
    load_data(&mut asm)?;
    asm.mov(iced_x86::code_asm::dword_ptr(r10 + 24), edi)?;
    tell(asm, rsi)
}

/// Begins with a branch. Tells zones alone.
fn fake_gettimeofday(mut asm: CodeAssembler) -> Asm {
    let mut none = asm.create_label();
    asm.test(rdi, rdi)?;
    asm.je(none)?;
    // Further away than any entry is long.
    asm.ud2()?;
    asm.ud2()?;
    asm.set_label(&mut none)?;
    // This faults if the stack is not a multiple of 16 at the call.
    asm.movaps(xmm0, xmmword_ptr(rsp + 8))?;
    asm.mov(qword_ptr(rsi), -5)?;
    asm.xor(eax, eax)?;
    asm.ret()?;
    Ok(asm)
}

/// Is never to be run.
fn fake_time(mut asm: CodeAssembler) -> Asm {
    asm.mov(eax, 0x55)?;
    for _ in 0..4 {
        asm.ud2()?;
    }
    Ok(asm)
}

/// `fn(function, first, second)`, which stops the process if a register is lost that a function has to keep.
fn caller(mut asm: CodeAssembler) -> Asm {
    let kept = [rbx, rbp, r12, r13, r14, r15];
    let mut lost = asm.create_label();
    for register in kept {
        asm.push(register)?;
    }
    asm.push(rdx)?;
    for (number, register) in (1_i64..).zip(kept) {
        asm.mov(register, number)?;
    }
    asm.mov(rax, rdi)?;
    asm.mov(rdi, rsi)?;
    asm.mov(rsi, rdx)?;
    asm.call(rax)?;
    asm.pop(rdx)?;
    for (number, register) in (1_i32..).zip(kept) {
        asm.cmp(register, number)?;
        asm.jne(lost)?;
    }
    for register in kept.into_iter().rev() {
        asm.pop(register)?;
    }
    asm.ret()?;
    asm.set_label(&mut lost)?;
    asm.ud2()?;
    Ok(asm)
}

/// An image with functions of the given code.
fn image(codes: [Vec<u8>; 3]) -> Image {
    let mut bytes = vec![0; LEN];
    let names = ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time"];
    let mut made = FUNCTIONS.into_iter().zip(names).zip(codes).map(|((at, name), code)| {
        let range = at..at + code.len();
        bytes[range.clone()].copy_from_slice(&code);
        Function { name, range }
    });
    let mut next = || made.next().expect("three");
    let functions = Functions { clock_gettime: next(), gettimeofday: next(), time: Some(next()) };
    Image { bytes, machine: Machine::X86_64, functions, slack: SLACK..LEN }
}

fn fakes() -> Image {
    image([
        code(FUNCTIONS[0], fake_clock_gettime),
        code(FUNCTIONS[1], fake_gettimeofday),
        code(FUNCTIONS[2], fake_time),
    ])
}

/// A patched image of fakes that can be run.
struct Ground {
    memory: *mut u8,
    patch: Patch,
}

// SAFETY: nothing but the tests below shares one, and what they share it for is this.
unsafe impl Sync for Ground {}

impl Ground {
    fn new(kind: Kind) -> Self {
        let (image, none) = (fakes(), ptr::null_mut());
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let memory = unsafe { libc::mmap(none, LEN, access, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        let patch = image.patch(kind, TOKEN).expect("a patch");
        let ground = Self { memory: memory.cast(), patch };
        ground.write(0, image.bytes());
        ground.write(CALLER, &code(CALLER, caller));
        for Piece { offset, original, bytes } in
            [ground.patch.body()].into_iter().chain(ground.patch.entries())
        {
            assert_eq!(&image.bytes()[*offset..offset + original.len()], original);
            ground.write(*offset, bytes);
        }
        ground
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= LEN);
        for (at, byte) in (offset..).zip(bytes) {
            // SAFETY: within the mapping.
            unsafe { self.memory.add(at).write_volatile(*byte) };
        }
    }

    /// What the fakes store and return.
    fn tell(&self, [first, second]: [i64; 2], returned: i32) {
        self.write(DATA, &first.to_le_bytes());
        self.write(DATA + 8, &second.to_le_bytes());
        self.write(DATA + 16, &returned.to_le_bytes());
    }

    fn renew(&self, seq: u8, block: &Block) {
        for (offset, bytes) in self.patch.renewal(seq, block) {
            self.write(offset, &bytes);
        }
    }

    fn off(&self) {
        for (offset, bytes) in self.patch.off() {
            self.write(offset, &bytes);
        }
    }

    /// Calls a function by its place among [`FUNCTIONS`].
    fn call(&self, function: usize, first: usize, second: usize) -> i64 {
        type Caller = extern "C" fn(usize, usize, usize) -> i64;
        // SAFETY: the caller's code lies there.
        let caller: Caller = unsafe { mem::transmute(self.memory.add(CALLER)) };
        caller(self.memory as usize + FUNCTIONS[function], first, second)
    }

    fn clock_gettime(&self, clock: i32) -> (i32, [i64; 2]) {
        let mut told = UNTOUCHED;
        // The upper half of the register is anything.
        let clock = usize::MAX << 32 | clock.cast_unsigned() as usize;
        (self.call(0, clock, told.as_mut_ptr() as usize) as i32, told)
    }

    fn gettimeofday(&self, zone: usize) -> (i32, [i64; 2]) {
        let mut told = UNTOUCHED;
        (self.call(1, told.as_mut_ptr() as usize, zone) as i32, told)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { libc::munmap(self.memory.cast(), LEN) };
    }
}

/// One whose slope counts from `base`.
fn line(base: u64, offset: i64, slope: i64) -> SlotLine {
    SlotLine { start: base.wrapping_sub(MARGIN), offset, slope, before: 0 }
}

/// What a reading of so many seconds, and of so many nanoseconds, becomes; nothing if it stays.
fn skewed(block: &Block, slot: usize, [seconds, nanoseconds]: [i64; 2]) -> Option<[i64; 2]> {
    let value = seconds.wrapping_mul(SECOND as i64).wrapping_add(nanoseconds) as u64;
    let skewed = block.skewed(slot, value);
    (skewed != value).then_some([skewed / SECOND, skewed % SECOND].map(|part| part as i64))
}

fn reading() -> BoxedStrategy<[i64; 2]> {
    let usual = (0..9_000_000_000_i64, 0..SECOND as i64);
    let odd = (any::<i64>(), any::<i64>());
    prop_oneof![6 => usual, 1 => odd].prop_map(|(seconds, nanoseconds)| [seconds, nanoseconds]).boxed()
}

/// Where a line begins: at a place before a reading, or beside it.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    Margin,
    Window,
    Part(u64),
    Some(u64),
    Never,
}

impl Before {
    fn start(self, value: u64, window: u64, by: i64) -> u64 {
        let before = match self {
            Self::Nothing => 0,
            Self::Margin => MARGIN,
            Self::Window => window,
            Self::Part(some) => some.checked_rem(window).unwrap_or(0),
            Self::Some(some) => some,
            Self::Never => return NEVER,
        };
        value.wrapping_sub(before).wrapping_add_signed(by)
    }
}

fn before() -> impl Strategy<Value = Before> {
    let edge = prop::sample::select(vec![Before::Nothing, Before::Margin, Before::Window, Before::Never]);
    prop_oneof![edge, any::<u64>().prop_map(Before::Part), any::<u64>().prop_map(Before::Some)]
}

/// What a line is made of: where it begins, how far beside that, its offset and its slopes.
type Line = (Before, i64, i64, i64, i64);

/// A reading, and a block with lines that begin about it, or about a window before it.
fn readings() -> BoxedStrategy<([i64; 2], Block)> {
    let window = prop_oneof![Just(0), Just(MARGIN), 1..1_u64 << 45, Just(NEVER), 0..NEVER];
    let slope = || prop_oneof![Just(0), -(1_i64 << 33)..1 << 33, any::<i64>()];
    let offset = prop_oneof![Just(0), -(1_i64 << 40)..1 << 40, any::<i64>()];
    let lines = prop::collection::vec((before(), -2..3_i64, offset, slope(), slope()).boxed(), SLOTS);
    let make = |(reading, window, lines): ([i64; 2], u64, Vec<Line>)| {
        let value = reading[0].wrapping_mul(SECOND as i64).wrapping_add(reading[1]) as u64;
        let mut block = Block { window, ..Block::RIGHT };
        for (line, (place, by, offset, slope, before)) in block.slots.iter_mut().zip(lines) {
            *line = SlotLine { start: place.start(value, window, by), offset, slope, before };
        }
        (reading, block)
    };
    (reading(), window.boxed(), lines).prop_map(make).boxed()
}

fn results() -> impl Strategy<Value = i32> {
    prop_oneof![4 => Just(0), 1 => -200..0]
}

/// Enough to come to every edge of a window on every slot.
fn many() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) }
}

#[test]
fn clock_gettime_is_skewed_as_the_reference_says() {
    let ground = Ground::new(Kind::Skew);
    proptest!(many(), |((told, block) in readings(), clock in -3..16, returned in results(), seq: u8)| {
        ground.tell(told, returned);
        ground.write(ground.patch.seq_offset(), &[seq]);
        ground.renew(seq, &block);
        let expected = match u32::try_from(clock).ok().and_then(slot_of) {
            _ if returned != 0 => UNTOUCHED,
            Some(slot) => skewed(&block, slot, told).unwrap_or(told),
            None => told,
        };
        prop_assert_eq!(ground.clock_gettime(clock), (returned, expected));
    });
}

#[test]
fn gettimeofday_is_skewed_as_the_reference_says() {
    let ground = Ground::new(Kind::Skew);
    proptest!(many(), |((told, block) in readings(), returned in results(), seq: u8, zoned: bool)| {
        // A clock that is read tells less than a second of nanoseconds.
        let told = [told[0], told[1].rem_euclid(SECOND as i64)];
        ground.tell(told, returned);
        ground.write(ground.patch.seq_offset(), &[seq]);
        ground.renew(seq, &block);
        let [seconds, nanoseconds] = skewed(&block, 0, told).unwrap_or(told);
        let expected = if returned == 0 { [seconds, nanoseconds / 1000] } else { UNTOUCHED };
        let mut zone = 0_i64;
        let at = if zoned { &raw mut zone as usize } else { 0 };
        prop_assert_eq!(ground.gettimeofday(at), (returned, expected));
        prop_assert_eq!(zone, if zoned { -5 } else { 0 });
    });
}

#[test]
fn time_is_skewed_as_the_reference_says() {
    let ground = Ground::new(Kind::Skew);
    proptest!(many(), |((told, block) in readings(), seq: u8)| {
        ground.tell(told, 0);
        ground.write(ground.patch.seq_offset(), &[seq]);
        ground.renew(seq, &block);
        let [expected, _] = skewed(&block, 0, told).unwrap_or(told);
        let mut stored = UNTOUCHED[0];
        prop_assert_eq!(ground.call(2, 0, 0), expected);
        prop_assert_eq!(ground.call(2, &raw mut stored as usize, 0), expected);
        prop_assert_eq!(stored, expected);
    });
}

#[test]
fn a_zone_alone_is_the_original_s() {
    let ground = Ground::new(Kind::Skew);
    let mut zone = 0_i64;
    assert_eq!(ground.call(1, 0, &raw mut zone as usize), 0);
    assert_eq!(zone, -5);
}

#[test]
fn a_clock_that_cannot_be_read_is_asked_of_the_kernel() {
    let ground = Ground::new(Kind::Skew);
    ground.tell([1, 1], -22);
    let mut stored = 0;
    // SAFETY: it stores nothing.
    let now = || unsafe { libc::time(ptr::null_mut()) };
    let before = now();
    let told = ground.call(2, &raw mut stored as usize, 0);
    assert!((before..=now()).contains(&told) && stored == told);
}

#[test]
fn nothing_is_skewed_before_a_renewal_and_after_the_end() {
    let ground = Ground::new(Kind::Skew);
    let base = 5_000 * SECOND;
    let block = Block { window: NEVER, slots: [line(base, 7, 0); SLOTS] };
    ground.tell([5_000, 0], 0);
    let read = || [ground.clock_gettime(0).1, ground.clock_gettime(7).1, ground.gettimeofday(0).1];
    assert_eq!(read(), [[5_000, 0]; 3]);
    ground.renew(0, &block);
    ground.renew(1, &Block { slots: [line(base, 3_000, 0); SLOTS], ..block });
    assert_eq!(read(), [[5_000, 3_000], [5_000, 3_000], [5_000, 3]]);
    ground.off();
    assert_eq!(read(), [[5_000, 0]; 3]);
}

#[test]
fn a_reader_never_sees_parts_of_two_blocks() {
    const RENEWALS: u32 = 30_000;
    /// Renewals are numbered from 0 to 255: a reader that is put aside for a multiple of these would take the last for the
    /// first, which takes minutes where there is one a second. So here it is waited for.
    const BETWEEN_READS: u32 = 100;
    let ground = Ground::new(Kind::Skew);
    let base = 5_000 * SECOND;
    ground.tell([5_100, 0], 0);
    let block = |base, offset, slope| Block { window: NEVER, slots: [line(base, offset, slope); SLOTS] };
    let blocks = [block(base, 1, 0), block(base - 9 * SECOND, 5, 1 << 32), block(base, -4, -(1 << 30))];
    let valid = blocks.map(|block| block.skewed(2, 5_100 * SECOND));
    ground.renew(u8::MAX, &blocks[0]);
    let (over, reads) = (AtomicBool::new(false), AtomicU32::new(0));
    let wrong = thread::scope(|scope| {
        scope.spawn(|| {
            for (turn, block) in (0..RENEWALS).zip(blocks.iter().cycle()) {
                let before = reads.load(Ordering::SeqCst);
                let waits = turn % BETWEEN_READS == 0;
                while waits && reads.load(Ordering::SeqCst) == before && !over.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                ground.renew(turn as u8, block);
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut wrong = None;
        while !over.load(Ordering::Relaxed) {
            let (_, [seconds, nanoseconds]) = ground.clock_gettime(1);
            let read = seconds as u64 * SECOND + nanoseconds as u64;
            if !valid.contains(&read) {
                wrong = Some(read);
                over.store(true, Ordering::Relaxed);
            }
            reads.fetch_add(1, Ordering::SeqCst);
        }
        wrong
    });
    assert_eq!(wrong, None, "not of {valid:?}");
}

#[test]
fn a_call_is_the_kernel_s() {
    let ground = Ground::new(Kind::Call);
    let now = || crate::kernel::clock::exact() as i64;
    let before = now();
    let (returned, [seconds, nanoseconds]) = ground.clock_gettime(libc::CLOCK_MONOTONIC);
    assert_eq!(returned, 0);
    assert!((before..=now()).contains(&(seconds * SECOND as i64 + nanoseconds)));
    assert_eq!(ground.clock_gettime(-1_000_000).0, -libc::EINVAL);
    // SAFETY: it stores nothing.
    let now = || unsafe { libc::time(ptr::null_mut()) };
    let before = now();
    let (returned, [seconds, _]) = ground.gettimeofday(0);
    assert_eq!(returned, 0);
    let told = ground.call(2, 0, 0);
    assert!((before..=now() + 1).contains(&seconds) && (before..=now() + 1).contains(&told));
}

fn refusal(start: impl FnOnce(CodeAssembler) -> Asm) -> String {
    let mut codes = [fake_clock_gettime, fake_gettimeofday, fake_time].map(|fake| code(FUNCTIONS[0], fake));
    codes[0] = code(FUNCTIONS[0], start);
    match image(codes).patch(Kind::Skew, TOKEN) {
        Err(refused @ VdsoError::Prologue { function: "__vdso_clock_gettime", .. }) => refused.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_start_that_something_leads_to_is_refused() {
    // A loop over the second instruction, and over the first.
    for entered in [1, 0] {
        let text = refusal(|mut asm| {
            let mut back = asm.create_label();
            for at in 0..8 {
                if at == entered {
                    asm.set_label(&mut back)?;
                }
                asm.push(rbx)?;
            }
            asm.jne(back)?;
            asm.ret()?;
            Ok(asm)
        });
        assert!(text.contains("what is at 0x108 leads there"), "{text}");
    }
    // A branch within the cut.
    let text = refusal(|mut asm| {
        let mut next = asm.create_label();
        asm.je(next)?;
        asm.set_label(&mut next)?;
        asm.nops_with_size(6)?;
        asm.ret()?;
        Ok(asm)
    });
    assert!(text.contains("leads there"), "{text}");
}

#[test]
fn a_start_that_is_too_short_or_unknown_is_refused() {
    let ret = |mut asm: CodeAssembler| asm.ret().map(|()| asm);
    assert!(refusal(ret).contains("it has 1 bytes"));
    let unknown =
        |mut asm: CodeAssembler| asm.db(&[0x90, 0x06, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3]).map(|()| asm);
    assert!(refusal(unknown).contains("no known instruction at 0x101"));
}

#[test]
fn a_start_keeps_what_it_refers_to() {
    let patch = fakes().patch(Kind::Skew, TOKEN).expect("a patch");
    let body = patch.body();
    let at = BASE + body.offset as u64 + HEADER as u64;
    let moved: Vec<_> =
        Decoder::with_ip(64, &body.bytes[HEADER..], at, DecoderOptions::NONE).iter().collect();
    let data = BASE + DATA as u64;
    let refers = |it: &Instruction| it.is_ip_rel_memory_operand() && it.ip_rel_memory_address() == data;
    let position = moved.iter().position(refers).expect("the first start");
    assert_eq!(moved[position + 1].near_branch_target(), BASE + FUNCTIONS[0] as u64 + 7);
    // The entry is the jump, and the rest of what it cuts.
    let image = fakes();
    for (entry, function) in patch.entries().iter().zip(image.functions.all()) {
        assert_eq!((entry.offset, entry.bytes.len()), (function.range.start, ENTRY));
        assert_eq!(entry.bytes[JUMP_LEN..], entry.original[JUMP_LEN..]);
    }
    let [first, second, third] = FUNCTIONS;
    assert_eq!(patch.text(), [first + 1..first + 7, second + 1..second + 5, third + 1..third + 5]);
}
