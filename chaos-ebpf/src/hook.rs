//! What every network hook does with a packet, written once.

use core::hint::black_box;

use aya_ebpf::helpers::generated::bpf_jiffies64;
use chaos_ebpf::{
    abi::{
        CgroupOffsets, Delay, Direction, HookState, MAX_LEVELS, Rate, Rule, RuleState, SIDES, Session, Setup,
        Wire, effect,
    },
    background::{is_background, may_be_background},
    classify::{classify, is_protected},
    decide,
    packet::{self, Headers, Network, Truncated, View},
};

use crate::{
    atomic::fetch_add_one,
    maps::{
        FL_CONTROL, FL_DEVIATIONS, FL_HOOKS, FL_LATENESS, FL_RULES, FL_SEQUENCE, FL_STATE, FL_WIRES, Maps,
    },
    profile,
};

/// Written by the owner before the load; see [`setup`].
#[unsafe(no_mangle)]
static FL_SETUP: Setup = Setup {
    direction: [0; SIDES],
    any_remote: 0,
    any_local: 0,
    any_protocol: 0,
    any_remote_port: 0,
    any_local_port: 0,
    sparing: 0,
    any_cgroup: 0,
    any_name: 0,
    any_record: 0,
    levels: [0; MAX_LEVELS],
    tables: 0,
    owner_tgid: 0,
    tgid_offset: 0,
    ethernet: 0,
    effects: 0,
    ifindex: 0,
    links: [0; 2],
    far_links: [0; 2],
    place: 0,
    level_count: 0,
    processes: 0,
    parent_offset: 0,
    cgroup: CgroupOffsets { of_socket: 0, level: 0, ancestors: 0, node: 0, node_id: 0 },
    protect: 0,
    session: Session { remote: [0; 4], remote_port: 0, local_port: 0, v6: 0 },
    generation: 0,
    ahead_of_real: 0,
};

/// The load's constants. LLVM must not see that they are all zero here; the verifier sees what they became.
#[inline(always)]
pub(crate) fn setup() -> &'static Setup {
    black_box(&FL_SETUP)
}

/// What becomes of a packet. Flat, each field written before the next rule is asked, and no byte between them: for the verifier.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Fate {
    /// When it goes on, `CLOCK_MONOTONIC` nanoseconds; 0 for at once.
    pub(crate) goes_at: u64,
    /// The same of the second one.
    pub(crate) second_goes_at: u64,
    /// 1 if it comes by itself, see [`is_background`]; 0 where rules do nothing but lose.
    pub(crate) background: u64,
    /// The rule that corrupts it, plus one; 0 if none does.
    pub(crate) corrupted_by: u32,
    /// Where its transport header begins, 0 without one.
    pub(crate) transport: u32,
    /// What is not done to it, a set of [`effect`] bits.
    pub(crate) exempt: u32,
    /// Its IP protocol.
    pub(crate) protocol: u8,
    pub(crate) v6: bool,
    /// Gone, as if the wire had lost it.
    pub(crate) lost: bool,
    /// Gone, and its connection with it.
    pub(crate) reset: bool,
    /// It comes twice.
    pub(crate) twice: bool,
    /// A DNS query that is answered instead: its RCODE, plus one; 0 if it is not.
    pub(crate) answer: u8,
    /// Its checksum is to be completed, so that it is seen to be wrong.
    pub(crate) completed: bool,
    unused: [u8; 5],
}

impl Fate {
    /// As if the program were not there.
    pub(crate) const PASS: Self = Self {
        goes_at: 0,
        second_goes_at: 0,
        background: 0,
        corrupted_by: 0,
        transport: 0,
        exempt: 0,
        protocol: 0,
        v6: false,
        lost: false,
        reset: false,
        twice: false,
        answer: 0,
        completed: false,
        unused: [0; 5],
    };
}

