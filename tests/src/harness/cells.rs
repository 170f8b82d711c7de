//! Where each test runs: `tests/cells.txt`, a row for each test and a column for each kernel.
//!
//! The gate runs what is marked for it and tries what a kernel is said to lack, which is then skipped; all else runs with
//! `--every-kernel` alone. A cell that is to run and is skipped, or missing, fails the run: `cargo xtask test` looks.

use std::{collections::BTreeMap, str::FromStr};

use super::Test;

const FILE: &str = include_str!("../../cells.txt");

/// What a row says of a test on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// It runs in the gate.
    Gate,
    /// It runs with `--every-kernel` alone.
    Full,
    /// The kernel, or the machine it runs on, lacks what it needs.
    Lacks,
    /// It is left out under emulation.
    Slow,
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "gate" => Ok(Self::Gate),
            "full" => Ok(Self::Full),
            "-" => Ok(Self::Lacks),
            "slow" => Ok(Self::Slow),
            _ => Err(format!("`{word}` is no cell: gate, full, slow or -")),
        }
    }
}

/// The list.
#[derive(Clone, Debug)]
pub struct Cells {
    kernels: Vec<&'static str>,
    rows: BTreeMap<&'static str, Vec<Cell>>,
}

impl Cells {
    /// As it is committed.
    ///
    /// # Errors
    ///
    /// If a line of it is not understood.
    pub fn read() -> Result<Self, String> {
        let mut lines = FILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let head = lines.next().unwrap_or_default();
        let kernels: Vec<_> = head.split_whitespace().skip(1).collect();
        let mut rows = BTreeMap::new();
        for line in lines {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let cells = words.map(str::parse).collect::<Result<Vec<Cell>, _>>();
            let cells = cells.map_err(|error| format!("{name}: {error}"))?;
            if cells.len() != kernels.len() {
                return Err(format!("{name}: {} cells for {} kernels", cells.len(), kernels.len()));
            }
            if rows.insert(name, cells).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        Ok(Self { kernels, rows })
    }

    /// The kernels that have a column.
    #[must_use]
    pub fn kernels(&self) -> &[&'static str] {
        &self.kernels
    }

    /// What it says of a test on a kernel; nothing of a kernel without a column.
    #[must_use]
    pub fn cell(&self, test: &Test, kernel: &str) -> Option<Cell> {
        let column = self.kernels.iter().position(|known| *known == kernel)?;
        self.rows.get(test.name)?.get(column).copied()
    }

    /// A test's cells, by kernel.
    #[must_use]
    pub fn row(&self, test: &Test) -> BTreeMap<&'static str, Cell> {
        let cells = self.rows.get(test.name).into_iter().flatten().copied();
        self.kernels.iter().copied().zip(cells).collect()
    }
}

/// One of so many hands that tests are dealt to: `2/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hand {
    number: usize,
    of: usize,
}

impl FromStr for Hand {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let numbers =
            words.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(format!("`{words}` is no hand; say 1/2 for the first of two")),
        }
    }
}

impl Hand {
    /// The tests of this hand, in their order: those that may take longest are dealt first, forth and back.
    #[must_use]
    pub fn of<'a>(self, tests: &[&'a Test]) -> Vec<&'a Test> {
        let mut order: Vec<usize> = (0..tests.len()).collect();
        order.sort_by_key(|place| (std::cmp::Reverse(tests[*place].timeout), tests[*place].name));
        let mut mine: Vec<usize> = order
            .into_iter()
            .enumerate()
            .filter(|(turn, _)| {
                let (round, seat) = (turn / self.of, turn % self.of);
                let seat = if round.is_multiple_of(2) { seat } else { self.of - 1 - seat };
                seat + 1 == self.number
            })
            .map(|(_, place)| place)
            .collect();
        mine.sort_unstable();
        mine.into_iter().map(|place| tests[place]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A new test has a row, and one that is gone has none; each runs in the gate on some kernel, but for those that
    /// try other calls each time.
    #[test]
    fn every_test_has_a_row_and_runs_in_the_gate() {
        let cells = Cells::read().expect("the list is understood");
        let names: BTreeSet<_> = crate::tests().iter().map(|test| test.name).collect();
        let rows: BTreeSet<_> = cells.rows.keys().copied().collect();
        let (new, gone): (Vec<_>, Vec<_>) =
            (names.difference(&rows).collect(), rows.difference(&names).collect());
        assert!(new.is_empty(), "add rows to tests/cells.txt for {new:?}");
        assert!(gone.is_empty(), "tests/cells.txt has rows of tests that are not there: {gone:?}");
        for test in crate::tests() {
            let differs = test.name.starts_with("failing::");
            assert!(
                differs || cells.row(test).into_iter().any(|(_, cell)| cell == Cell::Gate),
                "{} does not run in the gate",
                test.name
            );
        }
    }

    /// The attribute decides; the row says it to the reader, and to the look for missing cells.
    #[test]
    fn slow_tests_are_said_to_be() {
        let cells = Cells::read().expect("the list is understood");
        for test in crate::tests() {
            for (kernel, cell) in cells.row(test).into_iter().filter(|(kernel, _)| *kernel != "host") {
                assert!(test.slow == (cell == Cell::Slow), "{} on {kernel}: {cell:?}", test.name);
            }
        }
    }

    #[test]
    fn every_test_is_dealt_once() {
        let tests = crate::tests();
        let hands = ["1/3", "2/3", "3/3"].map(|hand| hand.parse::<Hand>().expect("a hand").of(&tests));
        assert_eq!(hands.iter().map(Vec::len).sum::<usize>(), tests.len());
        let names: BTreeSet<_> = hands.iter().flatten().map(|test| test.name).collect();
        assert_eq!(names.len(), tests.len());
        let sizes = hands.map(|hand| hand.iter().map(|test| test.timeout.as_secs()).sum::<u64>());
        assert!(sizes.iter().max() < sizes.iter().min().map(|least| least * 5 / 4).as_ref(), "{sizes:?}");
    }

    #[test]
    fn words() {
        assert_eq!("2/3".parse(), Ok(Hand { number: 2, of: 3 }));
        for bad in ["", "1", "3/2", "1/0", "0/3", "-1/2", "1/2/3"] {
            assert!(bad.parse::<Hand>().is_err(), "{bad}");
        }
        assert!("run".parse::<Cell>().is_err());
    }
}
