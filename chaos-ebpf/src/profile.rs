//! What a profile does to a packet: the figures are those of its other end.

use aya_ebpf::programs::TcContext;
use chaos_ebpf::{
    abi::{Direction, RuleState, effect},
    decide,
    figures::{Change, Figures, Peer, whose},
    packet::{Headers, Network},
};

use crate::{
    hook::{Fate, Packet, fired_on, forget, wait},
    maps::{FL_OTHERS, FL_PEERS4_IN, FL_PEERS4_OUT, FL_PEERS6_IN, FL_PEERS6_OUT},
};

/// Loses the packet, has it wait, or leaves it alone.
#[inline(always)]
pub(crate) fn apply<P: Packet>(
    packet: &P,
    state: &mut RuleState,
    headers: &Headers,
    segments: u32,
    bytes: u64,
    fate: &mut Fate,
) -> Option<()> {
    let peer = of(headers, P::DIRECTION)?;
    // SAFETY: an entry of a map. Whoever changes it changes whole words, and a later packet's are the new ones.
    let Figures { wait: delay, byte_time, limit, loss, there } =
        unsafe { (&raw const (*peer).figures).read_volatile() };
    if there == 0 {
        return Some(());
    }
    if loss != 0 && decide::fires(loss, decide::random(&mut state.random)) {
        fate.lost = true;
        state.lost += 1;
        fired_on(state, segments, bytes, fate);
        return Some(());
    }
    if delay == 0 && byte_time == 0 {
        return Some(());
    }
    let start = if fate.goes_at != 0 { fate.goes_at } else { packet.time() };
    let start = forget(state, start);
    let effects = effect::DELAY | effect::KEEP_ORDER | if byte_time != 0 { effect::RATE } else { 0 };
    let (delay, rate) = (Figures::delay(delay), Figures::rate(byte_time, limit));
    // SAFETY: as above.
    let wire = unsafe { &raw mut (*peer).wire };
    let at = wait(P::DIRECTION, effects, &delay, &rate, state, wire, start, bytes, segments);
    fired_on(state, segments, bytes, fate);
    if at == 0 {
        fate.lost = true;
        state.overlimit += 1;
    } else {
        fate.goes_at = at;
        state.delayed += 1;
    }
    Some(())
}

/// The entry of the packet's other end, else that of all others.
#[inline(always)]
fn of(headers: &Headers, direction: Direction) -> Option<*mut Peer> {
    let remote = match direction {
        Direction::In => &headers.source,
        Direction::Out | Direction::Connect | Direction::Call => &headers.destination,
    };
    let found = match headers.network {
        // Copies: the headers themselves stay in registers.
        Network::V4 => by_v4(remote[0], direction),
        Network::V6 => by_v6([remote[0], remote[1], remote[2], remote[3]], direction),
        Network::Other => None,
    };
    found.or_else(|| FL_OTHERS.get_ptr_mut(direction as u32))
}

#[inline(always)]
fn by_v4(address: u32, direction: Direction) -> Option<*mut Peer> {
    match direction {
        Direction::In => FL_PEERS4_IN.get_ptr_mut(address),
        Direction::Out | Direction::Connect | Direction::Call => FL_PEERS4_OUT.get_ptr_mut(address),
    }
}

#[inline(always)]
fn by_v6(address: [u32; 4], direction: Direction) -> Option<*mut Peer> {
    match direction {
        Direction::In => FL_PEERS6_IN.get_ptr_mut(address),
        Direction::Out | Direction::Connect | Direction::Call => FL_PEERS6_OUT.get_ptr_mut(address),
    }
}

/// Writes the figures of a [`Change`] over those that are there; 1 if any were. An update of the map from outside would
/// make a new entry, and the state of the wire would be that of a moment before.
#[inline(always)]
pub(crate) fn change(context: &TcContext) -> Option<i32> {
    let data = context.data();
    if data + size_of::<Change>() > context.data_end() {
        return None;
    }
    let change = data as *const Change;
    // SAFETY: within the packet, as has just been checked.
    let (address, whose, direction) = unsafe { ((*change).address, (*change).whose, (*change).direction) };
    let is_in = direction == Direction::In as u32;
    let way = if is_in { Direction::In } else { Direction::Out };
    let peer = match whose {
        whose::V4 => by_v4(address[0], way)?,
        whose::V6 => by_v6(address, way)?,
        whose::OTHERS => FL_OTHERS.get_ptr_mut(way as u32)?,
        _ => return None,
    };
    // SAFETY: as above, and an entry of a map; each word is written at once.
    unsafe {
        let (from, to) = (&raw const (*change).figures, &raw mut (*peer).figures);
        (&raw mut (*to).loss).write_volatile((*from).loss);
        (&raw mut (*to).byte_time).write_volatile((*from).byte_time);
        (&raw mut (*to).limit).write_volatile((*from).limit);
        (&raw mut (*to).wait).write_volatile((*from).wait);
        (&raw mut (*to).there).write_volatile((*from).there);
    }
    Some(1)
}
