//! The way round: a packet that waits leaves through a link of its own, and comes back to where it was.
//!
//! A link is a veth pair. The near end, beside the interface, has an fq qdisc, which lets go of each packet at the
//! time it carries. The far end lies in a network namespace that only the owner holds, and sends every packet back
//! to the near end, from where it goes on: out of the interface, or up the stack as received by it. When the owner
//! dies, so does that namespace, and with it both ends: no qdisc of the interface is ever touched, and nothing is
//! left. Programs and filters that lie behind ours see the packet when it comes back; ours know it by a mark in the
//! packet's control block, which is where tc programs leave notes for each other.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_clone_redirect, bpf_ktime_get_ns, bpf_ktime_get_tai_ns, bpf_redirect, bpf_redirect_peer,
        bpf_skb_set_tstamp,
    },
    programs::TcContext,
};
use chaos_ebpf::{
    abi::{Direction, MONOTONIC, Setup, effect},
    decide,
};

use crate::{DELIVERY_TIME, gone, hook::setup, maps::FL_LATENESS};

/// Says that the control block is ours. What else may lie there are the network layer's own notes.
const MAGIC: u32 = 0xfa17_11e0;
/// Where a packet is that goes round: at no interface that could be asked for its rules.
const ROUND: u32 = 0x5e4d_b0cb;

/// The interface and the way: a packet keeps its control block on its way through veth to the other end, or through
/// `lo`, where it has not been.
#[inline(always)]
fn place(setup: &Setup, direction: Direction) -> u32 {
    setup.place ^ direction as u32
}

/// TC_PRIO_CONTROL: fq lets such packets pass all others, whatever time they carry.
const CONTROL: u32 = 7;
const PRIORITIES: u32 = 15;

#[inline(always)]
fn skb(context: &TcContext) -> *mut __sk_buff {
    context.skb.skb
}

/// Leaves a number in the control block.
#[inline(always)]
fn leave(context: &TcContext, place: u32, number: u64) {
    let skb = skb(context);
    // SAFETY: the context the kernel called us with; the control block is the programs' own.
    unsafe {
        (*skb).cb[0] = MAGIC;
        (*skb).cb[1] = place;
        (*skb).cb[2] = number as u32;
        (*skb).cb[3] = (number >> 32) as u32;
    }
}

/// The number in the control block, if it was left at this place.
#[inline(always)]
fn left(context: &TcContext, place: u32) -> Option<u64> {
    let skb = skb(context);
    // SAFETY: as above.
    let words = unsafe { [(*skb).cb[0], (*skb).cb[1], (*skb).cb[2], (*skb).cb[3]] };
    let ours = words[0] == MAGIC && words[1] == place;
    ours.then_some(u64::from(words[2]) | u64::from(words[3]) << 32)
}

/// Has our programs let the packet, and what is copied from it, through this way: no rule is to act on it again.
#[inline(always)]
pub(crate) fn is_ours(context: &TcContext, setup: &Setup, direction: Direction) {
    leave(context, place(setup, direction), setup.generation);
}

/// Whether the packet has been here, and comes back from its way round or is a second one. Of several owners on an
/// interface the latest is asked first: all later than the one whose way round it was have seen it.
#[inline(always)]
pub(crate) fn was_here(context: &TcContext, setup: &Setup, direction: Direction) -> bool {
    match left(context, place(setup, direction)) {
        Some(generation) => setup.generation >= generation,
        None => false,
    }
}

/// Sends the packet round, or on as if nothing had been asked where the way round is gone with its owner.
///
/// It goes as a copy that belongs to no socket, as netem has it (`skb_orphan_partial`): TCP lets only about a
/// millisecond's worth of its packets lie in the sender's own queues, and would take this for one.
#[inline(always)]
pub(crate) fn go(context: &TcContext, setup: &Setup, direction: Direction, at: u64) -> i32 {
    prepare(context, at);
    // SAFETY: the context the kernel called us with, and numbers.
    let sent = unsafe { bpf_clone_redirect(skb(context), setup.links[direction as usize], 0) };
    if sent < 0 { TC_ACT_UNSPEC } else { gone() }
}