/// A packet at one of the hooks.
pub(crate) trait Packet {
    /// Which way it goes.
    const DIRECTION: Direction;
    /// Whether the hook can do more with it than lose it.
    const IS_BUFFER: bool;
    /// What of the frame can be read directly.
    fn frame(&self) -> Frame;
    /// Makes the headers readable if they were not; false if there is nothing more to read.
    fn pull(&self) -> bool;
    /// Length of the frame in bytes.
    fn length(&self) -> u64;
    /// Reads bytes of the frame, wherever they lie; false if it ends before.
    fn load(&self, offset: u32, to: &mut [u8]) -> bool;
    /// How many packets it is on the wire; never 0.
    fn segments(&self) -> u32;
    /// When it would go on, `CLOCK_MONOTONIC` nanoseconds.
    fn time(&self) -> u64;
    /// What is not done to it, a set of [`effect`] bits, for where its TCP connection is.
    fn exempt(&self, headers: &Headers) -> u32;
    /// The rules that want the cgroup, or one around it, of the socket whose packet it is.
    fn cgroup(&self, headers: &Headers, setup: &Setup, hook: &mut HookState) -> u64;
    /// The rules that want the DNS query it is.
    fn question(&self, headers: &Headers) -> u64;
    /// Whether it comes by itself, by [`background`] in a function that is global for the verifier.
    fn background(&self, rule: u32) -> u32;
    /// Asks the next rule, by [`ask_next`] in such a function; [`LAST`] after that one.
    fn ask(&self, work: &mut Work) -> u32;
}

/// The directly readable part of a frame.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    /// Where it begins.
    pub(crate) data: usize,
    /// One past its last byte.
    pub(crate) end: usize,
}

impl packet::Frame for Frame {
    type View = Header;

    #[inline(always)]
    fn view(&self, offset: usize, length: usize) -> Option<Header> {
        let at = self.data + offset;
        (at + length <= self.end).then_some(Header { at })
    }
}

/// Part of a frame that is there. The programs may read at any alignment: the kernel lays headers out so that
/// this is good enough for itself, and the verifier refuses it where the machine does not.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    at: usize,
}

impl Header {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: within the view, as its maker checked and as the verifier proves once more.
        unsafe { *((self.at + offset) as *const T) }
    }
}

impl View for Header {
    #[inline(always)]
    fn u8(&self, offset: usize) -> u8 {
        self.read(offset)
    }
    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        self.read(offset)
    }
    #[inline(always)]
    fn u32(&self, offset: usize) -> u32 {
        self.read(offset)
    }
}

/// Decides on one packet: lease, headers, rules, chance, into a fate that is still [`Fate::PASS`]. `None` passes it.
///
/// Whose packet it is the current task does not say: what is received, and what timers and answers send, is handled
/// while any task runs, the owner as well. The owner sends nothing that it needs.
#[inline(always)]
pub(crate) fn decide<P: Packet>(packet: &P, fate: &mut Fate) -> Option<()> {
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_jiffies64() };
    if !decide::armed(FL_CONTROL.get(0)?, now) {
        return None;
    }
    let setup = setup();
    let hook = FL_HOOKS.get_ptr_mut(P::DIRECTION as u32)?;
    // Nothing instead of an error: with `Result` LLVM lets an undefined payload reach the code behind it.
    let found = headers(packet, setup.ethernet != 0);
    let unparsed = found.is_none();
    let headers = found.unwrap_or(Headers::NONE);
    let segments = packet.segments();
    let bytes = wire_bytes(packet, &headers, segments);
    // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let hook = unsafe { &mut *hook };
    hook.seen.add(segments, bytes);
    if unparsed {
        hook.unparsed += 1;
        return None;
    }
    keep_clue(hook, &headers);
    if setup.effects & effect::PER_FLOW != 0 {
        // Once, and not for each rule: the verifier of Linux 6.1 would keep the headers apart for each way through them, and walk
        // through the loop over the rules for each.
        hook.flow = decide::flow(&headers, P::DIRECTION).into();
    }
    fate.transport = headers.transport;
    fate.protocol = headers.protocol;
    fate.v6 = matches!(headers.network, Network::V6);
    let mut candidates = classify(&headers, P::DIRECTION, setup, &Maps);
    if P::IS_BUFFER && setup.any_cgroup != u64::MAX && candidates & !setup.any_cgroup != 0 {
        candidates &= setup.any_cgroup | packet.cgroup(&headers, setup, hook);
    }
    if P::IS_BUFFER && setup.any_name != u64::MAX && candidates & !setup.any_name != 0 {
        candidates &= setup.any_name | packet.question(&headers);
    }
    if setup.sparing != 0 {
        candidates = spare(candidates, setup.sparing, segments, bytes);
    }
    if candidates == 0 {
        return None;
    }
    if setup.protect != 0 && is_protected(&headers, P::DIRECTION, setup) {
        hook.spared += 1;
        return None;
    }
    if P::IS_BUFFER && setup.effects & effect::OF_CONNECTIONS != 0 {
        fate.exempt = packet.exempt(&headers);
    }
    if P::IS_BUFFER && setup.effects & !effect::ANY_LOSS != 0 {
        if may_be_background(kept_clue(hook) as u8) {
            fate.background = packet.background(ALL_RULES).into();
        }
        let mut work = Work { candidates, now, bytes, segments, headers, fate: *fate };
        for _ in 0..u64::BITS {
            if packet.ask(&mut work) == LAST {
                break;
            }
        }
        *fate = work.fate;
    } else {
        for _ in 0..u64::BITS {
            if candidates == 0 {
                break;
            }
            let rule = candidates.trailing_zeros();
            candidates &= candidates - 1;
            apply::<P, false>(packet, rule, now, &headers, segments, bytes, fate)?;
            if fate.lost {
                if may_be_background(kept_clue(hook) as u8) {
                    packet.background(rule);
                }
                break;
            }
        }
    }
    Some(())
}

