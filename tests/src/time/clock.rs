//! What clocks should say, and how far they are from it.

use crate::{
    clocks::{Reading, Source},
    ensure,
    error::Result,
};

pub(super) use crate::clocks::{Clock, REFERENCE, path};

pub(super) const MILLISECOND: i64 = 1_000_000;
pub(super) const SECOND: i64 = 1_000 * MILLISECOND;

/// How far a clock may be from what it should say.
const NEAR: i64 = MILLISECOND;

/// Where the right clock is, from a reference: this process's clocks, which nobody skews.
pub(super) fn truth(source: Source, reference: Source) -> Result<Reading> {
    source.truth(reference)
}

/// How far a reading beside [`REFERENCE`] is ahead of the truth.
pub(super) fn skew(reading: &Reading) -> Result<i64> {
    reading.skew()
}

/// Fails unless a reading is ahead of the truth by so much, or behind that by what its source may be.
pub(super) fn expect(reading: &Reading, reference: Source, skew: i64) -> Result {
    let truth = truth(reading.source, reference)?;
    let off = reading.ahead() - truth.ahead() - skew;
    let near = NEAR + reading.doubt() + truth.doubt();
    let right = off <= near && off >= -near - reading.source.lag();
    ensure!(right, "{} by {:?} is {off} ns from {skew} ns ahead: {reading:?}", reading.source, reading.way);
    Ok(())
}
