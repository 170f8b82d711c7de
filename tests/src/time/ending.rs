//! It ends: because its time is over, because somebody wants it to, or because there is nobody left.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    NEEDS,
    processes::{OFFSET, SKEW},
    scene::{PATIENCE, Scene, summed_up},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Test, is_emulated},
    inventory::Inventory,
    life::scene::{at_once, id, ps, records},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::every_signal_ends_it", every_signal).needs(NEEDS).timeout(90),
    Test::new("time::ends_in_time", in_time).needs(NEEDS).timeout(60),
    Test::new("time::ends_in_time_while_its_owner_is_stopped", in_time_while_stopped)
        .needs(NEEDS)
        .timeout(60),
    Test::new("time::ps_and_stop", ps_and_stop).needs(NEEDS).timeout(90),
    Test::new("time::its_cgroup_goes", cgroup_goes).needs(NEEDS).timeout(60),
    Test::new("time::only_planned", planned).needs(NEEDS).timeout(60).slow(),
];

fn every_signal() -> Result {
    let mut scene = Scene::set()?;
    let before = Inventory::take(&[])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let (fault, _) = scene.armed(OFFSET)?;
        scene.skewed(SKEW, "armed")?;
        fault.kill(signal)?;
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(130) && summed_up(&exit)?.fired == 1, "{signal}: {exit:?}");
        scene.over(signal.as_str())?;
        before.wait_until_equal(&[], at_once()).context(signal)?;
        ensure!(records()?.is_empty(), "{signal}: left {:?}", records());
    }
    Ok(())
}

fn in_time() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(&format!("{OFFSET} --for 2s"))?;
    let armed = Instant::now();
    scene.skewed(SKEW, "armed")?;
    scene.target.until(0, Duration::from_secs(4))?;
    let took = armed.elapsed();
    println!("right {took:?} after it was armed");
    // That it is armed is said a little after it was.
    let late = if is_emulated() { 400 } else { 100 };
    let near = Duration::from_millis(2_000 - late)..Duration::from_millis(2_300);
    ensure!(near.contains(&took), "it was right {took:?} after it was armed for 2 s");
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(0) && exit.event("summary")?.get("/verdict")? == "observed", "{exit:?}");
    scene.over("afterwards")
}

/// The time is not the owner's to keep.
fn in_time_while_stopped() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(&format!("{OFFSET} --for 2s"))?;
    let armed = Instant::now();
    fault.kill(Signal::SIGSTOP)?;
    scene.target.until(0, Duration::from_secs(4))?;
    let took = armed.elapsed();
    ensure!(took < Duration::from_millis(2_500), "it was right {took:?} after it was armed for 2 s");
    fault.kill(Signal::SIGCONT)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(0), "{exit:?}");
    scene.over("afterwards")
}

fn ps_and_stop() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&format!("{OFFSET} --for 60s"))?;
    let id = id(&armed)?;
    let faults = ps()?;
    ensure!(faults.len() == 1 && faults[0]["id"] == id && faults[0]["state"] == "armed", "{faults:?}");
    ensure!(faults[0]["pid"] == fault.pid().as_raw(), "{faults:?}");
    let text = Faultline::run(&["ps"])?;
    ensure!(text.code == Some(0) && text.stdout.contains(id), "{text:?}");
    // It has an owner, and is nothing to be swept.
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    scene.skewed(SKEW, "swept")?;
    let stopped = Faultline::run(&["stop", id])?;
    ensure!(stopped.code == Some(0) && stopped.stdout.contains(id), "{stopped:?}");
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(130), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("stopped")
}

/// Its processes end, and then there is no such cgroup any more.
fn cgroup_goes() -> Result {
    let scene = Scene::set()?;
    let (fault, _) = scene.armed(OFFSET)?;
    let Scene { target, mut bystander, cgroup, beside } = scene;
    drop(target);
    let path = cgroup.path();
    fs::remove_dir(path).context(path.display())?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(4), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    bystander.until(0, Duration::from_millis(100))?;
    drop(bystander);
    drop(beside);
    Ok(())
}

/// Nothing is done.
fn planned() -> Result {
    let mut scene = Scene::set()?;
    let folder = scene.folder();
    for words in [["--offset", "2d"], ["--rate", "2"], ["--drift", "-50"], ["--leap", "smear"]] {
        let words = [&["time", "skew", "--plan", "--cgroup", &folder][..], &words].concat();
        let exit = Faultline::run(&words)?;
        ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{words:?}: {exit:?}");
        ensure!(exit.stdout.contains(&folder), "{words:?} does not say whom: {exit:?}");
        scene.over("planned")?;
    }
    ensure!(records()?.is_empty(), "left {:?}", records());
    Ok(())
}
