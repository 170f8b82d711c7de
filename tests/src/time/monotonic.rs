//! Clocks that never go back do not, whenever a fault of theirs begins, lasts or ends; and they are right again.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    NEEDS,
    clock::{MILLISECOND, REFERENCE, SECOND, skew},
    scene::{PATIENCE, Scene},
};
use crate::{
    clocks::{Reading, Source, Way},
    ensure,
    error::{Context, Result},
    harness::{Test, is_gate, rounds},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::never_back", never_back).needs(NEEDS).timeout(180).slow().once(),
    Test::new("time::a_clock_ahead_settles", ahead).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::a_clock_behind_settles", behind).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::a_rate_goes_without_a_jump", without_a_jump).needs(NEEDS).timeout(90).slow().waits(),
];

const THREADS: usize = 20;
/// Longer than a lease, so that it is renewed.
const LONGER_THAN_A_LEASE: Duration = Duration::from_millis(3_500);
/// A clock that is settling is looked at for this long at most.
const SETTLING: Duration = Duration::from_secs(8);

/// Begun, renewed and ended, while twenty threads look.
fn never_back() -> Result {
    let mut scene = Scene::set()?;
    scene.target.watch(THREADS, 0)?;
    let clocks = "--clock monotonic,boottime";
    let ways = [
        (format!("--offset 300ms {clocks}"), LONGER_THAN_A_LEASE),
        (format!("--rate 0.5 {clocks}"), LONGER_THAN_A_LEASE),
        (format!("--rate 1.5 {clocks}"), Duration::from_millis(600)),
        (format!("--freeze {clocks}"), Duration::from_millis(300)),
    ];
    let (ways, rounds) = if is_gate() { (&ways[..2], 2) } else { (&ways[..], rounds(5)) };
    for (words, stays) in ways {
        let (fault, _) = scene.armed(words)?;
        thread::sleep(*stays);
        fault.kill(nix::sys::signal::Signal::SIGINT)?;
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(130), "{words}: {exit:?}");
        let seen = scene.target.seen()?;
        ensure!(seen.backwards == 0, "{words}: a clock went back: {seen:?}");
    }
    // Many begins and ends.
    for _ in 0..rounds {
        let (fault, _) = scene.armed(&format!("--offset 20ms {clocks}"))?;
        fault.end()?;
    }
    let seen = scene.target.halt()?;
    println!("{} rounds, the longest gap {} ns", seen.rounds, seen.longest_gap);
    ensure!(seen.backwards == 0 && seen.absurd == 0 && seen.skewed == 0, "{seen:?}");
    scene.over("afterwards")
}

/// How fast `CLOCK_MONOTONIC` went between two of the readings, by their places.
fn rate(readings: &[Reading], from: usize, to: usize) -> f64 {
    let (first, last) = (&readings[from], &readings[to]);
    (last.ns - first.ns) as f64 / (last.middle() - first.middle()) as f64
}

