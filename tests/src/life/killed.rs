//! The owner is killed.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::scene::{PATIENCE, Scene, records};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{Need, RECORDS, Test, moments, rounds},
    traffic::monotonic_ns,
};

pub(super) const TESTS: &[Test] = &[Test::new("life::killed_at_any_moment", at_any_moment)
    .needs(&[Need::Root, Need::Btf])
    .timeout(300)
    .once()];

/// How often it is killed; 20 times under emulation, and fewer in the gate.
const MOMENTS: u32 = 50;
const SEED: u64 = 2;
const LEASE_AND_A_HALF: Duration = Duration::from_millis(3500);
const WAYS: [&str; 3] = ["in", "out", "both"];

/// Where in its life an owner was when it was killed, by its record: none yet; loading and attaching; attached;
/// armed; its time over.
const PHASES: [&str; 5] = ["starting", "attaching", "attached", "armed", "ending"];

/// Kills an owner without its guard's coming to know of it.
pub(crate) fn kill_with_its_guard(fault: &Faultline) -> Result {
    fault.kill(Signal::SIGSTOP)?;
    let pid = fault.pid();
    let path = format!("/proc/{pid}/task/{pid}/children");
    for guard in fs::read_to_string(&path).context(&path)?.split_whitespace() {
        let guard = Pid::from_raw(guard.parse().context(guard)?);
        kill(guard, Signal::SIGKILL).context(guard)?;
    }
    fault.kill(Signal::SIGKILL)?;
    fault.wait(PATIENCE).map(drop)
}

/// Half of them somewhere before they are armed, the others after.
fn at_any_moment() -> Result {
    let mut scene = Scene::set()?;
    let mut runs = WAYS.iter().map(|way| Run::measure(&scene, way)).collect::<Result<Vec<_>>>()?;
    let (mut random, wanted) = (SEED, moments(rounds(MOMENTS)));
    let (mut killed, mut phases) = (0, [0; PHASES.len()]);
    for round in 0..4 * wanted {
        if killed == wanted {
            break;
        }
        let run = &mut runs[round as usize % WAYS.len()];
        let is_armed = round / WAYS.len() as u32 % 2 == 1;
        let length = if is_armed { &mut run.after } else { &mut run.before };
        let moment = length.mul_f64(fraction(&mut random));
        let when = format!(
            "killed {moment:?} after {}, --direction {}",
            ["its start", "it was armed"][usize::from(is_armed)],
            run.way
        );
        let Some(phase) = kill_after(&scene, run.way, is_armed, moment)? else {
            // It had ended already: the length was measured while the machine was busier.
            *length = (*length).min(moment);
            continue;
        };
        killed += 1;
        phases[phase] += 1;
        if run.by_links {
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
    println!("{runs:?}; killed while {PHASES:?}: {phases:?}");
    ensure!(killed == wanted, "{killed} of {wanted} were killed, the others had ended before");
    let [starting, attaching, attached, armed, ending] = phases;
    ensure!(starting + attaching > 0 && attached + armed + ending > 0, "{PHASES:?}: {phases:?}");
    Ok(())
}

fn arguments(way: &str) -> [&str; 7] {
    ["100%", "--proto", "udp", "--for", "100ms", "--direction", way]
}

/// How a run goes that nobody kills.
#[derive(Debug)]
struct Run {
    way: &'static str,
    /// From its start until it is armed.
    before: Duration,
    /// From there to its end.
    after: Duration,
    /// Whether links alone hold it.
    by_links: bool,
}

impl Run {
    fn measure(scene: &Scene, way: &'static str) -> Result<Self> {
        let start = Instant::now();
        let fault = scene.start(&arguments(way))?;
        fault.wait_event("armed", PATIENCE)?;
        let before = start.elapsed();
        let exit = fault.wait(PATIENCE)?;
        let after = start.elapsed() - before;
        ensure!(exit.code == Some(5), "a run without traffic: {exit:?}");
        let hooks = exit.event("prepared")?.get("/hooks")?.as_array().context("no hooks")?;
        let by_links = hooks.iter().all(|hook| hook["link_id"].is_number());
        Ok(Self { way, before, after, by_links })
    }
}

/// In which phase it was killed; nothing if it had ended before.
fn kill_after(scene: &Scene, way: &str, is_armed: bool, moment: Duration) -> Result<Option<usize>> {
    let fault = scene.start(&arguments(way))?;
    if is_armed {
        fault.wait_event("armed", PATIENCE)?;
    }
    thread::sleep(moment);
    let kill = monotonic_ns();
    let _ = fault.kill(Signal::SIGKILL);
    let exit = fault.wait(PATIENCE)?;
    if exit.signal != Some(Signal::SIGKILL as i32) {
        ensure!(exit.code == Some(5), "{exit:?}");
        return Ok(None);
    }
    let record = match &records()?[..] {
        [] => String::new(),
        [name] => fs::read_to_string(format!("{RECORDS}/{name}")).context(name)?,
        several => return Err(Failure::new(format!("several records: {several:?}"))),
    };
    let printed = |kind| exit.events.iter().any(|event| event.kind == kind);
    let until = exit.event("armed").and_then(|armed| armed.number("/at_ns")).map(|at| at + 100_000_000);
    Ok(Some(match record.lines().count() {
        _ if printed("summary") || until.is_ok_and(|until| until < kill) => 4,
        0 => 0,
        _ if record.contains(r#""entry":"armed""#) => 3,
        _ if record.contains(r#""entry":"prepared""#) => 2,
        _ => 1,
    }))
}

/// Between 0 and 1: splitmix64.
pub(crate) fn fraction(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
