//! Which test is to run where: `tests/cells.txt`, as `fl-tests` reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cargo::shown;

/// A row of the list.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    test: String,
    cells: BTreeMap<String, String>,
}

/// The list.
#[derive(Debug)]
pub(crate) struct Cells(Vec<Row>);

impl Cells {
    /// Asks `fl-tests` in this folder.
    ///
    /// # Errors
    ///
    /// If it cannot say.
    pub(crate) fn ask(folder: &Path) -> Result<Self> {
        let mut command = Command::new(folder.join("fl-tests"));
        command.args(["--list", "--json"]);
        let output = command.output().with_context(|| shown(&command))?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "`{}`: {}",
            shown(&command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let rows = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
        Ok(Self(rows.collect::<Result<_>>()?))
    }

    /// Whether a kernel has a column.
    pub(crate) fn has(&self, kernel: &str) -> bool {
        self.0.iter().any(|row| row.cells.contains_key(kernel))
    }

    /// The tests that are to run on a kernel: in the gate, or with `--every-kernel`.
    pub(crate) fn wanted(&self, kernel: &str, every_kernel: bool) -> BTreeSet<&str> {
        let is_wanted = |cell: &String| cell == "gate" || every_kernel && cell == "full";
        let rows = self.0.iter().filter(|row| row.cells.get(kernel).is_some_and(is_wanted));
        rows.map(|row| row.test.as_str()).collect()
    }
}

#[cfg(test)]
impl Cells {
    /// Rows of a test's.
    pub(crate) fn of(rows: &[(&str, &[(&str, &str)])]) -> Self {
        let cells = |cells: &[(&str, &str)]| {
            cells.iter().map(|(kernel, cell)| (kernel.to_string(), cell.to_string())).collect()
        };
        Self(rows.iter().map(|(test, row)| Row { test: test.to_string(), cells: cells(row) }).collect())
    }
}
