//! The owner is killed, and its guard, while the target looks at its clocks all the time.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    NEEDS,
    clock::{MILLISECOND, REFERENCE, SECOND},
    processes::{OFFSET, SKEW},
    scene::{PATIENCE, Scene},
};
use crate::{
    clocks::{Image, Way},
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, Test, die_with_parent, is_emulated, moments, patience, program},
    life::{
        elsewhere::{PIDS, apart},
        journal::dirty,
        killed::fraction,
        scene::records,
    },
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::killed_at_any_moment", at_any_moment).needs(NEEDS).timeout(600).once(),
    Test::new("time::killed_with_its_guard", with_its_guard).needs(NEEDS).timeout(120).once(),
    Test::new("time::a_stopped_owner_stops_skewing", stopped).needs(NEEDS).timeout(90),
    Test::new("time::one_that_cannot_be_undone_stops_nobody", traced).needs(TRACED).timeout(90).once(),
];

const TRACED: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Program("strace")];

const THREADS: usize = 20;
const SEED: u64 = 7;
/// How long it may have been armed by then: beyond its first renewal of the lease.
const ARMED: Duration = Duration::from_millis(1_200);
/// Right again within this time where there is a guard. Renewed each second, a lease of 3 s has 2 left at the least: it is
/// not the lease that does it.
fn guarded() -> Duration {
    Duration::from_millis(if is_emulated() { 1_900 } else { 1_000 })
}
/// And where there is none: its lease, and how long its target may not have run.
const LEASE: Duration = Duration::from_millis(4_500);

/// Fifty times, a third of them before it was armed, or about then.
fn at_any_moment() -> Result {
    let mut scene = Scene::set()?;
    scene.target.watch(THREADS, SKEW)?;
    let start = Instant::now();
    let (fault, _) = scene.armed(OFFSET)?;
    let prepared = start.elapsed();
    fault.end()?;
    let (mut random, mut times, mut unswept) = (SEED, Vec::new(), 0);
    let moments = moments(if is_emulated() { 10 } else { 50 });
    for round in 0..moments {
        let fault = scene.start(OFFSET)?;
        let early = round % 3 == 0;
        if !early {
            fault.wait_event("armed", PATIENCE)?;
        }
        let moment = if early { prepared } else { ARMED }.mul_f64(fraction(&mut random));
        thread::sleep(moment);
        let when = format!("killed {moment:?} after {}", if early { "its start" } else { "it was armed" });
        let killed = REFERENCE.read(Way::Raw).context("a clock")?;
        fault.kill(Signal::SIGKILL)?;
        scene.target.until(0, guarded()).context(&when)?;
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.signal == Some(Signal::SIGKILL as i32), "{when}: {exit:?}");
        // It stays so: whatever was under way has been.
        thread::sleep(Duration::from_millis(50));
        let seen = scene.target.seen().context(&when)?;
        ensure!(seen.absurd == 0 && seen.backwards == 0, "{when}: {seen:?}");
        times.push((seen.last_skewed - killed).max(0));
        scene.spared(&when)?;
        unswept += u32::from(Image::check_own(scene.target.pid()).is_err());
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{when}: {swept:?}");
        ensure!(records()?.is_empty(), "{when}: {:?} after sweep", records());
        scene.over(&when)?;
    }
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize] as f64 / MILLISECOND as f64;
    println!(
        "{moments} kills: skewed for {:.1} ms after it at the median, {:.1} at the most; {unswept} left bytes for \
         sweep",
        at(0.5),
        at(1.0)
    );
    let seen = scene.target.halt()?;
    ensure!(seen.absurd == 0 && seen.backwards == 0 && seen.skewed > 0, "{seen:?}");
    scene.over("at last")
}

/// Every process that runs the program under test.
fn owners() -> Result<Vec<Pid>> {
    let program = fs::canonicalize(binary()?).context("the program")?;
    let all = fs::read_dir("/proc").context("/proc")?.flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid: &i32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe: PathBuf| exe == program)
    });
    Ok(pids.map(Pid::from_raw).collect())
}

