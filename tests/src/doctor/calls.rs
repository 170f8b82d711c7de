//! Programs on functions of the kernel, and on one of ours: they count our calls, or give them another result, and
//! no other process's.

use std::{
    ffi::CString,
    fs::{self, File},
    hint::black_box,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};
use chaos_user::kernel::{
    btf::KernelTypes,
    probe::{
        flag::{Flag, Thread},
        insn::Code,
        perf::{Attached, Event},
    },
    sys,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{
    elsewhere::{Errno, elsewhere, errno},
    load,
};
use crate::{
    ensure,
    error::{Context, Failure, Result},
};

/// Nothing on this machine says so by itself.
const CHOSEN: Errno = libc::ENOTRECOVERABLE;
/// The kernel's function for a system call that faults are made of.
const FSYNC: &str = "__x64_sys_fsync";
const TRACEFS: &str = "/sys/kernel/tracing";

pub(super) fn lsm() -> Result {
    let (kind, attach) = (bpf_prog_type::BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC);
    check_result(open, refusal(), |code| trace(kind, attach, "bpf_lsm_file_open", code))
}

pub(super) fn fmod_ret_security() -> Result {
    check_result(open, refusal(), |code| {
        tracing(bpf_attach_type::BPF_MODIFY_RETURN, "security_file_open", code)
    })
}

pub(super) fn fmod_ret_syscall() -> Result {
    check_result(fsync, refusal(), |code| tracing(bpf_attach_type::BPF_MODIFY_RETURN, FSYNC, code))
}

pub(super) fn kprobe_override() -> Result {
    let code = Code::default().copy(1, 6).set(2, -CHOSEN).call(bpf_func_id::BPF_FUNC_override_return);
    check_result(fsync, code, |code| on_event(kprobe_event()?, code))
}

pub(super) fn fentry() -> Result {
    check_count(fsync, |code| tracing(bpf_attach_type::BPF_TRACE_FENTRY, FSYNC, code))
}

pub(super) fn fexit() -> Result {
    check_count(fsync, |code| tracing(bpf_attach_type::BPF_TRACE_FEXIT, FSYNC, code))
}

pub(super) fn kprobe() -> Result {
    check_count(fsync, |code| on_event(kprobe_event()?, code))
}

pub(super) fn tracepoint() -> Result {
    let event = Event::tracepoint(tracepoint_id("syscalls/sys_enter_fsync")?)?;
    let kind = bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT;
    check_count(fsync, |code| Ok(event.attach(&load(kind, None, 0, code)?)?))
}

pub(super) fn raw_tracepoint() -> Result {
    check_count(rename, |code| {
        let program = load(bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, None, 0, code)?;
        Ok(sys::raw_tracepoint(program.as_fd(), Some("task_rename"))?)
    })
}

pub(super) fn uprobe() -> Result {
    let place = place_in_file(ours as extern "C" fn(u64) -> u64 as usize as u64)?;
    let event = Event::probe("uprobe", c"/proc/self/exe", place)?;
    let call = || Errno::from(black_box(ours(black_box(7))) != 14);
    check_count(call, |code| on_event(event, code))
}

/// Gives the thread's calls a result of ours.
fn refusal() -> Code {
    Code::default().exit(-CHOSEN)
}

/// While what `attach` gives is held, the action fails with [`CHOSEN`] here, and elsewhere it does not.
fn check_result<T>(
    action: impl Fn() -> Errno,
    code: Code,
    attach: impl FnOnce(&Code) -> Result<T>,
) -> Result {
    let code = Thread::current()?.only(code);
    let look = || Ok::<_, Failure>([action(), elsewhere(&action)?]);
    let before = look()?;
    let held = attach(&code)?;
    let during = look();
    drop(held);
    let seen = [before, during?, look()?];
    ensure!(
        seen == [[0, 0], [CHOSEN, 0], [0, 0]],
        "errno here and elsewhere, before, during and after: {seen:?}, not {CHOSEN}"
    );
    Ok(())
}

/// While what `attach` gives is held, every action here is counted, and none elsewhere.
fn check_count<T>(action: impl Fn() -> Errno, attach: impl FnOnce(&Code) -> Result<T>) -> Result {
    const HERE: u64 = 100;
    let flag = Flag::new()?;
    let code = Thread::current()?.only(flag.count());
    let act = |times: u64| (0..times).map(|_| action()).fold(0, Errno::max);
    ensure!(act(1) == 0, "the action fails before anything is attached");
    let held = attach(&code)?;
    let failed = [act(HERE), elsewhere(|| act(50))?];
    drop(held);
    ensure!(act(1) == 0 && failed == [0, 0], "the action fails: {failed:?}");
    let counted = flag.get()?;
    ensure!(counted == HERE, "{counted} of {HERE} were counted");
    Ok(())
}

fn tracing(attach: bpf_attach_type, function: &str, code: &Code) -> Result<OwnedFd> {
    trace(bpf_prog_type::BPF_PROG_TYPE_TRACING, attach, function, code)
}

fn trace(kind: bpf_prog_type, attach: bpf_attach_type, function: &str, code: &Code) -> Result<OwnedFd> {
    let function = KernelTypes::read()?.function(function)?;
    let program = load(kind, Some(attach), function, code)?;
    Ok(sys::raw_tracepoint(program.as_fd(), None)?)
}

fn kprobe_event() -> Result<Event> {
    let function = CString::new(FSYNC).context(FSYNC)?;
    Ok(Event::probe("kprobe", &function, 0)?)
}

fn on_event(event: Event, code: &Code) -> Result<Attached> {
    Ok(event.attach(&load(bpf_prog_type::BPF_PROG_TYPE_KPROBE, None, 0, code)?)?)
}

/// The number of a tracepoint, from tracefs: where it is not mounted, from a mount that only this process sees.
fn tracepoint_id(name: &str) -> Result<u64> {
    const NOTHING: Option<&str> = None;
    let file = format!("{TRACEFS}/events/{name}/id");
    if !Path::new(&file).exists() {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
        mount(NOTHING, "/", NOTHING, private, NOTHING).context("make mounts private")?;
        mount(NOTHING, TRACEFS, Some("tracefs"), MsFlags::empty(), NOTHING).context("mount tracefs")?;
    }
    fs::read_to_string(&file).context(&file)?.trim().parse().context(file)
}

fn open() -> Errno {
    errno(File::open("/dev/null"))
}

/// Of a file that no disk is behind.
fn fsync() -> Errno {
    let fsync = || {
        let file = memfd_create(c"fsync", MFdFlags::MFD_CLOEXEC)?;
        // SAFETY: an open fd.
        let result = unsafe { libc::fsync(file.as_raw_fd()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    errno(fsync())
}

fn rename() -> Errno {
    errno(nix::sys::prctl::set_name(c"fl-test").map_err(io::Error::from))
}

#[inline(never)]
extern "C" fn ours(number: u64) -> u64 {
    black_box(number) * 2
}

/// Where the code at an address lies in this program's file.
fn place_in_file(address: u64) -> Result<u64> {
    const MAPS: &str = "/proc/self/maps";
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let maps = fs::read_to_string(MAPS).context(MAPS)?;
    // `55e0c000-55e0d000 r-xp 00001000 08:01 1234 /path`
    let place = maps.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words.first()?.split_once('-')?;
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(words.get(2)?)?);
        (start..end).contains(&address).then(|| address - start + offset)
    });
    place.context("our own code is not in /proc/self/maps")
}
