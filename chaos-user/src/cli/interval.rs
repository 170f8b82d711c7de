//! How well a rate is known.

/// The 95 % interval for a rate of which `events` in `trials` were seen: Wilson's score interval, which is
/// right also for few trials and near 0 and 1 (Wilson 1927; Brown, Cai, DasGupta 2001).
pub(super) fn wilson(events: u64, trials: u64) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_984_540_054;
    if trials == 0 {
        return None;
    }
    let (n, rate) = (trials as f64, events as f64 / trials as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (rate + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    // At the ends the formula is exact but for rounding.
    let low = if events == 0 { 0.0 } else { centre - half };
    let high = if events == trials { 1.0 } else { centre + half };
    Some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The formula worked out separately, and the 0.278 of every table for none in ten.
        let (low, high) = wilson(15, 50).expect("trials");
        assert!((low - 0.191_036).abs() < 2e-6 && (high - 0.437_504).abs() < 2e-6, "{low} {high}");
        assert_eq!(wilson(0, 0), None);
        let (low, high) = wilson(0, 10).expect("trials");
        assert!(low == 0.0 && (high - 0.277_533).abs() < 2e-6, "{low} {high}");
        let (low, high) = wilson(10, 10).expect("trials");
        assert!(high == 1.0 && (low - 0.722_467).abs() < 2e-6, "{low} {high}");
    }
}
