//! The owner is killed.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::scene::{NEEDS, PATIENCE, Scene};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{RECORDS, Test, moments, patience},
    life::{killed::fraction, scene::records},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("calls_life::killed_at_any_moment", at_any_moment).needs(NEEDS).timeout(400).once()];

/// How often it is killed; fewer times in the gate.
const MOMENTS: u32 = 20;
const SEED: u64 = 6;
/// How long it may have been armed by then, beyond its first renewal of the lease.
const ARMED: Duration = Duration::from_millis(1200);
/// Where in its life it was, by its record: none yet; loading and attaching; attached; armed.
const PHASES: [&str; 4] = ["starting", "attaching", "attached", "armed"];

/// From when on.
const SINCE: [&str; 3] = ["its start", "its record was there", "it was armed"];

/// A third of them before it has a record, a third before it is armed, and the others after.
fn at_any_moment() -> Result {
    let scene = Scene::set()?;
    let start = Instant::now();
    let fault = scene.start(&[])?;
    has_record()?;
    let recorded = start.elapsed();
    fault.wait_event("armed", PATIENCE)?;
    let lengths = [recorded, start.elapsed() - recorded, ARMED];
    scene.hit("armed")?;
    fault.end()?;
    scene.over("the one that was not killed")?;
    let (mut random, mut phases) = (SEED, [0; PHASES.len()]);
    for round in 0..moments(MOMENTS) as usize {
        let since = round % SINCE.len();
        let moment = lengths[since].mul_f64(fraction(&mut random));
        let when = format!("killed {moment:?} after {}", SINCE[since]);
        let phase = kill_after(&scene, since, moment).context(&when)?;
        phases[phase] += 1;
        scene.harmless(&when)?;
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{when}: {swept:?}");
        ensure!(records()?.is_empty(), "{when}: {:?} after sweep", records());
        scene.over(&format!("{when}, swept"))?;
    }
    println!("{SINCE:?} lasted {lengths:?}; killed while {PHASES:?}: {phases:?}");
    let [starting, attaching, attached, armed] = phases;
    ensure!(starting > 0 && attaching + attached > 0 && armed > 0, "{PHASES:?}: {phases:?}");
    Ok(())
}

/// Waits until an owner has written down what it is going to do.
fn has_record() -> Result {
    let deadline = Instant::now() + patience(PATIENCE);
    while records()?.is_empty() {
        ensure!(Instant::now() < deadline, "no record");
        thread::yield_now();
    }
    Ok(())
}

/// In which phase it was.
fn kill_after(scene: &Scene, since: usize, moment: Duration) -> Result<usize> {
    let fault = scene.start(&[])?;
    if since == 1 {
        has_record()?;
    }
    if since == 2 {
        fault.wait_event("armed", PATIENCE)?;
        scene.hit("armed")?;
    }
    thread::sleep(moment);
    fault.kill(Signal::SIGKILL)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
    let record = match &records()?[..] {
        [] => String::new(),
        [name] => fs::read_to_string(format!("{RECORDS}/{name}")).context(name)?,
        several => return Err(Failure::new(format!("several records: {several:?}"))),
    };
    Ok(match record.lines().count() {
        0 => 0,
        _ if record.contains(r#""entry":"armed""#) => 3,
        _ if record.contains(r#""entry":"prepared""#) => 2,
        _ => 1,
    })
}
