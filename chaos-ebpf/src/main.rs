//! The programs: one for XDP, one for tc, and what both do is in `hook`.

#![no_std]
#![no_main]
// For one instruction in `hook`; BPF's assembly is not yet stable.
#![feature(asm_experimental_arch)]

mod answer;
mod asked;
mod atomic;
mod bytes;
mod connect;
mod connection;
mod corrupt;
mod end;
mod hook;
mod kin;
mod maps;
mod owner;
mod profile;
mod reset;
mod round;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_skb_load_bytes, bpf_xdp_load_bytes},
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};
use chaos_ebpf::{
    abi::{Direction, HookState, Setup, effect},
    decide,
    packet::{Headers, Network, protocol},
};
use hook::{Fate, Frame, LAST, Packet, Work};

/// Ingress where the driver runs XDP itself; for rules that only lose packets.
#[xdp]
fn fl_xdp(context: XdpContext) -> u32 {
    let mut fate = Fate::PASS;
    let decided = hook::decide(&Received(context), &mut fate);
    if decided.is_some() && fate.lost { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Ingress elsewhere. Inlined into what the macro makes of it, here and below: LLVM takes it for too large, and a call
/// costs every packet 8 ns.
#[classifier]
#[inline(always)]
fn fl_tc_in(context: TcContext) -> i32 {
    classify::<{ IN }>(context)
}

/// Egress.
#[classifier]
#[inline(always)]
fn fl_tc_out(context: TcContext) -> i32 {
    classify::<{ OUT }>(context)
}

/// A connection that a process of a cgroup asks for.
#[cgroup_sock_addr(connect4)]
fn fl_connect4(context: SockAddrContext) -> i32 {
    connect::connect(&context, Network::V4)
}

/// The same over IPv6.
#[cgroup_sock_addr(connect6)]
fn fl_connect6(context: SockAddrContext) -> i32 {
    connect::connect(&context, Network::V6)
}

/// A socket that a process of a cgroup makes.
#[cgroup_sock(sock_create)]
fn fl_socket(context: SockContext) -> i32 {
    owner::opened(&context);
    1
}

/// Egress of a link's near end: the packet waits in the qdisc until its time has come.
#[classifier]
fn fl_queue(context: TcContext) -> i32 {
    round::queue(&context)
}

/// Ingress of a link's far end.
#[classifier]
fn fl_bounce_in(_context: TcContext) -> i32 {
    round::bounce(Direction::In)
}

/// The same of the other link.
#[classifier]
fn fl_bounce_out(_context: TcContext) -> i32 {
    round::bounce(Direction::Out)
}

/// Ingress of a link's near end, for what the interface received.
#[classifier]
fn fl_back_in(context: TcContext) -> i32 {
    round::back(&context, Direction::In)
}

/// The same for what it sends.
#[classifier]
fn fl_back_out(context: TcContext) -> i32 {
    round::back(&context, Direction::Out)
}

/// Attached nowhere: the owner of a new profile runs it for each peer.
#[classifier]
fn fl_figures(context: TcContext) -> i32 {
    profile::change(&context).unwrap_or(0)
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
    let setup = hook::setup();
    let skb = Skb::<SENT>(context);
    if setup.effects
        & (effect::DUPLICATE | effect::WAITING | effect::CORRUPT | effect::RESET | effect::ANSWER)
        != 0
        && round::was_here(&skb.0, setup, Skb::<SENT>::DIRECTION)
    {
        return TC_ACT_UNSPEC;
    }
    let mut fate = Fate::PASS;
    if hook::decide(&skb, &mut fate).is_none() {
        return TC_ACT_UNSPEC;
    }
    // Over TCP an answer would have to be the server's next segment: the connection is reset instead.
    if setup.effects & effect::ANSWER != 0 && fate.answer != 0 && fate.protocol == protocol::UDP {
        return answer::turn(&skb.0, setup, Skb::<SENT>::DIRECTION, &fate);
    }
    if setup.effects & effect::RESET != 0 && fate.reset {
        return reset::reset(&skb.0, setup, Skb::<SENT>::DIRECTION, &fate);
    }
    if fate.lost {
        return gone();
    }
    if setup.effects & effect::CORRUPT != 0 && fate.corrupted_by != 0 {
        corrupt::corrupt(&skb.0, &fate);
    }
    if setup.effects & effect::DUPLICATE != 0 && fate.twice {
        round::second(&skb.0, setup, Skb::<SENT>::DIRECTION, fate.second_goes_at);
    }
    if setup.effects & (effect::WAITING | effect::CORRUPT) != 0 && (fate.goes_at != 0 || fate.completed) {
        return round::go(&skb.0, setup, Skb::<SENT>::DIRECTION, fate.goes_at);
    }
    TC_ACT_UNSPEC
}

/// See [`hook::ask_next`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fl_ask_in(skb: *mut __sk_buff, work: *mut Work) -> u32 {
    hook::ask_next(&Skb::<IN>(TcContext::new(skb)), work)
}

/// The same for packets that are sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fl_ask_out(skb: *mut __sk_buff, work: *mut Work) -> u32 {
    hook::ask_next(&Skb::<OUT>(TcContext::new(skb)), work)
}

