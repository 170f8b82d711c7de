//! Wires that are slow.

use std::time::Duration;

use super::{NOISE, PORT, Way, arm, count, end, few, lab, median, milliseconds};
use crate::{
    ensure,
    error::Result,
    lab::Family,
    traffic::probe::{Arrival, Pace, Probe},
};

/// 1,000 bytes of payload, 42 of headers: as `rate` counts them.
const FRAME: f64 = 1042.0;

fn as_fast_as_can_be(count: u32) -> Pace {
    Pace { count, interval: Duration::ZERO, size: 1000, ..few() }
}

/// Bits per second between the first packet and the last.
fn rate_of(arrivals: &[Arrival]) -> f64 {
    let Some((first, last)) = arrivals.first().zip(arrivals.last()) else { return 0.0 };
    (arrivals.len() - 1) as f64 * FRAME * 8.0 / ((last.came - first.came) as f64 / 1e9)
}

/// All that is sent goes at the rate; both ways.
pub(super) fn rate() -> Result {
    let lab = lab()?;
    for way in Way::BOTH {
        let flow = Probe::open(way.route(&lab, Family::V4), 4000, PORT)?;
        let fault = arm(&lab, &format!("rate 4mbit --direction {} --port {PORT}", way.name()))?;
        let (arrivals, sent) = flow.run(as_fast_as_can_be(300))?;
        let summary = end(&fault)?;
        ensure!(arrivals.len() as u32 == sent, "{} of {sent} came: {summary}", arrivals.len());
        let rate = rate_of(&arrivals) / 1e6;
        ensure!((3.6..4.4).contains(&rate), "{}: {rate:.2} Mbit/s", way.name());
    }
    Ok(())
}

/// What waits before a wire is limited, as for netem; a burst goes at once; the delay comes on top.
pub(super) fn link() -> Result {
    let lab = lab()?;
    let flow = Probe::open(lab.outward(Family::V4), 4000, PORT)?;
    let fault = arm(&lab, "rate 4mbit limit 50 delay 50ms --proto udp")?;
    let (arrivals, sent) = flow.run(as_fast_as_can_be(300))?;
    let summary = end(&fault)?;
    let lost = u64::from(sent) - arrivals.len() as u64;
    // Full packets are what the limit is reckoned in; these are smaller.
    ensure!(lost > 100 && lost == count(&summary, "effects/overlimit")?, "lost {lost}: {summary}");
    let rate = rate_of(&arrivals) / 1e6;
    ensure!((3.5..4.5).contains(&rate), "{rate:.2} Mbit/s");
    let first: Vec<i64> = milliseconds(&arrivals[..1]);
    ensure!((51..52 + NOISE).contains(&median(&first)), "the first after {first:?} ms");
    let last = milliseconds(&arrivals[arrivals.len() - 20..]);
    // 50 full packets at 4 Mbit/s are 151 ms.
    ensure!((150..215 + NOISE).contains(&median(&last)), "the last after {last:?} ms");

    let fault = arm(&lab, "rate 1mbit burst 60kb --proto udp")?;
    let (arrivals, sent) = flow.run(as_fast_as_can_be(50))?;
    end(&fault)?;
    ensure!(arrivals.len() as u32 == sent, "{} of {sent} came", arrivals.len());
    let delays = milliseconds(&arrivals);
    ensure!(median(&delays) < NOISE, "a burst waits: {delays:?}");
    Ok(())
}
