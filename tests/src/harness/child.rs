//! A test's own process.

use std::{
    env,
    fs::File,
    io::{Read, Seek},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    panic::{self, AssertUnwindSafe},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

use super::{Need, Outcome, Report, Test, place};
use crate::error::{Context, Result, check};

/// What the line with the reason begins with.
const FAILURE: &str = "failure: ";
/// More output than this loses its beginning.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// The other side of [`run`]: runs the test in this process.
#[must_use]
pub fn run_one(test: &Test) -> ExitCode {
    let run = || {
        if test.needs.contains(&Need::Root) {
            place::enter()?;
        }
        (test.run)()
    };
    let reason = match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.to_string(),
        // The hook has printed where and why.
        Err(_) => "it panicked".into(),
    };
    eprintln!("{FAILURE}{reason}");
    ExitCode::FAILURE
}

/// Runs a test in a new process.
pub(super) fn run(test: &Test, arguments: &[String]) -> Report {
    let start = Instant::now();
    let (outcome, reason, output, cpu) = match attempt(test, arguments) {
        Ok(Attempt { ended: Ended::Exited(0), output, cpu }) => (Outcome::Pass, String::new(), output, cpu),
        Ok(Attempt { ended, output, cpu }) => {
            (Outcome::Fail, reason(ended, &output, test.limit()), output, cpu)
        }
        Err(failure) => (Outcome::Fail, failure.to_string(), String::new(), Duration::ZERO),
    };
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu.as_secs_f64());
    Report { test: test.name, outcome, reason, seconds, cpu_seconds, output }
}

/// What is known of a process that has ended.
struct Attempt {
    ended: Ended,
    output: String,
    cpu: Duration,
}

enum Ended {
    Exited(i32),
    Killed(Signal),
    Hung,
}

fn reason(ended: Ended, output: &str, timeout: Duration) -> String {
    // A failure may be told in several lines; the first says what, and all of them are in the output.
    let told = output.lines().rev().find_map(|line| line.strip_prefix(FAILURE));
    match ended {
        Ended::Hung => format!("hung: killed after {} s", timeout.as_secs()),
        Ended::Killed(signal) => format!("killed by {signal}"),
        Ended::Exited(code) => told.map_or_else(|| format!("exit {code}"), Into::into),
    }
}

fn attempt(test: &Test, arguments: &[String]) -> Result<Attempt> {
    // What the test leaves behind becomes ours, so that we can wait until it is gone.
    prctl::set_child_subreaper(true).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    let output = memfd_create(c"output", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    let copy = || output.try_clone().context("dup");
    let executable = env::current_exe().context("readlink /proc/self/exe")?;
    let mut command = Command::new(&executable);
    command.args(["--run-one", test.name]).args(arguments);
    command.stdin(std::process::Stdio::null()).stdout(copy()?).stderr(copy()?).process_group(0);
    die_with_parent(&mut command);
    let child = command.spawn().context(format_args!("start {}", executable.display()))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (ended, cpu) = wait(pid, test.limit())?;
    Ok(Attempt { ended, output: text(output)?, cpu })
}

/// Has the child killed when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let kill_me_too = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
    // SAFETY: one system call, no allocation.
    unsafe { command.pre_exec(kill_me_too) };
}

/// Waits for the child, then ends whatever is left of its process group.
fn wait(pid: Pid, timeout: Duration) -> Result<(Ended, Duration)> {
    let in_time = wait_for_exit(pidfd(pid)?.as_fd(), timeout)?;
    if !in_time {
        // Before reaping it, as its number still is its own.
        let _ = killpg(pid, Signal::SIGKILL);
    }
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).context("waitid")?;
    let _ = killpg(pid, Signal::SIGKILL);
    let (status, cpu) = reap(pid)?;
    // Orphans of the group; ECHILD ends it.
    while !matches!(waitpid(Pid::from_raw(-pid.as_raw()), None), Err(errno) if errno != Errno::EINTR) {}
    let ended = match status {
        _ if !in_time => Ended::Hung,
        WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal),
        WaitStatus::Exited(_, code) => Ended::Exited(code),
        other => return Err(crate::error::Failure::new(format!("wait4: {other:?}"))),
    };
    Ok((ended, cpu))
}

/// A child's end, and for how long it ran with those that it had waited for.
fn reap(pid: Pid) -> Result<(WaitStatus, Duration)> {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: both pointers are to values of the types that it writes.
        let reaped = unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, usage.as_mut_ptr()) };
        match Errno::result(reaped) {
            Err(Errno::EINTR) => {}
            result => break result.map(drop).context("wait4")?,
        }
    }
    // SAFETY: all zeros is a value of it, and wait4 has written another.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.cast_unsigned()) + Duration::from_micros(time.tv_usec.cast_unsigned())
    };
    let status = WaitStatus::from_raw(pid, status).context("wait4")?;
    Ok((status, time(usage.ru_utime) + time(usage.ru_stime)))
}

/// A file descriptor that becomes readable when the process ends.
pub(crate) fn pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    check(fd, format_args!("pidfd_open({pid})"))?;
    // SAFETY: a new fd, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until the process has ended; false if it has not in time.
pub(crate) fn wait_for_exit(pidfd: std::os::fd::BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait is not one of 0 ms again and again.
        let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], left) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno).context(format_args!("poll(pidfd {})", pidfd.as_raw_fd())),
        }
    }
}

fn text(output: OwnedFd) -> Result<String> {
    let mut file = File::from(output);
    let mut bytes = Vec::new();
    file.rewind().context("seek in the output")?;
    file.read_to_end(&mut bytes).context("read the output")?;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(OUTPUT_LIMIT)..]).into_owned();
    Ok(text)
}
