//! Percentages.

use std::{fmt, str::FromStr};

use chaos_ebpf::decide::ALWAYS;

use super::Invalid;

/// A chance between 0 % and 100 %, written as netem's: `30%`, `0.01%`, or `30` for short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(f64);

impl Percent {
    /// Never.
    pub const NONE: Self = Self(0.0);
    /// Always.
    pub const ALL: Self = Self(100.0);

    /// A chance between 0 and 1.
    #[must_use]
    pub fn of(fraction: f64) -> Self {
        Self((fraction * 100.0).clamp(0.0, 100.0))
    }

    /// The chance that it does not happen.
    #[must_use]
    pub fn rest(self) -> Self {
        Self(100.0 - self.0)
    }

    /// The chance between 0 and 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }

    /// The threshold that fires with this chance, to one part in 2^32; see
    /// [`decide::fires`](chaos_ebpf::decide::fires).
    #[must_use]
    pub fn threshold(self) -> u32 {
        // At 100 % the cast saturates to ALWAYS; nothing below may mean it.
        (self.fraction() * 4_294_967_296.0).round() as u32
    }
}

impl FromStr for Percent {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let number = text.strip_suffix('%').unwrap_or(text).trim();
        let percent =
            number.parse::<f64>().ok().filter(|percent| percent.is_finite()).ok_or_else(|| {
                Invalid::new("not a percentage; write it as 30% or 0.01%, between 0% and 100%")
            })?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(Invalid::new("a percentage lies between 0% and 100%"));
        }
        let chance = Self(percent.abs());
        if chance.0 > 0.0 && chance.threshold() == 0 {
            return Err(Invalid::new("too small; the smallest chance is 0.00000003%"));
        }
        if chance.0 < 100.0 && chance.threshold() == ALWAYS {
            return Err(Invalid::new("too close to 100%; write 100%"));
        }
        Ok(chance)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn thresholds() {
        let threshold = |text: &str| text.parse::<Percent>().map(Percent::threshold);
        assert_eq!(threshold("0%"), Ok(0));
        assert_eq!(threshold("50"), Ok(1 << 31));
        assert_eq!(threshold("50 %"), Ok(1 << 31));
        assert_eq!(threshold("0.01%"), Ok(429_497));
        assert_eq!(threshold("100%"), Ok(ALWAYS));
    }

    #[test]
    fn refused() {
        for text in ["", "%", "abc", "-5%", "130%", "100.1", "nan", "inf%", "1e-9%", "99.99999999%", "30%%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn monotonic(a in 0.0..=100.0_f64, b in 0.0..=100.0_f64) {
            let threshold = |percent: f64| Percent(percent).threshold();
            prop_assert!(threshold(a.min(b)) <= threshold(a.max(b)));
        }

        #[test]
        fn printed_as_read(hundredths in 0..=10_000_u32) {
            let text = format!("{}%", f64::from(hundredths) / 100.0);
            prop_assert_eq!(text.parse::<Percent>().map(|percent| percent.to_string()), Ok(text));
        }
    }
}
