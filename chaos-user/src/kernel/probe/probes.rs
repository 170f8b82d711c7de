//! Programs on places in code: kprobes, uprobes, tracepoints. Each is set off by a call of our own.

use std::{
    ffi::CString,
    hint::black_box,
    os::fd::{AsFd, OwnedFd},
};

use aya_obj::generated::{bpf_func_id, bpf_prog_type};

use super::{
    Answer, M, Refusal, SILENT,
    flag::{Flag, Thread, load_raw},
    insn::Code,
    mounts,
    perf::{Attached, Event},
};
use crate::kernel::{
    Error,
    mappings::Mappings,
    sys::{self, Program},
};

/// The start of the name of the kernel's function for a system call.
const SYSCALL: &str = match () {
    () if cfg!(target_arch = "x86_64") => "__x64_sys_",
    () if cfg!(target_arch = "aarch64") => "__arm64_sys_",
    () if cfg!(target_arch = "riscv64") => "__riscv_sys_",
    () if cfg!(target_arch = "s390x") => "__s390x_sys_",
    () => "sys_",
};
/// A system call that hardly anybody makes, changes nothing, and asks the security modules first.
const CALL: &str = "sched_getscheduler";
/// What only a program of ours makes that call answer.
const OVERRIDE: i32 = libc::ENOTRECOVERABLE;
const TRACEFS: &str = "/sys/kernel/tracing";

/// All of them.
pub(super) fn probe(thread: Thread) -> Vec<(M, Answer)> {
    vec![
        (M::Kprobe, kprobe(thread)),
        (M::KprobeOverride, kprobe_override(thread)),
        (M::Tracepoint, tracepoint(thread)),
        (M::RawTracepoint, raw_tracepoint(thread)),
        (M::Uprobe, uprobe(thread)),
    ]
}

/// Makes the call that the probes wait for. Returns its errno, 0 if it went well.
pub(super) fn call() -> i32 {
    // SAFETY: takes a number, gives a number.
    let result = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// Whether the flag was raised by a program that should have run.
pub(super) fn raised(flag: &Flag) -> Answer {
    if flag.get()? == 0 { Err(Refusal::missing(SILENT)) } else { Ok(None) }
}

/// Loads a program of a kind that perf events run, and attaches it.
fn attach(name: &str, kind: bpf_prog_type, code: &Code, event: Event) -> Result<Attached, Refusal> {
    Ok(event.attach(&load(name, kind, code)?)?)
}

/// Loads such a program.
pub(super) fn load(name: &str, kind: bpf_prog_type, code: &Code) -> Result<OwnedFd, Error> {
    sys::load(&Program {
        name,
        kind,
        attach: None,
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })
}

/// The kernel's function for [`CALL`].
pub(super) fn syscall() -> String {
    format!("{SYSCALL}{CALL}")
}

fn on_syscall() -> Result<Event, Refusal> {
    let function = CString::new(syscall()).unwrap_or_default();
    Ok(Event::probe("kprobe", &function, 0)?)
}

fn kprobe(thread: Thread) -> Answer {
    let flag = Flag::new()?;
    let event = on_syscall()?;
    let code = thread.only(flag.raise());
    let _attached = attach("doctor_kprobe", bpf_prog_type::BPF_PROG_TYPE_KPROBE, &code, event)?;
    call();
    raised(&flag)
}

/// The call is answered with an errno of ours, for this thread only.
fn kprobe_override(thread: Thread) -> Answer {
    let event = on_syscall()?;
    let code =
        thread.only(Code::default().copy(1, 6).set(2, -OVERRIDE).call(bpf_func_id::BPF_FUNC_override_return));
    let _attached = attach("doctor_override", bpf_prog_type::BPF_PROG_TYPE_KPROBE, &code, event)?;
    match call() {
        OVERRIDE => Ok(None),
        errno => Err(Refusal::missing(format!(
            "the program loads and attaches, and the call still answers as before (errno {errno})"
        ))),
    }
}

fn tracepoint(thread: Thread) -> Answer {
    let file = format!("events/syscalls/sys_enter_{CALL}/id");
    let id = mounts::read(c"tracefs", TRACEFS, &file)?;
    let id = id.trim().parse().map_err(|_| Refusal::missing(format!("{file} of tracefs holds no number")))?;
    let flag = Flag::new()?;
    let event = Event::tracepoint(id)?;
    let code = thread.only(flag.raise());
    let _attached = attach("doctor_tp", bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT, &code, event)?;
    call();
    raised(&flag)?;
    let mounted = mounts::find("tracefs")?.is_some();
    Ok((!mounted).then(|| format!("tracefs is not mounted at {TRACEFS}; read without mounting it")))
}

/// On the tracepoint of a thread's new name.
fn raw_tracepoint(thread: Thread) -> Answer {
    let flag = Flag::new()?;
    let program = load_raw("doctor_raw_tp", &thread.only(flag.raise()))?;
    let _link = sys::raw_tracepoint(program.as_fd(), Some("task_rename"))?;
    nix::sys::prctl::set_name(c"faultline-probe")
        .map_err(|errno| Error::new("prctl(PR_SET_NAME)", "this thread", errno.into()))?;
    raised(&flag)
}

/// On a function of our own binary, which nobody else calls.
fn uprobe(thread: Thread) -> Answer {
    let address = probed as extern "C" fn(u64) -> u64 as usize as u64;
    let offset = file_offset(address)?;
    let flag = Flag::new()?;
    let event = Event::probe("uprobe", c"/proc/self/exe", offset)?;
    let code = thread.only(flag.raise());
    let _attached = attach("doctor_uprobe", bpf_prog_type::BPF_PROG_TYPE_KPROBE, &code, event)?;
    black_box(probed(black_box(1)));
    raised(&flag)
}

#[inline(never)]
extern "C" fn probed(number: u64) -> u64 {
    black_box(number).rotate_left(7) ^ 0x5bd1_e995
}

/// Where the code at an address lies in our binary.
fn file_offset(address: u64) -> Result<u64, Refusal> {
    const MAPS: &str = "/proc/self/maps";
    let maps = Mappings::of(std::process::id()).map_err(|source| Error::new("open", MAPS, source))?;
    maps.offset_of(address)
        .ok_or_else(|| Refusal::Untried(format!("not tried: {MAPS} does not hold our own code")))
}
