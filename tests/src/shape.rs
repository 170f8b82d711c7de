//! Faults that do more to packets than lose them: what comes, when, how often and how, and that nobody else's does.
//!
//! Seeds are fixed; counts are compared with what `stats::acceptance` allows on any CPU's numbers.

mod chance;
mod delays;
mod owners;
mod qdiscs;
mod rates;

use std::time::Duration;

use chaos_user::kernel::mechanism::Mechanism;

use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, is_emulated},
    lab::{Family, Lab, NEAR_DEVICE, Options},
    loss::Way,
    traffic::probe::{Arrival, Pace, Probe},
};

const BPF: &[Need] = &[Need::Root, Need::Btf];
const FQ: &[Need] = &[Need::Root, Need::Btf, Need::SchFq];
const NO_FQ: &[Need] = &[Need::Root, Need::Btf, Need::Without(Mechanism::SchFq)];
const TC: &[Need] = &[Need::Root, Need::Btf, Need::SchFq, Need::Program("tc")];
const ETHTOOL: &[Need] = &[Need::Root, Need::Btf, Need::Program("ethtool")];

/// The tests of the files below.
pub(crate) const TESTS: &[Test] = &[
    Test::new("shape::delay", delays::constant).needs(FQ).timeout(90),
    Test::new("shape::what_is_not_ip_waits", delays::what_is_not_ip).needs(FQ),
    Test::new("shape::jitter_keeps_order_or_not", delays::jitter).needs(FQ).timeout(60),
    Test::new("shape::reorder", delays::reorder).needs(FQ),
    Test::new("shape::waiting_needs_sch_fq", delays::no_fq).needs(NO_FQ),
    Test::new("shape::ramp", delays::ramp).needs(FQ),
    Test::new("shape::nothing_is_lost_while_it_waits", delays::queue).needs(FQ).timeout(120),
    Test::new("shape::rate", rates::rate).needs(FQ),
    Test::new("shape::rate_and_delay_are_a_link", rates::link).needs(FQ),
    Test::new("shape::duplicate", chance::duplicate).needs(BPF).timeout(60),
    Test::new("shape::corrupt", chance::corrupt).needs(BPF).timeout(60),
    Test::new("shape::corrupt_with_right_checksums", chance::corrupt_fixed).needs(BPF).timeout(60),
    Test::new("shape::everything_at_once", chance::everything).needs(FQ).timeout(60),
    Test::new("shape::bursts", chance::bursts).needs(BPF),
    Test::new("shape::loss_per_flow", chance::per_flow).needs(BPF),
    Test::new("shape::two_owners_of_one_flow", owners::two).needs(FQ).timeout(60),
    Test::new("shape::owners_at_both_ends", owners::both_ends).needs(FQ),
    Test::new("shape::killed_while_packets_wait", owners::killed).needs(FQ).timeout(90).once(),
    Test::new("shape::qdiscs_are_left_alone", qdiscs::left_alone).needs(TC).timeout(90),
    Test::new("shape::offloads_come_back", qdiscs::offloads).needs(ETHTOOL).timeout(60).waits(),
];

const PATIENCE: Duration = Duration::from_secs(30);
/// The port of the flow that is aimed at, and that of the bystander on the same wire.
const PORT: u16 = 5000;
const BYSTANDER_PORT: u16 = 5001;
/// What the machine may add to a delay, however busy it is.
const NOISE: i64 = 25;

/// Ways and families; under emulation each once.
fn combinations() -> &'static [(Way, Family)] {
    const ALL: [(Way, Family); 4] =
        [(Way::In, Family::V4), (Way::Out, Family::V6), (Way::In, Family::V6), (Way::Out, Family::V4)];
    if is_emulated() { &ALL[..2] } else { &ALL }
}

fn lab() -> Result<Lab> {
    Lab::with(Options { wire_packets: true, side: true })
}

/// Arms a fault on `near`'s end of the first wire.
fn arm(lab: &Lab, fault: &str) -> Result<Faultline> {
    let arguments = format!("net {fault} --dev {NEAR_DEVICE} --seed 1");
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let faultline = Faultline::start_in(&lab.near, &words)?;
    faultline.wait_event("armed", PATIENCE)?;
    Ok(faultline)
}

/// Ends a fault, which has to leave nothing.
fn end(faultline: &Faultline) -> Result<serde_json::Value> {
    let exit = faultline.interrupt()?;
    ensure!(exit.code == Some(130), "exit {:?}, not 130; stderr: {}", exit.code, exit.stderr);
    Ok(exit.event("summary")?.json.clone())
}

/// A number of the only rule's, or the run's, in a summary.
fn count(summary: &serde_json::Value, path: &str) -> Result<u64> {
    let rule = summary.pointer(&format!("/rules/0/{path}"));
    let number = rule.or_else(|| summary.get(path)).and_then(serde_json::Value::as_u64);
    number.context(format_args!("no {path} in {summary}"))
}

/// A flow that is aimed at, one beside it on the same wire and one on another.
struct Flows {
    target: Probe,
    bystander: Probe,
    aside: Probe,
}

impl Flows {
    fn open(lab: &Lab, way: Way, family: Family) -> Result<Self> {
        let route = way.route(lab, family);
        Ok(Self {
            target: Probe::open(route, 4000, PORT)?,
            bystander: Probe::open(route, 4001, BYSTANDER_PORT)?,
            aside: Probe::open(lab.aside(family)?, 4000, PORT)?,
        })
    }

    /// The target's delays in milliseconds, none lost; no bystander waits or loses.
    fn delays(&self, what: &str) -> Result<Vec<i64>> {
        for (name, flow) in [("bystander", &self.bystander), ("on the other wire", &self.aside)] {
            let delays = whole(&format!("{what}: {name}"), &flow.run(few())?)?;
            ensure!(median(&delays) < NOISE, "{what}: {name} waits: {delays:?}");
        }
        whole(what, &self.target.run(few())?)
    }
}

fn few() -> Pace {
    Pace { count: 40, interval: Duration::from_millis(4), size: 64, linger: Duration::from_millis(500) }
}

/// The delays of probes in milliseconds, in the order in which they were sent, all of which came once.
fn whole(what: &str, (arrivals, sent): &(Vec<Arrival>, u32)) -> Result<Vec<i64>> {
    let mut arrivals = arrivals.clone();
    arrivals.sort_by_key(|arrival| arrival.sequence);
    let sequences: Vec<u32> = arrivals.iter().map(|arrival| arrival.sequence).collect();
    ensure!(sequences == (0..*sent).collect::<Vec<_>>(), "{what}: came {sequences:?} of {sent}");
    ensure!(arrivals.iter().all(|arrival| arrival.intact), "{what}: wrong data");
    Ok(milliseconds(&arrivals))
}

fn milliseconds(arrivals: &[Arrival]) -> Vec<i64> {
    arrivals.iter().map(|arrival| arrival.delay.div_euclid(1_000_000)).collect()
}

fn median(numbers: &[i64]) -> i64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(i64::MAX)
}
