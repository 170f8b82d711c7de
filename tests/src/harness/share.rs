//! Which tests run where, when several kernels run them between them.

use std::str::FromStr;

use chaos_user::kernel::mechanism::Mechanism;

use super::{Need, Test};

/// What every kernel runs, by the beginnings of names: whatever a kernel's verifier, types and hooks decide, and one test
/// of each family from its beginning to its end.
const EVERYWHERE: [&str; 20] = [
    "aim::loss_hits_one_cgroup",
    "by_process::sockets_it_has",
    "calls::every_operation_by",
    "calls::path_on_overlayfs",
    "calls_life::killed",
    "calls_load::",
    "cut::blackhole",
    "dns::answers_over_tcp",
    "doctor::",
    "ground::faultline_is_driven",
    "life::killed",
    "load::",
    "loss::every_protocol",
    "profile::each_peer",
    "sever::refuse_one_cgroup",
    "shape::delay",
    "time::an_offset_is_kept",
    "time::killed_with_its_guard",
    "time::system_calls_too",
    "time::who_comes_later",
];

/// What a kernel is configured with, or not, whatever its version: only those that are can run what needs it.
const CONFIGURED: [Mechanism; 2] = [Mechanism::FmodRetSyscall, Mechanism::KprobeOverride];

/// One of so many shares of the tests that no kernel decides the outcome of: `2/3`; `0/3` is the tests that every kernel is
/// to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    number: u64,
    of: u64,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let numbers =
            words.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if number <= of && of > 0 => Ok(Self { number, of }),
            _ => Err(format!("`{words}` is no share; say 1/2 for the first of two")),
        }
    }
}

impl Share {
    /// Whether a test is in it.
    #[must_use]
    pub fn has(self, test: &Test) -> bool {
        // By name, so that a new test does not move all others.
        let number = if is_everywheres(test) { 0 } else { hash(test.name) % self.of + 1 };
        number == self.number
    }
}

fn is_everywheres(test: &Test) -> bool {
    let is_configured =
        |need: &Need| matches!(need, Need::Mechanism(mechanism) if CONFIGURED.contains(mechanism));
    EVERYWHERE.iter().any(|beginning| test.name.starts_with(beginning))
        || test.needs.iter().any(is_configured)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(of: u64) -> Vec<Share> {
        (0..=of).map(|number| Share { number, of }).collect()
    }

    #[test]
    fn every_test_is_in_one() {
        for test in crate::tests() {
            let holders: Vec<_> = shares(3).into_iter().filter(|share| share.has(test)).collect();
            assert!(
                matches!(holders[..], [one] if (one.number == 0) == is_everywheres(test)),
                "{}",
                test.name
            );
        }
    }

    #[test]
    fn shares_are_of_about_one_size() {
        let size = |share: Share| crate::tests().into_iter().filter(|test| share.has(test)).count();
        let sizes: Vec<_> = shares(2).into_iter().skip(1).map(size).collect();
        assert!(sizes[0].abs_diff(sizes[1]) * 5 < sizes[0] + sizes[1], "{sizes:?}");
    }

    #[test]
    fn every_beginning_is_one_of_a_test() {
        for beginning in EVERYWHERE {
            assert!(crate::tests().iter().any(|test| test.name.starts_with(beginning)), "{beginning}");
        }
    }

    #[test]
    fn words() {
        assert_eq!("2/3".parse(), Ok(Share { number: 2, of: 3 }));
        for bad in ["", "1", "3/2", "1/0", "0/0", "-1/2", "1/2/3"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }
}
