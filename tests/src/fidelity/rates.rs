//! Rate: what gets through.

use std::time::Duration;

use super::{
    Case, Measurement, Who,
    row::{Figure, Row},
    statistics::{Z95, bootstrap, deviation, mean},
};
use crate::{
    ensure,
    error::Result,
    lab::{Lab, Route},
    traffic::{
        Bulk, Flood,
        probe::{Pace, Probe},
    },
};

pub(super) const ALL: &[Measurement] = &[
    (Case::new("rate 1mbit"), datagrams::<1>),
    (Case::new("rate 10mbit"), datagrams::<10>),
    (Case::new("rate 10mbit").received(), datagrams::<10>),
    (Case::new("rate 30mbit"), flood::<30>),
    (Case::new("rate 100mbit"), flood::<100>),
    (Case::new("rate 1gbit"), flood::<1000>),
    (Case::new("rate 1mbit"), stream::<1>),
    (Case::new("rate 10mbit"), stream::<10>),
    (Case::new("rate 100mbit"), stream::<100>),
];

/// Payload of a datagram, and what it is as a frame: both count frames, without what Ethernet puts around them.
const PAYLOAD: usize = 1400;
const FRAME: f64 = (PAYLOAD + 8 + 20 + 14) as f64;

/// Megabits a second of probes sent at 1.3 times the rate, and their interval's half width.
fn goodput(route: Route<'_>, rate: u64) -> Result<(f64, f64)> {
    const MOST: f64 = 30_000.0;
    const SECONDS: f64 = 4.0;
    let each_second = 1.3 * rate as f64 * 1e6 / (FRAME * 8.0);
    let count = (each_second * SECONDS).min(MOST) as u32;
    let interval = Duration::from_secs_f64(1.0 / each_second);
    let linger = Duration::from_millis(500);
    let (arrivals, _) =
        Probe::open(route, 4001, 5001)?.run(Pace { count, interval, size: PAYLOAD, linger })?;
    let times: Vec<f64> = arrivals.iter().map(|arrival| arrival.came as f64).collect();
    // The wire is busy from soon after the first on.
    let times = &times[times.len() / 10..];
    ensure!(times.len() > 100, "{} of {count} probes came", times.len());
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let megabits = |gaps: &[f64]| FRAME * 8.0 * 1000.0 / mean(gaps);
    Ok((megabits(&gaps), bootstrap(&gaps, megabits)))
}

fn datagrams<const RATE: u64>(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    compare(case, lab, RATE, goodput)
}

fn flood<const RATE: u64>(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    compare(case, lab, RATE, flooded)
}

/// The same where a guest has no time to look at each packet.
fn flooded(route: Route<'_>, rate: u64) -> Result<(f64, f64)> {
    const PARTS: usize = 20;
    let offered = 1.3 * rate as f64 * 1e6 / (FRAME * 8.0);
    let counts = Flood { size: PAYLOAD, offered, time: Duration::from_secs(5) }.run(route)?;
    let counts = &counts[counts.len() / 10..];
    ensure!(counts.len() > PARTS * 2, "looked {} times", counts.len());
    let megabits = |counts: &[(u64, u64)]| {
        let [(from, first), .., (to, last)] = counts else { return f64::NAN };
        (last - first) as f64 * FRAME * 8.0 * 1000.0 / (to - from) as f64
    };
    let parts: Vec<f64> = counts.chunks_exact(counts.len() / PARTS).map(megabits).collect();
    Ok((megabits(counts), Z95 * deviation(&parts) / (parts.len() as f64).sqrt()))
}

fn compare(
    case: &Case,
    lab: &Lab,
    rate: u64,
    measure: fn(Route<'_>, u64) -> Result<(f64, f64)>,
) -> Result<Vec<Row>> {
    let asked = rate as f64;
    let of = |who| case.during(lab, who, |route| measure(route, rate));
    let figure = |(rate, ci95)| Figure::new(rate, asked, ci95);
    let ((baseline, _), ours, netem) = (of(Who::Nobody)?, of(Who::Ours)?, of(Who::Netem)?);
    let parameters = format!("frames of {FRAME} bytes, UDP");
    let row = case.row(parameters, "rate on the wire", "mbit/s", asked).with_baseline(baseline);
    let row = row.beside(figure(ours), Some(figure(netem)));
    // What the guest cannot offer says nothing of the fault.
    let verdict = if baseline < asked { "the guest is slower".to_owned() } else { row.verdict };
    Ok(vec![Row { verdict, ..row }])
}

/// A stream's payload: 1,448 bytes of a frame of 1,514 are its own.
fn stream<const RATE: u64>(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const PARTS: u16 = 3;
    let asked = RATE as f64 * 1448.0 / 1514.0;
    let of = |who| -> Result<Vec<f64>> {
        // A port of its own each time: what waits for one must not be taken for the next one's.
        let part = |part: u16| {
            let time = Duration::from_secs(4);
            let bulk = Bulk { port: 6000 + part, time, congestion: "reno" };
            case.during(lab, who, |route| Ok(bulk.run(route)?.rate() / 1e6))
        };
        (0..PARTS).map(part).collect()
    };
    let figure = |rates: &[f64]| {
        /// Student's t for three.
        const WIDER: f64 = 4.303 / Z95;
        let ci95 = WIDER * Z95 * deviation(rates) / (rates.len() as f64).sqrt();
        Figure::new(mean(rates), asked, ci95)
    };
    let (baseline, ours, netem) = (of(Who::Nobody)?, of(Who::Ours)?, of(Who::Netem)?);
    let row = case.row(format!("{PARTS} connections of 4 s, TCP"), "goodput", "mbit/s", asked);
    Ok(vec![row.with_baseline(mean(&baseline)).beside(figure(&ours), Some(figure(&netem)))])
}