/// Nobody is left who could make anything right, but the lease. Whoever does not see its processes leaves them to others.
fn with_its_guard() -> Result {
    let mut scene = Scene::set()?;
    let others = owners()?;
    scene.target.watch(THREADS, SKEW)?;
    let (fault, _) = scene.armed(OFFSET)?;
    scene.target.until(SKEW, Duration::from_millis(100))?;
    // It must not do anything about its guard's end.
    fault.kill(Signal::SIGSTOP)?;
    let guards: Vec<Pid> =
        owners()?.into_iter().filter(|pid| !others.contains(pid) && *pid != fault.pid()).collect();
    println!("guards: {guards:?}");
    ensure!(!guards.is_empty(), "there is no guard");
    for guard in guards {
        kill(guard, Signal::SIGKILL).context(guard)?;
    }
    let killed = REFERENCE.read(Way::Raw).context("a clock")?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(PATIENCE)?;
    scene.target.until(0, LEASE)?;
    // Coarse clocks see it a tick later.
    thread::sleep(Duration::from_millis(200));
    let seen = scene.target.seen()?;
    println!("skewed for {} ms after both were killed", (seen.last_skewed - killed) / MILLISECOND);
    ensure!(seen.last_skewed - killed < LEASE.as_nanos() as i64, "{seen:?}");
    ensure!(seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    scene.right("the lease has lapsed")?;
    let blind = apart(PIDS, &["sweep"])?;
    dirty(&["sweep"], &blind, &["changed clocks were not found", "pid namespace", "on the host"])?;
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    ensure!(records()?.is_empty(), "{:?} after sweep", records());
    scene.over("swept")?;
    let seen = scene.target.halt()?;
    ensure!(seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    Ok(())
}

fn stopped() -> Result {
    let mut scene = Scene::set()?;
    scene.target.watch(THREADS, SKEW)?;
    let (fault, _) = scene.armed(OFFSET)?;
    scene.target.until(SKEW, Duration::from_millis(100))?;
    fault.kill(Signal::SIGSTOP)?;
    let stop = REFERENCE.read(Way::Raw).context("a clock")?;
    scene.target.until(0, LEASE)?;
    thread::sleep(Duration::from_millis(200));
    let seen = scene.target.seen()?;
    let lapsed = seen.last_skewed - stop;
    println!("skewed for {} ms after its owner was stopped", lapsed / MILLISECOND);
    ensure!((SECOND..LEASE.as_nanos() as i64).contains(&lapsed), "{lapsed} ns: {seen:?}");
    ensure!(seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    scene.right("the lease has lapsed")?;
    fault.kill(Signal::SIGCONT)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(4), "not aborted: {exit:?}");
    let reason = exit.event("summary")?.get("/reason")?.to_string();
    ensure!(reason.contains("lease"), "{reason}");
    scene.target.halt()?;
    scene.over("afterwards")
}

/// A debugger has it when its owner dies: its clocks are right, all commands go on, and it is undone when that is possible.
fn traced() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(OFFSET)?;
    scene.target.until(SKEW, Duration::from_millis(100))?;
    let pid = scene.target.pid();
    let mut strace = Command::new(program("strace").context("no program strace")?);
    strace.args(["-qq", "-e", "trace=none", "-o", "/dev/null", "-p", &pid.to_string()]).stderr(Stdio::null());
    die_with_parent(&mut strace);
    let mut strace = strace.spawn().context("strace")?;
    let deadline = Instant::now() + patience(PATIENCE);
    let is_traced = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context(pid)?;
        Ok::<_, crate::error::Failure>(!status.contains("TracerPid:\t0\n"))
    };
    while !is_traced()? {
        ensure!(Instant::now() < deadline, "strace does not trace it");
        thread::sleep(Duration::from_millis(5));
    }
    fault.kill(Signal::SIGKILL)?;
    // Where a kernel lets nobody write beside the debugger, it is the lease that does it.
    scene.target.until(0, LEASE)?;
    fault.wait(PATIENCE)?;
    scene.right("its owner is gone")?;
    let said = |words: &[&str], code: i32| {
        let exit = Faultline::run(words)?;
        ensure!(exit.code == Some(code) && exit.stderr.contains(&pid.to_string()), "{words:?}: {exit:?}");
        Ok(())
    };
    said(&["ps"], 0)?;
    said(&["stop", "--all"], 6)?;
    said(&["sweep"], 6)?;
    // It never fires, and is not kept from beginning.
    said(&["net", "loss", "100%", "--dev", "lo", "--proto", "253", "--for", "100ms"], 5)?;
    scene.right("it is still traced")?;
    strace.kill().context("strace")?;
    strace.wait().context("strace")?;
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0) && swept.stderr.is_empty(), "{swept:?}");
    ensure!(records()?.is_empty(), "{:?} after sweep", records());
    scene.over("swept")
}
