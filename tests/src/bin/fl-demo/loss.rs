//! Packet loss: real flows of three kinds lose what was asked for, by chance, and a fourth nothing.

use std::{os::fd::AsFd, time::Duration};

use chaos_user::kernel::sys::{self, Kind};
use faultline_tests::{
    error::{Context, Result},
    faultline::{Faultline, RuleCounters},
    lab::{Family, Lab, NEAR_DEVICE, Options},
    stats::{acceptance, interval},
    traffic::{Echo, Requests, Udp, Wire, requests::Until},
};

use crate::{PATIENCE, Way, hook, say};

const ASKED: f64 = 0.3;
const ASKED_TEXT: &str = "30%";
/// Packets of one phase.
const DATAGRAMS: u32 = 5_000;
const ECHOES: u32 = 2_000;
/// TCP waits for lost packets, so it is given time rather than a number of packets.
const CONNECTIONS: usize = 48;
const CALM: Duration = Duration::from_millis(200);
const STORM: Duration = Duration::from_millis(1_500);

const UDP_PORT: u16 = 7001;
const TCP_PORT: u16 = 7002;
const BYSTANDER_PORT: u16 = 7003;

/// Whether all came out as asked, both ways.
pub(crate) fn show() -> Result<bool> {
    say("two network namespaces joined by veth; TCP, UDP and ICMP through them, over IPv4 and IPv6")?;
    say(&format!(
        "asked: {ASKED_TEXT} loss of three flows a family; a fourth, the bystander, is not targeted\n"
    ))?;
    say(&format!(
        "{:<13} {:<7} {:<15} {:>5}  {:<22} {:>8} {:>8} {:>7} {:>7}",
        "HOOK", "PHASE", "FLOW", "ASKED", "MEASURED (95%)", "SEEN", "MATCHED", "FIRED", "NS/PKT"
    ))?;
    let lab = Lab::with(Options { wire_packets: true, side: false })?;
    let mut right = true;
    for way in Way::BOTH {
        right &= one_way(&lab, way)?;
    }
    Ok(right)
}

/// One rule for each targeted flow, in the order of [`Flows::run`].
fn command(way: Way, lab: &Lab) -> Vec<String> {
    let mut command = vec!["net".into()];
    for family in Family::BOTH {
        let target = way.route(lab, family).target;
        for selectors in [
            format!("--proto udp --port {UDP_PORT}"),
            "--proto icmp".into(),
            format!("--proto tcp --port {TCP_PORT}"),
        ] {
            let first = command.len() == 1;
            command.extend((!first).then(|| "--and".to_string()));
            let rule = format!("loss {ASKED_TEXT} --direction {} --to {target} {selectors}", way.name());
            command.extend(rule.split(' ').map(String::from));
            if first {
                command.extend(["--dev", NEAR_DEVICE, "--seed", "1"].map(String::from));
            }
        }
    }
    command
}

/// What one flow lost.
struct Measured {
    name: String,
    /// Its rule's number; none for the bystander.
    rule: Option<usize>,
    wire: Wire,
}

/// All flows of one direction. They stay open over the phases.
struct Flows {
    families: Vec<OneFamily>,
    bystander: Udp,
}

struct OneFamily {
    family: Family,
    udp: Udp,
    echo: Echo,
    requests: Requests,
}

impl Flows {
    fn open(lab: &Lab, way: Way) -> Result<Self> {
        let open = |family| {
            let route = way.route(lab, family);
            let udp = Udp::open(route, UDP_PORT, UDP_PORT)?;
            let requests = Requests::open(route, TCP_PORT, CONNECTIONS)?;
            Ok(OneFamily { family, udp, echo: Echo::open(route, 1)?, requests })
        };
        let families = Family::BOTH.into_iter().map(open).collect::<Result<_>>()?;
        let bystander = Udp::open(way.route(lab, Family::V4), BYSTANDER_PORT, BYSTANDER_PORT)?;
        Ok(Self { families, bystander })
    }

