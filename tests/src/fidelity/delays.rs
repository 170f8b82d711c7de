//! Delay: how long, and how it is spread.

use std::{fs, time::Duration};

use super::{
    Case, Measurement, Who,
    row::{Figure, Row},
    statistics::{KOLMOGOROV95, bootstrap, deviation, distance, mean, quantile},
};
use crate::{
    ensure,
    error::{Context, Result},
    lab::{Lab, Route},
    traffic::probe::{Pace, Probe},
};

pub(super) const ALL: &[Measurement] = &[
    (constant("delay 50us"), fixed::<50>),
    (constant("delay 500us"), fixed::<500>),
    (constant("delay 1ms"), fixed::<1000>),
    (constant("delay 1ms").v6(), fixed::<1000>),
    (constant("delay 1ms").received(), fixed::<1000>),
    (constant("delay 100ms"), fixed::<100_000>),
    (constant("delay 100ms").received(), fixed::<100_000>),
    (constant("delay 5s"), fixed::<5_000_000>),
    (spread("delay 20ms 5ms distribution uniform", "delay 20ms 5ms"), jittered),
    (spread("delay 20ms 5ms distribution normal", ""), jittered),
    (spread("delay 20ms 5ms distribution pareto", ""), jittered),
    (spread("delay 20ms 5ms distribution paretonormal", ""), jittered),
];

/// So that none is lost for want of room.
const ROOM: &str = "limit 100000";

const fn constant(words: &'static str) -> Case {
    Case { netem_options: ROOM, ..Case::new(words) }
}

const fn spread(words: &'static str, netem: &'static str) -> Case {
    let case = constant(words).options("--reorder-by-jitter");
    if netem.is_empty() { case } else { Case { netem, ..case } }
}

/// What is left out at first: Faultline learns how long its own way round is, and after a second reports for the first
/// time, which in a guest is 15 ms of translating code that has not run before.
const WARM_UP: Duration = Duration::from_millis(1300);

/// The delays of probes in microseconds, in the order of their sending.
fn delays(route: Route<'_>, count: u32, interval: Duration, longest: Duration) -> Result<Vec<f64>> {
    let probe = Probe::open(route, 4001, 5001)?;
    let linger = longest + Duration::from_millis(300);
    let first = (WARM_UP.as_micros() / interval.as_micros()) as u32;
    let pace = Pace { count: first, interval, size: 64, linger };
    probe.run(pace)?;
    let (mut arrivals, _) = probe.run(Pace { count, ..pace })?;
    arrivals.sort_by_key(|arrival| arrival.sequence);
    ensure!(arrivals.len() == count as usize, "{} of {count} probes came", arrivals.len());
    Ok(arrivals.iter().map(|arrival| arrival.delay as f64 / 1000.0).collect())
}

/// How often each has its turn.
const TURNS: u32 = 4;

/// The delays without a fault, with ours and with netem, turn by turn, so that whatever drifts hits all alike.
fn in_turns(case: &Case, lab: &Lab, count: u32, pace: (Duration, Duration)) -> Result<[Vec<Vec<f64>>; 3]> {
    const ROUND: [Who; 6] = [Who::Nobody, Who::Ours, Who::Netem, Who::Netem, Who::Ours, Who::Nobody];
    let (interval, longest) = pace;
    let mut found = [const { Vec::new() }; 3];
    for who in (0..TURNS / 2).flat_map(|_| ROUND) {
        let longest = if who == Who::Nobody { Duration::ZERO } else { longest };
        found[who as usize]
            .push(case.during(lab, who, |route| delays(route, count / TURNS, interval, longest))?);
    }
    Ok(found)
}

/// Half the width of a statistic's 95 % interval: by the probes, or by how much one turn differs from another,
/// whichever says that less is known.
fn uncertainty(turns: &[Vec<f64>], statistic: fn(&[f64]) -> f64) -> f64 {
    /// Student's t for the 97.5 % point, with a degree of freedom less than there are turns.
    const T: f64 = 3.182;
    let each: Vec<f64> = turns.iter().map(|turn| statistic(turn)).collect();
    let by_turns = T * deviation(&each) / f64::from(TURNS).sqrt();
    bootstrap(&turns.concat(), statistic).max(by_turns)
}

