//! Both directions, both IP versions, every kind of traffic: the rate is as asked, the other direction and other
//! traffic are spared.

use std::time::Duration;

use super::{BYSTANDER_PORT, PATIENCE, PORT, SEED, Way, all_arrive, arm, end, lab, whole};
use crate::{
    ensure,
    error::Result,
    faultline::RuleCounters,
    harness::rounds,
    lab::{Family, Lab},
    stats::acceptance,
    traffic::{Echo, Requests, Udp, Wire, requests::Until},
};

const ASKED: f64 = 0.3;
/// Fewer under emulation, as everything that is counted here.
const DATAGRAMS: u32 = 10_000;
const ECHOES: u32 = 4_000;
const CONNECTIONS: usize = 48;

pub(super) fn received() -> Result {
    every_protocol(Way::In)
}

pub(super) fn sent() -> Result {
    every_protocol(Way::Out)
}

fn every_protocol(way: Way) -> Result {
    let lab = lab()?;
    let mut families = Vec::new();
    for family in Family::BOTH {
        families.push(Flows::open(&lab, way, family)?);
    }
    families.iter_mut().try_for_each(|flows| flows.calm("before"))?;
    let mut faults = Vec::new();
    for family in Family::BOTH {
        let target = way.route(&lab, family).target;
        for what in [format!("udp --port {PORT}"), "icmp".into(), format!("tcp --port {PORT}")] {
            faults.push(format!("loss 30% --direction {} --to {target} --proto {what}", way.name()));
        }
    }
    let faultline = arm(&lab, SEED, &faults)?;
    let mut measured = Vec::new();
    for flows in &mut families {
        measured.push(flows.storm()?);
    }
    let rules = end(&faultline)?;
    for ((measured, rules), family) in measured.iter().zip(rules.chunks(3)).zip(Family::BOTH) {
        let [udp, echo, tcp] = rules else { return Err(crate::error::Failure::new("not six rules")) };
        within(&format!("UDP {family}"), measured.udp, udp, true)?;
        within(&format!("ICMP {family}"), measured.echo, echo, true)?;
        // Connections go on until the fault ends.
        within(&format!("TCP {family}"), measured.tcp, tcp, false)?;
    }
    families.iter_mut().try_for_each(|flows| flows.calm("after"))
}

fn within(what: &str, wire: Wire, rule: &RuleCounters, exact: bool) -> Result {
    let (lost, sent) = (wire.lost(), wire.sent);
    let expected = acceptance(sent, ASKED);
    println!("{what}: {lost} of {sent} lost, {expected:?} expected; {rule:?}");
    ensure!(sent > 300 && expected.contains(&lost), "{what}: {lost} of {sent} lost, not {expected:?}");
    let (matched, fired) = (rule.matched.packets, rule.fired.packets);
    let right = if exact { (matched, fired) == (sent, lost) } else { matched >= sent && fired >= lost };
    ensure!(right, "{what}: {lost} of {sent} lost, but matched {matched} and fired {fired}");
    Ok(())
}

/// What went along in the direction that is asked for.
struct Measured {
    udp: Wire,
    echo: Wire,
    tcp: Wire,
}

struct Flows {
    family: Family,
    udp: Udp,
    /// The same the other way.
    back: Udp,
    echo: Echo,
    tcp: Requests,
    /// Connections to the same host, to another port.
    bystander: Requests,
    aside: Udp,
}

impl Flows {
    fn open(lab: &Lab, way: Way, family: Family) -> Result<Self> {
        let route = way.route(lab, family);
        Ok(Self {
            family,
            udp: Udp::open(route, 4000, PORT)?,
            back: Udp::open(route.reversed(), 4000, PORT)?,
            echo: Echo::open(route, 1)?,
            tcp: Requests::open(route, PORT, CONNECTIONS)?,
            bystander: Requests::open(route, BYSTANDER_PORT, 4)?,
            aside: Udp::open(lab.aside(family)?, 4000, PORT)?,
        })
    }

    fn calm(&mut self, when: &str) -> Result {
        let when = format!("{when}, {}", self.family);
        all_arrive(&when, &mut self.udp, rounds(1000))?;
        let record = self.echo.burst(rounds(500), PATIENCE)?;
        whole(&when, &record.requests)?;
        whole(&when, &record.replies)?;
        let exchange = self.tcp.run(Until::Segments(rounds(1000).into(), PATIENCE))?;
        let lost = (exchange.forward.lost(), exchange.backward.lost());
        ensure!(lost == (0, 0), "{when}: {exchange:?}");
        self.spared(&when)
    }

    /// What nothing may happen to at any time.
    fn spared(&mut self, when: &str) -> Result {
        all_arrive(&format!("{when}: UDP the other way"), &mut self.back, rounds(1000))?;
        all_arrive(&format!("{when}: UDP on another wire"), &mut self.aside, rounds(1000))?;
        let exchange = self.bystander.run(Until::Segments(rounds(1000).into(), PATIENCE))?;
        let lost = (exchange.forward.lost(), exchange.backward.lost());
        ensure!(lost == (0, 0), "{when}: TCP to another port: {exchange:?}");
        Ok(())
    }

    fn storm(&mut self) -> Result<Measured> {
        let when = format!("during, {}", self.family);
        let record = self.udp.burst(rounds(DATAGRAMS), PATIENCE)?;
        let udp = Wire { sent: record.sent, received: record.received[0].count() };
        let record = self.echo.burst(rounds(ECHOES), PATIENCE)?;
        let echo = Wire { sent: record.sent, received: record.requests.count() };
        ensure!(record.replies.lost() == record.requests.lost(), "{when}: replies were lost as well");
        let exchange = self.tcp.run(Until::Elapsed(Duration::from_millis(1500)))?;
        ensure!(exchange.backward.lost() == 0, "{when}: answers lost, {:?}", exchange.backward);
        self.spared(&when)?;
        Ok(Measured { udp, echo, tcp: exchange.forward })
    }
}