/// Writes down by what it is known whether a packet comes by itself, before anything else is done with it. What is needed of
/// the headers later, the verifier of Linux 6.1 keeps apart until then for each way through them, and it walks for each
/// through all that lies between, the loop of [`spare`] too.
#[inline(always)]
fn keep_clue(hook: &mut HookState, headers: &Headers) {
    let network = headers.network as u64;
    hook.clue = u64::from(headers.transport) << TRANSPORT | network << NETWORK | u64::from(headers.protocol);
}

/// LLVM must not see that this is what was written.
#[inline(always)]
fn kept_clue(hook: &HookState) -> u64 {
    // SAFETY: in the map, this CPU's slot.
    unsafe { (&raw const hook.clue).read_volatile() }
}

/// What lies where in such a clue, above the protocol.
const NETWORK: u32 = 8;
const TRANSPORT: u32 = 32;

/// For [`background`]: no rule alone has hit the packet.
const ALL_RULES: u32 = u32::MAX;

/// 1 for a packet that comes by itself, of those that could by their clue; it is counted for the rule that has lost it.
#[inline(always)]
pub(crate) fn background<P: Packet>(packet: &P, rule: u32) -> u32 {
    let Some(hook) = FL_HOOKS.get(P::DIRECTION as u32) else { return 0 };
    let clue = hook.clue;
    let (v6, transport) = (clue >> NETWORK & 3 == Network::V6 as u64, (clue >> TRANSPORT) as usize);
    if !is_background(&Loaded(packet), v6, clue as u8, transport, setup().ethernet != 0) {
        return 0;
    }
    if let Some(state) = FL_STATE.get_ptr_mut(rule) {
        // SAFETY: this CPU's slot, as in `apply`.
        unsafe { (*state).background += 1 };
    }
    1
}

/// A frame that is read by the kernel's helpers: at an offset of which the verifier knows nothing.
struct Loaded<'a, P>(&'a P);

/// What is looked at so is no longer than an address.
const LONGEST_VIEW: usize = 6;

impl<P: Packet> packet::Frame for Loaded<'_, P> {
    type View = Copied;

    #[inline(always)]
    fn view(&self, offset: usize, length: usize) -> Option<Copied> {
        let mut copied = Copied([0; LONGEST_VIEW]);
        self.0.load(offset as u32, copied.0.get_mut(..length)?).then_some(copied)
    }
}

/// Bytes of a frame.
struct Copied([u8; LONGEST_VIEW]);

impl Copied {
    #[inline(always)]
    fn read<const LENGTH: usize>(&self, offset: usize) -> [u8; LENGTH] {
        self.0.get(offset..offset + LENGTH).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; LENGTH])
    }
}

impl View for Copied {
    #[inline(always)]
    fn u8(&self, offset: usize) -> u8 {
        u8::from_ne_bytes(self.read(offset))
    }
    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.read(offset))
    }
    #[inline(always)]
    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.read(offset))
    }
}

