//! What senders feel of egress loss: what a wire's loss would have them feel.

use std::{thread, time::Duration};

use super::{BYSTANDER_PORT, PATIENCE, PORT, SEED, all_arrive, arguments, arm, arm_at, end, lab, words};
use crate::{
    ensure,
    error::{Failure, Result},
    faultline::{Faultline, RuleCounters},
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE, Options, Route},
    traffic::{Bulk, Counters, Udp, Wire, bulk::Transfer},
};

const ASKED: f64 = 0.05;
const TIME: Duration = Duration::from_secs(2);
/// How many connections share a lossy wire: at 5 % most of a connection's time goes by in some eight timeouts of
/// 200 ms, so that the rate of one is no measure.
const CONNECTIONS: u16 = 16;

/// What the connections of one phase made of the wire.
#[derive(Debug)]
struct Felt {
    /// Of one connection in the mean, in bit/s.
    rate: f64,
    retransmit_rate: f64,
    wire: Wire,
    /// Retransmissions that the sender was told had not left the host.
    refused: i64,
    retransmits: i64,
}

impl Felt {
    fn by(connections: u16, time: Duration, route: Route<'_>) -> Result<Self> {
        let before = Counters::read(route.from)?;
        let run = |number: u16| Bulk { port: PORT + number, time, congestion: "reno" }.run(route);
        let transfers = thread::scope(|scope| {
            let started: Vec<_> = (0..connections).map(|number| scope.spawn(move || run(number))).collect();
            let joined = started
                .into_iter()
                .map(|thread| thread.join().map_err(|_| Failure::new("a sending thread panicked")).flatten());
            joined.collect::<Result<Vec<Transfer>>>()
        })?;
        let counters = Counters::read(route.from)?.since(&before);
        let sum = |of: fn(&Transfer) -> u64| transfers.iter().map(of).sum::<u64>();
        let wire = Wire { sent: sum(|t| t.forward.sent), received: sum(|t| t.forward.received) };
        Ok(Self {
            rate: transfers.iter().map(Transfer::rate).sum::<f64>() / f64::from(connections),
            retransmit_rate: sum(|t| t.retransmits) as f64 / wire.sent.max(1) as f64,
            wire,
            refused: counters.get("TcpExtTCPRetransFail"),
            retransmits: counters.get("TcpRetransSegs"),
        })
    }
}

/// The same loss on egress at the sender and on ingress at its peer.
pub(super) fn like_a_wire() -> Result {
    let lab = lab()?;
    let route = lab.outward(Family::V4);
    let mut aside = Udp::open(lab.aside(Family::V4)?, 4000, PORT)?;
    let last = PORT + CONNECTIONS - 1;
    let fault = |way| vec![format!("loss 5% --direction {way} --proto tcp --port {PORT}-{last}")];
    let before = Felt::by(1, TIME / 2, route)?;

    let faultline = arm(&lab, SEED, &fault("out"))?;
    let egress = Felt::by(CONNECTIONS, TIME, route)?;
    all_arrive("bystander", &mut aside, 500)?;
    let fired_out = end(&faultline)?;
    let faultline = arm_at(&lab.far, FAR_DEVICE, SEED, &fault("in"))?;
    let ingress = Felt::by(CONNECTIONS, TIME, route)?;
    all_arrive("bystander", &mut aside, 500)?;
    let fired_in = end(&faultline)?;

    let after = Felt::by(1, TIME / 2, route)?;
    for (when, felt) in [("before", &before), ("egress", &egress), ("ingress", &ingress), ("after", &after)] {
        println!("{when:<8} {felt:?}");
    }
    for (calm, felt) in [("before", &before), ("after", &after)] {
        ensure!(felt.retransmit_rate < 0.01, "{calm}: {felt:?}");
    }
    lossy("egress", &egress, &fired_out)?;
    lossy("ingress at the peer", &ingress, &fired_in)?;
    // The mean of 16 varies by 8 % from run to run: 2 is more than 5 standard deviations of the ratio away.
    let ratio = egress.rate / ingress.rate;
    ensure!(
        (0.5..2.0).contains(&ratio),
        "egress {egress:?}, ingress {ingress:?}: rates differ by {ratio:.2}"
    );
    // Two rates of 5 % of 50,000 differ by 0.0014 (one standard deviation), two of 25,000 by 0.002.
    let difference = (egress.retransmit_rate - ingress.retransmit_rate).abs();
    ensure!(difference < 0.01, "egress {egress:?}, ingress {ingress:?}: sent again {difference:.4}");
    // Without a fault it is the CPU that sets the pace: 20 to 150 times as fast here.
    let slower = before.rate.min(after.rate) / egress.rate.max(ingress.rate);
    ensure!(slower > 5.0, "loss made it {slower:.1} times slower only: before {before:?}, egress {egress:?}");
    Ok(())
}