fn fixed<const MICROSECONDS: u64>(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    let time = Duration::from_micros(MICROSECONDS);
    let (count, interval) = if time > Duration::from_secs(1) { (600, 1) } else { (2000, 2) };
    let [baseline, ours, netem] = in_turns(case, lab, count, (Duration::from_millis(interval), time))?;
    let asked = MICROSECONDS as f64;
    let without = mean(&baseline.concat());
    let row = |quantity: &str, asked, statistic: fn(&[f64]) -> f64, less: f64| {
        let figure = |turns: &[Vec<f64>]| {
            let of_less = if less == 0.0 { 0.0 } else { uncertainty(&baseline, mean) };
            let ci95 = uncertainty(turns, statistic).hypot(of_less);
            Figure::new(statistic(&turns.concat()) - less, asked, ci95)
        };
        let parameters = format!("{count} probes each {interval} ms");
        let row = case.row(parameters, quantity, "us", asked).with_baseline(statistic(&baseline.concat()));
        row.beside(figure(&ours), Some(figure(&netem)))
    };
    Ok(vec![
        row("mean delay", asked, mean, without),
        row("99 % of delays are below", asked, |delays| quantile(delays, 0.99), without),
        row("standard deviation", 0.0, deviation, 0.0),
    ])
}

/// The middle of what is asked, and how wide it is, in microseconds.
const TIME: f64 = 20_000.0;
const JITTER: f64 = 5000.0;

fn jittered(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const COUNT: u32 = 4000;
    let name = case.words.rsplit(' ').next().unwrap_or_default();
    let reference = Reference::read(name)?;
    let pace = (Duration::from_millis(2), Duration::from_millis(40));
    let [baseline, ours, netem] = in_turns(case, lab, COUNT, pace)?;
    let without = mean(&baseline.concat());
    let of = |turns: &[Vec<f64>]| {
        let delays: Vec<f64> = turns.concat().iter().map(|delay| delay - without).collect();
        let apart = distance(&delays, |value| reference.shares(value));
        let of_mean = Figure::new(mean(&delays), reference.mean(), uncertainty(turns, mean));
        (Figure::new(apart, 0.0, KOLMOGOROV95 / (delays.len() as f64).sqrt()), of_mean)
    };
    let (ours, netem) = (of(&ours), of(&netem));
    let parameters = format!("{COUNT} probes each 2 ms");
    let apart = case.row(parameters.clone(), "Kolmogorov-Smirnov distance from what is asked", "", 0.0);
    let mean = case.row(parameters, "mean delay", "us", reference.mean());
    Ok(vec![apart.beside(ours.0, Some(netem.0)), mean.beside(ours.1, Some(netem.1))])
}

/// A distribution of delays, in microseconds.
#[derive(Debug)]
enum Reference {
    Uniform,
    /// Sorted.
    Table(Vec<f64>),
}

impl Reference {
    /// netem's own, which is in iproute2.
    fn read(name: &str) -> Result<Self> {
        const FOLDERS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/tc"];
        if name == "uniform" {
            return Ok(Self::Uniform);
        }
        let text = FOLDERS.iter().find_map(|folder| fs::read_to_string(format!("{folder}/{name}.dist")).ok());
        Self::parse(&text.context(format_args!("there is no {name}.dist in {}", FOLDERS.join(" or ")))?)
    }

    fn parse(text: &str) -> Result<Self> {
        /// `NETEM_DIST_SCALE`.
        const SCALE: f64 = 8192.0;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let entries = lines.flat_map(str::split_whitespace).map(|word| word.parse::<f64>().context(word));
        let mut delays: Vec<f64> =
            entries.map(|entry| Ok((entry? / SCALE * JITTER + TIME).max(0.0))).collect::<Result<_>>()?;
        ensure!(!delays.is_empty(), "an empty table");
        delays.sort_by(f64::total_cmp);
        Ok(Self::Table(delays))
    }

    /// What share is below a delay, and what share is not above it.
    fn shares(&self, delay: f64) -> (f64, f64) {
        match self {
            Self::Uniform => {
                let share = ((delay - TIME + JITTER) / (2.0 * JITTER)).clamp(0.0, 1.0);
                (share, share)
            }
            Self::Table(delays) => {
                let share = |place: usize| place as f64 / delays.len() as f64;
                let below = delays.partition_point(|entry| *entry < delay);
                (share(below), share(delays.partition_point(|entry| *entry <= delay)))
            }
        }
    }

    fn mean(&self) -> f64 {
        match self {
            Self::Uniform => TIME,
            Self::Table(delays) => mean(delays),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let table = Reference::parse("# comment\n 8192 0\n-8192 -32768 # more").expect("a table");
        assert!((table.mean() - 15_000.0).abs() < 1e-6);
        assert_eq!(table.shares(15_000.0), (0.25, 0.5));
        assert_eq!(table.shares(0.0), (0.0, 0.25));
        assert_eq!(table.shares(1e6), (1.0, 1.0));
        assert_eq!(Reference::Uniform.shares(17_500.0), (0.25, 0.25));
        assert!(Reference::parse("# nothing").is_err());
    }
}
