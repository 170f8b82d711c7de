//! A program in whose memory its children run for a moment, and that has no time to lose.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::program::{Hostile, LIMIT, run};
use crate::{
    cgroup::Cgroup,
    clocks::Image,
    ensure,
    error::{Context, Failure, Result},
    harness::{Need, Test, is_emulated, is_gate, patience},
    life::{killed::fraction, scene::records},
    time::{
        NEEDS,
        processes::{OFFSET, SKEW},
        scene::{PATIENCE, Scene, end},
    },
};

pub(super) const TESTS: &[Test] =
    &[Test::new("hostile::vforks_killed", vforks_killed).needs(KCMP).timeout(3600).once()];

/// Where it cannot be told who shares memory, a crash is possible.
const KCMP: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Kcmp];
const SEED: u64 = 2_020;
/// Somewhat longer than it takes to be armed, so that some are.
const SPAN: f64 = 1.5;
/// Within this time nothing is left of a run whose owner was killed, swept or not.
const SOON: Duration = Duration::from_secs(10);

/// How often the owner is killed.
fn kills() -> u32 {
    match (is_emulated(), is_gate()) {
        (true, _) => 10,
        (false, true) => 30,
        (false, false) => 1_000,
    }
}

fn vforks_killed() -> Result {
    let mut scene = Scene::set()?;
    let mut hostile = Hostile::start(&scene.cgroup, &["vforks"])?;
    let begun = Instant::now();
    let (fault, _) = scene.armed(OFFSET)?;
    let prepared = begun.elapsed();
    scene.target.until(SKEW, patience(LIMIT))?;
    end(&fault)?;
    let (mut random, mut armed, mut again) = (SEED, 0, 0);
    let kills = kills();
    for round in 0..kills {
        let moment = prepared.mul_f64(SPAN * fraction(&mut random));
        let when = format!("round {round}, killed {moment:?} after its start");
        let (was_armed, sweeps) = killed(&mut scene, moment).context(&when)?;
        armed += u32::from(was_armed);
        again += sweeps - 1;
        ensure!(hostile.is_running()?, "{when}: it has ended: {:?}", hostile.end());
    }
    println!(
        "{kills} kills, {armed} of one that was armed; swept once more {again} times; prepared {prepared:?}"
    );
    let said = hostile.end()?;
    let [children] = &said[..] else {
        return Err(Failure::new(format!("it said {said:?}")));
    };
    println!("{children}");
    ensure!(children.starts_with("children ") && children != "children 0", "it said {said:?}");
    scene.over("afterwards")
}

/// Whether it was armed, and how often it was swept until nothing was left.
fn killed(scene: &mut Scene, moment: Duration) -> Result<(bool, u32)> {
    let fault = scene.start(OFFSET)?;
    thread::sleep(moment);
    fault.kill(Signal::SIGKILL)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
    scene.target.until(0, patience(LIMIT))?;
    let sweeps = sweep()?;
    restored(&scene.cgroup)?;
    scene.over("swept")?;
    Ok((exit.event("armed").is_ok(), sweeps))
}

/// Until nothing is left; how often. One that begins children all the time may not stand still at once, which is said. And an owner
/// that is killed while it begins its guard lives in that until the guard's program is executed, so that there is nothing to sweep yet.
fn sweep() -> Result<u32> {
    let end = Instant::now() + patience(SOON);
    let mut count = 0;
    loop {
        count += 1;
        let exit = run(&["sweep"])?;
        if exit.code == Some(0) && records()?.is_empty() {
            return Ok(count);
        }
        let is_known = matches!(exit.code, Some(0 | 6));
        ensure!(is_known && Instant::now() < end, "after {count} times: {exit:?}, {:?}", records());
    }
}

/// Waits until all vDSOs here are the kernel's. Most of those who are here are gone in a moment.
fn restored(cgroup: &Cgroup) -> Result {
    let end = Instant::now() + patience(SOON);
    for pid in members(cgroup.path())? {
        while let Err(failure) = Image::check_own(pid) {
            // Whoever has its number later is as good.
            if !members(cgroup.path())?.contains(&pid) {
                break;
            }
            ensure!(Instant::now() < end, "{failure}");
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn members(cgroup: &Path) -> Result<Vec<u32>> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).context(path.display())?;
    text.lines().map(|line| line.parse().context(line)).collect()
}
