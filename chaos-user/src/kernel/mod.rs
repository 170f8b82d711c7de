//! The only place that talks to the kernel.

pub mod attach;
pub mod btf;
pub mod calls;
pub(crate) mod cgroups;
pub mod change;
pub mod clock;
pub mod code;
pub mod counters;
pub mod detour;
pub mod ethtool;
pub mod fields;
pub mod filter;
mod gone;
pub mod hold;
pub mod hook;
pub mod mappings;
mod maps;
pub mod mechanism;
pub mod memory;
pub mod netlink;
pub mod object;
pub(crate) mod own_thread;
pub mod peers;
pub mod probe;
pub mod process;
pub mod prod;
pub mod programs;
pub mod quiet;
pub mod reach;
pub mod roll;
pub mod signals;
pub mod sockets;
pub mod stop;
pub mod sys;
pub mod throttle;
pub mod time;
pub mod vdso;
pub mod wiring;

use std::io;

use crate::host::rights;

/// A call the kernel refused: which, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{call} on {object}: {source}{}", rights::hint(call, object, source))]
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

    /// What aya says, causes included.
    pub(crate) fn aya(call: &'static str, object: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let error_text = error.to_string();
            if !text.contains(&error_text) {
                text = format!("{text}: {error_text}");
            }
            cause = error.source();
        }
        Self::new(call, object, io::Error::other(text))
    }

    /// The `errno`, 0 if there was none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}
