//! It ends: because somebody wants it to, because its time is over, or because there is nothing left to hit.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::scene::{NEEDS, PATIENCE, Scene, ended, fired};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::Test,
    life::scene::{at_once, id, ps, records},
    traffic::monotonic_ns,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls_life::every_signal_ends_it", every_signal).needs(NEEDS).timeout(90),
    Test::new("calls_life::a_stopped_owner_stops_injecting", stopped).needs(NEEDS).timeout(60),
    Test::new("calls_life::ends_in_time", in_time).needs(NEEDS).timeout(60),
    Test::new("calls_life::ends_in_time_while_its_owner_is_stopped", in_time_while_stopped)
        .needs(NEEDS)
        .timeout(60),
    Test::new("calls_life::ps_and_stop", ps_and_stop).needs(NEEDS).timeout(90),
    Test::new("calls_life::what_a_dead_owner_leaves_is_swept", swept).needs(NEEDS).timeout(60).once(),
    Test::new("calls_life::its_cgroup_goes", cgroup_goes).needs(NEEDS).timeout(60),
];

/// Until when it may hit after its owner has been stopped: its lease, and a tick of the clock that the kernel reads.
const LEASE: Duration = Duration::from_millis(3010);
/// The lease was renewed at most a second before, or a little more on a busy machine.
const LEAST: Duration = Duration::from_millis(1700);

fn every_signal() -> Result {
    let scene = Scene::set()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let (fault, _) = scene.armed(&[])?;
        scene.hit("armed")?;
        fault.kill(signal)?;
        let exit = fault.wait(at_once())?;
        let reason = ended(&exit, 130, "interrupted").context(signal)?;
        ensure!(reason == signal.as_str() && fired(&exit)? > 0, "{signal}: {exit:?}");
        scene.over(signal.as_str())?;
    }
    Ok(())
}

fn stopped() -> Result {
    let scene = Scene::set()?;
    let (fault, armed) = scene.armed(&[])?;
    scene.hit("armed")?;
    fault.kill(Signal::SIGSTOP)?;
    let stop = monotonic_ns();
    scene.hit("just stopped")?;
    let last = last_hit(&scene, Duration::from_secs(5))?;
    let after = Duration::from_nanos(last - stop);
    println!("the last call failed {after:?} after its owner was stopped");
    ensure!((LEAST..LEASE).contains(&after), "the last call failed {after:?} after its owner was stopped");
    let attached = scene.more()?.iter().filter(|line| line.starts_with("program ")).count();
    ensure!(attached > 0, "nothing is attached any more, which shows nothing: {:?}", scene.more());
    expect_state(&armed, "lapsed")?;

    fault.kill(Signal::SIGCONT)?;
    let reason = ended(&fault.wait(at_once())?, 4, "aborted")?;
    ensure!(reason.contains("lease") && reason.contains("lapsed"), "{reason}");
    scene.over("afterwards")
}

/// Waits until calls work again, and for good; when the last one began that did not.
fn last_hit(scene: &Scene, time: Duration) -> Result<u64> {
    scene.target()?.wait_until(super::watched::Seen::is_clean, time)?;
    scene.clean("once it had worked")?;
    Ok(scene.target()?.seen().last_hit_at)
}

fn expect_state(event: &crate::faultline::Event, state: &str) -> Result {
    let faults = ps()?;
    ensure!(faults.len() == 1, "not one fault: {faults:?}");
    ensure!(faults[0]["id"] == id(event)? && faults[0]["state"] == state, "not {state}: {}", faults[0]);
    Ok(())
}

fn in_time() -> Result {
    let scene = Scene::set()?;
    let (fault, armed) = scene.armed(&["--for", "2s"])?;
    scene.hit("armed")?;
    two_seconds(&scene, armed.number("/at_ns")?)?;
    let exit = fault.wait(at_once())?;
    ended(&exit, 0, "observed")?;
    ensure!(fired(&exit)? > 0, "{exit:?}");
    scene.over("afterwards")
}

