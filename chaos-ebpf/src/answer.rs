//! Answers a DNS query by turning it around: it goes back to who asked, as the answer of whom it was for.
//!
//! The question stays, and so does an EDNS record (RFC 6891 section 6.1.1 wants one in the answer to a query that has
//! one); the header says that this is an answer without records. Addresses and ports change places, which no checksum
//! notices.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, TC_ACT_UNSPEC},
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use chaos_ebpf::{
    abi::{Direction, Setup},
    packet::ethertype,
    question::answered,
};

use crate::{gone, hook::Fate, round};

/// `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

const ETHERNET: u32 = 14;
const UDP: u32 = 8;
/// Of the checksum in UDP's header.
const CHECKSUM: u32 = 6;

/// Turns a query around. If something of it cannot be written the packet is gone: what is half turned goes nowhere.
#[inline(always)]
pub(crate) fn turn(context: &TcContext, setup: &Setup, direction: Direction, fate: &Fate) -> i32 {
    let skb = context.skb.skb;
    let (transport, v6, rcode) = (fate.transport, fate.v6, u32::from(fate.answer.wrapping_sub(1)));
    if turn_around(skb, setup.ethernet != 0, transport, v6, rcode).is_none() {
        return gone();
    }
    let (back, flags) = match direction {
        Direction::In => (Direction::Out, 0),
        Direction::Out | Direction::Connect | Direction::Call => (Direction::In, BPF_F_INGRESS),
    };
    // Our own program that way has nothing to say of it.
    round::mark(context, setup, back);
    if setup.ifindex == LOOPBACK {
        // It is with its receiver already, and as something that came in from outside it would be no good.
        return TC_ACT_UNSPEC;
    }
    // SAFETY: takes two numbers.
    unsafe { bpf_redirect(setup.ifindex, u64::from(flags)) as i32 }
}

/// Not inlined, as what it keeps at hand would push out of the registers what every packet needs.
#[inline(never)]
fn turn_around(skb: *mut __sk_buff, ethernet: bool, transport: u32, v6: bool, rcode: u32) -> Option<()> {
    let mut network = 0;
    if ethernet {
        network = behind_tags(skb)?;
        exchange::<[u16; 3]>(skb, 0, 6)?;
    }
    if v6 {
        exchange::<[u32; 4]>(skb, network + 8, network + 24)?;
    } else {
        exchange::<u32>(skb, network + 12, network + 16)?;
    }
    exchange::<u16>(skb, transport, transport + 2)?;
    let at = transport + UDP + 2;
    let flags: u16 = load(skb, at)?;
    let new = answered(flags, rcode);
    store(skb, at, &new)?;
    // Over IPv4, UDP may go without a checksum, and then stays so.
    let how = 2 | u64::from(BPF_F_MARK_MANGLED_0);
    // SAFETY: the context the kernel called us with, and numbers.
    let done =
        unsafe { bpf_l4_csum_replace(skb, transport + CHECKSUM, u64::from(flags), u64::from(new), how) };
    (done == 0).then_some(())
}

/// Where IP begins: behind up to two VLAN tags.
#[inline(always)]
fn behind_tags(skb: *mut __sk_buff) -> Option<u32> {
    let mut network = ETHERNET;
    for _ in 0..2 {
        let kind = u16::from_be(load(skb, network - 2)?);
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            break;
        }
        network += 4;
    }
    Some(network)
}

/// Has two fields change places.
#[inline(always)]
fn exchange<T: Default>(skb: *mut __sk_buff, one: u32, other: u32) -> Option<()> {
    let (first, second): (T, T) = (load(skb, one)?, load(skb, other)?);
    store(skb, one, &second)?;
    store(skb, other, &first)
}

#[inline(always)]
fn load<T: Default>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = T::default();
    let (to, length) = ((&raw mut value).cast(), size_of::<T>() as u32);
    // SAFETY: the context the kernel called us with, and so many bytes to write to.
    let done = unsafe { bpf_skb_load_bytes(skb.cast(), offset, to, length) };
    if done == 0 { Some(value) } else { None }
}

/// The sum of the packet stays as it is: what changes places does not change it, and for the rest its checksum makes up.
#[inline(always)]
fn store<T>(skb: *mut __sk_buff, offset: u32, value: &T) -> Option<()> {
    let (from, length) = (core::ptr::from_ref(value).cast(), size_of::<T>() as u32);
    // SAFETY: the context the kernel called us with, and so many bytes to read from.
    let done = unsafe { bpf_skb_store_bytes(skb, offset, from, length, 0) };
    (done == 0).then_some(())
}
