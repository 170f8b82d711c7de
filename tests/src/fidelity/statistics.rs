//! What samples say.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Two-sided 95 % of a normal distribution.
pub(super) const Z95: f64 = 1.959_964;

/// 95 % of the Kolmogorov distribution: what the distance of `n` samples from their own distribution times the root
/// of `n` stays below.
pub(super) const KOLMOGOROV95: f64 = 1.358_1;

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / values.len().saturating_sub(1).max(1) as f64).sqrt()
}

/// The value that this share of all is not above.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Half the width of the 95 % interval of a statistic. Blocks of neighbours are drawn again and not single values:
/// what disturbs one probe disturbs those after it as well.
pub(super) fn bootstrap(values: &[f64], statistic: impl Fn(&[f64]) -> f64) -> f64 {
    const DRAWS: usize = 200;
    const BLOCK: usize = 25;
    if values.is_empty() {
        return f64::NAN;
    }
    let mut state = 1;
    let mut draw = Vec::with_capacity(values.len() + BLOCK);
    let found: Vec<f64> = (0..DRAWS)
        .map(|_| {
            draw.clear();
            while draw.len() < values.len() {
                let first = chaos_ebpf::decide::random(&mut state) as usize % values.len();
                draw.extend(values.iter().cycle().skip(first).take(BLOCK));
            }
            draw.truncate(values.len());
            statistic(&draw)
        })
        .collect();
    Z95 * deviation(&found)
}

/// The chance that a chi-square is this or greater.
pub(super) fn chi_square_p(value: f64, freedom: f64) -> f64 {
    ChiSquared::new(freedom).map_or(f64::NAN, |distribution| distribution.sf(value))
}

/// Chi-square of counts against what was expected.
pub(super) fn chi_square(counts: &[u64], expected: &[f64]) -> f64 {
    counts.iter().zip(expected).map(|(count, expected)| (*count as f64 - expected).powi(2) / expected).sum()
}

/// Correlation of each with the next.
pub(super) fn autocorrelation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let of = |pairs: &mut dyn Iterator<Item = (f64, f64)>| -> f64 {
        pairs.map(|(one, other)| (one - mean) * (other - mean)).sum()
    };
    let all = of(&mut values.iter().map(|value| (*value, *value)));
    of(&mut values.iter().copied().zip(values.iter().skip(1).copied())) / all
}

/// The lengths of the runs of `true`.
pub(super) fn bursts(lost: &[bool]) -> Vec<u64> {
    lost.split(|lost| !lost).filter(|burst| !burst.is_empty()).map(|burst| burst.len() as u64).collect()
}

/// The Kolmogorov-Smirnov distance of samples from a distribution, which says what share is below a value and what
/// share is not above it.
pub(super) fn distance(samples: &[f64], shares: impl Fn(f64) -> (f64, f64)) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let at = |(place, value): (usize, &f64)| {
        let (below, up_to) = shares(*value);
        (below - place as f64 / count).max((place + 1) as f64 / count - up_to)
    };
    sorted.iter().enumerate().map(at).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }

    #[test]
    fn moments_and_quantiles() {
        let values = [1.0, 4.0, 2.0, 3.0];
        close(mean(&values), 2.5);
        close(deviation(&values), 1.291);
        assert_eq!([0.25, 0.5, 0.99].map(|share| quantile(&values, share)), [1.0, 2.0, 4.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    /// Against the mean's, which is known.
    #[test]
    fn a_bootstrap_finds_the_interval_of_a_mean() {
        let mut state = 7;
        let values: Vec<f64> =
            (0..5000).map(|_| f64::from(chaos_ebpf::decide::random(&mut state)) / 2_f64.powi(32)).collect();
        let expected = Z95 * (1.0 / 12.0 / 5000.0_f64).sqrt();
        let found = bootstrap(&values, mean);
        assert!((found / expected - 1.0).abs() < 0.2, "{found} {expected}");
    }

    #[test]
    fn chi_squares() {
        close(chi_square_p(3.841, 1.0), 0.05);
        close(chi_square_p(18.307, 10.0), 0.05);
        close(chi_square(&[12, 8], &[10.0, 10.0]), 0.8);
    }

    #[test]
    fn sequences() {
        let lost = [true, false, true, true, false, false, true, true, true];
        assert_eq!(bursts(&lost), [1, 2, 3]);
        assert!(bursts(&[false]).is_empty());
        close(autocorrelation(&[1.0, -1.0, 1.0, -1.0]), -0.75);
    }

    #[test]
    fn distances() {
        let uniform = |value: f64| (value.clamp(0.0, 1.0), value.clamp(0.0, 1.0));
        close(distance(&[0.5], uniform), 0.5);
        close(distance(&[0.25, 0.75], uniform), 0.25);
        close(distance(&[2.0, 3.0], uniform), 1.0);
        // A distribution that is all in one place is met exactly.
        close(distance(&[1.0, 1.0], |value| (f64::from(value > 1.0), f64::from(value >= 1.0))), 0.0);
    }
}
