//! Exact binomial statistics: what a count says of a rate, and which counts a rate allows.
//!
//! Sums of probabilities outwards from the most likely count, each from its neighbour by one multiplication
//! and one division. No special functions, so that this also checks the intervals `faultline` prints: the
//! continued fraction behind those (`statrs::function::beta::beta_reg`) stops after 140 terms, converged or not,
//! which is right at 200,000 packets and off by 0.003 at 2,000,000 (30 %, one-sided probability).

use std::ops::RangeInclusive;

/// Terms smaller than this beside the largest change no sum here.
const NEGLIGIBLE: f64 = 1e-30;

/// The probabilities of the counts that have any to speak of.
struct Distribution {
    first: u64,
    probabilities: Vec<f64>,
}

impl Distribution {
    /// Of the number of events in `trials` when each comes with probability `rate`, `0 < rate < 1`.
    fn new(trials: u64, rate: f64) -> Self {
        let odds = rate / (1.0 - rate);
        let mode = (((trials + 1) as f64 * rate) as u64).min(trials);
        let mut above = vec![1.0];
        let mut weight = 1.0;
        for count in mode..trials {
            weight *= (trials - count) as f64 / (count + 1) as f64 * odds;
            if weight < NEGLIGIBLE {
                break;
            }
            above.push(weight);
        }
        let mut probabilities = Vec::new();
        weight = 1.0;
        for count in (1..=mode).rev() {
            weight *= count as f64 / (trials - count + 1) as f64 / odds;
            if weight < NEGLIGIBLE {
                break;
            }
            probabilities.push(weight);
        }
        let first = mode - probabilities.len() as u64;
        probabilities.reverse();
        probabilities.append(&mut above);
        let sum: f64 = probabilities.iter().sum();
        for probability in &mut probabilities {
            *probability /= sum;
        }
        Self { first, probabilities }
    }

    /// Probability of at most `count`.
    fn at_most(&self, count: u64) -> f64 {
        let terms = (count + 1).saturating_sub(self.first).min(self.probabilities.len() as u64);
        self.probabilities[..terms as usize].iter().sum()
    }

    /// Probability of at least `count`.
    fn at_least(&self, count: u64) -> f64 {
        let left_out = count.saturating_sub(self.first).min(self.probabilities.len() as u64);
        self.probabilities[left_out as usize..].iter().sum()
    }

    /// The smallest count such that it or less has at least this probability.
    fn quantile(&self, probability: f64) -> u64 {
        let mut sum = 0.0;
        for (place, term) in self.probabilities.iter().enumerate() {
            sum += term;
            if sum >= probability {
                return self.first + place as u64;
            }
        }
        self.first + self.probabilities.len() as u64 - 1
    }
}

/// The exact (Clopper-Pearson) interval for a rate of which `events` in `trials` were seen.
///
/// # Panics
///
/// If there are more events than trials, or the confidence is not between 0 and 1.
#[must_use]
pub fn interval(events: u64, trials: u64, confidence: f64) -> (f64, f64) {
    assert!(events <= trials && confidence > 0.0 && confidence < 1.0);
    let tail = (1.0 - confidence) / 2.0;
    let low = if events == 0 {
        0.0
    } else {
        bisect(|rate| Distribution::new(trials, rate).at_least(events) < tail)
    };
    let high = if events == trials {
        1.0
    } else {
        bisect(|rate| Distribution::new(trials, rate).at_most(events) > tail)
    };
    (low, high)
}

/// The chance that a count is not accepted though all is right. No test looks at a hundred of them, so that each fails with a
/// chance below 1e-6.
pub const FALSE_ALARM: f64 = 1e-8;

/// The counts that `trials` at `rate` lie among, but for [`FALSE_ALARM`].
///
/// # Panics
///
/// If the rate is not a probability.
#[must_use]
pub fn acceptance(trials: u64, rate: f64) -> RangeInclusive<u64> {
    counts(trials, rate, FALSE_ALARM)
}

/// The same but for this chance, the two tails cut equally.
fn counts(trials: u64, rate: f64, outside: f64) -> RangeInclusive<u64> {
    assert!((0.0..=1.0).contains(&rate) && outside > 0.0 && outside < 1.0);
    if trials == 0 || rate == 0.0 {
        return 0..=0;
    }
    if rate == 1.0 {
        return trials..=trials;
    }
    let distribution = Distribution::new(trials, rate);
    distribution.quantile(outside / 2.0)..=distribution.quantile(1.0 - outside / 2.0)
}

/// Where between 0 and 1 a condition that holds first ends.
fn bisect(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against mpmath 1.3 at 30 digits.
    #[test]
    fn intervals() {
        for (events, trials, confidence, low, high) in [
            (0, 10, 0.95, 0.0, 0.308_497_107_819),
            (10, 10, 0.95, 0.691_502_892_181, 1.0),
            (3, 10, 0.95, 0.066_739_511_177_7, 0.652_452_850_06),
            (1, 100, 0.99, 5.012_416_197_77e-5, 0.071_957_682_401_6),
            (50, 100, 0.999, 0.335_581_937_191, 0.664_418_062_809),
            (271, 1000, 0.95, 0.243_659_237_566, 0.299_695_995_515),
        ] {
            let found = interval(events, trials, confidence);
            assert!((found.0 - low).abs() < 1e-11, "{events}/{trials}: {found:?}");
            assert!((found.1 - high).abs() < 1e-11, "{events}/{trials}: {found:?}");
        }
    }

    /// Against exact sums with 40 digits.
    #[test]
    fn acceptances() {
        for (trials, rate, low, high) in [
            (10, 0.5, 0, 10),
            (100, 0.3, 16, 46),
            (1000, 0.01, 2, 22),
            (200_000, 0.001, 155, 248),
            (200_000, 0.01, 1855, 2148),
            (200_000, 0.3, 59_326, 60_675),
            (200_000, 1.0, 200_000, 200_000),
            (200_000, 0.0, 0, 0),
            (0, 0.3, 0, 0),
        ] {
            assert_eq!(counts(trials, rate, 0.001), low..=high, "{trials} at {rate}");
        }
    }

    /// The ends of the acceptance interval have intervals that just hold the rate; one further does not.
    #[test]
    fn the_two_agree() {
        let rate = 0.3;
        let counts = counts(5000, rate, 0.001);
        for (count, inside) in [
            (*counts.start(), true),
            (counts.start() - 1, false),
            (*counts.end(), true),
            (counts.end() + 1, false),
        ] {
            let (low, high) = interval(count, 5000, 0.999);
            assert_eq!((low..=high).contains(&rate), inside, "{count}");
        }
    }
}
