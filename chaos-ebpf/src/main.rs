//! The programs: one for XDP, one for tc, and what both do is in `hook`.

#![no_std]
#![no_main]
// For one instruction in `hook`; BPF's assembly is not yet stable.
#![feature(asm_experimental_arch)]

mod hook;
mod maps;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    helpers::generated::bpf_redirect,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use chaos_ebpf::abi::Direction;
use hook::{Frame, Packet, Verdict};

/// Ingress where the driver runs XDP itself.
#[xdp]
fn fl_xdp(context: XdpContext) -> u32 {
    match hook::decide(&Received(context)) {
        Some(Verdict::Drop) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

/// Ingress elsewhere.
#[classifier]
fn fl_tc_in(context: TcContext) -> i32 {
    classify::<{ IN }>(context)
}

/// Egress.
#[classifier]
fn fl_tc_out(context: TcContext) -> i32 {
    classify::<{ OUT }>(context)
}

const IN: bool = false;
const OUT: bool = true;

/// tc, both ways. A lost packet is redirected to interface 0, which is none: the kernel frees it and tells the
/// sender that all went well. After SHOT the sender's TCP would know of a local drop and send again at once,
/// which is not what loss on a wire looks like; STOLEN, which does the same in a tc filter, lets the packet pass
/// in a tcx program (<https://elixir.bootlin.com/linux/v6.12/source/include/net/tcx.h#L181>,
/// <https://elixir.bootlin.com/linux/v6.12/source/net/core/filter.c#L2501>).
/// UNSPEC and not OK for the others: the programs and filters behind this one still run.
#[inline(always)]
fn classify<const SENT: bool>(context: TcContext) -> i32 {
    match hook::decide(&Skb::<SENT>(context)) {
        // SAFETY: takes two numbers; returns TC_ACT_REDIRECT.
        Some(Verdict::Drop) => unsafe { bpf_redirect(0, 0) as i32 },
        _ => TC_ACT_UNSPEC,
    }
}

struct Received(XdpContext);

impl Packet for Received {
    const DIRECTION: Direction = Direction::In;

    #[inline(always)]
    fn frame(&self) -> Frame {
        Frame { data: self.0.data(), end: self.0.data_end() }
    }

    #[inline(always)]
    fn pull(&self) -> bool {
        false
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        (self.0.data_end() - self.0.data()) as u64
    }

    /// The program does not declare `xdp.frags`, so no driver hands it a super-packet.
    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }
}

struct Skb<const SENT: bool>(TcContext);

impl<const SENT: bool> Packet for Skb<SENT> {
    const DIRECTION: Direction = if SENT { Direction::Out } else { Direction::In };

    #[inline(always)]
    fn frame(&self) -> Frame {
        Frame { data: self.0.data(), end: self.0.data_end() }
    }

    #[inline(always)]
    fn pull(&self) -> bool {
        // The longest headers `packet::parse` follows are rarely longer; 0 would linearise a whole super-packet.
        const HEADERS: u32 = 256;
        let length = self.0.len();
        self.0.pull_data(if length < HEADERS { length } else { HEADERS }).is_ok()
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        u64::from(self.0.len())
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context the kernel called us with.
        match unsafe { (*self.0.skb.skb).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
