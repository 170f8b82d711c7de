//! What programs may call and know: user memory, loops, the kernel's types, runs without an attachment; and vDSOs.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya_obj::generated::{bpf_func_id, bpf_prog_type};
use chaos_user::kernel::{
    btf::KernelTypes,
    probe::{
        flag::{Flag, Thread, load_raw, run_here},
        insn::Code,
        load_loop,
    },
    sys,
};
use nix::{
    sys::{
        prctl::set_name,
        ptrace,
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};

use super::{elsewhere::elsewhere, load};
use crate::{
    ensure,
    error::{Context, Failure, Result},
};

const XDP_PASS: i32 = 2;

/// A program reads the running process's id where the types say it is.
pub(super) fn btf() -> Result {
    let types = KernelTypes::read()?;
    let offset = types.offset("task_struct", "tgid")?.context("task_struct.tgid")?;
    let flag = Flag::new()?;
    let code = Code::default()
        .call(bpf_func_id::BPF_FUNC_get_current_task)
        .copy(3, 0)
        .add(3, offset.cast_signed())
        .set_value(1, flag.as_fd())
        .set(2, 4)
        .call(bpf_func_id::BPF_FUNC_probe_read_kernel)
        .exit_with_result();
    let result = run_here(&load_raw("fl_test_btf", &code)?)?;
    let (seen, own) = (flag.get()?, u64::from(Thread::current()?.tgid()));
    ensure!(result == 0 && seen == own, "task_struct.tgid at {offset} is {seen} and not {own}");
    let nowhere = types.offset("task_struct", "no_such_field")?;
    ensure!(nowhere.is_none(), "what is in no kernel was found: {nowhere:?}");
    let nowhere = types.function("no_such_function");
    ensure!(nowhere.is_err(), "what is in no kernel was found: {nowhere:?}");
    Ok(())
}

pub(super) fn test_run() -> Result {
    const RUNS: u32 = 100;
    let flag = Flag::new()?;
    let code = flag.count().exit(XDP_PASS);
    let program = load(bpf_prog_type::BPF_PROG_TYPE_XDP, None, 0, &code)?;
    let run = sys::test_run(&program, &[0; 64], RUNS)?;
    let counted = flag.get()?;
    ensure!(
        (run.verdict, counted) == (XDP_PASS.cast_unsigned(), RUNS.into()),
        "{counted} of {RUNS} runs: {run:?}"
    );
    Ok(())
}

pub(super) fn bpf_loop() -> Result {
    const ROUNDS: i32 = 100_000;
    let flag = Flag::new()?;
    let program = load_loop("fl_test_loop", ROUNDS, flag.count())?;
    let (said, counted) = (run_here(&program)?, flag.get()?);
    ensure!(
        (said, counted) == (ROUNDS.cast_unsigned(), ROUNDS as u64),
        "asked for {ROUNDS} rounds, the helper says {said}, and {counted} were counted"
    );
    Ok(())
}

/// A program on the tracepoint of a thread's new name writes to a variable of this process.
pub(super) fn probe_write_user() -> Result {
    const MARK: i32 = 0x0fa1_7001;
    static TARGET: AtomicU64 = AtomicU64::new(0);
    let rename = || {
        TARGET.store(0, Ordering::SeqCst);
        set_name(c"fl-test").context("prctl(PR_SET_NAME)")?;
        Ok::<_, Failure>(TARGET.load(Ordering::SeqCst))
    };
    // In a copy of this process the variable has the same address.
    let look = || Ok::<_, Failure>((rename()?, elsewhere(|| i32::from(rename() != Ok(0)))?));
    let write = Code::default()
        .store(10, -8, MARK)
        .set_wide(1, ptr::from_ref(&TARGET) as u64)
        .copy(2, 10)
        .add(2, -8)
        .set(3, 8)
        .call(bpf_func_id::BPF_FUNC_probe_write_user);
    let before = look()?;
    let program = load_raw("fl_test_write", &Thread::current()?.only(write))?;
    let link = sys::raw_tracepoint(program.as_fd(), Some("task_rename"))?;
    let during = look()?;
    drop((link, program));
    let seen = [before, during, look()?];
    ensure!(
        seen == [(0, 0), (MARK as u64, 0), (0, 0)],
        "written here, and whether elsewhere, before, during and after: {seen:x?}"
    );
    Ok(())
}

/// A byte of another process's vDSO that nobody reads becomes another, by who traces it, and this process's stays.
pub(super) fn vdso_patch() -> Result {
    const MARK: u8 = 0xfa;
    /// The last of `e_ident`, which is there to fill it.
    const PADDING: u64 = 15;
    // SAFETY: takes and returns a number.
    let place = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } + PADDING;
    // SAFETY: of a vDSO, which is mapped for as long as the process lives; written to behind the compiler's back.
    let look = || unsafe { ptr::read_volatile(place as *const u8) };
    let before = look();
    // SAFETY: there is no other thread that could hold a lock across the fork.
    let child = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => loop {
            match look() {
                0 => std::thread::yield_now(),
                // SAFETY: ends the process. What the parent would do at its end is not for the child to do.
                seen => unsafe { libc::_exit(seen.into()) },
            }
        },
        ForkResult::Parent { child } => child,
    };
    let patch = || {
        ptrace::seize(child, ptrace::Options::empty()).context("PTRACE_SEIZE")?;
        ptrace::interrupt(child).context("PTRACE_INTERRUPT")?;
        waitpid(child, None).context("waitpid")?;
        let memory = File::options().write(true).open(format!("/proc/{child}/mem")).context("open")?;
        memory.write_all_at(&[MARK], place).context("write")?;
        ptrace::detach(child, None).context("PTRACE_DETACH")
    };
    let patched = patch();
    if patched.is_err() {
        kill(child, Signal::SIGKILL).context("kill")?;
    }
    let ended = waitpid(child, None).context("waitpid")?;
    patched?;
    ensure!(
        (before, look(), ended) == (0, 0, WaitStatus::Exited(child, MARK.into())),
        "here {before:#x} and {:#x}, there {ended:?}",
        look()
    );
    Ok(())
}
