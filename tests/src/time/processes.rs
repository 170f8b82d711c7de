//! Whose clocks are skewed: threads and children, whatever they become, and who comes later; and nobody else's.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    NEEDS,
    clock::{Clock, REFERENCE, SECOND, expect, path, skew},
    scene::{PATIENCE, Scene, are_skewed, counts, end, summed_up},
};
use crate::{
    clocks::{From, Reading},
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Test, die_with_parent, program},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::threads_and_children", children).needs(NEEDS).timeout(60),
    Test::new("time::who_comes_later", later).needs(NEEDS).timeout(60),
    Test::new("time::who_stands_still", held).needs(NEEDS).timeout(60),
    Test::new("time::one_process", one_process).needs(NEEDS).timeout(60),
    Test::new("time::a_command_of_its_own", command).needs(NEEDS).timeout(60).waits(),
    Test::new("time::who_ends_is_no_error", ends).needs(NEEDS).timeout(90).slow().once(),
];

pub(crate) const OFFSET: &str = "--offset 1h";
pub(crate) const SKEW: i64 = 3_600 * SECOND;
/// Programs that a process becomes, one after the other.
const EXECS: u32 = 40;
/// Within this time somebody who has come is met.
const SOON: Duration = Duration::from_millis(1_500);

/// Those that were there and those that were not.
fn children() -> Result {
    let mut scene = Scene::set()?;
    // Threads that are there already.
    scene.target.watch(5, SKEW)?;
    let (fault, _) = scene.armed(OFFSET)?;
    let everybody = [From::Itself, From::Thread, From::Child, From::Orphan];
    for by in everybody {
        let readings = scene.target.read(by, REFERENCE)?;
        are_skewed(&readings, SKEW).context(format_args!("{by:?}"))?;
    }
    let seen = scene.target.halt()?;
    ensure!(seen.skewed > 0 && seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    // One program after the other, in the same process.
    let mut late = 0;
    for number in 0..EXECS {
        let first = scene.target.exec().context(format_args!("program {number}"))?;
        late += u32::from(expect(&first, REFERENCE, SKEW).is_err());
        scene.target.until(SKEW, SOON).context(format_args!("program {number}"))?;
    }
    println!("{late} of {EXECS} programs were right at their first reading");
    ensure!(late <= EXECS / 20, "{late} of {EXECS} programs were right at their first reading");
    for by in everybody {
        let readings = scene.target.read(by, REFERENCE)?;
        are_skewed(&readings, SKEW).context(format_args!("after ten programs, {by:?}"))?;
    }
    scene.spared("meanwhile")?;
    end(&fault)?;
    for by in everybody {
        let readings = scene.target.read(by, REFERENCE)?;
        super::scene::are_right(&readings, REFERENCE).context(format_args!("afterwards, {by:?}"))?;
    }
    scene.over("afterwards")
}

/// One that a debugger or a shell has stopped is skewed as well, and goes on when it is let.
fn held() -> Result {
    let mut scene = Scene::set()?;
    let pid = Pid::from_raw(scene.target.pid().cast_signed());
    kill(pid, Signal::SIGSTOP).context("SIGSTOP")?;
    let (fault, _) = scene.armed(OFFSET)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("its state")?;
    ensure!(stat.contains(") T "), "it was let go on: {stat}");
    kill(pid, Signal::SIGCONT).context("SIGCONT")?;
    let took = scene.target.until(SKEW, SOON)?;
    println!("a process that was stopped: {took:?}");
    scene.skewed(SKEW, "it goes on")?;
    kill(pid, Signal::SIGSTOP).context("SIGSTOP")?;
    end(&fault)?;
    kill(pid, Signal::SIGCONT).context("SIGCONT")?;
    scene.target.until(0, Duration::from_millis(100))?;
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    scene.over("afterwards")
}

/// A process that is started in the target, one that moves there, one that leaves, and one in a cgroup below.
fn later() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(OFFSET)?;
    let mut started = Clock::start(Some(&scene.cgroup))?;
    let took = started.until(SKEW, SOON).context("started in it")?;
    println!("a process that was started: {took:?}");
    let mut moved = Clock::start(Some(&scene.beside))?;
    expect(&moved.one(crate::clocks::Source::Realtime, crate::clocks::Way::Vdso)?, REFERENCE, 0)?;
    scene.cgroup.take(moved.pid())?;
    let took = moved.until(SKEW, SOON).context("moved to it")?;
    println!("a process that moved: {took:?}");
    let below = scene.cgroup.child("below")?;
    let mut lower = Clock::start(Some(&below))?;
    lower.until(SKEW, SOON).context("below it")?;
    let progress = fault.wait_event("progress", PATIENCE)?;
    println!("{:?}", counts(&progress)?);
    // It is in the target no more; what its clocks say is for the documentation to say.
    scene.beside.take(moved.pid())?;
    match moved.until(0, 2 * SOON) {
        Ok(took) => println!("a process that left: right after {took:?}"),
        Err(failure) => println!("a process that left: {failure}"),
    }
    scene.spared("meanwhile")?;
    let counts = end(&fault)?;
    ensure!(counts.fired >= 4, "{counts:?}");
    for clock in [&mut started, &mut moved, &mut lower] {
        clock.until(0, Duration::from_millis(100)).context("afterwards")?;
        crate::clocks::Image::check_own(clock.pid())?;
    }
    drop(lower);
    scene.over("afterwards")
}

