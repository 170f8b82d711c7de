//! A connection that a process asks for: whether it is refused, and why.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_jiffies64, bpf_set_retval},
    programs::SockAddrContext,
};
use chaos_ebpf::{
    abi::{Count, Direction, Setup, protect},
    classify::{classify, is_loopback, is_protected},
    decide, field,
    packet::{Headers, Network},
};

use crate::{
    atomic::fetch_add_one,
    hook::{setup, spare},
    maps::{FL_CONTROL, FL_HOOKS, FL_RULES, FL_SEQUENCE, FL_STATE, Maps},
    owner,
};

/// What the kernel wants to hear of a connection.
const REFUSED: i32 = 0;
const ALLOWED: i32 = 1;

/// The greatest errno there can be; Linux 7.2 wants to be sure of it.
const MAX_ERRNO: u32 = 4095;

/// Has `connect(2)` fail if a rule wants it to.
#[inline(always)]
pub(crate) fn connect(context: &SockAddrContext, family: Network) -> i32 {
    let Some(errno) = decide(&headers(context, family)) else { return ALLOWED };
    // SAFETY: a number, and the program is at a hook whose result this is.
    unsafe { bpf_set_retval(-((errno & MAX_ERRNO) as i32)) };
    REFUSED
}

/// Why the connection is refused; `None` allows it.
#[inline(always)]
fn decide(headers: &Headers) -> Option<u32> {
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_jiffies64() };
    let setup = setup();
    if !decide::armed(FL_CONTROL.get(0)?, now) || is_owner(setup) {
        return None;
    }
    let hook = FL_HOOKS.get_ptr_mut(Direction::Connect as u32)?;
    // SAFETY: this CPU's slot. Unlike packets' hooks this one can be preempted, so it counts by atomic instructions.
    unsafe { count(&raw mut (*hook).seen) };
    let mut candidates = classify(headers, Direction::Connect, setup, &Maps);
    if setup.any_cgroup != u64::MAX && candidates & !setup.any_cgroup != 0 {
        candidates &= setup.any_cgroup | owner::current(setup);
    }
    if setup.sparing != 0 {
        candidates = spare(candidates, setup.sparing, 1, 0);
    }
    if candidates != 0 && is_left_alone(headers, setup) {
        // SAFETY: as above.
        unsafe { fetch_add_one(&raw mut (*hook).spared) };
        return None;
    }
    for _ in 0..u64::BITS {
        if candidates == 0 {
            break;
        }
        let rule = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if let Some(errno) = apply(rule, now) {
            return Some(errno);
        }
    }
    None
}

/// Whether the injector itself is what runs now.
#[inline(always)]
fn is_owner(setup: &Setup) -> bool {
    // SAFETY: takes nothing; the task is the current one and stays.
    let task: *const task_struct = unsafe { bpf_get_current_task_btf() }.cast_const();
    // SAFETY: the offset is that of `tgid` in the running kernel's BTF, which the verifier checks.
    let tgid = unsafe { *task.cast::<u8>().add(field::at(setup.tgid_offset)).cast::<u32>() };
    tgid == setup.owner_tgid
}

/// The rule's errno, if it fires.
#[inline(always)]
fn apply(index: u32, now: u64) -> Option<u32> {
    let rule = FL_RULES.get(index)?;
    if now >= rule.expires_at {
        return None;
    }
    let state = FL_STATE.get_ptr_mut(index)?;
    // SAFETY: as for the hook's slot.
    unsafe { count(&raw mut (*state).matched) };
    if rule.numbered != 0 {
        let sequence = FL_SEQUENCE.get_ptr_mut(index)?;
        // SAFETY: an aligned u64 in the map.
        let before = unsafe { fetch_add_one(sequence) };
        if !decide::in_window(&rule.window, before) {
            return None;
        }
    }
    // SAFETY: as above.
    unsafe { count(&raw mut (*state).fired) };
    Some(rule.errno)
}

#[inline(always)]
fn is_left_alone(headers: &Headers, setup: &Setup) -> bool {
    setup.protect & protect::LOOPBACK != 0 && is_loopback(headers)
        || setup.protect != 0 && is_protected(headers, Direction::Connect, setup)
}

/// Counts a connection, which is no packet on a wire yet.
///
/// # Safety
///
/// The count must lie in a map.
#[inline(always)]
unsafe fn count(count: *mut Count) {
    // SAFETY: as the caller warrants.
    unsafe { fetch_add_one(&raw mut (*count).packets) };
}

/// Where the connection would go, as the headers of its first packet would say. Where it comes from is not settled yet.
#[inline(always)]
fn headers(context: &SockAddrContext, family: Network) -> Headers {
    // SAFETY: the context the kernel called us with.
    let address = unsafe { &*context.sock_addr };
    let mut headers = Headers {
        network: family,
        has_protocol: true,
        has_ports: true,
        protocol: address.protocol as u8,
        destination_port: u16::from_be(address.user_port as u16),
        ..Headers::NONE
    };
    if matches!(family, Network::V4) {
        headers.destination[0] = address.user_ip4;
        return headers;
    }
    let words = &address.user_ip6;
    let words = [words[0], words[1], words[2], words[3]];
    // IPv4 through a socket of IPv6.
    if words[0] | words[1] == 0 && words[2] == 0xffff_u32.to_be() {
        headers.network = Network::V4;
        headers.destination[0] = words[3];
    } else {
        headers.destination = words;
    }
    headers
}