/// Every lost segment is sent again once, and a few that were not lost: 5 % and a little more, each of the two
/// figures within 6 standard deviations at 25,000 segments.
fn lossy(what: &str, felt: &Felt, rules: &[RuleCounters]) -> Result {
    let Felt { wire, retransmit_rate, refused, retransmits, .. } = felt;
    let lost = wire.lost() as f64 / wire.sent.max(1) as f64;
    ensure!(wire.sent > 10_000 && (lost - ASKED).abs() < 0.0085, "{what}: lost {lost:.4}, {felt:?}");
    ensure!((ASKED - 0.0085..ASKED + 0.01).contains(retransmit_rate), "{what}: {felt:?}");
    ensure!(*retransmits > 500, "{what}: the namespace counted {retransmits} segments sent again");
    // What TCP counts when the host itself refuses to send one.
    ensure!(*refused == 0, "{what}: the sender was told of {refused} local drops");
    // Connections are counted from when they are established, the fault goes on when their time is over.
    let fired: u64 = rules.iter().map(|rule| rule.fired.packets).sum();
    let beyond = fired as i64 - wire.lost() as i64;
    ensure!((-50..200).contains(&beyond), "{what}: lost {}, fired {fired}", wire.lost());
    Ok(())
}

/// A UDP sender learns nothing either. Nothing is left to chance here.
pub(super) fn udp_is_told_nothing() -> Result {
    let lab = lab()?;
    for family in Family::BOTH {
        let route = lab.outward(family);
        let mut flow = Udp::open(route, 4000, PORT)?;
        let mut bystander = Udp::open(route, 4001, BYSTANDER_PORT)?;
        all_arrive("before", &mut flow, 1000)?;
        let fault = format!("loss 100% --direction out --proto udp --port {PORT}");
        let before = Counters::read(&lab.near)?;
        let faultline = arm(&lab, SEED, &[fault])?;
        let record = flow.burst(2000, PATIENCE)?;
        let counted = Counters::read(&lab.near)?.since(&before);
        all_arrive("bystander", &mut bystander, 1000)?;
        let rules = end(&faultline)?;
        ensure!(record.refused.is_empty(), "{family}: told {:?}", record.refused.first());
        ensure!(record.received[0].lost() == 2000, "{family}: {} lost", record.received[0].lost());
        ensure!(rules[0].fired.packets == 2000, "{family}: {rules:?}");
        let refused = ["IpOutDiscards", "Ip6OutDiscards", "UdpSndbufErrors", "Udp6SndbufErrors"];
        for name in refused {
            ensure!(counted.get(name) == 0, "{family}: {name} {}", counted.get(name));
        }
        all_arrive("after", &mut flow, 1000)?;
    }
    Ok(())
}

/// With segmentation offload tc sees super-packets, and one decision takes all of one: the output says so, and
/// the counts are those of the wire.
pub(super) fn super_packets() -> Result {
    let lab = Lab::with(Options { wire_packets: false, side: true })?;
    let mut aside = Udp::open(lab.aside(Family::V4)?, 4000, PORT)?;
    let route = lab.outward(Family::V4);
    let before = Felt::by(1, TIME / 4, route)?;
    // Without --json, as a person sees it.
    let netns = lab.near.path();
    let fault = format!("loss 5% --direction out --proto tcp --port {PORT} --netns {}", netns.display());
    let arguments = arguments(NEAR_DEVICE, SEED, &[fault]) + " --for 2s";
    let exit = thread::scope(|scope| {
        let faultline = scope.spawn(|| Faultline::run(&words(&arguments)));
        // It says nothing that a test could wait for, so there is traffic until it ends.
        while !faultline.is_finished() {
            Felt::by(1, TIME / 4, route)?;
            all_arrive("bystander", &mut aside, 500)?;
        }
        faultline.join().map_err(|_| Failure::new("the driving thread panicked"))?
    })?;
    println!("before {before:?}\n{}", exit.stdout);
    ensure!(exit.code == Some(0), "{exit:?}");
    let said = exit.stdout.contains("on the wire") && exit.stdout.contains("super-packet");
    ensure!(said, "nothing of super-packets in\n{}", exit.stdout);

    // The same in numbers.
    let fault = format!("loss 5% --direction out --proto tcp --port {PORT}");
    let faultline = arm(&lab, SEED, &[fault])?;
    let felt = Felt::by(1, TIME / 2, route)?;
    let rules = end(&faultline)?;
    let after = Felt::by(1, TIME / 4, route)?;
    println!("during {felt:?}\n{rules:?}\nafter {after:?}");
    ensure!(before.retransmit_rate < 0.01 && after.retransmit_rate < 0.01, "{before:?}, {after:?}");
    let [RuleCounters { seen, fired, .. }] = rules[..] else { return Err(Failure::new("not one rule")) };
    ensure!(fired.segments > fired.packets && fired.packets > 0, "fired {fired:?}");
    let difference = fired.segments.abs_diff(felt.wire.lost());
    ensure!(difference <= 100, "{} segments lost, fired {fired:?}", felt.wire.lost());
    ensure!(felt.refused == 0 && felt.retransmits > 0, "{felt:?}");
    // Full segments, but for the last of a write, handshakes and acknowledgements.
    let mean = seen.bytes / seen.segments.max(1);
    ensure!((1200..=1514).contains(&mean), "segments of {mean} bytes on the wire, seen {seen:?}");
    ensure!(seen.bytes <= seen.segments * 1514, "more than the wire can carry: {seen:?}");
    // TCP counts a super-packet by its segments, too.
    let difference = seen.segments.abs_diff(felt.wire.sent);
    ensure!(difference <= 200, "{} segments sent, seen {seen:?}", felt.wire.sent);
    Ok(())
}
