//! What happens to packets by chance.

use std::time::Duration;

use super::{BYSTANDER_PORT, PATIENCE, PORT, Way, arm, combinations, count, end, few, lab};
use crate::{
    ensure,
    error::{Context, Result},
    harness::rounds,
    lab::{Family, Lab},
    stats::acceptance,
    traffic::{
        Pin, Udp,
        probe::{Pace, Probe},
    },
};

/// All ways of going, with a flow beside it that is spared.
fn each_way(what: &str, test: impl Fn(&Lab, Way, Family) -> Result) -> Result {
    let lab = lab()?;
    for (way, family) in combinations() {
        test(&lab, *way, *family).context(format_args!("{what} {} {family}", way.name()))?;
    }
    Ok(())
}

fn spared(lab: &Lab, way: Way, family: Family) -> Result {
    let mut beside = Udp::open(way.route(lab, family), 4001, BYSTANDER_PORT)?;
    let mut aside = Udp::open(lab.aside(family)?, 4000, PORT)?;
    for flow in [&mut beside, &mut aside] {
        let record = flow.burst(rounds(500), PATIENCE)?;
        let received = &record.received[0];
        let wrong = (received.lost(), received.duplicates, received.reordered);
        ensure!(wrong == (0, 0, 0), "a bystander has lost, twice, out of order: {wrong:?}");
    }
    Ok(())
}

pub(super) fn duplicate() -> Result {
    each_way("duplicate", |lab, way, family| {
        let mut flow = Udp::open(way.route(lab, family), 4000, PORT)?.with_linger(Duration::from_millis(200));
        let fault = arm(lab, &format!("duplicate 30% --direction {} --port {PORT}", way.name()))?;
        let packets = rounds(5000);
        let record = flow.burst(packets, PATIENCE)?;
        spared(lab, way, family)?;
        let summary = end(&fault)?;
        let (lost, twice) = (record.received[0].lost(), u64::from(record.received[0].duplicates));
        ensure!(lost == 0, "{lost} lost");
        let expected = acceptance(packets.into(), 0.3);
        ensure!(expected.contains(&twice), "{twice} of {packets} twice, not {expected:?}");
        ensure!(twice == count(&summary, "effects/duplicated")?, "{twice} twice: {summary}");
        let after = flow.burst(packets, PATIENCE)?;
        ensure!(after.received[0].duplicates == 0, "after it: {} twice", after.received[0].duplicates);
        Ok(())
    })
}

/// The receiver drops what has a wrong checksum.
pub(super) fn corrupt() -> Result {
    each_way("corrupt", |lab, way, family| {
        let mut flow = Udp::open(way.route(lab, family), 4000, PORT)?.with_linger(Duration::from_millis(200));
        let fault = arm(lab, &format!("corrupt 30% --direction {} --port {PORT}", way.name()))?;
        let packets = rounds(5000);
        let record = flow.burst(packets, PATIENCE)?;
        spared(lab, way, family)?;
        let summary = end(&fault)?;
        let lost = record.received[0].lost();
        let expected = acceptance(packets.into(), 0.3);
        ensure!(expected.contains(&lost), "{lost} of {packets} dropped, not {expected:?}");
        ensure!(lost == count(&summary, "effects/corrupted")?, "{lost} dropped: {summary}");
        ensure!(record.received[0].foreign == 0, "{} came wrong", record.received[0].foreign);
        let after = flow.burst(packets, PATIENCE)?;
        ensure!(after.received[0].lost() == 0, "after it: lost {}", after.received[0].lost());
        Ok(())
    })
}

/// The application gets the wrong data.
pub(super) fn corrupt_fixed() -> Result {
    each_way("corrupt --fix-checksum", |lab, way, family| {
        let flow = Probe::open(way.route(lab, family), 4000, PORT)?;
        let pace = Pace { count: rounds(2000), interval: Duration::from_micros(200), size: 300, ..few() };
        let words = "corrupt 30% bits 3 offset 200 --fix-checksum";
        let fault = arm(lab, &format!("{words} --direction {} --port {PORT}", way.name()))?;
        let (arrivals, sent) = flow.run(pace)?;
        spared(lab, way, family)?;
        let summary = end(&fault)?;
        ensure!(arrivals.len() as u32 == sent, "{} of {sent} came", arrivals.len());
        let wrong = arrivals.iter().filter(|arrival| !arrival.intact).count() as u64;
        let expected = acceptance(sent.into(), 0.3);
        ensure!(expected.contains(&wrong), "{wrong} of {sent} wrong, not {expected:?}");
        ensure!(wrong == count(&summary, "effects/corrupted")?, "{wrong} wrong: {summary}");
        let (after, _) = flow.run(Pace { count: 50, ..pace })?;
        ensure!(after.len() == 50 && after.iter().all(|arrival| arrival.intact), "wrong data after it");
        Ok(())
    })
}

