//! Faults of system calls and of what is done to files: who is hit, by what, and who is not.

mod board;
mod corrupt;
mod delay;
mod families;
mod fault;
mod folder;
mod full;
mod input;
mod matrix;
mod operator;
mod ops;
mod path;
mod select;
mod servant;
mod sockets;
mod triggers;
mod whom;

use chaos_user::kernel::mechanism::Mechanism;
pub use servant::serve;

use crate::harness::{Need, Test};

/// What the first choice among mechanisms needs.
const LSM: &[Need] = &[Need::Root, Need::CgroupV2, Need::Mechanism(Mechanism::Lsm)];

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] = &[
    matrix::TESTS,
    families::TESTS,
    full::TESTS,
    triggers::TESTS,
    whom::TESTS,
    path::TESTS,
    path::mounts::TESTS,
    select::TESTS,
    delay::TESTS,
    corrupt::TESTS,
    input::TESTS,
];
