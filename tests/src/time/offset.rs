//! An offset, before, during and after; in each way that a clock is read.

use std::time::Duration;

use super::{
    NEEDS,
    clock::{MILLISECOND, REFERENCE, SECOND, expect},
    scene::{Scene, are_right, end, is_default},
};
use crate::{
    clocks::{From, Reading, Source, Way},
    ensure,
    error::{Context, Result},
    harness::{Need, Test},
};
use chaos_user::kernel::mechanism::Mechanism;

pub(super) const TESTS: &[Test] = &[
    Test::new("time::an_offset_is_kept", kept).needs(NEEDS).timeout(120).waits(),
    Test::new("time::system_calls_too", system_calls)
        .needs(&[Need::Root, Need::Btf, Need::CgroupV2, Need::Fexit, Need::ProbeWriteUser])
        .timeout(60),
    Test::new("time::system_calls_not_here", system_calls_not_here)
        .needs(&[Need::Root, Need::Btf, Need::CgroupV2, Need::Without(Mechanism::ProbeWriteUser)])
        .timeout(60),
    Test::new("time::several_at_once", several).needs(NEEDS).timeout(60),
];

/// As they are written, and in nanoseconds.
const OFFSETS: [(&str, i64); 6] = [
    ("-2d", -172_800 * SECOND),
    ("90s", 90 * SECOND),
    ("+1h30m", 5_400 * SECOND),
    ("500ms", 500 * MILLISECOND),
    ("-500ms", -500 * MILLISECOND),
    ("+3650d", 315_360_000 * SECOND),
];

fn kept() -> Result {
    let mut scene = Scene::set()?;
    for (offset, skew) in OFFSETS {
        let (fault, _) = scene.armed(&format!("--offset {offset}"))?;
        scene.skewed(skew, offset)?;
        // Over a renewal of the lease.
        let readings =
            scene.target.sample(Source::Realtime, Duration::from_millis(1_200), Duration::from_millis(1))?;
        for reading in &readings {
            let slow = reading.after - reading.before > MILLISECOND;
            ensure!(slow || expect(reading, REFERENCE, skew).is_ok(), "{offset}: {reading:?}");
        }
        scene.skewed(skew, offset)?;
        let counts = end(&fault)?;
        ensure!(counts.matched == 1 && counts.fired == 1, "{offset}: {counts:?}");
        scene.over(offset)?;
    }
    Ok(())
}

/// `time(2)` returns what it says, which cannot be rewritten: it is right.
fn is_rewritten(reading: &Reading) -> bool {
    reading.source != Source::Time && is_default(reading.source)
}

fn raw(readings: Vec<Reading>) -> impl Iterator<Item = Reading> {
    readings.into_iter().filter(|reading| reading.way == Way::Raw)
}

/// Where a program may write to the target's memory.
fn system_calls() -> Result {
    let mut scene = Scene::set()?;
    for by in ["", " --by fexit", " --by vdso_patch"] {
        let (fault, _) = scene.armed(&format!("--offset 1h{by}"))?;
        let readings = scene.target.read(From::Itself, REFERENCE)?;
        for reading in raw(readings) {
            let skew = if is_rewritten(&reading) && by != " --by vdso_patch" { 3_600 * SECOND } else { 0 };
            expect(&reading, REFERENCE, skew).context(format_args!("{by:?}"))?;
        }
        scene.skewed(3_600 * SECOND, "armed")?;
        end(&fault)?;
        scene.over("afterwards")?;
    }
    Ok(())
}

/// Where it may not, they are right, and that is said.
fn system_calls_not_here() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed("--offset 1h")?;
    let readings = scene.target.read(From::Itself, REFERENCE)?;
    are_right(&raw(readings).collect::<Vec<_>>(), REFERENCE)?;
    scene.skewed(3_600 * SECOND, "armed")?;
    end(&fault)?;
    let (target, folder) = (scene.target.pid().to_string(), scene.folder());
    for aim in [["--pid", &target], ["--cgroup", &folder]] {
        let words = [&["time", "skew", "--offset", "1h", "--by", "fexit"], &aim[..]].concat();
        for words in [words.clone(), [&words[..], &["--plan"]].concat()] {
            crate::faultline::Faultline::check_refused(&words, 3, &["lockdown"])?;
        }
    }
    scene.over("afterwards")
}

/// Two targets, two runs: neither knows of the other. The same target twice is none for the second.
fn several() -> Result {
    let mut scene = Scene::set()?;
    let folder = scene.folder();
    let (first, _) = scene.armed("--offset 1h")?;
    let again = ["time", "skew", "--offset", "2h", "--cgroup", &folder];
    crate::faultline::Faultline::check_refused(&again, 3, &["another fault"])?;
    let other = scene.bystander.pid().to_string();
    let second = crate::faultline::Faultline::start(&["time", "skew", "--offset=-1h", "--pid", &other])?;
    second.wait_event("armed", super::scene::PATIENCE)?;
    let hour = 3_600 * SECOND;
    for (clock, skew) in [(&mut scene.target, hour), (&mut scene.bystander, -hour)] {
        clock.until(skew, Duration::from_millis(100))?;
    }
    end(&first)?;
    scene.target.until(0, Duration::from_millis(100))?;
    scene.bystander.until(-hour, Duration::from_millis(100))?;
    end(&second)?;
    scene.over("afterwards")
}
