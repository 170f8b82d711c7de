//! `time skew`: the target's clocks say what was asked, those of everybody else are right, and whatever happens to
//! the owner, so are the target's again.

mod asked;
mod choice;
mod clock;
mod ending;
mod input;
mod kernels;
mod killed;
mod leap;
mod monotonic;
mod numbers;
mod offset;
pub(crate) mod processes;
mod programs;
pub(crate) mod scene;
mod settling;
mod shapes;
mod starts;

use chaos_user::kernel::mechanism::Mechanism;

use crate::harness::{Need, Test};

/// What the vDSO's functions need of a kernel to be skewed, and new processes to be met.
pub(crate) const NEEDS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, Need::Mechanism(Mechanism::VdsoPatch)];

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] = &[
    offset::TESTS,
    choice::TESTS,
    shapes::TESTS,
    leap::TESTS,
    monotonic::TESTS,
    settling::TESTS,
    processes::TESTS,
    starts::TESTS,
    programs::TESTS,
    kernels::TESTS,
    killed::TESTS,
    ending::TESTS,
    asked::TESTS,
    numbers::TESTS,
    input::TESTS,
];
