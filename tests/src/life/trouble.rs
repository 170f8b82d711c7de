//! What the kernel refuses, at the beginning and at the end: each error by its own call, and with its own exit code.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use chaos_user::kernel::sys::{self, Kind};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount, umount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    environment::one_sentence,
    scene::{PATIENCE, Scene, at_once, id, ps, records, start_text},
};
use crate::{
    ensure,
    error::{Context, Result, check},
    faultline::Faultline,
    harness::{Need, Test, pidfd},
    inventory::Inventory,
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    // Not beside others: it holds whatever programs there are.
    Test::new("life::dirty_is_summed_up", dirty).needs(NEEDS),
    Test::new("life::what_cannot_be_counted_is_inconclusive", uncounted).needs(NEEDS).waits(),
    Test::new("input::what_a_run_needs_beside_the_fault", refused_calls).needs(NEEDS).waits(),
];

const OUT: [&str; 3] = ["100%", "--proto", "udp"];

/// The programs of all faults, which stay as long as these are held.
fn programs() -> Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    for fault in ps()? {
        for hook in fault["hooks"].as_array().context("hooks")? {
            let program = hook["program_id"].as_u64().context("a program's number")?;
            held.extend(sys::open(Kind::Program, program as u32)?);
        }
    }
    ensure!(!held.is_empty(), "there are no programs");
    Ok(held)
}

/// Somebody else holds what it must see gone: it says so by its code, and what it did all the same.
fn dirty() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&OUT)?;
    let mut text = start_text(&scene.loss(&[&OUT, &["--direction", "in"][..]].concat()))?;
    let mut stdout = BufReader::new(text.stdout.take().context("its output")?);
    let mut told = String::new();
    while !told.contains("^C ends it") {
        ensure!(stdout.read_line(&mut told).context("read")? > 0, "it ended before it was armed: {told}");
    }
    scene.loses((100, 100), "armed")?;
    let held = programs()?;
    fault.kill(Signal::SIGINT)?;
    kill(Pid::from_raw(text.id().cast_signed()), Signal::SIGINT).context("kill")?;

    let exit = fault.wait(PATIENCE)?;
    let says = ["not known to be clean", "prog show id", "bpftool"];
    ensure!(exit.code == Some(6), "{exit:?}");
    ensure!(says.iter().all(|part| exit.stderr.contains(part)), "{exit:?}");
    ensure!(exit.stderr.matches("not known to be clean").count() == 1, "told twice: {exit:?}");
    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == "dirty" && summary.get("/exit_code")? == 6, "{summary:?}");
    let reason = summary.get("/reason")?.as_str().context("a reason")?;
    ensure!(reason.contains("SIGINT") && says.iter().all(|part| reason.contains(part)), "{reason}");
    ensure!(exit.fired()? == 100, "{summary:?}");

    stdout.read_to_string(&mut told).context("read")?;
    let mut stderr = String::new();
    text.stderr.take().context("its errors")?.read_to_string(&mut stderr).context("read")?;
    let status = text.wait().context("wait")?;
    ensure!(status.code() == Some(6), "{status}: {told}{stderr}");
    let line = told.lines().find(|line| line.starts_with("dirty: ")).context("no summary in text")?;
    ensure!(says.iter().all(|part| line.contains(part)) && !line.contains("verified"), "{line}");
    ensure!(told.contains("loss 100% --proto udp"), "no rules: {told}");
    ensure!(stderr.lines().filter(|line| line.contains("not known to be clean")).count() == 1, "{stderr}");

    let left = format!("{}.json", id(&armed)?);
    ensure!(records()?.contains(&left), "{left} is gone: {:?}", records());
    drop(held);
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    scene.over("swept")
}

/// A system call, which of it by its first argument, and what becomes of it.
type Denied = (libc::c_long, Option<u32>, Errno);

/// A filter that gives these actions to these calls, and lets all others pass.
fn filter(actions: &[(libc::c_long, Option<u32>, u32)]) -> Vec<libc::sock_filter> {
    /// Where the kernel tells a filter the number of a call, and the lower half of its first argument.
    const NUMBER: u32 = 0;
    const ARGUMENT: u32 = 16;
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let load = |from| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, from, 0);
    let unless = |value, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    let end = |how| step(libc::BPF_RET | libc::BPF_K, how, 0);
    let mut filter = Vec::new();
    for (call, argument, action) in actions {
        let rest = argument.map_or_else(Vec::new, |argument| vec![load(ARGUMENT), unless(argument, 1)]);
        filter.extend([load(NUMBER), unless(*call as u32, rest.len() as u8 + 1)]);
        filter.extend(rest);
        filter.push(end(*action));
    }
    filter.push(end(libc::SECCOMP_RET_ALLOW));
    filter
}

/// Has the calling process's calls go through a filter.
fn install(filter: &[libc::sock_filter], flags: libc::c_ulong) -> std::io::Result<i32> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: a filter that lives until the kernel has copied it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Has the kernel refuse these to a process.
fn deny(command: &mut Command, denied: &[Denied]) {
    let refused = |errno: Errno| libc::SECCOMP_RET_ERRNO | errno as u32;
    let actions: Vec<_> = denied.iter().map(|it| (it.0, it.1, refused(it.2))).collect();
    let filter = filter(&actions);
    // SAFETY: one system call, no allocation.
    unsafe { command.pre_exec(move || install(&filter, 0).map(drop)) };
}

