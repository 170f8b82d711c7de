//! Where commands print: standard output, whose errors are its own, and standard error, whose errors are nobody's.

use std::{
    fmt::{self, Display},
    io::{self, StdoutLock, Write},
};

/// Standard output cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output: {0}")]
pub struct OutputError(pub(super) io::Error);

/// Standard output, locked. `write!` and `writeln!` on it fail with [`OutputError`], so that nothing else is taken for that.
pub(super) struct Stdout(StdoutLock<'static>);

impl Stdout {
    pub(super) fn lock() -> Self {
        Self(io::stdout().lock())
    }

    pub(super) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), OutputError> {
        self.0.write_fmt(text).map_err(OutputError)
    }
}

/// Says something on standard error. If nobody hears it there, nobody does.
pub(super) fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "faultline: {what}");
}
