//! Somebody ends it: by a signal, or by no longer reading what it prints.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigSet, Signal, raise},
    unistd::pipe,
};

use super::{
    killed::fraction,
    scene::{PATIENCE, Scene, at_once, records, start_text},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, rounds},
    traffic::monotonic_ns,
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::every_signal_ends_it", every_signal).needs(NEEDS),
    Test::new("life::a_signal_before_its_start_keeps_it_disarmed", signal_before).needs(NEEDS),
    Test::new("life::a_signal_during_its_start_ends_it", signal_during_start).needs(NEEDS).waits(),
    Test::new("life::ends_when_nobody_reads", nobody_reads).needs(NEEDS),
    Test::new("life::does_not_begin_when_nobody_reads", nobody_reads_from_the_start).needs(NEEDS),
];

const SIGNALS: [(Signal, &str); 4] =
    [(Signal::SIGINT, "in"), (Signal::SIGTERM, "out"), (Signal::SIGHUP, "both"), (Signal::SIGQUIT, "out")];

fn every_signal() -> Result {
    let mut scene = Scene::set()?;
    for (signal, way) in SIGNALS {
        let (fault, _) = scene.armed(&["100%", "--proto", "udp", "--direction", way])?;
        let hit = |side| if [side, "both"].contains(&way) { 100 } else { 0 };
        scene.loses((hit("out"), hit("in")), &format!("armed, {way}"))?;
        fault.kill(signal)?;
        let exit = fault.wait(at_once())?;
        ensure!(exit.code == Some(130) && exit.stderr.is_empty(), "{signal}: {exit:?}");
        let summary = exit.event("summary")?;
        let told = (summary.get("/verdict")?, summary.get("/reason")?);
        ensure!(told.0 == "interrupted" && told.1 == signal.as_str(), "{signal}: {summary:?}");
        scene.over(signal.as_str())?;
    }
    Ok(())
}

/// The signal is there when the program begins: what the slowest start and the fastest Ctrl-C come to. Nothing is begun then.
fn signal_before() -> Result {
    let mut scene = Scene::set()?;
    let arguments = scene.loss(&["100%", "--proto", "udp", "--direction", "both"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for (signal, _) in SIGNALS {
        let exit = Faultline::start_with(&arguments, |command| pending(command, signal))?.wait(PATIENCE)?;
        ensure!(exit.code == Some(130) && exit.stderr.is_empty(), "{signal}: {exit:?}");
        ensure!(exit.events.is_empty() && records()?.is_empty(), "{signal}: {exit:?}, left {:?}", records());
        scene.over(signal.as_str())?;
    }
    Ok(())
}

/// Blocked and pending signals stay so over an exec.
fn pending(command: &mut Command, signal: Signal) {
    let block_and_raise = move || {
        let mut set = SigSet::empty();
        set.add(signal);
        set.thread_block()?;
        Ok(raise(signal)?)
    };
    // SAFETY: three system calls, no allocation.
    unsafe { command.pre_exec(block_and_raise) };
}

fn signal_during_start() -> Result {
    let mut scene = Scene::set()?;
    let start = monotonic_ns();
    let (fault, armed) = scene.armed(&["100%", "--direction", "both", "--proto", "udp"])?;
    let length = Duration::from_nanos(armed.read_at - start);
    fault.interrupt()?;
    let mut random = 4;
    for _ in 0..rounds(8) {
        let fault = scene.start(&["100%", "--direction", "both", "--proto", "udp"])?;
        let moment = length.mul_f64(fraction(&mut random));
        std::thread::sleep(moment);
        fault.kill(Signal::SIGINT)?;
        let exit = fault.wait(PATIENCE)?;
        // In its first milliseconds, before it has begun anything, it dies of the signal as any program would.
        let died = exit.signal == Some(Signal::SIGINT as i32) && exit.events.is_empty();
        ensure!(exit.code == Some(130) || died, "SIGINT after {moment:?}: {exit:?}");
        // Without a sweep.
        scene.over(&format!("SIGINT after {moment:?}"))?;
    }
    Ok(())
}

/// As by `| head`, in text and in JSON, of which text says nothing on standard output while it runs.
fn nobody_reads() -> Result {
    let mut scene = Scene::set()?;
    for json in [false, true] {
        let option: &[&str] = if json { &["--json"] } else { &[] };
        let loss = ["100%", "--proto", "udp", "--direction", "both"];
        let mut fault = start_text(&scene.loss(&[&loss, option].concat()))?;
        let mut stdout = BufReader::new(fault.stdout.take().context("its output")?);
        let mut line = String::new();
        while !line.contains("armed") {
            line.clear();
            ensure!(stdout.read_line(&mut line).context("read")? > 0, "it ended before it was armed");
        }
        scene.loses((100, 100), "armed")?;
        drop(stdout);
        let took = aborted(&mut fault)?;
        ensure!(took < at_once(), "json {json}: it ended {took:?} after its reader");
        scene.over("afterwards")?;
    }
    Ok(())
}

/// Waits for exit 4; how long that took.
fn aborted(fault: &mut Child) -> Result<Duration> {
    let start = Instant::now();
    let status = fault.wait().context("wait")?;
    let took = start.elapsed();
    let mut stderr = String::new();
    fault.stderr.take().context("its errors")?.read_to_string(&mut stderr).context("read")?;
    ensure!(status.code() == Some(4), "{status}: {stderr}");
    ensure!(stderr.contains("standard output"), "{stderr}");
    Ok(took)
}

fn nobody_reads_from_the_start() -> Result {
    let mut scene = Scene::set()?;
    let (reader, writer) = pipe().context("pipe")?;
    drop(reader);
    let arguments = scene.loss(&["100%", "--proto", "udp"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = Faultline::run_with(&arguments, |command| stdout_to(command, writer))?;
    ensure!(exit.code == Some(4), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("afterwards")
}

fn stdout_to(command: &mut Command, writer: OwnedFd) {
    let writer = File::from(writer);
    let redirect = move || {
        // SAFETY: two integers.
        let result = unsafe { libc::dup2(writer.as_raw_fd(), libc::STDOUT_FILENO) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: one system call, no allocation.
    unsafe { command.pre_exec(redirect) };
}
