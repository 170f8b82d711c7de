//! Whether a call is hit, and how: written once for all hooks.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_jiffies64, bpf_ktime_get_ns, bpf_loop, bpf_probe_read_kernel_str,
};
use chaos_ebpf::{
    abi::{Count, Delay, Direction, RuleState},
    call::{ARGUMENTS, Name, Setup, effect, nth, takes},
    decide, field,
};

use crate::{
    atomic::fetch_add_one,
    growth,
    kernel::{Addressed, Object, Reach, Typed, call, current, identity},
    kin,
    maps::{
        FL_COMMS, FL_CONTROL, FL_DEVIATIONS, FL_DEVICES, FL_FILE_SYSTEMS, FL_HOOKS, FL_PROCESSES, FL_RULES,
        FL_SEQUENCE, FL_STATE, FL_USERS,
    },
    subject::{self, Subject},
};

/// `PF_KTHREAD`: the kernel's own.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Of the x86-64 system calls, `execve` and `execveat`.
const EXEC: [u32; 2] = [59, 322];

/// The call that runs, as long as it is not known whether it is hit.
pub(crate) struct Candidate {
    /// Who makes it.
    pub(crate) task: Object,
    /// The rules that want them.
    pub(crate) rules: u64,
    /// In ticks.
    pub(crate) now: u64,
}

/// The call, if any of these rules is in force and wants whoever makes it.
#[inline(always)]
pub(crate) fn candidate(setup: &Setup, rules: u64) -> Option<Candidate> {
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_jiffies64() };
    if rules == 0 || !decide::armed(FL_CONTROL.get(0)?, now) {
        return None;
    }
    let task = current();
    // All of them; the verifier must not know which: see `subject::climb`.
    let all = !(now >> 63);
    let rules = rules & wanted(setup, task) & all;
    if rules == 0 { None } else { Some(Candidate { task, rules, now }) }
}

/// The rules that want this task. The first process and the kernel's own threads only those do that name them.
#[inline(always)]
fn wanted(setup: &Setup, task: Object) -> u64 {
    let tgid = Typed::int(task, setup.at.task_tgid);
    let mut rules = 0;
    if setup.processes != 0 {
        // SAFETY: what is deleted meanwhile is not read but for its number.
        rules = unsafe { FL_PROCESSES.get(tgid) }.copied().unwrap_or(0);
    }
    if tgid == setup.owner_tgid {
        return 0;
    }
    if tgid != 1 && Typed::int(task, setup.at.task_flags) & KERNEL_THREAD == 0 {
        rules |= setup.any_owner | of_cgroups(setup);
    }
    rules
}

/// The rules that want the cgroup that runs, or one around it. A look-up costs more than all else that is done for those
/// who are not meant, so where one cgroup is there is none.
#[inline(always)]
fn of_cgroups(setup: &Setup) -> u64 {
    if setup.cgroup == 0 {
        return kin::of_current(&setup.levels, setup.level_count);
    }
    // SAFETY: takes and returns a number.
    let number = unsafe { bpf_get_current_ancestor_cgroup_id(setup.levels[0].into()) };
    if number == setup.cgroup { setup.of_cgroup } else { 0 }
}

/// What is done to a call.
pub(crate) struct Fate {
    /// Why it fails, below zero; 0 if it does not.
    pub(crate) errno: i64,
    /// The rule that makes what was read wrong, plus one; 0 if none does.
    pub(crate) corrupted_by: u32,
    /// That rule's random number.
    pub(crate) random: u64,
}

/// Decides on a call, and has it wait.
#[inline(always)]
pub(crate) fn decide<R: Reach>(setup: &Setup, candidate: &Candidate, subject: &Subject<R>) -> Option<Fate> {
    let Candidate { task, now, .. } = *candidate;
    let hook = FL_HOOKS.get_ptr_mut(Direction::Call as u32)?;
    // SAFETY: this CPU's slot; the program can be preempted, so it counts by atomic instructions.
    unsafe { count(&raw mut (*hook).seen) };
    let rules = narrowed(setup, task, subject, candidate.rules);
    if rules == 0 {
        return None;
    }
    if is_exempt(setup, task, subject) {
        // SAFETY: as above.
        unsafe { fetch_add_one(&raw mut (*hook).spared) };
        return None;
    }
    let flags = if subject.file.is_null() { 0 } else { R::int(subject.file, setup.at.file_flags) };
    let mut grows = true;
    let mut arguments = [0; ARGUMENTS];
    if setup.asks != 0 || setup.effects & effect::GROWTH != 0 {
        let call = call(task);
        grows = setup.effects & effect::GROWTH == 0 || growth::grows(setup, subject, &call);
        arguments = call.arguments;
    }
    let mut weighing = Weighing {
        rules,
        now,
        arguments,
        flags,
        grows: u32::from(grows),
        random: 0,
        wait: 0,
        errno: 0,
        corrupted_by: 0,
        unused: 0,
    };
    for _ in 0..u64::BITS {
        if fl_weigh(&raw mut weighing) == LAST || setup.single != 0 {
            break;
        }
    }
    if setup.effects & effect::WAIT != 0 && weighing.wait != 0 {
        wait(weighing.wait);
    }
    let Weighing { errno, corrupted_by, random, .. } = weighing;
    Some(Fate { errno, corrupted_by, random })
}

