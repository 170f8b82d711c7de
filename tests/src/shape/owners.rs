//! Several owners, and owners that are killed.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Flows, NOISE, PATIENCE, PORT, Way, arm, end, few, lab, median, whole};
use crate::{
    ensure,
    error::Result,
    faultline::Faultline,
    harness::{is_emulated, rounds},
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE},
    traffic::probe::Pace,
};

/// Delays of two owners add up, in whichever order they come and go.
pub(super) fn two() -> Result {
    let lab = lab()?;
    for (number, way) in Way::BOTH.into_iter().enumerate() {
        let flows = Flows::open(&lab, way, Family::V4)?;
        for first_ends_first in [true, false] {
            if is_emulated() && first_ends_first != (number == 0) {
                continue;
            }
            let one = arm(&lab, &format!("delay 30ms --direction {} --port {PORT}", way.name()))?;
            about(&flows, 30)?;
            let other = arm(&lab, &format!("delay 50ms --direction {} --port {PORT}", way.name()))?;
            about(&flows, 80)?;
            let (ends, stays, left) = if first_ends_first { (&one, &other, 50) } else { (&other, &one, 30) };
            end(ends)?;
            about(&flows, left)?;
            end(stays)?;
            about(&flows, 0)?;
        }
    }
    Ok(())
}

/// An owner at each end of a veth, the later of them where the packets come in: both act.
pub(super) fn both_ends() -> Result {
    let lab = lab()?;
    let flows = Flows::open(&lab, Way::Out, Family::V4)?;
    let sent = arm(&lab, &format!("delay 30ms --port {PORT}"))?;
    let words = format!("net delay 50ms --port {PORT} --direction in --dev {FAR_DEVICE} --seed 1");
    let received = Faultline::start_in(&lab.far, &words.split(' ').collect::<Vec<_>>())?;
    received.wait_event("armed", PATIENCE)?;
    about(&flows, 80)?;
    end(&sent)?;
    about(&flows, 50)?;
    end(&received)?;
    about(&flows, 0)
}

fn about(flows: &Flows, asked: i64) -> Result {
    let delays = flows.delays(&format!("{asked} ms"))?;
    let middle = median(&delays);
    ensure!((asked - 2..asked + NOISE).contains(&middle), "asked {asked} ms: {delays:?}");
    Ok(())
}

/// What waits when its owner is killed goes with it; what comes then goes straight on, and nothing is left.
pub(super) fn killed() -> Result {
    let lab = lab()?;
    for round in 0..rounds(5).max(2).max(2) {
        let way = Way::BOTH[round as usize % 2];
        let flows = Flows::open(&lab, way, Family::V4)?;
        let before = interfaces(&lab)?;
        let fault = arm(&lab, &format!("delay 300ms rate 1mbit --direction {} --port {PORT}", way.name()))?;
        ensure!(interfaces(&lab)?.len() == before.len() + 1, "no interface for the detour");
        // Some of these wait when it happens.
        let pace = Pace { count: 200, interval: Duration::from_millis(2), ..few() };
        let (arrivals, sent) = thread::scope(|scope| {
            let probes = scope.spawn(|| flows.target.run(pace));
            thread::sleep(Duration::from_millis(150 + 20 * u64::from(round)));
            fault.kill(Signal::SIGKILL)?;
            probes.join().map_err(|_| crate::error::Failure::new("the probes panicked"))?
        })?;
        fault.wait(PATIENCE)?;
        ensure!(arrivals.len() as u32 <= sent, "more came than were sent");
        let deadline = Instant::now() + Duration::from_secs(3);
        while interfaces(&lab)? != before {
            ensure!(Instant::now() < deadline, "left: {:?}", interfaces(&lab)?);
            thread::sleep(Duration::from_millis(5));
        }
        let delays = whole("after the kill", &flows.target.run(few())?)?;
        ensure!(median(&delays) < NOISE, "after the kill: {delays:?}");
        // Below 6.6 there is a filter to be swept, and the record in any case.
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{swept:?}");
        flows.delays("swept")?;
    }
    Ok(())
}

fn interfaces(lab: &Lab) -> Result<Vec<String>> {
    let links = lab.near.netlink()?.links()?;
    let names: Vec<String> = links.into_iter().map(|link| link.name).collect();
    ensure!(names.iter().any(|name| name == NEAR_DEVICE), "{names:?}");
    Ok(names)
}
