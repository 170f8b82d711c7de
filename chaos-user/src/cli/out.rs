//! Where commands print: standard output, whose errors are its own, and standard error, whose errors are nobody's.

use std::{
    fmt::{self, Display},
    io::{self, StdoutLock, Write},
};

use serde::Serialize;

use crate::spec::{one, shown_json};

/// Standard output cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output: {0}")]
pub struct OutputError(pub(super) io::Error);

/// Standard output, locked. `writeln!` on it writes a line, as it may be shown, and fails with [`OutputError`], so that nothing else
/// is taken for that.
pub(super) struct Stdout(StdoutLock<'static>);

impl Stdout {
    pub(super) fn lock() -> Self {
        Self(io::stdout().lock())
    }

    pub(super) fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> Result<(), OutputError> {
        self.text(&one(line))
    }

    /// Lines that are as they may be shown.
    pub(super) fn text(&mut self, lines: &str) -> Result<(), OutputError> {
        self.0.write_all(lines.as_bytes()).map_err(OutputError)
    }

    /// A line of JSON.
    pub(super) fn json(&mut self, object: &impl Serialize) -> Result<(), OutputError> {
        let text = serde_json::to_string(object).map_err(|error| OutputError(error.into()))?;
        self.text(&format!("{}\n", shown_json(&text)))
    }
}

/// Says something on standard error. If nobody hears it there, nobody does.
pub(super) fn say(what: impl Display) {
    let _ = io::stderr().write_all(one(format_args!("faultline: {what}\n")).as_bytes());
}