/// Where a process that is started has what it asks about its calls.
const ASKS: i32 = 99;

/// Has a process ask before each of these calls.
fn ask(command: &mut Command, call: libc::c_long, argument: u32) {
    let filter = filter(&[(call, Some(argument), libc::SECCOMP_RET_USER_NOTIF)]);
    let install = move || {
        let asks = install(&filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: two integers.
        let moved = unsafe { libc::dup2(asks, ASKS) };
        if moved < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: two system calls, no allocation.
    unsafe { command.pre_exec(install) };
}

/// Answers a process that asks: its calls are made until they are refused.
fn answer(process: Pid, is_refused: Arc<AtomicBool>) -> Result {
    const RECEIVE: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
    const SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
    let pidfd = pidfd(process)?;
    // SAFETY: three integers.
    let asks = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), ASKS, 0) };
    // SAFETY: a new one, which nobody else has.
    let asks = unsafe { OwnedFd::from_raw_fd(check(asks, "pidfd_getfd")? as i32) };
    thread::spawn(move || {
        loop {
            // SAFETY: all zeros is what the kernel wants to be given.
            let mut question: libc::seccomp_notif = unsafe { mem::zeroed() };
            // SAFETY: room for what it writes, of the size that the number of the request has in it.
            if unsafe { libc::ioctl(asks.as_raw_fd(), RECEIVE, &raw mut question) } < 0 {
                return;
            }
            let (error, flags) = match is_refused.load(Ordering::SeqCst) {
                true => (-libc::EIO, 0),
                false => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            };
            let answer = libc::seccomp_notif_resp { id: question.id, val: 0, error, flags };
            // SAFETY: as above, and read. Whoever asked may be gone.
            unsafe { libc::ioctl(asks.as_raw_fd(), SEND, &raw const answer) };
        }
    });
    Ok(())
}

/// It acts, is taken back and checked; only nobody knows how often it has fired.
fn uncounted() -> Result {
    /// Of the commands of `bpf`.
    const MAP_LOOKUP: u32 = 1;
    let mut scene = Scene::set()?;
    let arguments = scene.loss(&[&OUT, &["--for", "2s"][..]].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let fault = Faultline::start_with(&arguments, |command| ask(command, libc::SYS_bpf, MAP_LOOKUP))?;
    let is_refused = Arc::new(AtomicBool::new(false));
    answer(fault.pid(), Arc::clone(&is_refused))?;
    fault.wait_event("armed", PATIENCE)?;
    is_refused.store(true, Ordering::SeqCst);
    scene.loses((100, 0), "armed")?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(5) && exit.stderr.is_empty(), "{exit:?}");
    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == "inconclusive" && summary.get("/exit_code")? == 5, "{summary:?}");
    let reason = summary.get("/reason")?.as_str().context("a reason")?;
    let says = ["its time is over", "could not be counted", "Input/output error"];
    ensure!(says.iter().all(|part| reason.contains(part)), "{reason}");
    scene.over("afterwards")
}

/// Before anything has begun: exit 3, and the call that was refused.
fn refused_calls() -> Result {
    let before = Inventory::take(&[])?;
    let loss = ["net", "loss", "1%", "--dev", "lo", "--for", "100ms"];
    let skew = ["time", "skew", "--offset", "1h", "--", "true"];
    let rows: [(&[&str], &[Denied], &[&str]); 5] = [
        (
            &loss,
            &[(libc::SYS_rt_sigaction, Some(Signal::SIGTERM as u32), Errno::EPERM)],
            &["sigaction", "SIGTERM"],
        ),
        (&loss, &[(libc::SYS_signalfd4, None, Errno::EMFILE)], &["signalfd", "Too many open files"]),
        (
            &loss,
            &[(libc::SYS_pipe2, None, Errno::ENFILE)],
            &["pipe on stdout", "Too many open files in system"],
        ),
        (&loss, &[(libc::SYS_clone3, None, Errno::EAGAIN)], &["clone", "thread \"stdout\""]),
        (&skew, &[(libc::SYS_clone, None, Errno::EAGAIN)], &["fork on the command true"]),
    ];
    for (words, denied, says) in rows {
        let exit = Faultline::run_with(words, |command| deny(command, denied))?;
        one_sentence(&exit, 3, says).context(format_args!("{says:?}"))?;
        ensure!(!exit.stderr.contains("standard output"), "{exit:?}");
    }
    let (none, random): (Option<&str>, _) = (None, "/dev/urandom");
    fs::write("/run/nothing", "").context("write")?;
    mount(Some("/run/nothing"), random, none, MsFlags::MS_BIND, none).context("bind")?;
    let exit = Faultline::run(&loss);
    umount(random).context("umount")?;
    fs::remove_file("/run/nothing").context("rm")?;
    one_sentence(&exit?, 3, &["read on /dev/urandom"])?;
    ensure!(records()?.is_empty(), "left {:?}", records());
    before.wait_until_equal(&[], at_once())
}
