//! Processes that do not cooperate, beside those that are meant and among them: no command waits for them, what was not looked at is
//! said, and whoever is meant is hit and spared as if they were not there.

mod commands;
mod forged;
mod kin;
mod locked;
mod many;
mod program;
mod stopped;
mod vforks;

use crate::{
    harness::{Need, Test},
    time::NEEDS,
};

/// What a process needs to serve a file system besides.
const FUSE: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Fuse];
/// And to have its arguments lie there, or to say that its vDSO is elsewhere.
const ANYWHERE: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Fuse, Need::Placement];

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] =
    &[commands::TESTS, many::TESTS, locked::TESTS, forged::TESTS, vforks::TESTS, stopped::TESTS, kin::TESTS];
