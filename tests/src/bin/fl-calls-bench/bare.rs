//! What the kernel takes to run a program at all: one that does nothing, where ours would be.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use chaos_user::kernel::{
    btf::KernelTypes,
    sys::{Program, load, raw_tracepoint},
};
use faultline_tests::{error::Result, lab::returning};

/// What every read passes.
const HOOK: &str = "file_permission";

/// Its program and its link, by a mechanism's name. Both go with the files.
pub(super) fn attach(mechanism: &str) -> Result<[OwnedFd; 2]> {
    let (kind, attach, function) = if mechanism == "lsm" {
        (bpf_prog_type::BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC, "bpf_lsm_")
    } else {
        (bpf_prog_type::BPF_PROG_TYPE_TRACING, bpf_attach_type::BPF_MODIFY_RETURN, "security_")
    };
    let program = load(&Program {
        name: "bare_hook",
        kind,
        attach: Some(attach),
        attach_btf_id: KernelTypes::read()?.function(&format!("{function}{HOOK}"))?,
        flags: 0,
        instructions: &returning(0),
        functions: None,
    })?;
    let link = raw_tracepoint(program.as_fd(), None)?;
    Ok([program, link])
}