/// The rules that are left of these when those that keep others from acting have done so. Not inlined: what it keeps at
/// hand would push out of the registers what every packet needs, 8 ns also where nothing is spared.
#[inline(never)]
pub(crate) fn spare(candidates: u64, sparing: u64, segments: u32, bytes: u64) -> u64 {
    let mut spared = 0;
    let mut left = candidates & sparing;
    for _ in 0..u64::BITS {
        if left == 0 {
            break;
        }
        let index = left.trailing_zeros();
        left &= left - 1;
        let (Some(rule), Some(state)) = (FL_RULES.get(index), FL_STATE.get_ptr_mut(index)) else { break };
        if candidates & rule.spares != 0 {
            spared |= rule.spares;
            // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
            unsafe { (*state).matched.add(segments, bytes) };
        }
    }
    candidates & !spared & !sparing
}

/// A packet and the rules that are still to be asked: numbers alone, whatever they are.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Work {
    candidates: u64,
    now: u64,
    bytes: u64,
    segments: u32,
    headers: Headers,
    fate: Fate,
}

const _: () = assert!(size_of::<Work>() == 3 * 8 + 4 + size_of::<Headers>() + size_of::<Fate>());
const _: () = assert!(size_of::<Fate>() == 48);

/// No rule is left to be asked.
pub(crate) const LAST: u32 = 1;

/// Asks the next rule; called by functions that are global for the verifier.
///
/// It walks through a global function once, knowing no more of the arguments than their types, and knows nothing of what it
/// returns. Inlined into the loop this would be walked through for each way to each turn, which is minutes on Linux 6.1; as
/// `bpf_loop`'s function it would be from 6.17 on, where states within a loop are the same only if all their numbers are
/// (`is_state_visited`, `RANGE_WITHIN`).
#[inline(always)]
pub(crate) fn ask_next<P: Packet>(packet: &P, work: *mut Work) -> u32 {
    if work.is_null() {
        return LAST;
    }
    // SAFETY: it is the caller's, and nobody else's meanwhile.
    let Work { candidates, now, bytes, segments, headers, fate } = unsafe { &mut *work };
    if *candidates == 0 {
        return LAST;
    }
    let rule = candidates.trailing_zeros();
    *candidates &= *candidates - 1;
    let applied = apply::<P, true>(packet, rule, *now, headers, *segments, *bytes, fate);
    (applied.is_none() || fate.lost || *candidates == 0).into()
}

#[inline(always)]
fn headers<P: Packet>(packet: &P, ethernet: bool) -> Option<Headers> {
    match packet::parse(&packet.frame(), ethernet) {
        Err(Truncated) if packet.pull() => packet::parse(&packet.frame(), ethernet).ok(),
        found => found.ok(),
    }
}

#[inline(always)]
fn wire_bytes<P: Packet>(packet: &P, headers: &Headers, segments: u32) -> u64 {
    if segments == 1 {
        return packet.length();
    }
    let repeated = packet::segment_header(&packet.frame(), headers);
    packet.length() + u64::from(segments - 1) * u64::from(repeated)
}

