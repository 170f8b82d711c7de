//! What else becomes of packets: some do not wait, some come twice, some are damaged.

use std::time::Duration;

use super::{
    Case, Measurement, Who,
    row::{Figure, Row},
    statistics::{Z95, chi_square_p},
};
use crate::{
    ensure,
    error::{Context, Result},
    lab::{Lab, Route},
    traffic::{
        Udp,
        probe::{Arrival, Pace, Probe},
    },
};

pub(super) const ALL: &[Measurement] = &[
    (Case::new("reorder 25% gap 1 delay 10ms"), reordered),
    (Case::new("duplicate 10%"), duplicated),
    (Case::new("duplicate 10%").received(), duplicated),
    (Case::new("corrupt 10%"), corrupted),
    (Case::new("corrupt 10%").options("--fix-checksum"), passed_corrupted),
];

/// How many packets of so many met a fate, in percent.
fn share(events: u64, trials: u64, asked: f64) -> Figure {
    let trials = trials as f64;
    let rate = events as f64 / trials;
    let error = |rate: f64| (rate * (1.0 - rate) / trials).sqrt();
    let p = chi_square_p(((rate - asked) / error(asked)).powi(2), 1.0);
    Figure::new(rate * 100.0, asked * 100.0, Z95 * error(rate) * 100.0).with_p(p)
}

fn compare(
    case: &Case,
    lab: &Lab,
    row: Row,
    measure: fn(Route<'_>) -> Result<(u64, u64)>,
) -> Result<Vec<Row>> {
    let asked = row.asked / 100.0;
    let of = |who| case.during(lab, who, measure).map(|(events, trials)| share(events, trials, asked));
    Ok(vec![row.beside(of(Who::Ours)?, Some(of(Who::Netem)?))])
}

fn reordered(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const COUNT: u32 = 10_000;
    let measure = |route: Route<'_>| {
        let linger = Duration::from_millis(300);
        let pace = Pace { count: COUNT, interval: Duration::from_millis(1), size: 64, linger };
        let (arrivals, _) = Probe::open(route, 4001, 5001)?.run(pace)?;
        ensure!(arrivals.len() == COUNT as usize, "{} of {COUNT} probes came", arrivals.len());
        let early = arrivals.iter().filter(|arrival| arrival.delay < 5_000_000).count();
        Ok((early as u64, COUNT.into()))
    };
    let row = case.row(format!("{COUNT} probes each 1 ms"), "not delayed", "%", 25.0);
    compare(case, lab, row, measure)
}

const PACKETS: u32 = 50_000;

fn duplicated(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    let measure = |route: Route<'_>| {
        let mut udp = Udp::open(route, 4000, 5000)?;
        let record = udp.burst(PACKETS, Duration::from_secs(300))?;
        let received = record.received.first().context("nothing was received")?;
        ensure!(received.lost() == 0, "{} packets were lost", received.lost());
        Ok((received.duplicates.into(), PACKETS.into()))
    };
    let row = case.row(format!("{PACKETS} packets of UDP"), "came twice", "%", 10.0);
    compare(case, lab, row, measure)
}

/// A damaged packet has a wrong checksum, and the receiver drops it.
fn corrupted(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    let measure = |route: Route<'_>| {
        let mut udp = Udp::open(route, 4000, 5000)?.with_linger(Duration::from_millis(200));
        let record = udp.burst(PACKETS, Duration::from_secs(300))?;
        let received = record.received.first().context("nothing was received")?;
        Ok((received.lost(), PACKETS.into()))
    };
    let row = case.row(format!("{PACKETS} packets of UDP"), "dropped by the receiver", "%", 10.0);
    compare(case, lab, row, measure)
}

/// netem has nothing of this kind.
fn passed_corrupted(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const COUNT: u32 = 40_000;
    const SIZE: usize = 1400;
    // What a probe does not show: a bit in the source port, in the time of sending, in the upper bytes of its number;
    // and one in the checksum is put right.
    const HIDDEN: f64 = (2 + 2 + 8 + 3) as f64 / (8 + SIZE) as f64;
    let linger = Duration::from_millis(300);
    let pace = Pace { count: COUNT, interval: Duration::from_micros(300), size: SIZE, linger };
    let of = |who| case.during(lab, who, |route| Probe::open(route, 4001, 5001)?.run(pace));
    let intact_among = |arrivals: &[Arrival]| arrivals.iter().filter(|arrival| arrival.intact).count() as u64;
    let (without, all) = of(Who::Nobody)?;
    let (arrivals, sent) = of(Who::Ours)?;
    let intact = intact_among(&arrivals);
    let wrong = arrivals.len() as u64 - intact;
    let asked = 0.1 * (1.0 - HIDDEN);
    let row = case.row(
        format!("{COUNT} probes of {SIZE} bytes; {wrong} of them came and were wrong"),
        "not as sent, of what shows",
        "%",
        asked * 100.0,
    );
    let row = row.with_baseline((u64::from(all) - intact_among(&without)) as f64 / f64::from(all) * 100.0);
    Ok(vec![row.beside(share(u64::from(sent) - intact, sent.into(), asked), None)])
}