fn two_seconds(scene: &Scene, armed_at: u64) -> Result {
    let last = last_hit(scene, Duration::from_secs(5))?;
    let after = Duration::from_nanos(last - armed_at);
    println!("the last call failed {after:?} after it was armed");
    let expected = Duration::from_millis(1950)..Duration::from_millis(2050);
    ensure!(expected.contains(&after), "the last call failed {after:?} after it was armed for 2 s");
    Ok(())
}

/// The kernel keeps the time, not the owner.
fn in_time_while_stopped() -> Result {
    let scene = Scene::set()?;
    let (fault, armed) = scene.armed(&["--for", "2s"])?;
    fault.kill(Signal::SIGSTOP)?;
    scene.hit("armed, and its owner stopped")?;
    two_seconds(&scene, armed.number("/at_ns")?)?;
    expect_state(&armed, "elapsed")?;
    fault.kill(Signal::SIGCONT)?;
    ended(&fault.wait(at_once())?, 0, "observed")?;
    scene.over("afterwards")
}

/// Two at once, of which each is listed, and ended alone and with all.
fn ps_and_stop() -> Result {
    let scene = Scene::set()?;
    let (first, armed) = scene.armed(&["--for", "60s"])?;
    let (second, other) = scene.armed(&[])?;
    let [one, two] = [id(&armed)?, id(&other)?];
    scene.hit("armed")?;
    let faults = ps()?;
    ensure!(faults.len() == 2, "{faults:?}");
    for (fault, id) in [(&first, one), (&second, two)] {
        let row = faults.iter().find(|row| row["id"] == id).context(format_args!("{id} is not listed"))?;
        let right = row["pid"] == fault.pid().as_raw() && row["state"] == "armed";
        ensure!(right, "{id}, of process {}: {row}", fault.pid());
        let timed = row["remaining_s"].as_f64().is_some_and(|left| (1.0..60.0).contains(&left));
        ensure!(timed == (id == one), "{id}: {row}");
    }
    let text = Faultline::run(&["ps"])?;
    ensure!(text.code == Some(0) && [one, two].iter().all(|id| text.stdout.contains(id)), "{text:?}");

    stop(&["stop", one], &[one])?;
    ended(&first.wait(at_once())?, 130, "interrupted")?;
    scene.hit("one is left")?;
    let (third, armed) = scene.armed(&[])?;
    stop(&["stop", "--all"], &[two, id(&armed)?])?;
    for fault in [second, third] {
        ended(&fault.wait(at_once())?, 130, "interrupted")?;
    }
    scene.over("all are stopped")
}

fn stop(arguments: &[&str], ids: &[&str]) -> Result {
    let exit = Faultline::run(arguments)?;
    ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{exit:?}");
    for id in ids {
        let line = format!("stopped {id}; nothing of it is left");
        ensure!(exit.stdout.lines().any(|told| told == line), "no {line:?} in {}", exit.stdout);
    }
    Ok(())
}

fn swept() -> Result {
    let scene = Scene::set()?;
    let (fault, armed) = scene.armed(&[])?;
    scene.hit("armed")?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(at_once())?;
    scene.harmless("killed")?;
    let id = id(&armed)?;
    ensure!(records()? == [format!("{id}.json")], "{:?}", records());
    let exit = Faultline::run(&["sweep"])?;
    let line = format!("removed the record of {id}, whose owner is gone; nothing of it is attached\n");
    ensure!(exit.code == Some(0) && exit.stdout == line, "{exit:?}");
    scene.over("swept")
}

/// The target's processes end, and then there is no such cgroup any more.
fn cgroup_goes() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(&[])?;
    scene.hit("armed")?;
    scene.target = None;
    let path = scene.cgroup.path();
    fs::remove_dir(path).context(path.display())?;
    let gone = Instant::now();
    let exit = fault.wait(PATIENCE)?;
    println!("it ended {:?} after its cgroup", gone.elapsed());
    let reason = ended(&exit, 4, "aborted")?;
    ensure!(reason == "whom it was aimed at is gone", "{reason}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over_without_target("its cgroup is gone")
}
