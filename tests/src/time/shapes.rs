//! Clocks that go wrong while they run: too fast, too slow, not at all, in leaps, and now and then.

use std::time::Duration;

use super::{
    NEEDS,
    clock::{Clock, MILLISECOND, REFERENCE, SECOND, skew},
    scene::{Scene, end},
};
use crate::{
    clocks::{Reading, Source, Way},
    ensure,
    error::{Context, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::a_drift_is_kept", drift).needs(NEEDS).timeout(120).waits(),
    Test::new("time::a_rate_is_kept", rate).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::an_offset_with_a_rate", both).needs(NEEDS).timeout(60).slow(),
    Test::new("time::frozen", frozen).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::strobe", strobe).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::jump_every", jump_every).needs(NEEDS).timeout(60).slow().waits(),
];

/// How long a drift is looked at, and by how many millionths it may be off.
const LONG: Duration = Duration::from_secs(10);
const OFF_PPM: f64 = 20.0;
/// How often a clock is read to see where it is.
const OFTEN: Duration = Duration::from_millis(2);
/// How far from when it was to be something may happen: what reads may stand still for as long.
const LATE: i64 = 100 * MILLISECOND;

/// A clock's first reading and its last.
struct Ends(Reading, Reading);

impl Ends {
    /// How much faster it was than the reference.
    fn rate(&self) -> f64 {
        let Self(first, last) = self;
        (last.ns - first.ns) as f64 / (last.middle() - first.middle()) as f64
    }
}

/// The ends of the same time, of both.
fn ends(scene: &mut Scene, source: Source, time: Duration) -> Result<[Ends; 2]> {
    let read = |clock: &mut Clock| clock.one(source, Way::Vdso);
    let first = [read(&mut scene.target)?, read(&mut scene.bystander)?];
    std::thread::sleep(time);
    let last = [read(&mut scene.target)?, read(&mut scene.bystander)?];
    let [target, bystander] = first;
    Ok([Ends(target, last[0]), Ends(bystander, last[1])])
}

/// Beside the bystander's clock, which the machine's own NTP may be slewing.
fn drift() -> Result {
    let mut scene = Scene::set()?;
    for (words, ppm) in [("--drift 200", 200.0), ("--drift -1000.5", -1000.5)] {
        let (fault, _) = scene.armed(words)?;
        let [target, bystander] = ends(&mut scene, Source::Realtime, LONG)?;
        let seen = (target.rate() - bystander.rate()) * 1e6;
        println!("{words}: {seen:.2} ppm in {LONG:?}, beside {:.2}", (bystander.rate() - 1.0) * 1e6);
        ensure!((seen - ppm).abs() < OFF_PPM, "{words}: {seen} ppm");
        let bystander = (bystander.rate() - 1.0) * 1e6;
        ensure!(bystander.abs() < 600.0, "{words}: the bystander's clock drifts by {bystander} ppm");
        end(&fault)?;
        scene.over(words)?;
    }
    Ok(())
}

fn rate() -> Result {
    let mut scene = Scene::set()?;
    for (words, rate) in [("--rate 2", 2.0), ("--rate 0.5", 0.5), ("--rate 100", 100.0)] {
        let (fault, _) = scene.armed(words)?;
        let [target, bystander] = ends(&mut scene, Source::Realtime, Duration::from_secs(2))?;
        let seen = target.rate() / bystander.rate();
        println!("{words}: {seen:.6}");
        ensure!((seen / rate - 1.0).abs() < 1e-4, "{words}: {seen}");
        scene.spared(words)?;
        end(&fault)?;
        scene.over(words)?;
    }
    Ok(())
}

/// They add up; a rate begins to count when the fault does.
fn both() -> Result {
    let mut scene = Scene::set()?;
    let before = REFERENCE.read(Way::Raw).context("a clock")?;
    let (fault, _) = scene.armed("--offset 1h --rate 2")?;
    let reading = scene.target.one(Source::Realtime, Way::Vdso)?;
    let (gained, most) = (skew(&reading)? - 3_600 * SECOND, reading.after - before);
    ensure!((-MILLISECOND..=most).contains(&gained), "it has gained {gained} ns within {most}");
    let [target, bystander] = ends(&mut scene, Source::Realtime, Duration::from_secs(1))?;
    let seen = target.rate() / bystander.rate();
    ensure!((seen - 2.0).abs() < 1e-4, "--rate 2: {seen}");
    end(&fault)?;
    scene.over("afterwards")
}

