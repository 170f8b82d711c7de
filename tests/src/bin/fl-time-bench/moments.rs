//! What else it costs: to begin a program, to stand still while a clock is changed, and to be right again.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use faultline_tests::{
    cgroup::Cgroup,
    clocks::{Clock, REFERENCE, Way},
    ensure,
    error::{Context, Result},
    faultline::Faultline,
};
use nix::sys::signal::Signal;

use super::{OFFSET, PATIENCE, Place, SKEW, quantile};

/// Programs of one round.
const PROGRAMS: usize = 100;
const ROUNDS: usize = 7;
/// How often a process is watched while a fault begins.
const STOPS: usize = 10;
const KILLS: usize = 20;

/// Median, best and worst.
fn told(numbers: &[f64]) -> String {
    let [best, median, worst] = [0.0, 0.5, 1.0].map(|part| quantile(numbers, part));
    format!("{median:>10.1} {best:>10.1} {worst:>10.1}")
}

const HEADING: &str = "    MEDIAN       BEST      WORST";

/// From fork to end, by turns with and without.
pub(super) fn programs(place: &Place) -> Result {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        begin(&place.target, &mut without)?;
        let fault = place.fault(OFFSET)?;
        begin(&place.target, &mut with)?;
        fault.end()?;
    }
    println!("\n{:<40} {HEADING}", "MICROSECONDS TO BEGIN AND END true");
    for (name, numbers) in [("without a fault", &without), (OFFSET, &with)] {
        println!("{name:<40} {}", told(numbers));
    }
    Ok(())
}

fn begin(cgroup: &Cgroup, took: &mut Vec<f64>) -> Result {
    for _ in 0..PROGRAMS {
        let mut command = Command::new("true");
        command.stdin(Stdio::null());
        cgroup.admit(&mut command)?;
        let start = Instant::now();
        let status = command.status().context("true")?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(status.success(), "true: {status}");
    }
    Ok(())
}

/// The longest time in which no thread of a process went on, while nothing happens and while a fault begins.
pub(super) fn stops(place: &Place) -> Result {
    println!("\n{:<40} {HEADING}", "MICROSECONDS OF STANDING STILL");
    for threads in [1, 50] {
        let (mut calm, mut begun) = (Vec::new(), Vec::new());
        for _ in 0..STOPS {
            // As long as it takes to begin one.
            let start = Instant::now();
            let longest = watched(place, threads, || {
                let fault = place.fault(OFFSET)?;
                Ok(Some(fault))
            })?;
            begun.push(longest);
            let time = start.elapsed();
            calm.push(watched(place, threads, || {
                thread::sleep(time);
                Ok(None)
            })?);
        }
        for (name, numbers) in [("nothing happens", &calm), ("a fault begins", &begun)] {
            println!("{:<40} {}", format!("{threads} threads, {name}"), told(numbers));
        }
    }
    Ok(())
}

fn watched(
    place: &Place,
    threads: usize,
    meanwhile: impl FnOnce() -> Result<Option<Faultline>>,
) -> Result<f64> {
    let mut clock = Clock::start(Some(&place.target))?;
    clock.watch(threads, SKEW)?;
    let fault = meanwhile()?;
    let seen = clock.halt()?;
    fault.map_or(Ok(()), |fault| fault.end().map(drop))?;
    ensure!(seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    Ok(seen.longest_gap as f64 / 1e3)
}

/// From SIGKILL of the owner to the last wrong reading.
pub(super) fn kills(place: &Place) -> Result {
    let mut clock = Clock::start(Some(&place.target))?;
    let mut took = Vec::new();
    clock.watch(1, SKEW)?;
    for _ in 0..KILLS {
        let fault = place.fault(OFFSET)?;
        clock.until(SKEW, PATIENCE)?;
        // So that the thread that looks has seen it.
        thread::sleep(Duration::from_millis(50));
        let killed = REFERENCE.read(Way::Raw).context("a clock")?;
        fault.kill(Signal::SIGKILL)?;
        clock.until(0, PATIENCE)?;
        thread::sleep(Duration::from_millis(20));
        took.push((clock.seen()?.last_skewed - killed) as f64 / 1e6);
        fault.wait(PATIENCE)?;
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{swept:?}");
    }
    let seen = clock.halt()?;
    ensure!(seen.absurd == 0 && seen.backwards == 0, "{seen:?}");
    println!("\n{:<40} {HEADING}", "MILLISECONDS UNTIL RIGHT");
    println!("{:<40} {}", format!("after SIGKILL of the owner, {KILLS} times"), told(&took));
    Ok(())
}