    fn run(&mut self, time: Duration) -> Result<Vec<Measured>> {
        let mut measured = Vec::new();
        for (number, OneFamily { family, udp, echo, requests }) in self.families.iter_mut().enumerate() {
            let mut add = |name, rule, wire| {
                measured.push(Measured {
                    name: format!("{name} {family}"),
                    rule: Some(number * 3 + rule),
                    wire,
                });
            };
            let record = udp.burst(DATAGRAMS, PATIENCE)?;
            let received = record.received.first().context("no receiver")?.count();
            add("UDP stream", 0, Wire { sent: record.sent, received });
            let record = echo.burst(ECHOES, PATIENCE)?;
            add("ICMP echo", 1, Wire { sent: record.sent, received: record.requests.count() });
            add("TCP req/resp", 2, requests.run(Until::Elapsed(time))?.forward);
        }
        let record = self.bystander.burst(DATAGRAMS, PATIENCE)?;
        let received = record.received.first().context("no receiver")?.count();
        let wire = Wire { sent: record.sent, received };
        measured.push(Measured { name: "bystander".into(), rule: None, wire });
        Ok(measured)
    }
}

/// Before, during and after; says whether all came out as asked.
fn one_way(lab: &Lab, way: Way) -> Result<bool> {
    let mut flows = Flows::open(lab, way)?;
    let calm = flows.run(CALM)?;

    // The kernel times all programs as long as this is held.
    let stats = sys::enable_stats()?;
    let command = command(way, lab);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let fault = Faultline::start_in(&lab.near, &words)?;
    let prepared = fault.wait_event("prepared", PATIENCE)?;
    let name = hook(&prepared)?;
    let program = prepared.number("/hooks/0/program_id")?;
    fault.wait_event("armed", PATIENCE)?;
    let storm = flows.run(STORM)?;
    let nanoseconds = nanoseconds_a_packet(program)?;
    drop(stats);
    let exit = fault.interrupt()?;
    let counters = exit.event("summary")?.rules()?;

    let after = flows.run(CALM)?;
    let mut right = print(&name, "before", &calm, None)?;
    right &= print(&name, "during", &storm, Some((&counters, nanoseconds)))?;
    right &= print(&name, "after", &after, None)?;
    Ok(right)
}

fn nanoseconds_a_packet(program: u64) -> Result<f64> {
    let id = u32::try_from(program).context("program_id")?;
    let program = sys::open(Kind::Program, id)?.context("the program is gone")?;
    let info = sys::program_info(program.as_fd())?;
    Ok(info.run_time_ns as f64 / info.run_count.max(1) as f64)
}

fn print(hook: &str, phase: &str, flows: &[Measured], fault: Option<(&[RuleCounters], f64)>) -> Result<bool> {
    let mut all_right = true;
    for flow in flows {
        let rule = fault.and_then(|(rules, _)| rules.get(flow.rule?));
        let asked = if rule.is_some() { ASKED } else { 0.0 };
        let Wire { sent, received } = flow.wire;
        let lost = sent.saturating_sub(received);
        let (low, high) = interval(lost, sent, 0.95);
        let right = sent > 0 && if asked > 0.0 { acceptance(sent, asked).contains(&lost) } else { lost == 0 };
        all_right &= right;
        let counted = rule.map(|rule| [rule.seen, rule.matched, rule.fired].map(|count| count.packets));
        let [seen, matched, fired] =
            counted.map_or_else(|| ["-", "-", "-"].map(String::from), |counts| counts.map(|n| n.to_string()));
        let nanoseconds = fault.map_or_else(|| "-".into(), |(_, nanoseconds)| format!("{nanoseconds:.0}"));
        let measured = format!(
            "{:.1}% ({:.1}..{:.1})",
            percent(lost as f64 / sent.max(1) as f64),
            percent(low),
            percent(high)
        );
        say(&format!(
            "{hook:<13} {phase:<7} {:<15} {:>5}  {measured:<22} {seen:>8} {matched:>8} {fired:>7} {nanoseconds:>7}{}",
            flow.name,
            format!("{:.0}%", percent(asked)),
            if right { "" } else { " !" }
        ))?;
    }
    Ok(all_right)
}

fn percent(fraction: f64) -> f64 {
    fraction * 100.0
}
