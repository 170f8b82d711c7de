//! A leap second at the target's next midnight: at once, or from noon to noon.

use std::time::Duration;

use super::{
    NEEDS,
    clock::{MILLISECOND, REFERENCE, SECOND, skew, truth},
    scene::{PATIENCE, Scene, end},
};
use crate::{
    clocks::{Source, Way},
    ensure,
    error::{Context, Result},
    harness::{Test, is_emulated, patience},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::a_leap_second_at_once", step).needs(NEEDS).timeout(60),
    Test::new("time::a_leap_second_smeared", smear).needs(NEEDS).timeout(120).slow().waits(),
];

const DAY: i64 = 86_400 * SECOND;

/// The offset by which the target's clock is at this time of a day now, in nanoseconds, whole milliseconds of them.
fn offset_to(time_of_day: i64) -> Result<i64> {
    let now = Source::Realtime.read(Way::Raw).context("a clock")?;
    let offset = (time_of_day - now).rem_euclid(DAY);
    Ok(offset - offset % MILLISECOND)
}

fn written(offset: i64) -> String {
    format!("--offset {}ms", offset / MILLISECOND)
}

fn step() -> Result {
    let mut scene = Scene::set()?;
    // Loading takes as long as it takes, and is over by then.
    let until = patience(Duration::from_secs(4));
    let offset = offset_to(DAY - until.as_nanos() as i64)?;
    let fault = scene.start(&format!("{} --leap step", written(offset)))?;
    fault.wait_event("armed", PATIENCE)?;
    let time = until + Duration::from_secs(3);
    let readings = scene.target.sample(Source::Realtime, time, Duration::from_millis(2))?;
    let truth = truth(Source::Realtime, REFERENCE)?.ahead();
    let skews: Vec<i64> = readings.iter().map(|reading| reading.ahead() - truth - offset).collect();
    let back = readings.windows(2).filter(|pair| pair[1].ns < pair[0].ns).count();
    ensure!(back == 1, "the clock went back {back} times");
    let place = readings.windows(2).position(|pair| pair[1].ns < pair[0].ns).context("nowhere")?;
    let (before, after) = (&readings[place], &readings[place + 1]);
    // From the last thing before midnight on, to a second before it.
    let midnight = (before.ns + SECOND / 2).div_euclid(DAY) * DAY;
    let (left, into) = (midnight - before.ns, after.ns - (midnight - SECOND));
    println!("the clock went back {left} ns before midnight, {into} ns into the second that is there twice");
    let late = 20 * MILLISECOND * if is_emulated() { 3 } else { 1 };
    ensure!(
        left.abs() < late && into.abs() < 2 * late,
        "{left} ns before midnight, {into} ns into the second"
    );
    for (number, (skew, reading)) in skews.iter().zip(&readings).enumerate() {
        let expected = if number <= place { 0 } else { -SECOND };
        let slow = reading.after - reading.before > MILLISECOND;
        ensure!(slow || (skew - expected).abs() <= MILLISECOND, "{skew} ns beyond the offset: {reading:?}");
    }
    scene.spared("meanwhile")?;
    end(&fault)?;
    scene.over("afterwards")
}

/// At four times of the day.
fn smear() -> Result {
    let mut scene = Scene::set()?;
    let hour = DAY / 24;
    for (time, name) in [
        (11 * hour, "11:00"),
        (12 * hour - 2 * SECOND, "noon"),
        (18 * hour, "18:00"),
        (DAY - 60 * SECOND, "midnight"),
    ] {
        let offset = offset_to(time)?;
        let (fault, _) = scene.armed(&format!("{} --leap smear", written(offset)))?;
        let reading = scene.target.one(Source::Realtime, Way::Vdso)?;
        let seen = skew(&reading)? - offset;
        let of_day = reading.ns.rem_euclid(DAY);
        let expected = -((of_day - DAY / 2).max(0) as f64 / DAY as f64 * SECOND as f64) as i64;
        println!("{name}: {seen} ns, of {expected}");
        ensure!((seen - expected).abs() <= 2 * MILLISECOND, "{name}: {seen} ns, not {expected}");
        let readings =
            scene.target.sample(Source::Realtime, Duration::from_secs(3), Duration::from_millis(5))?;
        let back = readings.windows(2).filter(|pair| pair[1].ns < pair[0].ns).count();
        ensure!(back == 0, "{name}: the clock went back {back} times");
        let (first, last) = (&readings[0], &readings[readings.len() - 1]);
        let passed = (last.ns - first.ns) as f64 / (last.middle() - first.middle()) as f64;
        // 11.6 ppm slower, beside whatever NTP does.
        ensure!((passed - 1.0).abs() < 600e-6, "{name}: it goes by a rate of {passed}");
        scene.spared(name)?;
        end(&fault)?;
        scene.over(name)?;
    }
    Ok(())
}
