//! What was asked, what came of it, and who is nearer.

use serde::{Serialize, Serializer};

/// One quantity of one fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// The fault, as it is typed.
    pub(super) name: String,
    /// `out` or `in`.
    pub(super) direction: &'static str,
    /// What was sent.
    pub(super) parameters: String,
    /// What was measured.
    pub(super) quantity: String,
    pub(super) unit: &'static str,
    pub(super) asked: f64,
    /// Without any fault, where that says something.
    pub(super) baseline: Option<f64>,
    pub(super) ours: Option<Figure>,
    pub(super) netem: Option<Figure>,
    pub(super) verdict: String,
}

/// A measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Figure {
    #[serde(serialize_with = "short")]
    pub(super) value: f64,
    /// Half the width of its 95 % interval.
    #[serde(serialize_with = "short")]
    pub(super) ci95: f64,
    /// How far it is from what was asked.
    #[serde(serialize_with = "short")]
    pub(super) error: f64,
    /// The chance that a measurement of the right thing is as far off or further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p: Option<f64>,
}

impl Figure {
    pub(super) fn new(value: f64, asked: f64, ci95: f64) -> Self {
        Self { value, ci95, error: value - asked, p: None }
    }

    pub(super) fn with_p(self, p: f64) -> Self {
        Self { p: Some(p), ..self }
    }
}

/// Nobody measures a millionth of a unit here.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn short<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1e6).round() / 1e6)
}

/// Whether ours is further from what was asked than netem's, by more than what two such measurements of the same
/// thing differ by.
pub(super) fn verdict(ours: Figure, netem: Option<Figure>) -> &'static str {
    let Some(netem) = netem else {
        return if ours.error.abs() <= ours.ci95 { "as asked" } else { "off" };
    };
    let margin = ours.ci95.hypot(netem.ci95);
    // Nothing measured is more than any number.
    let worse = ours.error.abs().total_cmp(&(netem.error.abs() + margin)).is_gt();
    let better = ours.error.abs() + margin < netem.error.abs();
    match (worse, better) {
        (true, _) => "worse",
        (false, true) => "better",
        (false, false) => "no worse",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let figure = |error| Figure::new(10.0 + error, 10.0, 0.3);
        let beside = |ours, netem| verdict(figure(ours), Some(figure(netem)));
        assert_eq!(beside(-0.5, 0.2), "no worse");
        assert_eq!(beside(-0.7, 0.2), "worse");
        assert_eq!(beside(0.1, 2.0), "better");
        assert_eq!(beside(f64::NAN, 2.0), "worse");
        assert_eq!([0.2, 0.4].map(|error| verdict(figure(error), None)), ["as asked", "off"]);
    }
}