/// With its threads and what it starts, but not with its neighbour in the same cgroup.
fn one_process() -> Result {
    let mut scene = Scene::set()?;
    let mut neighbour = Clock::start(Some(&scene.cgroup))?;
    let pid = scene.target.pid().to_string();
    let fault = Faultline::start(&["time", "skew", "--offset", "1h", "--pid", &pid])?;
    fault.wait_event("armed", PATIENCE)?;
    for by in [From::Itself, From::Thread, From::Child, From::Orphan] {
        are_skewed(&scene.target.read(by, REFERENCE)?, SKEW).context(format_args!("{by:?}"))?;
    }
    scene.target.exec()?;
    scene.target.until(SKEW, SOON).context("after exec")?;
    let ahead = neighbour.ahead()?;
    ensure!(ahead.abs() < SECOND / 1_000, "its neighbour is {ahead} ns ahead");
    scene.spared("meanwhile")?;
    end(&fault)?;
    scene.over("afterwards")
}

/// From its first instruction, to its end, whose code is passed on.
fn command() -> Result {
    let mut scene = Scene::set()?;
    let clock = path()?;
    let clock = clock.to_string_lossy();
    for round in 0..10 {
        let words = ["time", "skew", "--offset", "1h", "--", &clock, "first"];
        let exit = Faultline::start(&words)?.wait(PATIENCE)?;
        let reading = exit.stdout.lines().find_map(|line| serde_json::from_str(line).ok());
        let reading: Reading = reading.context(format_args!("{exit:?}"))?;
        expect(&reading, REFERENCE, SKEW).context(format_args!("round {round}"))?;
    }
    let run = |words: &[&str]| {
        let words = [&["time", "skew", "--offset", "1h", "--"], words].concat();
        Faultline::start(&words)?.wait(PATIENCE)
    };
    let exit = run(&[&clock, "chain", "3"])?;
    ensure!(exit.code == Some(0) && exit.signal.is_none(), "{exit:?}");
    let readings: Vec<Reading> =
        exit.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    ensure!(readings.len() == 4, "{exit:?}");
    // What it becomes is met as everybody is; itself before it begins.
    expect(&readings[0], REFERENCE, SKEW).context("its first reading")?;
    let later = readings.iter().filter(|reading| expect(reading, REFERENCE, SKEW).is_ok()).count();
    println!("{later} of {} programs were skewed at their first reading", readings.len());
    ensure!(summed_up(&exit)?.fired >= 1, "{exit:?}");
    for code in [7, 1, 126] {
        let exit = run(&["sh", "-c", &format!("exit {code}")])?;
        ensure!(exit.code == Some(code), "exit {code}: {exit:?}");
    }
    let exit = run(&["/no/such/program"])?;
    ensure!(exit.code == Some(127), "{exit:?}");
    ensure!(exit.stderr.contains("/no/such/program"), "{exit:?}");
    // Its words are its own.
    let exit = run(&["sh", "-c", "echo $0 $1 $2", "--offset", "--json", "--"])?;
    ensure!(exit.code == Some(0) && exit.stdout.contains("--offset --json --"), "{exit:?}");
    scene.over("meanwhile and afterwards")
}

/// Processes that come and go while they are being met.
fn ends() -> Result {
    let mut scene = Scene::set()?;
    let loops = r#"while :; do "$0" first >/dev/null & "$0" chain 2 >/dev/null; done"#;
    let shell = |cgroup: &crate::cgroup::Cgroup| {
        let mut shell = Command::new(program("sh").context("no program sh")?);
        shell.args(["-c", loops]).arg(path()?).stdin(Stdio::null());
        die_with_parent(&mut shell);
        cgroup.admit(&mut shell)?;
        Ok::<_, crate::error::Failure>(Ended(shell.spawn().context("sh")?))
    };
    let _busy = [shell(&scene.cgroup)?, shell(&scene.cgroup)?];
    for round in 0..3 {
        let (fault, _) = scene.armed(OFFSET)?;
        fault.wait_event("progress", PATIENCE)?;
        scene.skewed(SKEW, "armed")?;
        let mut gone = Clock::start(Some(&scene.cgroup))?;
        ensure!(gone.is_running()?, "it has ended by itself");
        drop(gone);
        let exit = fault.end().context(format_args!("round {round}"))?;
        ensure!(exit.stderr.is_empty(), "{exit:?}");
        println!("{:?}", summed_up(&exit)?);
        scene.over("afterwards")?;
    }
    // The target itself.
    let mut alone = Clock::start(Some(&scene.beside))?;
    let pid = alone.pid().to_string();
    let fault = Faultline::start(&["time", "skew", "--offset", "1h", "--pid", &pid])?;
    fault.wait_event("armed", PATIENCE)?;
    ensure!(
        skew(&alone.one(crate::clocks::Source::Realtime, crate::clocks::Way::Vdso)?)? > SKEW / 2,
        "right"
    );
    drop(alone);
    let exit = fault.wait(PATIENCE)?;
    println!("its target gone: {:?}", exit.code);
    ensure!(exit.code == Some(4) || exit.code == Some(0), "{exit:?}");
    Ok(())
}

/// Killed when dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
