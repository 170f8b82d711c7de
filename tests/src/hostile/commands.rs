//! All of them at once.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    ANYWHERE,
    program::{Hostile, LIMIT, armed, ended, names_one, run, swept, swept_beside},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Test, is_emulated, moments, patience},
    life::{
        killed::fraction,
        scene::{ps, records},
    },
    time::{
        processes::{OFFSET, SKEW},
        scene::{PATIENCE, Scene},
    },
};

pub(super) const TESTS: &[Test] = &[
    Test::new("hostile::commands_end", commands_end).needs(ANYWHERE).timeout(180),
    Test::new("hostile::a_start_is_ended", start_ended).needs(ANYWHERE).timeout(120),
];

const SEED: u64 = 20;
/// Nobody who wants it to end waits for somebody who does not come.
const PROMPT: Duration = Duration::from_secs(1);

/// Those beside the target, and those in its cgroup.
struct Crowd {
    members: Vec<Hostile>,
    /// Those who execute a program that does not come.
    executing: Vec<u32>,
    /// The one beside it that has many threads.
    threads: u32,
    /// All that may be named.
    pids: Vec<u32>,
}

impl Crowd {
    fn gather(scene: &Scene) -> Result<Self> {
        let [many, few] = if is_emulated() { ["500", "100"] } else { ["5000", "1000"] };
        let Scene { cgroup, beside, .. } = scene;
        let mut members = vec![
            Hostile::start(cgroup, &["threads", many])?,
            Hostile::start(cgroup, &["forged", "padding"])?,
            Hostile::start(beside, &["threads", few])?,
            Hostile::start(beside, &["forged", "auxv"])?,
            Hostile::start(beside, &["forged", "entry"])?,
            Hostile::start(cgroup, &["forks"])?,
        ];
        let (mut executing, mut pids) = (Vec::new(), Vec::new());
        for cgroup in [cgroup, beside] {
            let stuck = Hostile::stuck(cgroup, &["exec", "stack"])?;
            executing.push(stuck.child("exec")?);
            pids.extend([stuck.child("exec")?, stuck.child("stack")?]);
            members.push(stuck);
        }
        let threads = members[2].pid();
        pids.extend(members.iter().map(Hostile::pid));
        Ok(Self { members, executing, threads, pids })
    }

    /// Nobody was harmed.
    fn lives(&mut self) -> Result {
        for member in &mut self.members {
            ensure!(member.is_running()?, "{member:?} has ended");
        }
        Ok(())
    }

    /// The one in the target that could not be held was told of.
    fn is_told_of(&self, exit: &Exit) -> Result {
        let executing = self.executing.first().context("nobody executes")?;
        let remarks = exit.event("summary")?.get("/remarks")?;
        let remarks = remarks.as_array().context("remarks that are no list")?;
        println!("{remarks:?}");
        // Where there were several, one of them is named.
        let tells = |remark: &str| {
            names_one(remark, &[*executing]) || (remark.contains("among them") && remark.contains("be held"))
        };
        let is_told = remarks.iter().filter_map(Value::as_str).any(tells);
        ensure!(is_told, "process {executing} is not told of: {remarks:?}");
        Ok(())
    }
}

/// Started, listed, swept and ended; killed and swept; and swept when they are gone.
fn commands_end() -> Result {
    let mut scene = Scene::set()?;
    let mut crowd = Crowd::gather(&scene)?;
    stopped(&mut scene, &crowd).context("stopped")?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        interrupted(&mut scene, &crowd, signal).context(signal)?;
    }
    others(&scene, &crowd).context("others")?;
    let may_be_left = killed(&mut scene, &crowd).context("killed")?;
    println!("something may have been left: {may_be_left}");
    crowd.lives()?;
    drop(crowd);
    swept()?;
    scene.over("all are gone")
}

/// The target's clock is skewed, and others' are right.
fn skewed(scene: &mut Scene) -> Result {
    scene.target.until(SKEW, patience(LIMIT))?;
    scene.skewed(SKEW, "armed")
}

fn stopped(scene: &mut Scene, crowd: &Crowd) -> Result {
    let fault = armed(scene)?;
    skewed(scene)?;
    let listed = run(&["ps", "--json"])?;
    ensure!(listed.code == Some(0), "{listed:?}");
    let id = ps()?.first().and_then(|fault| fault["id"].as_str().map(String::from)).context("no fault")?;
    // It has an owner, and is nothing to be swept.
    let exit = run(&["sweep"])?;
    ensure!(exit.code == Some(0) && !records()?.is_empty(), "{exit:?}");
    skewed(scene)?;
    let exit = run(&["stop", &id])?;
    is_ended(&exit, 0, crowd)?;
    let exit = fault.wait(LIMIT)?;
    crowd.is_told_of(&exit)?;
    over(scene, crowd)
}

