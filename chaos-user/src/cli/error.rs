//! What a command says when it cannot do what was asked.

use super::Code;
use crate::{
    fault::TooManyRules,
    session::{Dirty, JournalError, SessionError, SweepError},
    target::{DeviceError, NetnsError},
};

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] TooManyRules),
    /// A fault that nobody has.
    #[error("there is no fault {0}; `faultline ps` lists those there are")]
    UnknownFault(String),
    /// The caller is not root.
    #[error("only root can do this: run it through sudo")]
    NotRoot,
    /// The interface.
    #[error("--dev: {0}")]
    Device(#[from] DeviceError),
    /// The network namespace.
    #[error("--netns: {0}")]
    Netns(#[from] NetnsError),
    /// The fault itself.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Other owners' faults.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something is left.
    #[error(transparent)]
    Dirty(#[from] Dirty),
    /// Standard output.
    #[error("write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Arguments(error) if !error.use_stderr() => Code::Success,
            Self::Arguments(_) | Self::Rules(_) | Self::UnknownFault(_) => Code::InvalidInput,
            Self::NotRoot
            | Self::Device(_)
            | Self::Netns(_)
            | Self::Session(_)
            | Self::Journal(_)
            | Self::Sweep(SweepError::Journal(_)) => Code::NotStarted,
            Self::Sweep(_) | Self::Dirty(_) => Code::Dirty,
            Self::Output(_) => Code::Aborted,
        }
    }

    /// Prints it, once.
    pub fn print(&self) {
        match self {
            // Colours, usage, and help and version on standard output.
            Self::Arguments(error) => drop(error.print()),
            error => eprintln!("faultline: {error}"),
        }
    }
}
