//! The smallest XDP programs there are, to try the driver and to lose every packet without `faultline`.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_insn, bpf_prog_type};
use chaos_user::kernel::sys::{Program, Target, link, load};

use super::Netns;
use crate::error::Result;

const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What becomes of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `XDP_DROP`.
    Drop = 1,
    /// `XDP_PASS`.
    Pass = 2,
}

/// Has the driver of an interface drop or pass everything it receives, for as long as the link is held.
///
/// # Errors
///
/// The kernel's, `EOPNOTSUPP` if the driver has no XDP.
pub fn attach_xdp(netns: &Netns, device: &str, verdict: Verdict) -> Result<OwnedFd> {
    let attach = bpf_attach_type::BPF_XDP;
    let instructions = returning(verdict as i32);
    let program = load(&Program {
        name: "lab_xdp",
        kind: bpf_prog_type::BPF_PROG_TYPE_XDP,
        attach: Some(attach),
        attach_btf_id: 0,
        functions: None,
        flags: 0,
        instructions: &instructions,
    })?;
    let target = Target::Interface(netns.index(device)?);
    netns.run(|| Ok(link(program.as_fd(), target, attach, XDP_FLAGS_DRV_MODE)?))
}

/// A program that does nothing but return a value.
#[must_use]
pub fn returning(value: i32) -> [bpf_insn; 2] {
    const MOVE_TO_R0: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    let instruction = |code, imm| {
        // SAFETY: integers only.
        let zero: bpf_insn = unsafe { std::mem::zeroed() };
        bpf_insn { code, imm, ..zero }
    };
    [instruction(MOVE_TO_R0, value), instruction(EXIT, 0)]
}
