//! Integration tests: real kernels, real traffic, real processes.
//!
//! `fl-tests` runs them. A test is a function and a row in its file's `TESTS`; this is the only list of files.

pub mod calls;
pub mod cgroup;
pub mod clocks;
pub mod error;
pub mod faultline;
pub mod fidelity;
pub mod harness;
pub mod inventory;
pub mod lab;
pub mod soak;
pub mod stats;
pub mod traffic;
pub mod verified;

mod aim;
mod by_process;
mod calls_life;
mod calls_load;
mod cut;
mod decoys;
mod dns;
mod doctor;
mod failing;
mod fields;
mod ground;
mod hostile;
mod life;
mod loss;
mod names;
mod plan;
mod profile;
mod programs;
mod rights;
mod sever;
mod shape;
mod slow;
mod time;

use harness::Test;

/// Every test there is.
#[must_use]
pub fn tests() -> Vec<&'static Test> {
    let files = [
        decoys::TESTS,
        ground::TESTS,
        doctor::TESTS,
        loss::TESTS,
        shape::TESTS,
        aim::TESTS,
        by_process::TESTS,
        calls_load::TESTS,
        slow::TESTS,
        cut::TESTS,
        sever::TESTS,
        plan::TESTS,
        fields::TESTS,
        profile::TESTS,
        dns::TESTS,
        programs::TESTS,
        programs::storage::TESTS,
    ];
    let folders = [
        life::TESTS,
        calls::TESTS,
        calls_life::TESTS,
        time::TESTS,
        hostile::TESTS,
        rights::TESTS,
        names::TESTS,
        failing::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied();
    files.into_iter().chain(folders).flatten().collect()
}

/// The test of this name, `#3` and the like left out: its third run. Those included that only the runner's own test runs.
#[must_use]
pub fn find(name: &str) -> Option<&'static Test> {
    let name = name.split_once('#').map_or(name, |(name, _)| name);
    tests().into_iter().chain(decoys::DECOYS).find(|test| test.name == name)
}

#[cfg(test)]
mod all_names {
    use std::collections::HashSet;

    #[test]
    fn are_all_different() {
        let tests = super::tests();
        let names: HashSet<_> = tests.iter().map(|test| test.name).collect();
        assert_eq!(names.len(), tests.len());
    }
}
