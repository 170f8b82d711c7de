//! The life of a fault as others see it: it ends when it should, however its owner ends; what cannot begin says
//! why and leaves nothing.

mod doctor;
mod driver;
pub(crate) mod elsewhere;
mod ending;
pub(crate) mod environment;
mod input;
pub(crate) mod journal;
pub(crate) mod killed;
mod lease;
mod lookups;
mod output;
mod owners;
mod readers;
pub(crate) mod scene;
mod sweep;
mod trouble;
mod twice;
mod vanishing;

use crate::harness::Test;

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] = &[
    doctor::TESTS,
    driver::TESTS,
    elsewhere::TESTS,
    ending::TESTS,
    environment::TESTS,
    input::TESTS,
    journal::TESTS,
    killed::TESTS,
    lease::TESTS,
    lookups::TESTS,
    output::TESTS,
    owners::TESTS,
    readers::TESTS,
    sweep::TESTS,
    trouble::TESTS,
    twice::TESTS,
    vanishing::TESTS,
];
