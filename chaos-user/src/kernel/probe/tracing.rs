//! Programs in place of, before and after kernel functions: LSM, fentry, fexit, fmod_ret. Each is set off by a
//! call of our own; all return 0, which changes nothing.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use super::{
    Answer, M, Refusal, SILENT,
    flag::{Flag, Thread},
    host::Host,
    insn::Code,
    probes::{call, raised, syscall},
};
use crate::kernel::{
    btf::KernelTypes,
    sys::{self, Program},
};

/// The security modules' question about the call that the probes make.
const HOOK: &str = "task_getscheduler";

/// What of the kernel's a program of theirs is in place of.
pub(super) fn lsm_function() -> String {
    format!("bpf_lsm_{HOOK}")
}

/// By what the kernel asks them.
pub(super) fn security_function() -> String {
    format!("security_{HOOK}")
}

/// All of them.
pub(super) fn probe(thread: Thread, host: &Host, types: Option<&KernelTypes>) -> Vec<(M, Answer)> {
    let call = Caller { thread, types };
    let tracing = |name, attach, function: &str| {
        call.runs(name, bpf_prog_type::BPF_PROG_TYPE_TRACING, attach, function)
    };
    let (syscall, security) = (syscall(), security_function());
    vec![
        (M::Lsm, lsm(&call, host)),
        (M::Fentry, tracing("doctor_fentry", bpf_attach_type::BPF_TRACE_FENTRY, &syscall)),
        (M::Fexit, tracing("doctor_fexit", bpf_attach_type::BPF_TRACE_FEXIT, &syscall)),
        (M::FmodRetSecurity, tracing("doctor_fmod_sec", bpf_attach_type::BPF_MODIFY_RETURN, &security)),
        (M::FmodRetSyscall, tracing("doctor_fmod_sys", bpf_attach_type::BPF_MODIFY_RETURN, &syscall)),
    ]
}

/// Where `bpf` is not among the active modules, a program loads and attaches, and is never asked.
fn lsm(call: &Caller<'_>, host: &Host) -> Answer {
    let kind = bpf_prog_type::BPF_PROG_TYPE_LSM;
    let answer = call.runs("doctor_lsm", kind, bpf_attach_type::BPF_LSM_MAC, &lsm_function());
    match (answer, &host.security_modules) {
        (Err(Refusal::Missing { cause, .. }), Ok(modules))
            if cause == SILENT && !modules.iter().any(|module| module == "bpf") =>
        {
            let active = modules.join(",");
            Err(Refusal::Missing {
                cause: format!("{SILENT}: the active security modules are {active}"),
                remedy: Some(format!("add bpf to the lsm= boot parameter: lsm={active},bpf")),
            })
        }
        (answer, _) => answer,
    }
}

/// Who sets the programs off.
struct Caller<'a> {
    thread: Thread,
    types: Option<&'a KernelTypes>,
}

impl Caller<'_> {
    /// Attaches to a function, makes our call, and sees whether the program ran.
    fn runs(&self, name: &str, kind: bpf_prog_type, attach: bpf_attach_type, function: &str) -> Answer {
        let Some(types) = self.types else {
            let cause = format!("the kernel has no BTF to find {function} in");
            return Err(Refusal::Missing { cause, remedy: Some(M::Btf.remedy().to_owned()) });
        };
        let flag = Flag::new()?;
        let program = load(name, kind, attach, types, function, &self.thread.only(flag.raise()))?;
        let _link = sys::raw_tracepoint(program.as_fd(), None)?;
        call();
        raised(&flag)
    }
}

/// Loads a program for one of the kernel's functions.
pub(super) fn load(
    name: &str,
    kind: bpf_prog_type,
    attach: bpf_attach_type,
    types: &KernelTypes,
    function: &str,
    code: &Code,
) -> Result<OwnedFd, Refusal> {
    let attach_btf_id =
        types.function(function).map_err(|error| Refusal::missing(super::sentence(&error)))?;
    Ok(sys::load(&Program {
        name,
        kind,
        attach: Some(attach),
        attach_btf_id,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })?)
}
