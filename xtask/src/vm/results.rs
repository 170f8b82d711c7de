//! What tests say in a guest, one JSON object to a line, and how the guest itself ends.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What init says about the guest itself begins so.
const GUEST: &str = "@guest ";

/// The line with which init ends; also the last on the console, but there the kernel may write into it.
const EXIT: &str = "@guest exit ";

/// The line with which init hands over to the command.
const UP: &str = "@guest up";

/// How a test went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// Started. What a test that hangs or takes the kernel down with it leaves behind.
    Running,
    Pass,
    Fail,
    Skip,
    /// It failed while the machine stood still, and is run again.
    Again,
}

/// One line of a test's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestResult {
    pub(crate) test: String,
    pub(crate) outcome: Outcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) seconds: f64,
    #[serde(default)]
    pub(crate) cpu_seconds: f64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) output: String,
}

/// What a guest has said so far on its results port.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Results {
    /// Each test's last word, in the order in which they began.
    pub(crate) tests: Vec<TestResult>,
    /// Lines that are no results: of a run of tests, a bug in whatever wrote them.
    pub(crate) stray: Vec<String>,
    /// Whether the guest got as far as the command.
    pub(crate) up: bool,
    /// The status of the guest's command, once it has ended.
    pub(crate) exit: Option<i32>,
}

impl Results {
    /// Takes in one line.
    fn accept(&mut self, line: &str) {
        if let Some(status) = line.strip_prefix(EXIT) {
            self.exit = status.parse().ok();
            return;
        }
        if line == UP {
            self.up = true;
            return;
        }
        let Ok(result) = serde_json::from_str::<TestResult>(line) else {
            self.stray.push(line.to_owned());
            return;
        };
        match self.tests.iter_mut().find(|known| known.test == result.test) {
            Some(known) => *known = result,
            None => self.tests.push(result),
        }
    }
}

/// Reads the results while the guest writes them.
#[derive(Debug)]
pub(crate) struct Follower {
    file: File,
    unread: Vec<u8>,
    pub(crate) results: Results,
}

impl Follower {
    /// Creates the file, for QEMU to write to.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let context = || format!("creating {}", path.display());
        File::create(path).with_context(context)?;
        let file = File::open(path).with_context(context)?;
        Ok(Self { file, unread: Vec::new(), results: Results::default() })
    }

    /// Takes in the lines that have been completed since, giving each that is a test's to `on_line`.
    pub(crate) fn follow(&mut self, on_line: &mut dyn FnMut(&str)) -> Result<()> {
        self.file.read_to_end(&mut self.unread).context("reading the guest's results")?;
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            if !line.starts_with(GUEST) {
                on_line(line);
            }
            self.results.accept(line);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_test_counts() {
        let mut results = Results::default();
        results.accept(r#"{"test":"a","outcome":"running"}"#);
        results.accept(r#"{"test":"a","outcome":"pass","seconds":1.5}"#);
        results.accept(r#"{"test":"b","outcome":"running"}"#);
        results.accept("{torn");
        assert_eq!(results.tests[1].outcome, Outcome::Running);
        assert_eq!((results.tests[0].outcome, results.tests[0].seconds), (Outcome::Pass, 1.5));
        assert_eq!(results.stray, ["{torn"]);
        assert_eq!(results.exit, None);
        results.accept("@guest exit 3");
        assert_eq!(results.exit, Some(3));
    }
}
