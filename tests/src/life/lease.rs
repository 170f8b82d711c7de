//! The kernel keeps the time, not the owner.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::scene::{PATIENCE, Scene, at_once, id, ps};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test},
    traffic::{Record, monotonic_ns},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::a_stopped_owner_stops_injecting", stopped).needs(NEEDS),
    Test::new("life::ends_in_time", in_time).needs(NEEDS),
    Test::new("life::ends_in_time_while_its_owner_is_stopped", in_time_while_stopped).needs(NEEDS),
];

const MILLISECOND: Duration = Duration::from_millis(1);

fn stopped() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&["100%", "--proto", "udp", "--direction", "both"])?;
    scene.loses((100, 100), "armed")?;
    fault.kill(Signal::SIGSTOP)?;
    let stop = monotonic_ns();
    let record = scene.outward.paced(3700, MILLISECOND)?;
    // It was renewed at most a second ago, or a little more on a busy machine.
    changes_between(&record, stop, 1_700, 3_500)?;
    scene.whole("3.7 s after its owner was stopped")?;
    let attached = scene.more()?;
    let programs = attached.iter().filter(|line| line.starts_with("program ")).count();
    ensure!(programs == 2, "{programs} programs are attached: {attached:?}");
    expect_state(&armed, "lapsed")?;

    fault.kill(Signal::SIGCONT)?;
    let exit = fault.wait(at_once())?;
    ensure!(exit.code == Some(4), "{exit:?}");
    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == "aborted", "{summary:?}");
    let reason = summary.get("/reason")?.as_str().context("no reason")?;
    ensure!(reason.contains("lease") && reason.contains("lapsed"), "{reason}");
    scene.over("afterwards")
}

fn in_time() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = two_seconds(&scene, "out")?;
    let record = scene.outward.paced(2300, MILLISECOND)?;
    changes_between(&record, armed, 1_950, 2_050)?;
    ends_well(&fault)?;
    scene.over("afterwards")
}

fn in_time_while_stopped() -> Result {
    let mut scene = Scene::set()?;
    let fault = scene.start(&["100%", "--proto", "udp", "--for", "2s", "--direction", "in"])?;
    let armed = fault.wait_event("armed", PATIENCE)?;
    fault.kill(Signal::SIGSTOP)?;
    let record = scene.inward.paced(2300, MILLISECOND)?;
    changes_between(&record, armed.number("/at_ns")?, 1_950, 2_050)?;
    expect_state(&armed, "elapsed")?;
    // Beyond the lease too: what was asked for had been done before.
    let past_lease = scene.inward.paced(1000, MILLISECOND)?;
    ensure!(past_lease.received[0].lost() == 0, "lost {}", past_lease.received[0].lost());
    fault.kill(Signal::SIGCONT)?;
    ends_well(&fault)?;
    scene.over("afterwards")
}

fn two_seconds(scene: &Scene, way: &str) -> Result<(Faultline, u64)> {
    let (fault, armed) = scene.armed(&["100%", "--proto", "udp", "--for", "2s", "--direction", way])?;
    Ok((fault, armed.number("/at_ns")?))
}

fn ends_well(fault: &Faultline) -> Result {
    let exit = fault.wait(at_once())?;
    ensure!(exit.code == Some(0), "{exit:?}");
    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == "observed", "{summary:?}");
    Ok(())
}

/// Every packet sent until `first` milliseconds after `start` was lost, and every one sent from `last` on came.
fn changes_between(record: &Record, start: u64, first: u64, last: u64) -> Result {
    let milliseconds = |at: u64| at.saturating_sub(start) as f64 / 1e6;
    let (mut early, mut late) = (0, 0);
    for (sequence, seen) in record.received[0].seen.iter().enumerate() {
        // When exactly it left is not known: not before it was noted, and before the next was.
        let (from, until) = (record.sent_at[sequence], record.sent_at.get(sequence + 1));
        if until.is_some_and(|until| *until < start + first * 1_000_000) {
            early += 1;
            ensure!(!seen, "packet {sequence} came, sent {:.1} ms after", milliseconds(from));
        } else if record.ticked_at[sequence] > start + last * 1_000_000 {
            late += 1;
            ensure!(*seen, "packet {sequence} was lost, sent {:.1} ms after", milliseconds(from));
        }
    }
    ensure!(early >= 1000 && late >= 20, "{early} packets early and {late} late show nothing");
    let lost = record.received[0].seen.iter().rposition(|seen| !seen).context("none was lost")?;
    println!("the last packet was lost {:.1} ms after", milliseconds(record.sent_at[lost]));
    Ok(())
}

fn expect_state(event: &crate::faultline::Event, state: &str) -> Result {
    let faults = ps()?;
    let [fault] = &faults[..] else {
        return Err(crate::error::Failure::new(format!("not one fault: {faults:?}")));
    };
    ensure!(fault["id"] == id(event)? && fault["state"] == state, "not {state}: {fault}");
    Ok(())
}
