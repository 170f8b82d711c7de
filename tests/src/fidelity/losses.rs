//! Loss: how much, and in what order.

use std::time::Duration;

use super::{
    Case, Measurement, Who,
    row::{Figure, Row},
    statistics::{Z95, autocorrelation, bursts, chi_square, chi_square_p, deviation, mean},
};
use crate::{
    ensure,
    error::{Context, Result},
    lab::{Lab, Route},
    traffic::Udp,
};

pub(super) const ALL: &[Measurement] = &[
    (Case::new("loss 0%"), none),
    (Case::new("loss 1%"), plain),
    (Case::new("loss 10%"), plain),
    (Case::new("loss 10%").v6(), plain),
    (Case::new("loss 10%").received(), plain),
    (Case::new("loss 30%"), plain),
    (Case::new("loss 10% 25%"), correlated),
    (Case::new("loss gemodel 1% 20%"), in_bursts),
];

/// When all else is over, nothing of it may still be there.
pub(super) const AFTERWARDS: &[Measurement] = &[(Case::new("loss 0%"), none)];

const COUNT: u32 = 200_000;

/// Which packets were lost.
fn lost(route: Route<'_>, count: u32) -> Result<Vec<bool>> {
    let mut udp = Udp::open(route, 4000, 5000)?.with_linger(Duration::from_millis(200));
    let record = udp.burst(count, Duration::from_secs(300))?;
    let received = record.received.first().context("nothing was received")?;
    ensure!(received.duplicates == 0, "{} packets came twice", received.duplicates);
    Ok(received.seen.iter().map(|seen| !seen).collect())
}

fn parameters(count: u32) -> String {
    format!("{count} packets of UDP")
}

fn share(lost: &[bool]) -> f64 {
    lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64
}

/// The rate in percent; that of packets whose fates are correlated is known less well.
fn rate(lost: &[bool], asked: f64, correlation: f64) -> Figure {
    let error = |rate: f64| {
        (rate * (1.0 - rate) / lost.len() as f64 * (1.0 + correlation) / (1.0 - correlation)).sqrt()
    };
    let rate = share(lost);
    let p = chi_square_p(((rate - asked) / error(asked)).powi(2), 1.0);
    Figure::new(rate * 100.0, asked * 100.0, Z95 * error(rate) * 100.0).with_p(p)
}

/// Without loss, no packet is lost: what the other figures rest on.
fn none(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const COUNT: u32 = 20_000;
    let figure = |who| -> Result<Figure> {
        let lost = case.during(lab, who, |route| lost(route, COUNT))?;
        Ok(Figure::new(share(&lost) * 100.0, 0.0, 0.0))
    };
    let baseline = figure(Who::Nobody)?.value;
    let row = case.row(parameters(COUNT), "lost", "%", 0.0).with_baseline(baseline);
    Ok(vec![row.beside(figure(Who::Ours)?, Some(figure(Who::Netem)?))])
}

fn both(case: &Case, lab: &Lab) -> Result<[Vec<bool>; 2]> {
    let of = |who| case.during(lab, who, |route| lost(route, COUNT));
    Ok([of(Who::Ours)?, of(Who::Netem)?])
}

/// What is asked, from the first percentage of the fault's words.
fn asked(case: &Case) -> Result<f64> {
    let percent = case.words.split_whitespace().find_map(|word| word.strip_suffix('%')?.parse::<f64>().ok());
    Ok(percent.context("no percentage")? / 100.0)
}

fn plain(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    let asked = asked(case)?;
    let [ours, netem] = both(case, lab)?;
    let row = case.row(parameters(COUNT), "lost", "%", asked * 100.0);
    Ok(vec![row.beside(rate(&ours, asked, 0.0), Some(rate(&netem, asked, 0.0)))])
}