/// See [`hook::background`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fl_background_xdp(xdp: *mut xdp_md, rule: u32) -> u32 {
    hook::background(&Received(XdpContext::new(xdp)), rule)
}

/// The same for what is received at tc.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fl_background_in(skb: *mut __sk_buff, rule: u32) -> u32 {
    hook::background(&Skb::<IN>(TcContext::new(skb)), rule)
}

/// The same for what is sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fl_background_out(skb: *mut __sk_buff, rule: u32) -> u32 {
    hook::background(&Skb::<OUT>(TcContext::new(skb)), rule)
}

/// Has the packet vanish, see [`classify`].
#[inline(always)]
fn gone() -> i32 {
    // SAFETY: takes two numbers; returns TC_ACT_REDIRECT.
    unsafe { bpf_redirect(0, 0) as i32 }
}

struct Received(XdpContext);

impl Packet for Received {
    const DIRECTION: Direction = Direction::In;
    const IS_BUFFER: bool = false;

    #[inline(always)]
    fn time(&self) -> u64 {
        0
    }

    /// Rules of connections are asked by tc.
    #[inline(always)]
    fn exempt(&self, _headers: &Headers) -> u32 {
        effect::OF_CONNECTIONS
    }

    /// XDP knows of no socket.
    #[inline(always)]
    fn cgroup(&self, _headers: &Headers, _setup: &Setup, _hook: &mut HookState) -> u64 {
        0
    }

    /// It has no room to look at a name.
    #[inline(always)]
    fn question(&self, _headers: &Headers) -> u64 {
        0
    }

    #[inline(always)]
    fn background(&self, rule: u32) -> u32 {
        fl_background_xdp(self.0.ctx, rule)
    }

    /// What does more than lose packets is not at this hook.
    #[inline(always)]
    fn ask(&self, _work: &mut Work) -> u32 {
        LAST
    }

    #[inline(always)]
    fn frame(&self) -> Frame {
        Frame { data: self.0.data(), end: self.0.data_end() }
    }

    #[inline(always)]
    fn pull(&self) -> bool {
        false
    }

    #[inline(always)]
    fn load(&self, offset: u32, to: &mut [u8]) -> bool {
        // SAFETY: the context the kernel called us with, and as many bytes as there is room for.
        unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, to.as_mut_ptr().cast(), to.len() as u32) == 0 }
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

/// `BPF_SKB_TSTAMP_DELIVERY_MONO`: the packet's time is when it may go on, not when it was received.
const DELIVERY_TIME: u8 = 1;

impl<const SENT: bool> Packet for Skb<SENT> {
    const DIRECTION: Direction = if SENT { Direction::Out } else { Direction::In };
    const IS_BUFFER: bool = true;

    /// Its sender, TCP's pacing or another owner may want it to go later than now.
    #[inline(always)]
    fn time(&self) -> u64 {
        // SAFETY: takes nothing, returns a number.
        let now = unsafe { bpf_ktime_get_ns() };
        // SAFETY: the context the kernel called us with.
        let (time, kind) = unsafe { ((*self.0.skb.skb).tstamp, (*self.0.skb.skb).tstamp_type) };
        if kind == DELIVERY_TIME && time > now { time } else { now }
    }

    #[inline(always)]
    fn exempt(&self, headers: &Headers) -> u32 {
        if headers.protocol != protocol::TCP {
            return 0;
        }
        if !headers.has_ports {
            return effect::OF_CONNECTIONS;
        }
        connection::exempt(&self.0, headers.transport, decide::flow(headers, Self::DIRECTION))
    }

    #[inline(always)]
    fn cgroup(&self, headers: &Headers, setup: &Setup, hook: &mut HookState) -> u64 {
        owner::cgroup(&self.0, headers, Self::DIRECTION, setup, hook)
    }

    #[inline(always)]
    fn question(&self, headers: &Headers) -> u64 {
        asked::rules(self.0.skb.skb, headers.transport, headers.protocol)
    }

    #[inline(always)]
    fn background(&self, rule: u32) -> u32 {
        if SENT { fl_background_out(self.0.skb.skb, rule) } else { fl_background_in(self.0.skb.skb, rule) }
    }

    #[inline(always)]
    fn ask(&self, work: &mut Work) -> u32 {
        if SENT { fl_ask_out(self.0.skb.skb, work) } else { fl_ask_in(self.0.skb.skb, work) }
    }

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
    fn load(&self, offset: u32, to: &mut [u8]) -> bool {
        // SAFETY: as above.
        unsafe {
            bpf_skb_load_bytes(self.0.skb.skb.cast(), offset, to.as_mut_ptr().cast(), to.len() as u32) == 0
        }
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