/// Whether it is the injector's own program that runs, or is being started: stopping a fault must never fail by it.
#[inline(always)]
fn is_exempt<R: Reach>(setup: &Setup, task: Object, subject: &Subject<R>) -> bool {
    let [own, loader] = &setup.exempt;
    let memory = Typed::object(task, setup.at.task_mm);
    if !memory.is_null() {
        let program = Typed::object(memory, setup.at.mm_exe_file);
        if !program.is_null() {
            let inode = Typed::object(program, setup.at.file_inode);
            if !inode.is_null()
                && Typed::long(inode, setup.at.inode_number) == own.number
                && identity::<Typed>(inode) == *own
            {
                return true;
            }
        }
    }
    if subject.inode.is_null() {
        return false;
    }
    let number = R::long(subject.inode, setup.at.inode_number);
    if number != own.number && number != loader.number {
        return false;
    }
    let inode = identity::<R>(subject.inode);
    inode == *own || inode == *loader && EXEC.contains(&call(task).number)
}

/// Those of the rules that want this file, this user and this thread.
#[inline(always)]
fn narrowed<R: Reach>(setup: &Setup, task: Object, subject: &Subject<R>, mut rules: u64) -> u64 {
    let at = &setup.at;
    // What overlayfs does to its layers for somebody it does with other credentials, and beside what was asked of itself:
    // only who asks for the layer's own files means that.
    let acting = Typed::object(task, at.task_cred);
    if acting != Typed::object(task, at.task_real_cred) {
        rules &= !setup.any_place;
    }
    if setup.any_user != u64::MAX {
        let user = Typed::int(acting, at.cred_euid);
        // SAFETY: the owner never deletes an entry while a program can run.
        rules &= setup.any_user | unsafe { FL_USERS.get(user) }.copied().unwrap_or(0);
    }
    if setup.any_name != u64::MAX {
        let name = name(task as u64 + field::at(at.task_comm) as u64);
        // SAFETY: as above.
        rules &= setup.any_name | unsafe { FL_COMMS.get(name) }.copied().unwrap_or(0);
    }
    if setup.any_file_system & setup.any_device != u64::MAX {
        let block = subject.file_system(setup);
        if setup.any_device != u64::MAX {
            let device = if block.is_null() { 0 } else { Addressed::int(block, at.sb_dev) };
            // SAFETY: as above.
            rules &= setup.any_device | unsafe { FL_DEVICES.get(device) }.copied().unwrap_or(0);
        }
        if setup.any_file_system != u64::MAX {
            let kind = if block.is_null() { block } else { Addressed::object(block, at.sb_type) };
            let name = if kind.is_null() { [0; 2] } else { name(Addressed::long(kind, at.type_name)) };
            // SAFETY: as above.
            rules &= setup.any_file_system | unsafe { FL_FILE_SYSTEMS.get(name) }.copied().unwrap_or(0);
        }
    }
    if rules & !setup.any_place != 0 {
        rules &= setup.any_place | subject::places(setup, subject, rules & !setup.any_place);
    }
    rules
}

/// A name in the kernel's memory, as the maps have it.
#[inline(always)]
fn name(address: u64) -> Name {
    let mut name = MaybeUninit::<Name>::uninit();
    let (words, size) = (name.as_mut_ptr().cast::<u64>(), size_of::<Name>() as u32);
    // SAFETY: both words are written, one by one: LLVM would call a function that writes byte by byte, each of which the
    // verifier follows. The helper checks what it reads, and writes no more than there is room for.
    unsafe {
        words.write_volatile(0);
        words.add(1).write_volatile(0);
        bpf_probe_read_kernel_str(words.cast(), size, address as *const c_void);
        name.assume_init()
    }
}

/// A call on its way through the rules: numbers alone, whatever they are, and no byte between them.
#[repr(C)]
pub(crate) struct Weighing {
    rules: u64,
    now: u64,
    arguments: [u64; ARGUMENTS],
    flags: u32,
    grows: u32,
    random: u64,
    wait: u64,
    errno: i64,
    corrupted_by: u32,
    unused: u32,
}

const _: () = assert!(size_of::<Weighing>() == 8 * (2 + ARGUMENTS + 1 + 3 + 1));

/// No rule is left to be asked, or the call fails.
const LAST: u32 = 1;

