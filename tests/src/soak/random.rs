//! Where all of a plan comes from: numbers that a seed and the number of a step decide, and nothing else.

use crate::life::killed::fraction;

/// A generator of one step.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// That of a step of a run. Each step has its own, so that one alone can be repeated.
    pub(super) fn of_step(seed: u64, step: u64) -> Self {
        // What differs by one is mixed by the generator itself.
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(step.wrapping_mul(0x2545_f491_4f6c_dd1d)))
    }

    /// Less than `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        (fraction(&mut self.0) * end as f64) as u64
    }

    /// From the one to the other, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so often in a hundred times.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these; there is at least one.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// One of these, by their weights.
    pub(super) fn weighed<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let mut place = self.below(from.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in from {
            match place.checked_sub(*weight) {
                Some(rest) => place = rest,
                None => return *value,
            }
        }
        // Only without any weight.
        from[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_step_decide() {
        let numbers = |seed, step| -> Vec<u64> {
            let mut random = Random::of_step(seed, step);
            (0..20).map(|_| random.below(1000)).collect()
        };
        assert_eq!(numbers(3, 7), numbers(3, 7));
        assert_ne!(numbers(3, 7), numbers(3, 8));
        assert_ne!(numbers(3, 7), numbers(4, 7));
    }

    #[test]
    fn weights_count() {
        let mut random = Random::of_step(1, 1);
        let drawn: Vec<char> = (0..1000).map(|_| random.weighed(&[(0, 'a'), (9, 'b'), (1, 'c')])).collect();
        let count = |wanted| drawn.iter().filter(|found| **found == wanted).count();
        assert_eq!(count('a'), 0);
        assert!((850..950).contains(&count('b')) && count('b') + count('c') == 1000, "{}", count('b'));
        assert!((0..1000).all(|_| (3..=5).contains(&random.between(3, 5))));
    }
}
