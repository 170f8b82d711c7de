//! What programs may call, seen by running them once without attaching them to anything.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_func_id, bpf_prog_type};

use super::{
    Answer, M, Refusal,
    flag::{load_raw, run_here},
    host::Host,
    insn::Code,
};
use crate::kernel::{
    Result,
    sys::{self, Functions, Program},
};

const XDP_PASS: i32 = 2;
/// Written to a variable of ours.
const MARK: i32 = 0x0fa1_7001;
/// How often the loop goes round.
const ROUNDS: i32 = 100;

/// All of them.
pub(super) fn probe(host: &Host) -> Vec<(M, Answer)> {
    vec![
        (M::TestRun, test_run().map_err(Refusal::from)),
        (M::ProbeWriteUser, probe_write_user(host)),
        (M::BpfLoop, bpf_loop()),
    ]
}

pub(super) fn test_run() -> Result<Option<String>> {
    let code = Code::default().exit(XDP_PASS);
    let program = sys::load(&Program {
        name: "doctor_test_run",
        kind: bpf_prog_type::BPF_PROG_TYPE_XDP,
        attach: None,
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })?;
    sys::test_run(&program, &[0; 64], 1)?;
    Ok(None)
}

fn probe_write_user(host: &Host) -> Answer {
    let mut target = 0_u64;
    let address = &raw mut target;
    let code = Code::default()
        .store(10, -8, MARK)
        .set_wide(1, address as u64)
        .copy(2, 10)
        .add(2, -8)
        .set(3, size_of_val(&target) as i32)
        .call(bpf_func_id::BPF_FUNC_probe_write_user)
        .exit_with_result();
    let program = load_raw("doctor_write", &code).map_err(|error| match host.lockdown.as_deref() {
        Ok(state @ ("integrity" | "confidentiality")) => Refusal::missing(format!(
            "{}; the kernel is locked down ({state}), which forbids this helper",
            super::sentence(&error)
        )),
        _ => error.into(),
    })?;
    let result = run_here(&program)?.cast_signed();
    // SAFETY: `target` is alive; the kernel wrote to it behind the compiler's back.
    let seen = unsafe { address.read_volatile() };
    if seen == MARK as u64 {
        Ok(Some("each program that may do so, this try too, leaves a warning in the kernel's log".into()))
    } else {
        Err(Refusal::missing(format!("the program runs, and the helper wrote nothing: it gave {result}")))
    }
}

pub(super) fn bpf_loop() -> Answer {
    let program = load_loop("doctor_loop", ROUNDS, Code::default())?;
    match run_here(&program)? {
        rounds if rounds == ROUNDS as u32 => Ok(None),
        rounds => Err(Refusal::missing(format!("asked for {ROUNDS} rounds, the helper made {rounds}"))),
    }
}

/// Loads a raw tracepoint program that goes round a loop by `bpf_loop`, doing `step` each time. It returns how often
/// it went round.
///
/// # Errors
///
/// The kernel's.
pub fn load_loop(name: &str, rounds: i32, step: Code) -> Result<OwnedFd> {
    let main = |step_at| {
        Code::default()
            .set(1, rounds)
            .set_function(2, step_at)
            .set(3, 0)
            .set(4, 0)
            .call(bpf_func_id::BPF_FUNC_loop)
            .exit_with_result()
    };
    let step_at = main(0).as_slice().len() as u32;
    let code = main(step_at).then(step.exit(0));
    let types = sys::load_types(&types())?;
    sys::load(&Program {
        name,
        kind: bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
        attach: None,
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: Some(Functions { types: types.as_fd(), starts: &[[0, MAIN], [step_at, STEP]] }),
    })
}

/// Types of the two functions in [`types`].
const MAIN: u32 = 3;
const STEP: u32 = 4;

/// The least BTF that lets a helper call a function: `int (void)`, and two functions of that type.
fn types() -> Vec<u8> {
    const STRINGS: &[u8] = b"\0int\0doctor_loop\0doctor_step\0";
    const INT: u32 = 1 << 24;
    const FUNC: u32 = 12 << 24;
    const FUNC_PROTO: u32 = 13 << 24;
    const SIGNED_32_BITS: u32 = 1 << 24 | 32;
    // struct btf_type { name_off; info; size or type; }, and what the kind adds.
    let types =
        [[1, INT, 4].as_slice(), &[SIGNED_32_BITS], &[0, FUNC_PROTO, 1], &[5, FUNC, 2], &[17, FUNC, 2]];
    let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let header_length = 24_u32;
    let length = types.len() as u32;
    // struct btf_header { magic, version, flags, hdr_len; type_off, type_len, str_off, str_len }
    let mut btf = Vec::new();
    btf.extend(0xeb9f_u16.to_ne_bytes());
    btf.extend([1, 0]);
    for word in [header_length, 0, length, length, STRINGS.len() as u32] {
        btf.extend(word.to_ne_bytes());
    }
    btf.extend(types);
    btf.extend(STRINGS);
    btf
}
