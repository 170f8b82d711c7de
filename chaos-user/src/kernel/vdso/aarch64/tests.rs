use super::{a64::Condition::*, a64::*, *};
use crate::kernel::vdso::{Functions, Machine, patch::Patch};

const LEN: usize = 0x1000;
const SLACK: usize = 0x800;
const FUNCTIONS: [usize; 2] = [0x100, 0x200];
const NOP: u32 = 0xd503_201f;
const BTI_C: u32 = 0xd503_245f;
const PACIASP: u32 = 0xd503_233f;
const CBNZ_BACK: u32 = 0xb5ff_ffe1;

/// An image whose functions begin so.
fn image(codes: [&[u32]; 2]) -> Image {
    let mut bytes = vec![0; LEN];
    let names = ["__kernel_clock_gettime", "__kernel_gettimeofday"];
    let mut made = FUNCTIONS.into_iter().zip(names).zip(codes).map(|((start, name), code)| {
        let code: Vec<_> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        let range = start..start + code.len();
        bytes[range.clone()].copy_from_slice(&code);
        Function { name, range }
    });
    let mut next = || made.next().expect("two");
    let functions = Functions { clock_gettime: next(), gettimeofday: next(), time: None };
    Image { bytes, machine: Machine::Aarch64, functions, slack: SLACK..LEN }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(WORD).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

/// All by GNU as, of what is said beside them.
#[test]
fn words_are_the_assembler_s() {
    let words = [
        (b(8), 0x1400_0002),                           // b .+8
        (b(-4096), 0x17ff_fc00),                       // b .-4096
        (bl(1 << 20), 0x9404_0000),                    // bl .+1048576
        (b_if(Equal, -8), 0x54ff_ffc0),                // b.eq .-8
        (b_if(NotEqual, 12), 0x5400_0061),             // b.ne .+12
        (b_if(HigherOrSame, 4), 0x5400_0022),          // b.hs .+4
        (b_if(Positive, -262_144), 0x54e0_0005),       // b.pl .-262144
        (cbz_x(9, 16), 0xb400_0089),                   // cbz x9, .+16
        (cbnz_w(30, -20), 0x35ff_ff7e),                // cbnz w30, .-20
        (tbnz(3, 7, 24), 0x3738_00c3),                 // tbnz w3, #7, .+24
        (tbnz(5, 31, -24), 0x37ff_ff45),               // tbnz w5, #31, .-24
        (adr(4, -449), 0x70ff_f1e4),                   // adr x4, .-449
        (adr(5, 1026), 0x5000_2005),                   // adr x5, .+1026
        (movz(8, 0xe4, 0), 0xd280_1c88),               // movz x8, #0xe4
        (movz(7, 0xabcd, 1), 0xd2b5_79a7),             // movz x7, #0xabcd, lsl #16
        (movk(8, 0xffff, 3), 0xf2ff_ffe8),             // movk x8, #0xffff, lsl #48
        (stp_before(29, 30, -32), 0xa9be_7bfd),        // stp x29, x30, [sp, #-32]!
        (ldp_after(29, 30, 32), 0xa8c2_7bfd),          // ldp x29, x30, [sp], #32
        (stp(0, 1, 16), 0xa901_07e0),                  // stp x0, x1, [sp, #16]
        (ldp(4, 1, 16), 0xa941_07e4),                  // ldp x4, x1, [sp, #16]
        (stp_at(6, 7, 1), 0xa900_1c26),                // stp x6, x7, [x1]
        (ldp_at(6, 7, 1), 0xa940_1c26),                // ldp x6, x7, [x1]
        (ldr(12, 7, 24), 0xf940_0cec),                 // ldr x12, [x7, #24]
        (ldrb(6, 4), 0x3940_0086),                     // ldrb w6, [x4]
        (ldrb_at_w(3, 5, 4), 0x3864_48a3),             // ldrb w3, [x5, w4, uxtw]
        (ldarb(5, 4), 0x08df_fc85),                    // ldarb w5, [x4]
        (and_w_one(6, 5), 0x1200_00a6),                // and w6, w5, #1
        (add_number(6, 6, 16), 0x9100_40c6),           // add x6, x6, #16
        (add(7, 6, 3), 0x8b03_00c7),                   // add x7, x6, x3
        (adds(10, 2, 13), 0xab0d_004a),                // adds x10, x2, x13
        (sub(9, 2, 9), 0xcb09_0049),                   // sub x9, x2, x9
        (subs(9, 9, 13), 0xeb0d_0129),                 // subs x9, x9, x13
        (cmp(9, 8), 0xeb08_013f),                      // cmp x9, x8
        (cmp_w(5, 6), 0x6b06_00bf),                    // cmp w5, w6
        (cmp_w_number(4, 12), 0x7100_309f),            // cmp w4, #12
        (mov(10, 2), 0xaa02_03ea),                     // mov x10, x2
        (csel(9, 9, ZERO, HigherOrSame), 0x9a9f_2129), // csel x9, x9, xzr, hs
        (csel(10, 10, ZERO, Positive), 0x9a9f_514a),   // csel x10, x10, xzr, pl
        (madd(2, 6, 8, 7), 0x9b08_1cc2),               // madd x2, x6, x8, x7
        (msub(7, 6, 8, 10), 0x9b08_a8c7),              // msub x7, x6, x8, x10
        (smulh(14, 9, 11), 0x9b4b_7d2e),               // smulh x14, x9, x11
        (umulh(6, 6, 7), 0x9bc7_7cc6),                 // umulh x6, x6, x7
        (extr(13, 14, 13, 32), 0x93cd_81cd),           // extr x13, x14, x13, #32
        (lsr(6, 10, 9), 0xd349_fd46),                  // lsr x6, x10, #9
        (lsr(7, 7, 38), 0xd366_fce7),                  // lsr x7, x7, #38
        (RET, 0xd65f_03c0),                            // ret
        (SVC, 0xd400_0001),                            // svc #0
        (DMB_ISHLD, 0xd503_39bf),                      // dmb ishld
    ];
    for (at, (ours, theirs)) in words.into_iter().enumerate() {
        assert_eq!(ours, theirs, "{at}: {ours:#010x}, and not {theirs:#010x}");
    }
}

#[test]
fn what_depends_on_its_place_is_known() {
    let relative = [
        0x9000_0000, // adrp x0, .
        0x5000_2005, // adr x5, .+1026
        0x5800_0040, // ldr x0, .+8
        0x1c00_0083, // ldr s3, .+16
        0x9800_0040, // ldrsw x0, .+8
        0xd800_0040, // prfm pldl1keep, .+8
        0xb500_0041, // cbnz x1, .+8
        0xb640_0041, // tbz x1, #40, .+8
        0x1400_0002, // b .+8
        0x9404_0000, // bl .+1048576
        0x54ff_ffc0, // b.eq .-8
    ];
    assert!(relative.into_iter().all(is_relative));
    let others =
        [NOP, RET, SVC, BTI_C, PACIASP, 0xa9be_7bfd, 0x7100_309f, 0xd280_1c88, 0xf940_0cec, 0x9bc7_7cc6];
    assert!(!others.into_iter().any(is_relative));
    assert_eq!(
        [0xb500_0041, 0xb640_0041, 0x54ff_ffc0].map(|word| target(word, 64)),
        [Some(72), Some(72), Some(56)]
    );
    assert!([BTI_C, 0xd503_24df, 0xd503_241f, 0xd503_249f].into_iter().all(is_landing_pad));
    assert!(
        [PACIASP, 0xd503_237f].into_iter().all(is_signing) && !is_signing(BTI_C) && !is_landing_pad(PACIASP)
    );
}

#[test]
fn an_entry_is_one_branch_to_its_stub() {
    let first = cmp_w_number(0, 15);
    let image = image([&[BTI_C, first, NOP, RET], &[NOP, NOP, RET]]);
    assert!(matches!(image.patch(Kind::Skew, 1), Err(VdsoError::Untested { machine: Machine::Aarch64 })));
    for (kind, size) in [(Kind::Call, HEADER + 24), (Kind::Skew, 800)] {
        let patch = Patch::new(&image, kind, 1).expect("a patch");
        let (body, [first, second]) = (patch.body(), patch.entries()) else { panic!("{patch:?}") };
        assert!(body.bytes.len() <= size && body.bytes.len() % WORD == 0, "{}", body.bytes.len());
        assert_eq!([first.offset, second.offset], [FUNCTIONS[0] + WORD, FUNCTIONS[1]]);
        assert!([first, second].iter().all(|entry| entry.bytes.len() == WORD));
        let mut patched = image.clone();
        patched.bytes[first.offset..first.offset + WORD].copy_from_slice(&first.bytes);
        assert!(crate::kernel::vdso::patch::is_ours(&patched, &patched.functions.clock_gettime, false));
        assert!(!crate::kernel::vdso::patch::is_ours(&patched, &patched.functions.gettimeofday, true));
        assert_eq!(patch.text()[0], first.offset + 1..first.offset + WORD);
    }
    // The body begins with what the entries replace, and the way back.
    let patch = Patch::new(&image, Kind::Skew, 1).expect("a patch");
    let moved = words(&patch.body().bytes[HEADER..HEADER + 2 * WORD]);
    let way = FUNCTIONS[0] + 2 * WORD;
    assert_eq!((moved[0], target(moved[1], SLACK + HEADER + WORD)), (first, Some(way)));
}

#[test]
fn a_start_that_cannot_be_moved_is_refused() {
    let refused = |code: &[u32]| match Patch::new(&image([code, &[NOP, RET]]), Kind::Skew, 1) {
        Err(refused @ VdsoError::Prologue { function: "__kernel_clock_gettime", .. }) => refused.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(&[adr(0, 8), RET]).contains("0x10000040 means something else"));
    assert!(refused(&[PACIASP, RET]).contains("signs the return address"));
    assert!(refused(&[NOP, CBNZ_BACK, RET]).contains("what is at 0x104 leads there"));
    assert!(refused(&[BTI_C]).contains("too short"));
}
