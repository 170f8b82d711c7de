//! Flips bits of a packet, and sees to its checksum: that it is wrong, or that it is right.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_l4_csum_replace, bpf_loop},
    programs::TcContext,
};
use chaos_ebpf::{
    abi::effect,
    corruption::{Place, checksum, payload},
    decide,
};

use crate::{
    bytes::{load, store},
    hook::Fate,
    maps::{FL_RULES, FL_STATE},
};

/// Flips the bits that the rule asks for; one that would lie behind the packet's end is left out.
#[inline(always)]
pub(crate) fn corrupt(context: &TcContext, fate: &Fate) -> Option<()> {
    let index = fate.corrupted_by.wrapping_sub(1);
    let rule = FL_RULES.get(index)?;
    let state = FL_STATE.get_ptr_mut(index)?;
    // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let random = unsafe { &raw mut (*state).random };
    let fix = rule.effects & effect::FIX_CHECKSUM != 0;
    let start = if fix {
        let mut data_offset = 0u8;
        load(context, fate.transport + 12, &mut data_offset);
        fate.transport + payload(fate.protocol, data_offset)
    } else {
        fate.transport
    };
    let end = context.len();
    if start >= end {
        return None;
    }
    let mut work = Work {
        skb: context.skb.skb,
        random,
        transport: fate.transport,
        start,
        end,
        field: checksum(fate.protocol),
        offset: rule.corrupt_offset,
        fix: u32::from(fix),
    };
    let callback = flip_one as unsafe extern "C" fn(u32, *mut Work) -> i64;
    // SAFETY: the function takes what it is given, and the work lives until the call is over. A loop of our own the
    // verifier would walk through once for each bit.
    unsafe { bpf_loop(rule.corrupt_bits, callback as *mut c_void, (&raw mut work).cast(), 0) };
    Some(())
}

/// What is the same for all bits of a packet.
#[repr(C)]
struct Work {
    skb: *mut __sk_buff,
    random: *mut u64,
    transport: u32,
    start: u32,
    end: u32,
    field: u32,
    offset: i32,
    fix: u32,
}

/// Flips one bit; 0 goes on with the next.
unsafe extern "C" fn flip_one(number: u32, work: *mut Work) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let work = unsafe { &*work };
    // SAFETY: in the map, this CPU's slot.
    let random = unsafe { &mut *work.random };
    let place = if work.offset < 0 {
        Place::random(work.start, work.end, decide::random(random), decide::random(random))
    } else {
        Place::at(work.start, work.offset.cast_unsigned(), number)
    };
    let context = TcContext::new(work.skb);
    flip(&context, work.transport, place, work.field, work.fix != 0);
    0
}

#[inline(always)]
fn flip(context: &TcContext, transport: u32, place: Place, field: u32, fix: bool) {
    // Two bytes, as the checksum sums them; the last byte of an odd packet cannot be read so.
    let at = place.word(transport);
    let mut old = 0u16;
    if load(context, at, &mut old).is_none() {
        return;
    }
    let new = old ^ place.mask(transport);
    if store(context, at, &new).is_none() || field == 0 {
        return;
    }
    let field = transport + field;
    if at == field {
        return;
    }
    // Over IPv4, UDP may go without a checksum, and then stays so.
    let words = 2 | u64::from(BPF_F_MARK_MANGLED_0);
    if fix {
        replace(context, field, old, new, words);
    } else {
        // Whoever completes the checksum later (CHECKSUM_PARTIAL) must not put it right. With a pseudo header the
        // kernel changes it whether complete or not, and without only if complete, which takes that back.
        replace(context, field, new, old, words | u64::from(BPF_F_PSEUDO_HDR));
        replace(context, field, old, new, words);
    }
}

#[inline(always)]
fn replace(context: &TcContext, field: u32, from: u16, to: u16, flags: u64) {
    // SAFETY: the context the kernel called us with, and numbers. Fails where the packet has no such field.
    let _ = unsafe { bpf_l4_csum_replace(context.skb.skb, field, u64::from(from), u64::from(to), flags) };
}
