//! A command that was started under a fault hears of each signal that asks the fault to end, once, whatever has become of that.

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::process::CommandExt},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    pty::openpty,
    sys::signal::Signal,
    unistd::{Pid, setsid},
};

use super::{
    NEEDS,
    scene::{PATIENCE, Scene},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Test, patience},
    life::scene::records,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::a_command_hears_after_the_fault", after).needs(NEEDS).timeout(60).waits(),
    Test::new("time::a_command_hears_while_it_settles", while_settling).needs(NEEDS).timeout(60).waits(),
    Test::new("time::a_terminal_tells_it_once", by_terminal).needs(NEEDS).timeout(60).waits(),
    Test::new("time::a_command_ends_by_any_signal", ends).needs(NEEDS).timeout(60).waits(),
];

/// Counts what it hears, says so, and ends by SIGTERM with how often it heard SIGINT.
const COUNTS: &str = r#"
n=0
trap 'n=$((n + 1)); echo "{\"event\": \"heard\"}"' INT
trap 'exit $n' TERM
echo '{"event": "ready"}'
while :; do sleep 0.05; done"#;

fn start(options: &[&str], script: &str) -> Result<Faultline> {
    let words = [&["time", "skew", "--offset", "1h"], options, &["--", "sh", "-c", script]].concat();
    let fault = Faultline::start(&words)?;
    fault.wait_event("ready", PATIENCE)?;
    Ok(fault)
}

/// Twice `SIGINT`, each of which it has heard before the next comes, then `SIGTERM`.
fn told(fault: &Faultline) -> Result<Exit> {
    for _ in 0..2 {
        fault.kill(Signal::SIGINT)?;
        fault.wait_event("heard", PATIENCE)?;
    }
    fault.kill(Signal::SIGTERM)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(2), "SIGINT was not heard twice: {exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    Ok(exit)
}

/// Waits until a process has one child alone, which has not ended: the command, and no remains of a guard.
fn only_child(parent: Pid) -> Result {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        let mut states = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
            // `PID (NAME) STATE PARENT ...`; it may have ended.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let mut words = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
            let (state, of) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            states.extend((of == parent.to_string()).then(|| state.to_owned()));
        }
        if matches!(&states[..], [state] if state != "Z") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "children of {parent} in these states: {states:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The fault's time is over, and who began the command only waits for it.
fn after() -> Result {
    let mut scene = Scene::set()?;
    // The command says that it is ready before the time is over.
    let fault = start(&["--for", "3s"], COUNTS)?;
    fault.wait_event("summary", PATIENCE)?;
    // There is no fault any more that could be stopped.
    let stopped = Faultline::run(&["stop", "--all"])?;
    ensure!(stopped.code == Some(0), "{stopped:?}");
    only_child(fault.pid())?;
    told(&fault)?;
    // It is the first signal that ends the fault.
    let exit = told(&start(&[], COUNTS)?)?;
    ensure!(exit.event("summary")?.get("/verdict")? == "interrupted", "{exit:?}");
    scene.over("afterwards")
}

fn while_settling() -> Result {
    let mut scene = Scene::set()?;
    // What is ahead by so much settles for longer than this takes; the second signal has it jump.
    let fault = start(&["--clock", "monotonic", "--for", "3s"], COUNTS)?;
    fault.wait_event("settling", PATIENCE)?;
    told(&fault)?;
    scene.over("afterwards")
}

/// `^C` goes to all that a terminal has in its foreground: to the command, too.
fn by_terminal() -> Result {
    let mut scene = Scene::set()?;
    let ends = openpty(None, None).context("openpty")?;
    let slave = ends.slave.as_raw_fd();
    let words = ["time", "skew", "--offset", "1h", "--", "sh", "-c", COUNTS];
    let fault = Faultline::start_with(&words, |command| {
        let own_terminal = move || {
            setsid()?;
            // SAFETY: two integers, and the terminal is nobody's yet.
            Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) })?;
            Ok(())
        };
        // SAFETY: two system calls.
        unsafe { command.pre_exec(own_terminal) };
    })?;
    fault.wait_event("ready", PATIENCE)?;
    File::from(ends.master).write_all(b"\x03").context("^C")?;
    // In whatever order.
    let deadline = Instant::now() + patience(PATIENCE);
    let has = |kind: &str| fault.events().iter().any(|event| event.kind == kind);
    while !(has("heard") && has("summary")) {
        ensure!(Instant::now() < deadline, "{:?}", fault.events());
        thread::sleep(Duration::from_millis(10));
    }
    // Whatever it was told before, it has been told by then.
    fault.kill(Signal::SIGTERM)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(1), "^C was not heard once: {exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("afterwards")
}

/// 128 and its number, real-time signals included.
fn ends() -> Result {
    let mut scene = Scene::set()?;
    for signal in [libc::SIGKILL, libc::SIGRTMIN(), libc::SIGRTMAX()] {
        let script = format!("echo '{{\"event\": \"ready\"}}'; kill -{signal} $$");
        let exit = start(&[], &script)?.wait(PATIENCE)?;
        ensure!(exit.code == Some(128 + signal), "by signal {signal}: {exit:?}");
    }
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("afterwards")
}
