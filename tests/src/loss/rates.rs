//! As many packets are lost as were asked for.

use super::{BYSTANDER_PORT, PATIENCE, PORT, SEED, Way, all_arrive, arm, end, first_cpu, lab};
use crate::{
    ensure,
    error::Result,
    lab::{Family, Lab},
    stats::acceptance,
    traffic::Udp,
};

const PACKETS: u32 = 200_000;
const CALM: u32 = 2_000;
const RATES: [(&str, f64); 4] = [("0.1%", 0.001), ("1%", 0.01), ("30%", 0.3), ("100%", 1.0)];

pub(super) fn received() -> Result {
    rates(Way::In, Family::V4, &["xdp_native"])
}

pub(super) fn sent() -> Result {
    rates(Way::Out, Family::V6, &["tcx", "clsact"])
}

fn rates(way: Way, family: Family, hooks: &[&str]) -> Result {
    let lab = lab()?;
    let (_, _pin) = first_cpu()?;
    let mut flows = Flows::open(&lab, way, family)?;
    flows.calm("before")?;
    for (text, rate) in RATES {
        let fault = format!("loss {text} --direction {} --port {PORT}", way.name());
        let faultline = arm(&lab, SEED, &[fault])?;
        let events = faultline.events();
        let used = events.iter().find_map(|event| event.json.pointer("/hooks/0/hook")?.as_str());
        ensure!(used.is_some_and(|hook| hooks.contains(&hook)), "the hook is {used:?}, not of {hooks:?}");

        let record = flows.target.burst(PACKETS, PATIENCE)?;
        all_arrive("bystander on the same wire", &mut flows.neighbour, CALM)?;
        all_arrive("bystander on another wire", &mut flows.aside, CALM)?;
        let rules = end(&faultline)?;
        flows.calm(&format!("after {text}"))?;

        let lost = record.received[0].lost();
        let expected = acceptance(PACKETS.into(), rate);
        println!("{text} {}: {lost} of {PACKETS} lost, {expected:?} expected", way.name());
        ensure!(expected.contains(&lost), "{text}: {lost} of {PACKETS} lost, not {expected:?}");
        let [rule] = &rules[..] else { return Err(crate::error::Failure::new("not one rule")) };
        let counted = [rule.seen, rule.matched, rule.fired].map(|count| count.packets);
        let right = [u64::from(PACKETS + CALM), PACKETS.into(), lost];
        ensure!(counted == right, "{text}: seen, matched, fired {counted:?}, not {right:?}");
        ensure!(rule.fired.packets == rule.fired.segments, "{text}: {:?} by single packets", rule.fired);
        // 64 bytes of payload, as every packet here.
        let frame = 14 + if family == Family::V4 { 20 } else { 40 } + 8 + 64;
        ensure!(rule.fired.bytes == lost * frame, "{text}: {lost} frames of {frame}: {:?}", rule.fired);
    }
    Ok(())
}

struct Flows {
    target: Udp,
    neighbour: Udp,
    aside: Udp,
}

impl Flows {
    fn open(lab: &Lab, way: Way, family: Family) -> Result<Self> {
        Ok(Self {
            target: Udp::open(way.route(lab, family), 4000, PORT)?,
            neighbour: Udp::open(way.route(lab, family), 4001, BYSTANDER_PORT)?,
            aside: Udp::open(lab.aside(family)?, 4000, PORT)?,
        })
    }

    fn calm(&mut self, when: &str) -> Result {
        for flow in [&mut self.target, &mut self.neighbour, &mut self.aside] {
            all_arrive(when, flow, CALM)?;
        }
        Ok(())
    }
}