fn frozen() -> Result {
    let mut scene = Scene::set()?;
    for words in ["--freeze", "--freeze --offset -1d"] {
        let (fault, _) = scene.armed(words)?;
        let readings = scene.target.sample(Source::Realtime, Duration::from_secs(2), OFTEN)?;
        let (first, last) = (readings[0].ns, readings[readings.len() - 1].ns);
        let furthest = readings.iter().map(|reading| (reading.ns - first).abs()).max().unwrap_or(0);
        ensure!(furthest < 1_000, "{words}: a frozen clock went {furthest} ns: {first}, {last}");
        let by = skew(&readings[0])?;
        let expected = if words.contains("-1d") { -86_400 * SECOND } else { 0 };
        // It stands since it was armed.
        ensure!((expected - 2 * SECOND..=expected + MILLISECOND).contains(&by), "{words}: {by} ns ahead");
        scene.spared(words)?;
        end(&fault)?;
        scene.over(words)?;
    }
    Ok(())
}

/// How far a clock was ahead at times, in steps that are as long as they lasted; what could not be read in time is
/// left out.
fn steps(readings: &[Reading]) -> Result<Vec<(i64, i64, i64)>> {
    let mut steps: Vec<(i64, i64, i64)> = Vec::new();
    // Where the truth is does not change in so short a time.
    let truth = super::clock::truth(Source::Realtime, REFERENCE)?.ahead();
    for reading in readings.iter().filter(|reading| reading.after - reading.before < MILLISECOND) {
        let skew = reading.ahead() - truth;
        match steps.last_mut() {
            Some((last, _, until)) if (*last - skew).abs() <= 2 * MILLISECOND => *until = reading.middle(),
            _ => steps.push((skew, reading.middle(), reading.middle())),
        }
    }
    Ok(steps)
}

fn strobe() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed("--offset 1h --strobe 500ms/700ms")?;
    let readings = scene.target.sample(Source::Realtime, Duration::from_millis(3_700), OFTEN)?;
    let steps = steps(&readings)?;
    let told: Vec<String> =
        steps.iter().map(|(skew, from, to)| format!("{skew} for {}", to - from)).collect();
    println!("{}", told.join(", "));
    ensure!(steps.len() >= 6, "too few: {told:?}");
    for (number, (skew, from, to)) in steps.iter().enumerate() {
        let (on, lasts) = if number % 2 == 0 { (true, 500) } else { (false, 700) };
        let expected = if on { 3_600 * SECOND } else { 0 };
        ensure!((skew - expected).abs() <= 2 * MILLISECOND, "part {number}: {told:?}");
        let lasted = to - from;
        let whole = number > 0 && number + 1 < steps.len();
        let most = lasts * MILLISECOND + LATE;
        ensure!(lasted <= most && (!whole || lasted >= most - 2 * LATE), "part {number}: {told:?}");
    }
    scene.spared("meanwhile")?;
    end(&fault)?;
    scene.over("afterwards")
}

fn jump_every() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed("--offset 10s --jump-every 500ms")?;
    let readings = scene.target.sample(Source::Realtime, Duration::from_millis(2_600), OFTEN)?;
    let steps = steps(&readings)?;
    let told: Vec<String> =
        steps.iter().map(|(skew, from, to)| format!("{skew} for {}", to - from)).collect();
    println!("{}", told.join(", "));
    ensure!(steps.len() >= 5, "too few: {told:?}");
    for (number, (skew, from, to)) in steps.iter().enumerate() {
        let expected = 10 * SECOND * (number as i64 + 1);
        ensure!((skew - expected).abs() <= 2 * MILLISECOND, "jump {number}: {told:?}");
        let whole = number > 0 && number + 1 < steps.len();
        let lasted = to - from;
        ensure!(!whole || (lasted - 500 * MILLISECOND).abs() <= LATE, "jump {number}: {told:?}");
    }
    scene.spared("meanwhile")?;
    end(&fault)?;
    scene.over("afterwards")
}
