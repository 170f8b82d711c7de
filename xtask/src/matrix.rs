//! Which test came out how on which kernel.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::{
    test::Counts,
    vm::{Outcome, TestResult},
};

/// The results so far.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    kernels: Vec<String>,
    /// In the order in which they first ran.
    tests: Vec<String>,
    cells: BTreeMap<(String, String), TestResult>,
    /// What is wrong beyond a test that failed.
    broken: Vec<String>,
    /// The runs that a machine which stood still made worthless.
    disturbed: Vec<String>,
}

impl Matrix {
    /// Takes in one line of a test's result and shows it.
    pub(crate) fn accept(&mut self, kernel: &str, line: &str) {
        let Ok(result) = serde_json::from_str::<TestResult>(line) else {
            self.broken(kernel, format!("said what is no result: {line}"));
            return;
        };
        show(kernel, &result);
        if !self.kernels.iter().any(|known| known == kernel) {
            self.kernels.push(kernel.into());
        }
        if !self.tests.contains(&result.test) {
            self.tests.push(result.test.clone());
        }
        if result.outcome == Outcome::Again {
            self.disturbed.push(format!("{kernel} {}", result.test));
        }
        self.cells.insert((result.test.clone(), kernel.into()), result);
    }

    /// Notes that a kernel's run did not go as it should.
    pub(crate) fn broken(&mut self, kernel: &str, words: String) {
        println!("{kernel} {words}");
        self.broken.push(format!("{kernel} {words}"));
        if !self.kernels.iter().any(|known| known == kernel) {
            self.kernels.push(kernel.into());
        }
    }

    /// The table.
    pub(crate) fn print(&self) {
        let widest = |names: &[String]| names.iter().map(String::len).max().unwrap_or(0);
        let (first, column) = (widest(&self.tests).max(4), widest(&self.kernels).max(4));
        print!("\n{:<first$}", "TEST");
        for kernel in &self.kernels {
            print!("  {kernel:<column$}");
        }
        println!();
        for test in &self.tests {
            print!("{test:<first$}");
            for kernel in &self.kernels {
                let word = self.cell(test, kernel).map_or("-", word);
                print!("  {word:<column$}");
            }
            println!();
        }
        if !self.disturbed.is_empty() {
            println!("the machine stood still, and run again were: {}", self.disturbed.join(", "));
        }
    }

    fn cell(&self, test: &str, kernel: &str) -> Option<&TestResult> {
        self.cells.get(&(test.to_string(), kernel.to_string()))
    }

    /// How many cells came out how. A test that began and did not end has failed.
    pub(crate) fn counts(&self) -> Counts {
        let count = |outcomes: &[Outcome]| {
            self.cells.values().filter(|result| outcomes.contains(&result.outcome)).count() as u64
        };
        Counts {
            passed: count(&[Outcome::Pass]),
            failed: count(&[Outcome::Fail, Outcome::Running, Outcome::Again]),
            skipped: count(&[Outcome::Skip]),
        }
    }

    /// Tests that no kernel ran.
    fn unrun(&self) -> Vec<&str> {
        let skipped = |test: &&String| {
            let mut cells = self.kernels.iter().filter_map(|kernel| self.cell(test, kernel));
            cells.all(|result| result.outcome == Outcome::Skip)
        };
        self.tests.iter().filter(skipped).map(String::as_str).collect()
    }

    /// Whether all is as it should be.
    ///
    /// # Errors
    ///
    /// If anything failed; the message says what.
    pub(crate) fn verdict(&self, more: &[String]) -> Result<()> {
        let mut wrong: Vec<String> = self.broken.iter().chain(more).cloned().collect();
        for ((test, kernel), result) in &self.cells {
            match result.outcome {
                Outcome::Fail => wrong.push(format!("{test} failed on {kernel}: {}", result.reason)),
                Outcome::Running | Outcome::Again => {
                    wrong.push(format!("{test} began on {kernel} and did not end"));
                }
                Outcome::Pass | Outcome::Skip => {}
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("not all is well:\n  {}", wrong.join("\n  "))
    }

    /// The same, and no test may have been skipped everywhere.
    ///
    /// # Errors
    ///
    /// As [`verdict`](Self::verdict).
    pub(crate) fn complete_verdict(&self, more: &[String]) -> Result<()> {
        let unrun =
            self.unrun().into_iter().map(|test| format!("{test} was skipped on every kernel there is"));
        self.verdict(&more.iter().cloned().chain(unrun).collect::<Vec<_>>())
    }
}

fn word(result: &TestResult) -> &'static str {
    match result.outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Skip => "skip",
        Outcome::Running | Outcome::Again => "HUNG",
    }
}

fn show(kernel: &str, result: &TestResult) {
    let TestResult { test, outcome, reason, seconds, output } = result;
    match outcome {
        Outcome::Running => {}
        Outcome::Pass => println!("ok   {kernel} {test} ({seconds:.1} s)"),
        Outcome::Skip => println!("skip {kernel} {test}: {reason}"),
        Outcome::Fail | Outcome::Again => {
            let word = if *outcome == Outcome::Fail { "FAIL" } else { "again" };
            println!("{word} {kernel} {test} ({seconds:.1} s): {reason}");
            for line in output.lines() {
                println!("     | {line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(test: &str, outcome: &str) -> String {
        format!(r#"{{"test":"{test}","outcome":"{outcome}","reason":"why"}}"#)
    }

    #[test]
    fn one_red_cell_is_enough() {
        let mut matrix = Matrix::default();
        matrix.accept("host", &line("a", "pass"));
        assert!(matrix.complete_verdict(&[]).is_ok());
        matrix.accept("6.1", &line("a", "fail"));
        assert_eq!(matrix.counts(), Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(matrix.complete_verdict(&[]).is_err());
    }

    #[test]
    fn a_test_must_run_somewhere() {
        let mut matrix = Matrix::default();
        matrix.accept("host", &line("a", "skip"));
        assert!(matrix.verdict(&[]).is_ok() && matrix.complete_verdict(&[]).is_err());
        matrix.accept("6.1", &line("a", "pass"));
        assert!(matrix.complete_verdict(&[]).is_ok());
    }

    #[test]
    fn a_test_that_is_run_again_is_judged_by_that() {
        let mut matrix = Matrix::default();
        for outcome in ["running", "again", "running"] {
            matrix.accept("6.1", &line("a", outcome));
            assert_eq!(matrix.counts(), Counts { passed: 0, failed: 1, skipped: 0 });
            assert!(matrix.verdict(&[]).is_err());
        }
        matrix.accept("6.1", &line("a", "pass"));
        assert_eq!(matrix.counts(), Counts { passed: 1, failed: 0, skipped: 0 });
        assert_eq!(matrix.disturbed, ["6.1 a"]);
    }

    #[test]
    fn a_test_that_does_not_end_has_failed() {
        let mut matrix = Matrix::default();
        matrix.accept("6.1", &line("a", "running"));
        assert!(matrix.verdict(&[]).is_err());
        assert_eq!(matrix.counts().failed, 1);
    }
}