fn interrupted(scene: &mut Scene, crowd: &Crowd, signal: Signal) -> Result {
    let fault = armed(scene)?;
    skewed(scene)?;
    let exit = ended(&fault, signal)?;
    is_ended(&exit, 130, crowd)?;
    crowd.is_told_of(&exit)?;
    over(scene, crowd)
}

/// What is of other families, or of none.
fn others(scene: &Scene, crowd: &Crowd) -> Result {
    let (folder, threads) = (scene.folder(), crowd.threads.to_string());
    let lo = ["--dev", "lo", "--for", "50ms"];
    let lines: [(&[&str], &[&str]); 4] = [
        (&["net", "loss", "50%", "--cgroup", &folder], &lo),
        (&["net", "loss", "50%", "--pid", &threads], &lo),
        (&["net", "refuse", "--cgroup", &folder], &lo[2..]),
        (&["stop", "--all"], &[]),
    ];
    // The doctor tries all programs, which an emulated machine has no time for.
    let doctor: &[(&[&str], &[&str])] = if is_emulated() { &[] } else { &[(&["doctor"], &[])] };
    for (words, more) in lines.iter().chain(doctor) {
        let words = [*words, *more].concat();
        let exit = run(&words)?;
        // None of them sends anything.
        ensure!(matches!(exit.code, Some(0 | 5)), "{words:?}: {exit:?}");
    }
    Ok(())
}

fn killed(scene: &mut Scene, crowd: &Crowd) -> Result<bool> {
    let fault = armed(scene)?;
    skewed(scene)?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(LIMIT)?;
    let may_be_left = swept_beside(&crowd.pids)?;
    scene.right("swept")?;
    Ok(may_be_left)
}

/// By this code; or something may be left, and then it says who was not looked at.
fn is_ended(exit: &Exit, code: i32, crowd: &Crowd) -> Result {
    let is_said = exit.code == Some(6) && names_one(&exit.stderr, &crowd.pids);
    ensure!(exit.code == Some(code) || is_said, "exit {:?}, not {code}: {exit:?}", exit.code);
    Ok(())
}

/// Clocks are right, and records are there if somebody was not looked at.
fn over(scene: &mut Scene, crowd: &Crowd) -> Result {
    scene.target.until(0, patience(LIMIT))?;
    swept_beside(&crowd.pids)?;
    scene.right("ended")
}

/// Heeded at any moment of a start, whoever that waits for: the one that does not come, or all others of its cgroup first.
fn start_ended() -> Result {
    let mut scene = Scene::set()?;
    let stuck = Hostile::stuck(&scene.cgroup, &["exec", "stack"])?;
    let executing = stuck.child("exec")?;
    let (folder, number) = (scene.folder(), executing.to_string());
    let begun = Instant::now();
    let fault = armed(&scene)?;
    let prepared = begun.elapsed();
    ended(&fault, Signal::SIGINT)?;
    let mut random = SEED;
    for round in 0..moments(if is_emulated() { 8 } else { 24 }) {
        let signal = if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
        let whom = if round % 4 < 2 { ["--cgroup", &folder] } else { ["--pid", &number] };
        let words = [&["time", "skew"], &whom[..]].concat();
        let words: Vec<&str> = words.into_iter().chain(OFFSET.split(' ')).collect();
        let fault = Faultline::start(&words)?;
        let moment = prepared.mul_f64(fraction(&mut random));
        thread::sleep(moment);
        let when = format!("{whom:?}, {signal} {moment:?} after its start");
        let told = Instant::now();
        let exit = ended(&fault, signal).context(&when)?;
        let took = told.elapsed();
        ensure!(took < patience(PROMPT), "{when}: it took {took:?}: {exit:?}");
        // It may not have got so far as to hear of it.
        let is_unheard = exit.signal == Some(signal as i32);
        ensure!(exit.code == Some(130) || is_unheard, "{when}: {exit:?}");
        swept_beside(&[executing]).context(&when)?;
        scene.right(&when)?;
    }
    // Nobody else is meant: it is said after a while that nothing can be done.
    let exit = run(&["time", "skew", "--offset", "1h", "--pid", &number])?;
    ensure!(exit.code == Some(3) && names_one(&exit.stderr, &[executing]), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    drop(stuck);
    swept()?;
    // With nobody there any more.
    let (fault, _) = scene.armed(OFFSET)?;
    fault.kill(Signal::SIGTERM)?;
    ensure!(fault.wait(PATIENCE)?.code == Some(130), "it did not end");
    scene.over("all are gone")
}