/// All faults on the same packets, two rules of them each way: what the verifier finds longest.
pub(super) fn everything() -> Result {
    let lab = lab()?;
    let words = "loss 10% 10% duplicate 10% corrupt 10% reorder 10% rate 100mbit delay 10ms 1ms 20% distribution normal";
    let flow = Probe::open(lab.outward(Family::V4), 4000, PORT)?;
    let fault = arm(&lab, &format!("{words} --port {PORT} --direction both"))?;
    let (arrivals, sent) =
        flow.run(Pace { count: rounds(2500), interval: Duration::from_micros(500), ..few() })?;
    let summary = end(&fault)?;
    let rule =
        summary["rules"].as_array().and_then(|rules| rules.iter().find(|rule| rule["direction"] == "out"));
    let done = rule.context("no rule out")?["effects"].clone();
    let number = |name: &str| done[name].as_u64().unwrap_or(0);
    println!("{} of {sent} came: {done}", arrivals.len());
    for (name, share) in [("lost", 0.1), ("duplicated", 0.09), ("corrupted", 0.09), ("reordered", 0.09)] {
        // Loss is correlated and varies a little more than independent loss.
        let expected = acceptance(sent.into(), share);
        ensure!(expected.contains(&number(name)), "{name} {}, not {expected:?}: {done}", number(name));
    }
    ensure!(arrivals.iter().all(|arrival| arrival.intact), "wrong data");
    Ok(())
}

/// The mean length of bursts of loss and the rate, within what 1,400 bursts vary: six standard deviations, which two right
/// programs in a thousand million miss.
pub(super) fn bursts() -> Result {
    let lab = lab()?;
    let _pin = Pin::here()?;
    let mut flow = Udp::open(lab.outward(Family::V4), 4000, PORT)?;
    let packets = rounds(60_000);
    let fault = arm(&lab, &format!("loss gemodel 2.5% 25% --port {PORT}"))?;
    let record = flow.burst(packets, PATIENCE)?;
    let summary = end(&fault)?;
    let seen = &record.received[0].seen;
    let lost = record.received[0].lost();
    let bursts = seen.windows(2).filter(|pair| pair[0] && !pair[1]).count();
    let (rate, mean) = (lost as f64 / f64::from(packets), lost as f64 / bursts as f64);
    println!("{lost} of {packets} lost in {bursts} bursts: {rate:.4}, {mean:.2}");
    // Bursts of loss are geometric: the standard deviation of a length is sqrt(1 - r) / r.
    let wide = 6.0 * 0.75_f64.sqrt() * 4.0 / (bursts as f64).sqrt();
    ensure!((mean - 4.0).abs() < wide, "bursts of {mean:.2} packets, not 4");
    let expected = 0.025 / 0.275;
    ensure!(
        (rate - expected).abs() < 6.0 * expected * 1.4 / (bursts as f64).sqrt(),
        "{rate} lost, not {expected}"
    );
    ensure!(lost == count(&summary, "effects/lost")?, "{lost} lost: {summary}");
    Ok(())
}

/// All packets of a flow, or none; half of the flows.
pub(super) fn per_flow() -> Result {
    let lab = lab()?;
    let fault = arm(&lab, "loss 50% --per flow --proto udp")?;
    let flows = 60;
    let mut gone = 0;
    for number in 0..flows {
        let mut flow = Udp::open(lab.outward(Family::V6), 6000 + number, PORT)?;
        let lost = flow.burst(20, PATIENCE)?.received[0].lost();
        ensure!(lost == 0 || lost == 20, "flow {number} lost {lost} of 20");
        gone += lost / 20;
    }
    end(&fault)?;
    let expected = acceptance(flows.into(), 0.5);
    ensure!(expected.contains(&gone), "{gone} of {flows} flows lost, not {expected:?}");
    Ok(())
}
