//! Where Faultline has not all rights, or does not see all of the machine: what cannot be done is refused by the name of what is
//! missing, before anything is begun, and what can be done is.

mod capabilities;
mod confined;
mod delegated;
mod everybody;
mod kernel;
mod namespaces;
mod run;

use std::process::Command;

use chaos_user::kernel::mechanism::Mechanism;

use crate::{
    error::Result,
    faultline::{Exit, Faultline},
    harness::{Need, Test},
};

/// What one fault of each family takes.
const FAMILIES: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::CgroupConnect,
    Need::Mechanism(Mechanism::RawTracepoint),
    Need::Mechanism(Mechanism::VdsoPatch),
];

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] =
    &[capabilities::TESTS, delegated::TESTS, everybody::TESTS, kernel::TESTS, namespaces::TESTS, run::TESTS];

/// Runs what is written here, words parted by single spaces.
fn run_line(line: &str, prepare: impl FnOnce(&mut Command)) -> Result<Exit> {
    Faultline::run_with(&line.split(' ').collect::<Vec<_>>(), prepare)
}
