//! Delay: each packet of two flows comes later by what was asked, one beside them does not, and none is lost.

use std::time::Duration;

use faultline_tests::{
    error::Result,
    faultline::{Faultline, RuleCounters},
    lab::{Family, Lab, NEAR_DEVICE, Options},
    traffic::probe::{Pace, Probe},
};

use crate::{PATIENCE, Way, hook, say};

/// What is asked for, in milliseconds.
const ASKED: f64 = 50.0;
/// What a right program may be off, in milliseconds: the machine may be an emulated one.
const TOLERANCE: f64 = 5.0;
const PORT: u16 = 7001;
const BYSTANDER_PORT: u16 = 7003;
const PACE: Pace =
    Pace { count: 400, interval: Duration::from_millis(2), size: 64, linger: Duration::from_millis(500) };

/// What one flow waited, in milliseconds.
struct Measured {
    name: String,
    /// Whether it is the bystander.
    spared: bool,
    sent: u32,
    delays: Vec<f64>,
}

struct Flows(Vec<(String, bool, Probe)>);

impl Flows {
    fn open(lab: &Lab, way: Way) -> Result<Self> {
        let mut flows = Vec::new();
        for family in Family::BOTH {
            let probe = Probe::open(way.route(lab, family), PORT, PORT)?;
            flows.push((format!("UDP stream {family}"), false, probe));
        }
        let bystander = Probe::open(way.route(lab, Family::V4), BYSTANDER_PORT, BYSTANDER_PORT)?;
        flows.push(("bystander".into(), true, bystander));
        Ok(Self(flows))
    }

    fn run(&self) -> Result<Vec<Measured>> {
        let measure = |(name, spared, probe): &(String, bool, Probe)| {
            let (arrivals, sent) = probe.run(PACE)?;
            let delays = arrivals.iter().map(|arrival| arrival.delay as f64 / 1e6).collect();
            Ok(Measured { name: name.clone(), spared: *spared, sent, delays })
        };
        self.0.iter().map(measure).collect()
    }
}

/// Whether all came out as asked, both ways.
pub(crate) fn show() -> Result<bool> {
    say("two network namespaces joined by veth; UDP through them, over IPv4 and IPv6, timed by the kernel")?;
    say(&format!("asked: {ASKED:.0} ms delay of two flows; a third, the bystander, is not targeted\n"))?;
    say(&format!(
        "{:<8} {:<4} {:<7} {:<15} {:>7}  {:<26} {:>6} {:>8} {:>7}",
        "HOOK", "WAY", "PHASE", "FLOW", "ASKED", "MEAN DELAY (95%)", "LOST", "MATCHED", "FIRED"
    ))?;
    let lab = Lab::with(Options { wire_packets: true, side: false })?;
    let mut right = true;
    for way in Way::BOTH {
        right &= one_way(&lab, way)?;
    }
    Ok(right)
}

/// Before, during and after; says whether all came out as asked.
fn one_way(lab: &Lab, way: Way) -> Result<bool> {
    let flows = Flows::open(lab, way)?;
    let calm = flows.run()?;
    let command = format!("net delay {ASKED}ms --dev {NEAR_DEVICE} --direction {} --port {PORT}", way.name());
    let fault = Faultline::start_in(&lab.near, &command.split(' ').collect::<Vec<_>>())?;
    let hook = hook(&fault.wait_event("prepared", PATIENCE)?)?;
    fault.wait_event("armed", PATIENCE)?;
    let storm = flows.run()?;
    let exit = fault.interrupt()?;
    let rules = exit.event("summary")?.rules()?;
    let after = flows.run()?;
    let mut right = true;
    for (phase, flows, rule) in
        [("before", &calm, None), ("during", &storm, rules.first()), ("after", &after, None)]
    {
        for flow in flows {
            right &= print(&hook, way, phase, flow, rule.filter(|_| !flow.spared))?;
        }
    }
    Ok(right)
}

fn print(hook: &str, way: Way, phase: &str, flow: &Measured, rule: Option<&RuleCounters>) -> Result<bool> {
    let Measured { name, spared: _, sent, delays } = flow;
    let asked = if rule.is_some() { ASKED } else { 0.0 };
    let count = delays.len() as f64;
    let mean = delays.iter().sum::<f64>() / count;
    let variance = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let lost = i64::from(*sent) - delays.len() as i64;
    let right = lost == 0 && (mean - asked).abs() < TOLERANCE;
    let measured = format!("{mean:.2} ms ± {:.2}", 1.96 * (variance / count).sqrt());
    // Both families are one rule.
    let [matched, fired] = rule.map_or_else(
        || ["-", "-"].map(String::from),
        |rule| [rule.matched, rule.fired].map(|count| count.packets.to_string()),
    );
    say(&format!(
        "{hook:<8} {:<4} {phase:<7} {name:<15} {:>7}  {measured:<26} {lost:>6} {matched:>8} {fired:>7}{}",
        way.name(),
        format!("{asked:.0} ms"),
        if right { "" } else { " !" }
    ))?;
    Ok(right)
}
