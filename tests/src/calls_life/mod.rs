//! The life of a fault of calls: whatever happens to its owner, the calls of its target work again, and those of
//! nobody else ever fail.

mod ending;
mod everything;
mod killed;
mod scene;
mod watched;

use crate::harness::Test;

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] = &[ending::TESTS, everything::TESTS, killed::TESTS];
