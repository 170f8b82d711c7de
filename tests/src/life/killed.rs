//! The owner is killed.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::scene::{PATIENCE, Scene, records};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Need, Test},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("life::killed_at_any_moment", at_any_moment).needs(&[Need::Root, Need::Btf]).timeout(300)];

const MOMENTS: u32 = 50;
const SEED: u64 = 2;
const LEASE_AND_A_HALF: Duration = Duration::from_millis(3500);
const WAYS: [&str; 3] = ["in", "out", "both"];

/// Where in its life an owner was when it was killed.
const PHASES: [&str; 4] = ["starting", "attached", "armed", "ending"];

fn at_any_moment() -> Result {
    let mut scene = Scene::set()?;
    let runs = [normal(&scene)?, normal(&scene)?, normal(&scene)?];
    let length = runs.iter().map(|(length, _)| *length).max().context("three runs")?;
    let by_links = runs.iter().all(|(_, by_links)| *by_links);
    let mut random = SEED;
    let (mut killed, mut phases) = (0, [0; 4]);
    for round in 0..MOMENTS {
        let moment = length.mul_f64(fraction(&mut random));
        let way = WAYS[round as usize % WAYS.len()];
        let when = format!("killed {moment:?} after its start, --direction {way}");
        let exit = kill_after(&scene, way, moment)?;
        killed += u32::from(exit.signal == Some(Signal::SIGKILL as i32));
        phases[phase(&exit)] += 1;
        if by_links {
            scene.harmless(&when)?;
        } else {
            // Below 6.6 a filter stays, and what it does ends with the lease.
            scene.flows_within(LEASE_AND_A_HALF, &when)?;
        }
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{when}: {swept:?}");
        ensure!(records()?.is_empty(), "{when}: {:?} after sweep", records());
        scene.over(&format!("{when}, swept"))?;
    }
    println!("a run takes {length:?}; {killed} of {MOMENTS} were killed: {PHASES:?} {phases:?}");
    ensure!(killed >= MOMENTS / 2, "{killed} of {MOMENTS} were killed, the others had ended before");
    ensure!(phases[0] > 0 && phases[2] > 0, "killed while {PHASES:?}: {phases:?}");
    Ok(())
}

fn arguments(way: &str) -> [&str; 7] {
    ["100%", "--proto", "udp", "--for", "100ms", "--direction", way]
}

/// How long a run takes from its start to its end, and whether links alone hold it.
fn normal(scene: &Scene) -> Result<(Duration, bool)> {
    let start = Instant::now();
    let exit = scene.start(&arguments("both"))?.wait(PATIENCE)?;
    let length = start.elapsed();
    ensure!(exit.code == Some(5), "a run without traffic: {exit:?}");
    let hooks = exit.event("prepared")?.get("/hooks")?.as_array().context("no hooks")?;
    Ok((length, hooks.iter().all(|hook| hook["link_id"].is_number())))
}

fn kill_after(scene: &Scene, way: &str, moment: Duration) -> Result<Exit> {
    let start = Instant::now();
    let fault = scene.start(&arguments(way))?;
    thread::sleep(moment.saturating_sub(start.elapsed()));
    // It may have ended already.
    let _ = fault.kill(Signal::SIGKILL);
    fault.wait(PATIENCE)
}

fn phase(exit: &Exit) -> usize {
    let ended = exit.events.iter().any(|event| event.kind == "summary");
    let last = exit.events.iter().map(|event| event.kind.as_str()).next_back();
    match last {
        _ if ended || exit.code.is_some() => 3,
        None => 0,
        Some("prepared") => 1,
        Some(_) => 2,
    }
}

/// Between 0 and 1: splitmix64.
pub(super) fn fraction(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
