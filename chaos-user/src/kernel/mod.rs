//! The only place that talks to the kernel.

pub mod netlink;
pub mod sys;

use std::io;

/// A call the kernel refused: which, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{call} on {object}: {source}")]
pub struct Error {
    /// The system call or file operation.
    pub call: &'static str,
    /// What it was for.
    pub object: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Of a call to the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The kernel's answer to `call` on `object`.
    pub fn new(call: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self { call, object: object.into(), source }
    }

    /// The `errno`, 0 if there was none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}
