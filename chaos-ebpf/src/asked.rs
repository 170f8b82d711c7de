//! What a DNS query asks for: the rules that want its name and its type.
//!
//! Only what goes to a port of name servers is looked at; everybody else pays nothing. A TCP query is seen if it begins
//! where the payload of its segment does, as those of all common resolvers do.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_loop, bpf_skb_load_bytes},
};
use chaos_ebpf::{
    abi::NameState,
    packet::protocol,
    question::{CLASS_OF, CLASSES, HEADER, LONGEST_NAME, LONGEST_QUESTION, is_query, step},
};

use crate::{
    hook::setup,
    maps::{FL_NAMES, FL_QUESTION, FL_RECORDS},
};

/// More than [`LONGEST_QUESTION`]: as many as make a bound that is a mask.
const ROOM: usize = 512;

/// A question on its way through the automaton: in a map, where the verifier does not follow the numbers.
#[repr(C)]
pub(crate) struct Question {
    bytes: [u8; ROOM],
    /// How many of them there are.
    length: u32,
    /// Where the name ends; 0 until it has.
    end: u32,
    /// What the label still has.
    left: u32,
    /// The automaton's.
    state: u32,
}

/// The rules that want this query; none if it is no query. Not inlined, as what it keeps at hand would push out of the
/// registers what every packet needs.
#[inline(never)]
pub(crate) fn rules(skb: *mut __sk_buff, transport: u32, protocol: u8) -> u64 {
    // SAFETY: the context the kernel called us with.
    let length = unsafe { (*skb).len };
    let (message, end) = match message(skb, transport, protocol) {
        Some((message, bytes)) if bytes <= length && message + bytes <= length => (message, message + bytes),
        _ => return 0,
    };
    let mut header = [0_u16; 6];
    if !load(skb, message, &mut header) || !is_query(&header) {
        return 0;
    }
    let start = message + HEADER;
    if start >= end {
        return 0;
    }
    let Some(question) = FL_QUESTION.get_ptr_mut(0) else { return 0 };
    let there = end - start;
    let count = if there < LONGEST_QUESTION { there } else { LONGEST_QUESTION };
    walk(skb, question, start, count)
}

/// Where the message begins and how many bytes of it there are at least. A fragment has fewer than its UDP header says,
/// and of several datagrams in one buffer (GSO) none is looked at.
#[inline(always)]
fn message(skb: *mut __sk_buff, transport: u32, protocol: u8) -> Option<(u32, u32)> {
    if protocol == protocol::UDP {
        const UDP: u32 = 8;
        let mut length = 0_u16;
        // SAFETY: the context the kernel called us with.
        let several = unsafe { (*skb).gso_segs } > 1;
        if several || !load(skb, transport + 4, &mut length) {
            return None;
        }
        return Some((transport + UDP, u32::from(u16::from_be(length)).checked_sub(UDP)?));
    }
    if protocol != protocol::TCP {
        return None;
    }
    let (mut words, mut length) = (0_u8, 0_u16);
    if !load(skb, transport + 12, &mut words) {
        return None;
    }
    let payload = transport + u32::from(words >> 4) * 4;
    // Which says how long it is; what is not in this segment is in the next.
    if !load(skb, payload, &mut length) {
        return None;
    }
    // SAFETY: as above.
    let there = unsafe { (*skb).len }.checked_sub(payload + 2)?;
    let length = u32::from(u16::from_be(length));
    Some((payload + 2, if length < there { length } else { there }))
}

#[inline(always)]
fn walk(skb: *mut __sk_buff, question: *mut Question, start: u32, count: u32) -> u64 {
    // SAFETY: in the map, this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let question = unsafe { &mut *question };
    // Bounded once more, where the compiler cannot tell that it is: the verifier has not followed it, and before Linux
    // 6.8 does not learn from a comparison that it is not 0.
    let count = (black_box(count.wrapping_sub(1)) & (ROOM as u32 - 1)) + 1;
    let to = question.bytes.as_mut_ptr().cast::<c_void>();
    // SAFETY: the context the kernel called us with, and room for so many bytes.
    if unsafe { bpf_skb_load_bytes(skb.cast(), start, to, count) } != 0 {
        return 0;
    }
    question.length = count;
    question.end = 0;
    question.left = 0;
    question.state = 0;
    let mut work = Work { question };
    let callback = take_one as unsafe extern "C" fn(u32, *mut Work) -> i64;
    // SAFETY: the function takes what it is given, and the work lives until the call is over.
    unsafe { bpf_loop(LONGEST_NAME, callback as *mut c_void, (&raw mut work).cast(), 0) };
    // SAFETY: as above.
    let question = unsafe { &*work.question };
    let end = question.end;
    if end == 0 || end + 4 > question.length {
        return 0;
    }
    let mut rules = FL_NAMES.get(question.state).map_or(0, |state| state.rules);
    let setup = setup();
    if setup.any_record != u64::MAX {
        let place = end as usize & (ROOM / 2 - 1);
        let record = u32::from(question.bytes[place]) << 8 | u32::from(question.bytes[place + 1]);
        // SAFETY: the owner never deletes an entry while a program can run.
        rules &= setup.any_record | unsafe { FL_RECORDS.get(record) }.copied().unwrap_or(0);
    }
    rules
}

struct Work {
    question: *mut Question,
}

/// Takes the next byte of the name; 1 if there is no more to take.
unsafe extern "C" fn take_one(place: u32, work: *mut Work) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let question = unsafe { &mut *(*work).question };
    if place >= question.length {
        return 1;
    }
    let byte = question.bytes[place as usize & (ROOM - 1)];
    let class = step(place, byte, &mut question.left, black_box(&CLASS_OF));
    if class == step::FIRST {
        return 0;
    }
    if class == step::END {
        question.end = place + 1;
        return 1;
    }
    let Some(state) = FL_NAMES.get(question.state) else { return 1 };
    if class == step::BAD {
        return 1;
    }
    question.state = next(state, class);
    0
}

#[inline(always)]
fn next(state: &NameState, class: u32) -> u32 {
    u32::from(state.next[black_box(class) as usize & (CLASSES - 1)])
}

/// Part of the packet, as it lies there.
#[inline(always)]
fn load<T>(skb: *mut __sk_buff, offset: u32, to: &mut T) -> bool {
    let length = size_of::<T>() as u32;
    let to = core::ptr::from_mut(to).cast();
    // SAFETY: the context the kernel called us with, and so many bytes to write to.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to, length) == 0 }
}