/// Ends what makes `CLOCK_MONOTONIC` be off by about so much, and looks how it becomes right: by this rate.
fn settles(words: &str, off: i64, slew: f64) -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(&format!("{words} --clock monotonic"))?;
    scene.target.begin_sample(Source::Monotonic, SETTLING, Duration::from_millis(2))?;
    thread::sleep(Duration::from_secs(2));
    let (before, stop) = (REFERENCE.read(Way::Raw).context("a clock")?, Instant::now());
    fault.kill(nix::sys::signal::Signal::SIGINT)?;
    let exit = fault.wait(PATIENCE)?;
    let stayed = stop.elapsed();
    ensure!(exit.code == Some(130), "{words}: {exit:?}");
    let ended = REFERENCE.read(Way::Raw).context("a clock")?;
    let readings: Vec<Reading> = scene.target.end_sample()?;
    let back = readings.windows(2).filter(|pair| pair[1].ns < pair[0].ns).count();
    ensure!(back == 0, "{words}: it went back {back} times");
    let at = (before - readings[0].middle()) / MILLISECOND;
    no_jump(&readings).context(format_args!("{words}, stopped {at} ms on"))?;
    let skews = readings.iter().map(skew).collect::<Result<Vec<_>>>()?;
    let stopped = readings.iter().position(|reading| reading.before > before).context("no reading after")?;
    let peak = skews[stopped];
    ensure!((peak - off).abs() < off.abs() / 4, "{words}: {peak} ns when it was stopped, not some {off}");
    // A little after and a little before, so that neither end matters.
    let right = skews[stopped..].iter().position(|skew| skew.abs() < off.abs() / 10);
    let nearly = stopped + right.context("it has not become right")?;
    let begun = skews[stopped..].iter().position(|skew| (skew - peak).abs() > off.abs() / 10);
    let begun = stopped + begun.context("it never began")?;
    let seen = rate(&readings, begun, nearly);
    println!("{words}: {peak} ns off, settled by a rate of {seen:.4}; the owner stayed {stayed:?}");
    ensure!((seen - slew).abs() < 0.02, "{words}: it settled by a rate of {seen}");
    let after: Vec<_> = readings.iter().zip(&skews).filter(|(reading, _)| reading.before > ended).collect();
    ensure!(!after.is_empty(), "{words}: no reading after the owner's end");
    let wrong = after
        .iter()
        .find(|(reading, skew)| skew.abs() > MILLISECOND && reading.after - reading.before < MILLISECOND);
    ensure!(wrong.is_none(), "{words}: wrong after its owner's end: {wrong:?}");
    scene.over(words)
}

/// What passed between two readings is what was to pass at the fastest, twice as much, and no more.
fn no_jump(readings: &[Reading]) -> Result {
    let jumps = readings.windows(2).filter_map(|pair| {
        let (passed, true_time) = (pair[1].ns - pair[0].ns, pair[1].after - pair[0].before);
        let at = pair[0].middle() - readings[0].middle();
        let jumped = passed > 2 * true_time + MILLISECOND;
        jumped.then(|| format!("{passed} ns in {true_time}, {} ms on", at / MILLISECOND))
    });
    let jumps: Vec<String> = jumps.collect();
    ensure!(jumps.is_empty(), "it jumped: {}", jumps.join("; "));
    Ok(())
}

fn ahead() -> Result {
    // For two seconds.
    settles("--rate 1.5", SECOND, 0.5)
}

fn behind() -> Result {
    settles("--rate 0.5", -SECOND, 2.0)
}

/// `CLOCK_REALTIME` is right at once, the monotonic one without a jump, in the same run.
fn without_a_jump() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed("--rate 1.2 --clock realtime,monotonic")?;
    scene.target.begin_sample(Source::Monotonic, Duration::from_secs(5), Duration::from_millis(2))?;
    thread::sleep(Duration::from_secs(2));
    fault.kill(nix::sys::signal::Signal::SIGINT)?;
    let readings = scene.target.end_sample()?;
    no_jump(&readings)?;
    let back = readings.windows(2).filter(|pair| pair[1].ns < pair[0].ns).count();
    ensure!(back == 0, "it went back {back} times");
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(130), "{exit:?}");
    scene.over("afterwards")?;
    // What is right at once.
    let (fault, _) = scene.armed("--rate 1.5 --clock realtime,monotonic")?;
    thread::sleep(Duration::from_secs(2));
    fault.kill(nix::sys::signal::Signal::SIGINT)?;
    let took = scene.target.until(0, Duration::from_millis(500))?;
    println!("CLOCK_REALTIME was right {took:?} after the signal");
    let monotonic = skew(&scene.target.one(Source::Monotonic, Way::Vdso)?)?;
    ensure!(monotonic > SECOND / 4, "CLOCK_MONOTONIC was right as soon, which is a jump: {monotonic}");
    fault.wait(PATIENCE)?;
    scene.over("at last")
}