fn correlated(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    const CORRELATION: f64 = 0.25;
    let asked = asked(case)?;
    let [ours, netem] = both(case, lab)?;
    let of_neighbours = |lost: &[bool]| {
        let values: Vec<f64> = lost.iter().map(|lost| f64::from(*lost)).collect();
        let found = autocorrelation(&values);
        // Bartlett's, of a process that forgets by the same share with each step.
        let ci95 = Z95 * ((1.0 - found * found) / lost.len() as f64).sqrt();
        Figure::new(found * 100.0, CORRELATION * 100.0, ci95 * 100.0)
    };
    let rates = case.row(parameters(COUNT), "lost", "%", asked * 100.0);
    let correlations =
        case.row(parameters(COUNT), "correlation of a fate with the next", "%", CORRELATION * 100.0);
    Ok(vec![
        rates.beside(rate(&ours, asked, CORRELATION), Some(rate(&netem, asked, CORRELATION))),
        correlations.beside(of_neighbours(&ours), Some(of_neighbours(&netem))),
    ])
}

fn in_bursts(case: &Case, lab: &Lab) -> Result<Vec<Row>> {
    // Of `loss gemodel 1% 20%`: in the bad state every packet is lost, in the good one none.
    const TO_BAD: f64 = 0.01;
    const TO_GOOD: f64 = 0.2;
    let asked = TO_BAD / (TO_BAD + TO_GOOD);
    let correlation = 1.0 - TO_BAD - TO_GOOD;
    let [ours, netem] = both(case, lab)?;
    let length = |lost: &[bool]| {
        let lengths = bursts(lost);
        let values: Vec<f64> = lengths.iter().map(|length| *length as f64).collect();
        let ci95 = Z95 * deviation(&values) / (values.len() as f64).sqrt();
        Figure::new(mean(&values), 1.0 / TO_GOOD, ci95).with_p(geometric(&lengths, TO_GOOD))
    };
    let rates = case.row(parameters(COUNT), "lost", "%", asked * 100.0);
    let lengths =
        case.row(parameters(COUNT), "length of a burst; p of the lengths against geometric", "", 5.0);
    Ok(vec![
        rates.beside(rate(&ours, asked, correlation), Some(rate(&netem, asked, correlation))),
        lengths.beside(length(&ours), Some(length(&netem))),
    ])
}

/// The chance that burst lengths which end with chance `end` at each packet are as far from what is expected.
fn geometric(lengths: &[u64], end: f64) -> f64 {
    const LONGEST: usize = 20;
    let all = lengths.len() as f64;
    let mut counts = [0; LONGEST];
    for length in lengths {
        counts[(*length as usize).clamp(1, LONGEST) - 1] += 1;
    }
    // The last class holds all that are as long or longer.
    let expected: Vec<f64> = (0..LONGEST)
        .map(|more| (1.0 - end).powi(more as i32) * if more + 1 == LONGEST { 1.0 } else { end } * all)
        .collect();
    chi_square_p(chi_square(&counts, &expected), (LONGEST - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_intervals_and_chances() {
        let lost: Vec<bool> = (0..1000).map(|place| place % 10 == 0).collect();
        let exact = rate(&lost, 0.1, 0.0);
        assert_eq!((exact.value, exact.error, exact.p), (10.0, 0.0, Some(1.0)));
        assert!((exact.ci95 - 1.859).abs() < 1e-3, "{exact:?}");
        let off = rate(&lost, 0.12, 0.0);
        assert!(off.p.is_some_and(|p| (p - 0.0515).abs() < 1e-3), "{off:?}");
    }

    #[test]
    fn burst_lengths_are_told_from_others() {
        let geometrically: Vec<u64> = (1..=40_u64)
            .flat_map(|length| {
                let count = 10_000.0 * 0.8_f64.powi(length as i32 - 1) * 0.2;
                std::iter::repeat_n(length, count.round() as usize)
            })
            .collect();
        assert!(geometric(&geometrically, 0.2) > 0.99);
        assert!(geometric(&geometrically, 0.25) < 0.01);
        assert!(geometric(&[5; 100], 0.2) < 0.01);
    }
}