/// Counts a packet that matches a rule, and adds what the rule does with it: it may be lost, and if `ALL`, be more.
#[inline(always)]
fn apply<P: Packet, const ALL: bool>(
    packet: &P,
    index: u32,
    now: u64,
    headers: &Headers,
    segments: u32,
    bytes: u64,
    fate: &mut Fate,
) -> Option<()> {
    let rule = FL_RULES.get(index)?;
    if now >= rule.expires_at {
        return Some(());
    }
    if P::IS_BUFFER && setup().effects & effect::OF_CONNECTIONS != 0 && rule.effects & fate.exempt != 0 {
        return Some(());
    }
    let state = FL_STATE.get_ptr_mut(index)?;
    // SAFETY: this CPU's slot, and nothing else runs at this hook on it meanwhile: BH is off.
    let state = unsafe { &mut *state };
    state.matched.add(segments, bytes);
    if rule.numbered != 0 {
        let sequence = FL_SEQUENCE.get_ptr_mut(index)?;
        // SAFETY: an aligned u64 in the map.
        let before = unsafe { fetch_add_one(sequence) };
        if !decide::in_window(&rule.window, before) {
            return Some(());
        }
    }
    // What no rule does the verifier removes here.
    let effects = rule.effects & setup().effects;
    if effects & effect::ANY_LOSS != 0 && is_lost::<P>(effects, rule, state) {
        fate.lost = true;
        state.lost += 1;
        fired_on(state, segments, bytes, fate);
        return Some(());
    }
    if !ALL || !P::IS_BUFFER {
        return Some(());
    }
    if effects & effect::PROFILE != 0 {
        // Without an entry the packet is left alone, and further rules are asked.
        let _ = profile::apply(packet, state, headers, segments, bytes, fate);
        return Some(());
    }
    // One branch for all that nothing comes after: one more is too much for the verifier of Linux 6.1.
    if effects & (effect::OF_CONNECTIONS | effect::ANSWER) != 0 {
        fate.lost = true;
        fate.answer = rule.answer as u8;
        fate.reset = effects & effect::RESET != 0;
        fired_on(state, segments, bytes, fate);
        return Some(());
    }
    let mut fired = false;
    let mut twice = false;
    if effects & effect::DUPLICATE != 0
        && decide::meets(&rule.duplicate, effect::DUPLICATE, &mut state.last, &mut state.random)
    {
        twice = true;
        fate.twice = true;
        fate.second_goes_at = fate.goes_at;
        state.duplicated += 1;
        fired = true;
    }
    if effects & effect::CORRUPT != 0
        && decide::meets(&rule.corrupt, effect::CORRUPT, &mut state.last, &mut state.random)
    {
        fate.corrupted_by = index + 1;
        fate.completed = fate.completed || effects & effect::FIX_CHECKSUM == 0;
        state.corrupted += 1;
        fired = true;
    }
    if effects & effect::WAITING != 0 {
        let wire = FL_WIRES.get_ptr_mut(index)?;
        let start = if fate.goes_at != 0 { fate.goes_at } else { packet.time() };
        let start = forget(state, start);
        if effects & effect::REORDER != 0 && overtakes(rule, state) {
            state.reordered += 1;
        } else {
            let at =
                wait(P::DIRECTION, effects, &rule.delay, &rule.rate, state, wire, start, bytes, segments);
            if at == 0 {
                fate.lost = true;
                state.overlimit += 1;
                fired_on(state, segments, bytes, fate);
                return Some(());
            }
            fate.goes_at = at;
            state.delayed += 1;
        }
        if twice {
            let at =
                wait(P::DIRECTION, effects, &rule.delay, &rule.rate, state, wire, start, bytes, segments);
            // For the second one there was no room on the wire.
            fate.twice = at != 0;
            fate.second_goes_at = at;
        }
        fired = true;
    }
    if fired {
        fired_on(state, segments, bytes, fate);
    }
    Some(())
}

/// Counts a packet that a rule acts on. Without a branch, and with nothing to remember: either is too much for the verifier.
#[inline(always)]
pub(crate) fn fired_on(state: &mut RuleState, segments: u32, bytes: u64, fate: &Fate) {
    state.fired.add(segments, bytes);
    state.background += fate.background;
}

#[inline(always)]
fn is_lost<P: Packet>(effects: u32, rule: &Rule, state: &mut RuleState) -> bool {
    if effects & effect::BURSTS != 0 {
        return decide::lost_in_burst(&rule.bursts, &mut state.bad, &mut state.random);
    }
    if effects & effect::PER_FLOW != 0 {
        let Some(hook) = FL_HOOKS.get(P::DIRECTION as u32) else { return false };
        // SAFETY: in the map, this CPU's slot; LLVM must not see that this is what was written.
        let flow = unsafe { (&raw const hook.flow).read_volatile() } as u32;
        return decide::fires(rule.loss.threshold, decide::of_flow(flow, rule.flow_seed));
    }
    decide::meets(&rule.loss, effect::LOSS, &mut state.last, &mut state.random)
}

/// Whether a packet does not wait: netem's reordering, by chance and at most one in so many.
#[inline(always)]
fn overtakes(rule: &Rule, state: &mut RuleState) -> bool {
    state.since = state.since.wrapping_add(1);
    if state.since < rule.reorder_gap
        || !decide::meets(&rule.reorder, effect::REORDER, &mut state.last, &mut state.random)
    {
        return false;
    }
    state.since = 0;
    true
}

