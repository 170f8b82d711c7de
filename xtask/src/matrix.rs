//! Which test came out how on which kernel.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::{
    cells::Cells,
    test::Counts,
    vm::{Outcome, TestResult},
};

/// How many tests the closing table names that took longest.
const SLOWEST: usize = 20;

/// The results so far.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    kernels: Vec<String>,
    /// In the order in which they first ran.
    tests: Vec<String>,
    cells: BTreeMap<(String, String), TestResult>,
    /// What is wrong beyond a test that failed.
    broken: Vec<String>,
    /// The runs that a machine which stood still made worthless, and why.
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
        self.know(kernel);
        if !self.tests.contains(&result.test) {
            self.tests.push(result.test.clone());
        }
        if result.outcome == Outcome::Again {
            self.disturbed.push(format!("{kernel} {}: {}", result.test, result.reason));
        }
        self.cells.insert((result.test.clone(), kernel.into()), result);
    }

    /// Notes that a kernel's run did not go as it should.
    pub(crate) fn broken(&mut self, kernel: &str, words: String) {
        println!("{kernel} {words}");
        self.broken.push(format!("{kernel} {words}"));
        self.know(kernel);
    }

    fn know(&mut self, kernel: &str) {
        if !self.kernels.iter().any(|known| known == kernel) {
            self.kernels.push(kernel.into());
        }
    }

    /// Fails each cell that was to run on a kernel and did not. A kernel without a column loses none.
    pub(crate) fn hold_against(&mut self, cells: &Cells, kernel: &str, every_kernel: bool) {
        let wanted = cells.wanted(kernel, every_kernel);
        let mut lost: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for test in wanted {
            let why = match self.cell(test, kernel) {
                None => "it did not run".to_owned(),
                Some(result) if result.outcome == Outcome::Skip => format!("skipped, {}", result.reason),
                Some(_) => continue,
            };
            lost.entry(why).or_default().insert(test.to_owned());
        }
        for (why, tests) in lost {
            let tests = tests.into_iter().collect::<Vec<_>>().join(", ");
            self.broken(kernel, format!("was to run, by tests/cells.txt, {tests}: {why}"));
        }
    }

    /// The table, the slowest tests and what was run again.
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
        println!("\n{:<first$}  {:>7}  {:>7}  KERNEL", "SLOWEST", "SECONDS", "CPU");
        let mut slowest: Vec<_> = self.cells.iter().collect();
        slowest.sort_by(|(_, one), (_, other)| other.seconds.total_cmp(&one.seconds));
        for ((test, kernel), TestResult { seconds, cpu_seconds, .. }) in slowest.into_iter().take(SLOWEST) {
            println!("{test:<first$}  {seconds:>7.1}  {cpu_seconds:>7.1}  {kernel}");
        }
        println!("\nrun again, as the machine stood still: {}", self.disturbed.len());
        for words in &self.disturbed {
            println!("  {words}");
        }
    }

    fn cell(&self, test: &str, kernel: &str) -> Option<&TestResult> {
        self.cells.get(&(test.to_string(), kernel.to_string()))
    }

    /// How many cells came out how. A test that began and did not end has failed.
    pub(crate) fn counts(&self) -> Counts {
        let mut found = Counts::default();
        for result in self.cells.values() {
            match result.outcome {
                Outcome::Pass => found.passed += 1,
                Outcome::Skip => found.skipped += 1,
                Outcome::Fail | Outcome::Running | Outcome::Again => found.failed += 1,
            }
        }
        found
    }

    /// Tests that failed, in words.
    fn failures(&self) -> impl Iterator<Item = (String, &TestResult)> {
        self.cells.iter().filter_map(|((test, kernel), result)| match result.outcome {
            Outcome::Fail => Some((format!("{test} failed on {kernel}: {}", result.reason), result)),
            Outcome::Running | Outcome::Again => {
                Some((format!("{test} began on {kernel} and did not end"), result))
            }
            Outcome::Pass | Outcome::Skip => None,
        })
    }

    /// What is not as it should be: tests by their names, and what else it is in words.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let failed = self.failures().map(|(_, result)| result.test.clone());
        failed.chain(self.broken.iter().cloned()).collect()
    }

    /// Whether all is as it should be.
    ///
    /// # Errors
    ///
    /// If anything failed; the message says what.
    pub(crate) fn verdict(&self, more: &[String]) -> Result<()> {
        let mut wrong: Vec<String> = self.broken.iter().chain(more).cloned().collect();
        wrong.extend(self.failures().map(|(words, _)| words));
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("not all is well:\n  {}", wrong.join("\n  "))
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
    let TestResult { test, outcome, reason, seconds, output, .. } = result;
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
        assert!(matrix.verdict(&[]).is_ok());
        matrix.accept("6.1", &line("a", "fail"));
        assert_eq!(matrix.counts(), Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(matrix.verdict(&[]).is_err());
    }

    #[test]
    fn a_cell_that_is_lost_fails() {
        let cells = Cells::of(&[
            ("a", &[("6.1", "gate"), ("6.12", "full")]),
            ("b", &[("6.1", "-"), ("6.12", "slow")]),
        ]);
        let run = |outcome: &str, kernel: &str, every_kernel| {
            let mut matrix = Matrix::default();
            matrix.accept("6.1", &line("a", outcome));
            matrix.hold_against(&cells, kernel, every_kernel);
            matrix.verdict(&[])
        };
        assert!(run("pass", "6.1", false).is_ok() && run("pass", "6.1", true).is_ok());
        assert!(run("skip", "6.1", false).is_err());
        assert!(run("pass", "6.12", false).is_ok());
        assert!(run("pass", "6.12", true).is_err());
        assert!(run("pass", "another", true).is_ok());
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
        assert_eq!(matrix.disturbed, ["6.1 a: why"]);
    }

    #[test]
    fn a_test_that_does_not_end_has_failed() {
        let mut matrix = Matrix::default();
        matrix.accept("6.1", &line("a", "running"));
        assert!(matrix.verdict(&[]).is_err());
        assert_eq!(matrix.counts().failed, 1);
    }
}