/// Notes that the programs of this interface have had their say, should it pass there this way.
#[inline(always)]
pub(crate) fn mark(context: &TcContext, setup: &Setup, direction: Direction) {
    leave(context, place(setup, direction), setup.generation);
}

/// Sends a second packet like this one, round or at once.
#[inline(always)]
pub(crate) fn second(context: &TcContext, setup: &Setup, direction: Direction, at: u64) {
    let (to, flags) = if setup.effects & effect::WAITING != 0 && at != 0 {
        prepare(context, at);
        (setup.links[direction as usize], 0)
    } else {
        is_ours(context, setup, direction);
        (setup.ifindex, way(direction))
    };
    // SAFETY: as above. If it cannot be made there is only one.
    let _ = unsafe { bpf_clone_redirect(skb(context), to, u64::from(flags)) };
}

/// Notes in the packet what it needs on its way round.
#[inline(always)]
fn prepare(context: &TcContext, at: u64) {
    leave(context, ROUND, at);
    let skb = skb(context);
    // SAFETY: as above. The mark does not cross network namespaces, and the qdisc leaves the last word alone.
    unsafe {
        (*skb).cb[4] = (*skb).mark;
    }
}

/// Egress of the near end.
#[inline(always)]
pub(crate) fn queue(context: &TcContext) -> i32 {
    let Some(at) = left(context, ROUND) else { return TC_ACT_SHOT };
    let skb = skb(context);
    // SAFETY: as above, and numbers. What is not IP has no such kind of time.
    unsafe {
        if bpf_skb_set_tstamp(skb, at, u32::from(DELIVERY_TIME)) < 0 {
            (*skb).tstamp = of_no_kind(at, setup().ahead_of_real);
        }
        if (*skb).priority & PRIORITIES == CONTROL {
            (*skb).priority = 0;
        }
    }
    TC_ACT_UNSPEC
}

/// A time by the clock that the qdisc takes one for whose kind is not said (`fq_skb_tstamp_to_mono`, Linux 7.2).
#[inline(always)]
fn of_no_kind(at: u64, ahead_of_real: u64) -> u64 {
    if ahead_of_real == MONOTONIC {
        return at;
    }
    // SAFETY: both take nothing and return a number.
    let ahead = unsafe { bpf_ktime_get_tai_ns().wrapping_sub(bpf_ktime_get_ns()) };
    at.wrapping_add(ahead).wrapping_sub(ahead_of_real)
}

/// Ingress of the far end.
#[inline(always)]
pub(crate) fn bounce(direction: Direction) -> i32 {
    // SAFETY: takes two numbers.
    unsafe { bpf_redirect_peer(setup().far_links[direction as usize], 0) as i32 }
}

/// Ingress of the near end.
#[inline(always)]
pub(crate) fn back(context: &TcContext, direction: Direction) -> i32 {
    let setup = setup();
    is_ours(context, setup, direction);
    let skb = skb(context);
    // SAFETY: as above, and a call that takes nothing.
    let (time, kind, now) = unsafe { ((*skb).tstamp, (*skb).tstamp_type, bpf_ktime_get_ns()) };
    if kind == DELIVERY_TIME
        && now > time
        && let Some(mean) = FL_LATENESS.get_ptr_mut(direction as u32)
    {
        // SAFETY: an aligned u64 in the map; that another CPU's packet is forgotten at times does no harm.
        unsafe { *mean = decide::lateness(*mean, now - time) };
    }
    // SAFETY: as above; the time is over, and is not when the packet was received.
    unsafe {
        (*skb).mark = (*skb).cb[4];
        bpf_skb_set_tstamp(skb, 0, 0);
    }
    // SAFETY: takes two numbers.
    unsafe { bpf_redirect(setup.ifindex, u64::from(way(direction))) as i32 }
}

#[inline(always)]
fn way(direction: Direction) -> u32 {
    match direction {
        Direction::In => BPF_F_INGRESS,
        Direction::Out | Direction::Connect | Direction::Call => 0,
    }
}
