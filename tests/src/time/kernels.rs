//! What is not skewed, row by row: waits end and files are stamped by the kernel's own clock, which is right.

use super::{
    NEEDS,
    clock::{MILLISECOND, SECOND},
    scene::{Scene, end},
};
use crate::{
    clocks::{Source, Wait, Way},
    ensure,
    error::{Context, Result},
    harness::{Test, is_emulated},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("time::what_the_kernel_decides_is_right", rows).needs(NEEDS).timeout(90)];

/// How far the target's clocks are ahead.
const AHEAD: i64 = 400;
/// What is waited for by those clocks, in milliseconds.
const WAIT: i64 = 50;

/// How it waits, by which clock, and what is said of it: true milliseconds while the clock is ahead.
const ROWS: [(Wait, Source, i64); 7] = [
    (Wait::Sleep, Source::Realtime, WAIT + AHEAD),
    (Wait::Sleep, Source::Tai, WAIT + AHEAD),
    (Wait::Sleep, Source::Monotonic, WAIT),
    (Wait::SleepFor, Source::Realtime, WAIT),
    (Wait::SleepFor, Source::Monotonic, WAIT),
    (Wait::Timerfd, Source::Realtime, WAIT + AHEAD),
    (Wait::Condition, Source::Realtime, WAIT + AHEAD),
];

fn rows() -> Result {
    // Who waits is woken late, never early.
    let late = if is_emulated() { 150 } else { 40 };
    let mut scene = Scene::set()?;
    let row = |scene: &mut Scene, how, clock, milliseconds: i64, when: &str| {
        let waited = scene.target.wait(how, clock, WAIT as u64)?;
        let took = waited.most as f64 / MILLISECOND as f64;
        println!("{when}: {how:?} by {clock}: {took:.1} ms, of {milliseconds}");
        // By two clocks, of which NTP may slew one.
        let right = took > milliseconds as f64 - 1.0 && took < (milliseconds + late) as f64;
        ensure!(right, "{when}: {how:?} by {clock} took {took} ms, not {milliseconds}");
        let can_be = waited.least - MILLISECOND..=waited.most + MILLISECOND;
        ensure!(can_be.contains(&waited.seen), "{when}: {how:?} by {clock}: it saw {} ns", waited.seen);
        Ok::<_, crate::error::Failure>(())
    };
    for (how, clock, _) in ROWS {
        row(&mut scene, how, clock, WAIT, "before")?;
    }
    let (fault, _) = scene.armed(&format!("--offset {AHEAD}ms"))?;
    for (how, clock, milliseconds) in ROWS {
        row(&mut scene, how, clock, milliseconds, "ahead")?;
    }
    end(&fault)?;
    let (fault, _) = scene.armed("--offset -10s")?;
    // That time has long been.
    for how in [Wait::Sleep, Wait::Timerfd, Wait::Condition] {
        row(&mut scene, how, Source::Realtime, 0, "behind")?;
    }
    stamps(&mut scene)?;
    end(&fault)?;
    for (how, clock, _) in ROWS {
        row(&mut scene, how, clock, WAIT, "after")?;
    }
    scene.over("afterwards")
}

/// A file is written when it is.
fn stamps(scene: &mut Scene) -> Result {
    let path = std::env::temp_dir().join(format!("fl-time-{}", std::process::id()));
    let now = || Source::Realtime.read(Way::Raw).context("a clock");
    let (before, stamp, after) = (now()?, scene.target.touch(path.clone())?, now()?);
    let _ = std::fs::remove_file(&path);
    println!("a file's mtime is {} ms after the order to write it", (stamp - before) / MILLISECOND);
    // Files go by a coarse clock.
    ensure!((before - SECOND / 80..=after).contains(&stamp), "mtime {stamp}, between {before} and {after}");
    Ok(())
}
