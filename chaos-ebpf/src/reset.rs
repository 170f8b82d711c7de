//! Turns a TCP packet into resets: one goes on to where the packet was going, and one back to where it came from.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_UNSPEC},
    helpers::generated::{bpf_clone_redirect, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail},
    programs::TcContext,
};
use chaos_ebpf::{
    abi::{Direction, Setup},
    packet::ethertype,
    tcp::{self, Reset},
};

use crate::{
    bytes::{load, store},
    hook::{Fate, setup},
    round,
};

/// `LOOPBACK_IFINDEX`: `lo` has this number in every network namespace.
const LOOPBACK: u32 = 1;

/// Resets the packet's connection at both ends. Where that fails the packet passes.
#[inline(always)]
pub(crate) fn reset(context: &TcContext, setup: &Setup, direction: Direction, fate: &Fate) -> i32 {
    // The one that comes back is not to be asked for its rules on its way in, or out.
    let other = match direction {
        Direction::In => Direction::Out,
        Direction::Out | Direction::Connect | Direction::Call => Direction::In,
    };
    // On `lo` a packet keeps the route it was sent by: what is to be received there is sent again.
    let (other, flags) = match other {
        Direction::In if setup.ifindex != LOOPBACK => (Direction::In, BPF_F_INGRESS),
        Direction::In | Direction::Out | Direction::Connect | Direction::Call => (Direction::Out, 0),
    };
    round::is_ours(context, setup, other);
    let (transport, v6) = (fate.transport, u32::from(fate.v6));
    // If there is no memory for the copy, the other end still hears.
    let _ = both(context, setup, transport, v6, flags);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn both(context: &TcContext, setup: &Setup, transport: u32, v6: u32, flags: u32) -> Option<()> {
    let payload = shorten(context, transport, v6)?;
    exchange_stations(context)?;
    turn(context, transport, exchange_addresses(context, v6)?, 0, payload)?;
    // SAFETY: the context the kernel called us with, and numbers.
    unsafe { bpf_clone_redirect(context.skb.skb, setup.ifindex, u64::from(flags)) };
    exchange_stations(context)?;
    turn(context, transport, exchange_addresses(context, v6)?, payload, 0)
}

/// Cuts the packet off behind its TCP header, options included, and returns how long its payload was.
///
/// A subprogram, as the others: what all three have on the stack together is more than there is room for.
#[inline(never)]
fn shorten(context: &TcContext, transport: u32, v6: u32) -> Option<u32> {
    let mut data_offset = 0_u8;
    load(context, transport + 12, &mut data_offset)?;
    let payload = context.len().saturating_sub(transport + u32::from(data_offset >> 4) * 4);
    let length = transport + tcp::HEADER;
    // SAFETY: the context the kernel called us with, and numbers.
    if unsafe { bpf_skb_change_tail(context.skb.skb, length, 0) } < 0 {
        return None;
    }
    let network = network(context)?;
    if v6 != 0 {
        const FIXED: u32 = 40;
        store(context, network + 4, &((length - network - FIXED) as u16).to_be())?;
        return Some(payload);
    }
    let (mut before, after) = (0_u16, ((length - network) as u16).to_be());
    load(context, network + 2, &mut before)?;
    // SAFETY: as above.
    unsafe { bpf_l3_csum_replace(context.skb.skb, network + 10, u64::from(before), u64::from(after), 2) };
    store(context, network + 2, &after)?;
    Some(payload)
}

/// Makes the packet a reset of its connection that goes the other way; done twice, one that goes on. `addresses` is what
/// these add to its checksum.
#[inline(never)]
fn turn(context: &TcContext, transport: u32, addresses: u32, before: u32, after: u32) -> Option<()> {
    let partial = is_partial(context, transport + tcp::CHECKSUM)?;
    let mut header = [0_u32; 5];
    load(context, transport, &mut header)?;
    header = Reset::turned(&header, before, after).header(addresses, partial);
    store(context, transport, &header)
}

/// Puts the Ethernet addresses of both stations each in the other's place.
#[inline(never)]
fn exchange_stations(context: &TcContext) -> Option<()> {
    if setup().ethernet == 0 {
        return Some(());
    }
    let mut stations = [[0_u8; 6]; 2];
    load(context, 0, &mut stations)?;
    store(context, 0, &stations[1])?;
    store(context, 6, &stations[0])
}

/// Where the IP header begins.
#[inline(always)]
fn network(context: &TcContext) -> Option<u32> {
    if setup().ethernet == 0 {
        return Some(0);
    }
    let mut at = 12;
    // As many tags as `packet::parse` follows.
    for _ in 0..2 {
        let mut kind = 0_u16;
        load(context, at, &mut kind)?;
        if !matches!(u16::from_be(kind), ethertype::VLAN | ethertype::QINQ) {
            break;
        }
        at += 4;
    }
    Some(at + 2)
}

/// Puts the IP addresses each in the other's place, and returns what they add to a checksum, whichever way they lie.
#[inline(never)]
fn exchange_addresses(context: &TcContext, v6: u32) -> Option<u32> {
    let network = network(context)?;
    if v6 != 0 {
        let mut ends = [[0_u32; 4]; 2];
        load(context, network + 8, &mut ends)?;
        store(context, network + 8, &ends[1])?;
        store(context, network + 24, &ends[0])?;
        return Some(tcp::sum(&ends[0]) + tcp::sum(&ends[1]));
    }
    let mut ends = [0_u32; 2];
    load(context, network + 12, &mut ends)?;
    store(context, network + 12, &ends[1])?;
    store(context, network + 16, &ends[0])?;
    Some(tcp::sum(&ends))
}

/// Whether somebody else completes the packet's checksum (`CHECKSUM_PARTIAL`): such a one the kernel does not change for
/// what is not in the pseudo header.
#[inline(always)]
fn is_partial(context: &TcContext, field: u32) -> Option<bool> {
    let (mut before, mut after) = (0_u16, 0_u16);
    load(context, field, &mut before)?;
    // SAFETY: the context the kernel called us with, and numbers.
    unsafe { bpf_l4_csum_replace(context.skb.skb, field, 0, 1, 2) };
    load(context, field, &mut after)?;
    Some(before == after)
}
