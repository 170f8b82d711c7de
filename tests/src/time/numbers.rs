//! Numbers of which there are not enough: those of processes, which are given again, and those of open files.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{resource::Resource, signal::Signal};

use super::{
    NEEDS,
    processes::{OFFSET, SKEW},
    scene::{PATIENCE, Scene, summed_up},
};
use crate::{
    clocks::{Clock, Image},
    ensure,
    error::{Context, Result},
    faultline::{Faultline, limit_to},
    harness::{Need, Test, numbered, patience},
    life::{killed::kill_with_its_guard, scene::records},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::a_number_that_is_given_again", given_again).needs(NUMBERS).timeout(90),
    Test::new("time::more_processes_than_descriptors", few_descriptors)
        .needs(NEEDS)
        .timeout(90)
        .slow()
        .waits(),
];

const NUMBERS: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Numbers];
/// What is right or wrong soon.
const SOON: Duration = Duration::from_secs(10);

/// One of two targets ends, and another process gets its number: under a run, under one that is stopped and then killed, and
/// where nobody is left but a record. Nothing is ever done to it, and the other target is given back its clock.
fn given_again() -> Result {
    let mut scene = Scene::set()?;
    for way in ["runs", "its guard", "sweep"] {
        let ends = Clock::start(None)?;
        let number = ends.pid();
        let pids = [number, scene.target.pid()].map(|pid| pid.to_string());
        let fault =
            Faultline::start(&["time", "skew", "--offset", "1h", "--pid", &pids[0], "--pid", &pids[1]])?;
        fault.wait_event("armed", PATIENCE)?;
        scene.target.until(SKEW, patience(SOON))?;
        if way != "runs" {
            fault.kill(Signal::SIGSTOP)?;
        }
        drop(ends);
        let mut other = numbered(number, || Clock::start(None), Clock::pid)?;
        match way {
            "runs" => {
                for _ in 0..2 {
                    fault.wait_event("progress", PATIENCE)?;
                }
                untouched(&mut other, way)?;
                fault.end()?;
            }
            "its guard" => {
                fault.kill(Signal::SIGKILL)?;
                fault.wait(PATIENCE)?;
            }
            _ => kill_with_its_guard(&fault)?,
        }
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0) && records()?.is_empty(), "{way}: {swept:?}, {:?}", records());
        untouched(&mut other, way)?;
        scene.target.until(0, patience(SOON))?;
        scene.over(way)?;
    }
    Ok(())
}

fn untouched(clock: &mut Clock, when: &str) -> Result {
    let ahead = clock.ahead()?;
    ensure!(ahead.abs() < SKEW / 2, "{when}: whoever has its number is {ahead} ns ahead");
    Image::check_own(clock.pid()).context(when)
}

/// It asks for more than a shell has it have: one for each process. All are met, and all are given back their clocks, by the run
/// itself and by its guard.
fn few_descriptors() -> Result {
    const FEW: u64 = 100;
    const OTHERS: usize = 150;
    let mut scene = Scene::set()?;
    let below = scene.cgroup.child("crowd")?;
    let crowd = below.crowd(OTHERS, |_| {})?;
    let all = crowd.pids();
    let folder = scene.folder();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let words =
            [&["time", "skew", "--cgroup", &folder][..], &OFFSET.split(' ').collect::<Vec<_>>()].concat();
        let fault = Faultline::start_with(&words, |command| {
            limit_to(command, Resource::RLIMIT_NOFILE, FEW, None);
        })?;
        fault.wait_event("armed", PATIENCE)?;
        scene.target.until(SKEW, patience(SOON))?;
        until(all, |pid| Image::check_own(pid).is_err(), "not changed")?;
        fault.kill(signal)?;
        let exit = fault.wait(PATIENCE)?;
        if signal == Signal::SIGINT {
            let counts = summed_up(&exit)?;
            ensure!(exit.code == Some(130) && counts.fired == all.len() as u64 + 1, "{counts:?}: {exit:?}");
        }
        until(all, |pid| Image::check_own(pid).is_ok(), "not as it was")?;
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0) && records()?.is_empty(), "{signal}: {swept:?}, {:?}", records());
        scene.over(signal.as_str())?;
    }
    drop(crowd);
    drop(below);
    Ok(())
}

/// Waits until all of these processes are such.
fn until(all: &BTreeSet<u32>, is: impl Fn(u32) -> bool, otherwise: &str) -> Result {
    let deadline = Instant::now() + patience(SOON);
    let mut left: Vec<u32> = all.iter().copied().collect();
    loop {
        left.retain(|pid| !is(*pid));
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{otherwise}: {left:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