/// When a packet that comes at `start` goes on; 0 if there is no room for it.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "each is a register or a place on the stack; a struct is copied"
)]
pub(crate) fn wait(
    direction: Direction,
    effects: u32,
    delay: &Delay,
    rate: &Rate,
    state: &mut RuleState,
    wire: *mut Wire,
    start: u64,
    bytes: u64,
    segments: u32,
) -> u64 {
    let (mut at, mut start) = (start, start);
    if effects & effect::RATE != 0 {
        let length = forget(state, decide::wire_length(rate, bytes, segments));
        // SAFETY: an aligned u64 in the map.
        let busy = unsafe { &raw mut (*wire).busy_until };
        let sent = update(busy, |busy| decide::sent(rate, busy, start, length).unwrap_or(0));
        if sent == 0 {
            return 0;
        }
        at = forget(state, if sent > start { sent } else { start });
        start = forget(state, start);
    }
    if effects & effect::DELAY != 0 {
        let deviation = deviation(delay, state);
        at = forget(state, decide::delayed(delay, at, deviation));
    }
    // The way round takes time as well, which counts as part of the delay.
    let early = at.saturating_sub(FL_LATENESS.get(direction as u32).copied().unwrap_or(0));
    at = forget(state, if early > start { early } else { start });
    if effects & effect::KEEP_ORDER != 0 {
        // SAFETY: as above.
        let last = unsafe { &raw mut (*wire).last };
        at = update(last, |last| if last > at { last } else { at });
    }
    forget(state, at)
}

/// The same number, of which the verifier has forgotten what it knew: else each way to it is gone on by itself, and the
/// ways of the steps multiply.
#[inline(always)]
pub(crate) fn forget(state: &mut RuleState, number: u64) -> u64 {
    unknown(&raw mut state.scratch, number)
}

/// The same, by a place in a map that nobody else uses meanwhile.
#[inline(always)]
fn unknown(scratch: *mut u64, number: u64) -> u64 {
    // SAFETY: in the map, this CPU's slot.
    unsafe {
        scratch.write_volatile(number);
        scratch.read_volatile()
    }
}

/// A deviation of the rule's distribution, or the one before.
#[inline(always)]
fn deviation(delay: &Delay, state: &mut RuleState) -> i64 {
    if delay.jitter == 0 {
        return 0;
    }
    if delay.correlation != 0 && decide::fires(delay.correlation, decide::random(&mut state.random)) {
        return state.deviation;
    }
    let random = decide::random(&mut state.random);
    state.deviation = if delay.entries == 0 {
        decide::uniform(delay.jitter, random)
    } else {
        let place = ((u64::from(random) * u64::from(delay.entries)) >> 32) as u32;
        let entry = FL_DEVIATIONS.get(delay.table.wrapping_add(place)).copied().unwrap_or(0);
        decide::scaled(delay.jitter, entry)
    };
    state.deviation
}

/// Replaces a number that all CPUs share by `change` of it, and returns the new one; 0 leaves it. Where another CPU
/// was in the way it is tried once more, and then whoever is last wins: each attempt more doubles the verifier's paths.
#[inline(always)]
fn update(number: *mut u64, change: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: an aligned u64 in a map, which others may change meanwhile.
    let old = unsafe { number.read_volatile() };
    let new = change(old);
    if new == 0 {
        return 0;
    }
    // SAFETY: as above.
    let found = unsafe { compare_and_swap(number, old, new) };
    if found == old {
        return new;
    }
    let new = change(found);
    if new != 0 {
        // SAFETY: as above.
        unsafe { number.write_volatile(new) };
    }
    new
}

/// Replaces `number` by `new` if it is `old`, and returns what it was.
///
/// # Safety
///
/// `number` must point to an aligned `u64` in a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn compare_and_swap(number: *mut u64, old: u64, new: u64) -> u64 {
    let before: u64;
    // SAFETY: as the caller warrants; the instruction touches nothing else.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({number} + 0, r0, {new})",
            inlateout("r0") old => before,
            number = in(reg) number,
            new = in(reg) new,
        );
    }
    before
}

/// The same for the lint, which looks at the programs as the host's and knows no `r0`.
///
/// # Safety
///
/// As above.
#[cfg(not(target_arch = "bpf"))]
unsafe fn compare_and_swap(number: *mut u64, _old: u64, _new: u64) -> u64 {
    // SAFETY: as the caller warrants.
    unsafe { number.read_volatile() }
}