/// Asks the next rule. Global for the verifier, which walks through such a function once and by itself: in a loop of `bpf_loop`'s
/// it would from Linux 6.17 on walk a million instructions (`is_state_visited`, `RANGE_WITHIN`).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn fl_weigh(weighing: *mut Weighing) -> u32 {
    if weighing.is_null() {
        return LAST;
    }
    // SAFETY: it is the caller's, and nobody else's meanwhile.
    let weighing = unsafe { &mut *weighing };
    if weighing.rules == 0 {
        return LAST;
    }
    let index = weighing.rules.trailing_zeros();
    weighing.rules &= weighing.rules - 1;
    let Some(rule) = FL_RULES.get(index) else { return 0 };
    if weighing.now >= rule.expires_at
        || weighing.flags & rule.flags != rule.flags
        || rule.asks != 0 && !takes(&rule.arguments, &weighing.arguments)
        || rule.effects & effect::GROWTH != 0 && weighing.grows == 0
    {
        return 0;
    }
    let Some(state) = FL_STATE.get_ptr_mut(index) else { return 0 };
    // SAFETY: as for the hook's slot.
    unsafe { count(&raw mut (*state).matched) };
    let Some(sequence) = FL_SEQUENCE.get_ptr_mut(index) else { return 0 };
    // SAFETY: an aligned u64 in the map.
    let before = unsafe { fetch_add_one(sequence) };
    if !decide::in_window(&rule.window, before) {
        return 0;
    }
    let random = nth(rule.seed, before);
    if !decide::fires(rule.chance, random as u32) {
        return 0;
    }
    // Whether there is anything to be made wrong is seen when that is tried.
    if rule.effects & effect::CORRUPT == 0 {
        // SAFETY: as above.
        unsafe { count(&raw mut (*state).fired) };
    }
    if rule.effects & effect::WAIT != 0 {
        // SAFETY: as above.
        weighing.wait += duration(&rule.delay, random, unsafe { &mut *state });
    }
    if rule.effects & effect::CORRUPT != 0 {
        weighing.corrupted_by = index + 1;
        weighing.random = random;
    }
    if rule.effects & effect::FAIL == 0 {
        return 0;
    }
    weighing.errno = rule.errno;
    LAST
}

/// How long a call waits, in nanoseconds.
#[inline(always)]
fn duration(delay: &Delay, random: u64, state: &mut RuleState) -> u64 {
    if delay.jitter == 0 {
        return delay.time;
    }
    // Its chance has taken the lower half.
    let draw = (random >> 32) as u32;
    if delay.correlation == 0 || !decide::fires(delay.correlation, nth(random, 0) as u32) {
        state.deviation = if delay.entries == 0 {
            decide::uniform(delay.jitter, draw)
        } else {
            let place = (u64::from(draw) * u64::from(delay.entries)) >> 32;
            let entry = FL_DEVIATIONS.get(delay.table + place as u32).copied().unwrap_or(0);
            decide::scaled(delay.jitter, entry)
        };
    }
    decide::delayed(delay, 0, state.deviation)
}

/// Keeps the CPU until its time has come: a program in the kernel cannot sleep.
#[inline(never)]
fn wait(nanoseconds: u64) -> u64 {
    /// Most turns of one loop (`BPF_MAX_LOOPS`).
    const TURNS: u32 = 1 << 23;
    // SAFETY: takes nothing, returns a number.
    let mut until = unsafe { bpf_ktime_get_ns() } + nanoseconds;
    // Two seconds take this many loops where looking at the clock takes 15 ns.
    for _ in 0..16 {
        let callback = look as unsafe extern "C" fn(u32, *mut u64) -> i64;
        // SAFETY: as above.
        let turns = unsafe { bpf_loop(TURNS, callback as *mut c_void, (&raw mut until).cast(), 0) };
        if turns < i64::from(TURNS) {
            break;
        }
    }
    0
}

/// 1 once the time has come, or the fault is over.
unsafe extern "C" fn look(_turn: u32, until: *mut u64) -> i64 {
    // SAFETY: takes nothing, returns a number; and as the caller of `bpf_loop` warrants.
    if unsafe { bpf_ktime_get_ns() >= *until } {
        return 1;
    }
    let Some(control) = FL_CONTROL.get(0) else { return 1 };
    // SAFETY: as above.
    i64::from(!decide::armed(control, unsafe { bpf_jiffies64() }))
}

/// What the program says of the call: 0, or an errno below it. From Linux 6.12 the verifier wants to see of a security
/// hook's verdict that it is in this range; the comparisons are kept apart, for it does not follow what LLVM makes of both.
#[inline(always)]
pub(crate) fn verdict(setup: &Setup, fate: Option<Fate>) -> i64 {
    if setup.effects & effect::FAIL == 0 {
        return 0;
    }
    let mut errno = fate.map_or(0, |fate| fate.errno);
    if errno > 0 {
        return 0;
    }
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) errno, options(pure, nomem, preserves_flags)) };
    if errno < -4095 {
        return 0;
    }
    errno
}

/// Counts a call.
///
/// # Safety
///
/// The count must lie in a map.
#[inline(always)]
pub(crate) unsafe fn count(count: *mut Count) {
    // SAFETY: as the caller warrants.
    unsafe { fetch_add_one(&raw mut (*count).packets) };
}
