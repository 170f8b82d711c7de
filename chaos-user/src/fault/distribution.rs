//! The distributions of delays as tables: deviations in 1/8192 of the jitter, drawn from with equal chances.

use std::collections::BTreeMap;

use statrs::function::erf::erfc_inv;

use crate::spec::{Distribution, Impairments};

/// netem's unit (`NETEM_DIST_SCALE`) and size.
const SCALE: f64 = 8192.0;
const ENTRIES: u32 = 4096;
/// How many jitters a deviation is at most, as in netem's tables, whose entries are 16 bits.
const WIDEST: f64 = 4.0;

/// The tables of a run, one after the other, and where each lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deviations {
    /// All entries.
    pub entries: Vec<i32>,
    places: BTreeMap<Distribution, (u32, u32)>,
}

impl Deviations {
    /// Where the table of this fault lies and how many entries it has, none for those that need none.
    pub fn place(&mut self, impairments: &Impairments) -> (u32, u32) {
        let Some(delay) = impairments.delay.as_ref().filter(|delay| !delay.jitter.is_zero()) else {
            return (0, 0);
        };
        if let Some(place) = self.places.get(&delay.distribution) {
            return *place;
        }
        let entries = table(&delay.distribution);
        let place = (self.entries.len() as u32, entries.len() as u32);
        self.entries.extend(entries);
        self.places.insert(delay.distribution.clone(), place);
        place
    }
}

fn table(distribution: &Distribution) -> Vec<i32> {
    // The middle of each of 4096 equal parts of all chances.
    let quantiles = |quantile: fn(f64) -> f64| -> Vec<i32> {
        let chances = (0..ENTRIES).map(|part| (f64::from(part) + 0.5) / f64::from(ENTRIES));
        chances.map(|chance| (quantile(chance).clamp(-WIDEST, WIDEST) * SCALE).round() as i32).collect()
    };
    match distribution {
        Distribution::Uniform => Vec::new(),
        Distribution::Normal => quantiles(normal),
        Distribution::Pareto => quantiles(pareto),
        Distribution::ParetoNormal => quantiles(|chance| 0.25 * normal(chance) + 0.75 * pareto(chance)),
        Distribution::File(_, entries) => entries.iter().copied().map(i32::from).collect(),
    }
}

fn normal(chance: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * chance)
}

/// Of shape 3, less its mean of 1.5 and times 4/3, which makes its standard deviation 1.15: netem's.
fn pareto(chance: f64) -> f64 {
    ((1.0 - chance).powf(-1.0 / 3.0) - 1.5) * 4.0 / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(entries: &[i32]) -> (f64, f64) {
        let count = entries.len() as f64;
        let mean = entries.iter().map(|entry| f64::from(*entry) / SCALE).sum::<f64>() / count;
        let square = entries.iter().map(|entry| (f64::from(*entry) / SCALE).powi(2)).sum::<f64>() / count;
        (mean, (square - mean * mean).sqrt())
    }

    /// Mean and standard deviation, to what 4096 entries and the ends at 4 leave: netem's own tables (iproute2
    /// 6.1) have -0.001 and 1.000; -0.033 and 0.820; -0.025 and 0.834.
    #[test]
    fn moments_are_netems() {
        let of = |distribution| moments(&table(&distribution));
        for ((mean, deviation), (expected_mean, expected)) in [
            (of(Distribution::Normal), (0.0, 1.0)),
            (of(Distribution::Pareto), (-0.033, 0.820)),
            (of(Distribution::ParetoNormal), (-0.025, 0.834)),
        ] {
            assert!((mean - expected_mean).abs() < 0.01, "{mean} {expected_mean}");
            assert!((deviation - expected).abs() < 0.02, "{deviation} {expected}");
        }
    }

    #[test]
    fn one_table_for_all_who_ask() {
        let fault = |text: &str| {
            Impairments::parse(&text.split(' ').map(ToString::to_string).collect::<Vec<_>>()).expect("valid")
        };
        let mut deviations = Deviations::default();
        let normal = fault("delay 9ms 1ms distribution normal");
        assert_eq!(deviations.place(&normal), (0, ENTRIES));
        assert_eq!(deviations.place(&fault("delay 9ms 1ms distribution pareto")), (ENTRIES, ENTRIES));
        assert_eq!(deviations.place(&normal), (0, ENTRIES));
        assert_eq!([fault("delay 9ms 1ms"), fault("loss 1%")].map(|it| deviations.place(&it).1), [0, 0]);
        assert_eq!(deviations.entries.len() as u32, 2 * ENTRIES);
    }
}
