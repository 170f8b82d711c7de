//! The command line: what can be typed, and what is printed.

mod args;
mod call_args;
mod calls;
mod command;
mod doctor;
mod error;
mod interval;
mod net;
mod out;
mod owners;
mod printer;
mod profile;
mod report;
mod shell;
mod slow;
mod synonyms;
mod time;
mod verdict;
mod whom;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    host::{HostError, release},
    kernel::probe,
    spec::Family,
};
use args::{Cli, Command};
pub use error::CliError;
pub use out::OutputError;
use slow::FileCommand;
use time::TimeCommand;

/// How a command ended: the exit codes of design.md §8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Done; for a fault: it was observed and all is reverted.
    Success,
    /// What was asked makes no sense.
    InvalidInput,
    /// Nothing was begun.
    NotStarted,
    /// Ended before its time by something that nobody asked for; reverted.
    Aborted,
    /// The fault never fired.
    Inconclusive,
    /// Something could not be reverted.
    Dirty,
    /// Ended by a signal; reverted.
    Interrupted,
    /// That of the program it was told to start.
    OfCommand(u8),
}

impl Code {
    /// As a number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::InvalidInput => 2,
            Self::NotStarted => 3,
            Self::Aborted => 4,
            Self::Inconclusive => 5,
            Self::Dirty => 6,
            Self::Interrupted => 130,
            Self::OfCommand(code) => code,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Runs one command.
///
/// # Errors
///
/// [`CliError`], which knows how to print itself and the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<Code, CliError> {
    let (first, words, further) = args::split(arguments)?;
    let cli: Cli = synonyms::parse(first)?;
    let further = args::parse_further(further, &cli)?;
    if !matches!(cli.command, Command::Completion { .. } | Command::Manual { .. }) {
        release::require(release::running()?).map_err(HostError::from)?;
    }
    match cli.command {
        Command::Net { fault, run } => net::run(fault.spec(words)?, further, &run),
        Command::Io { command: FileCommand::Calls(command) } => calls::run(command.typed()?),
        Command::Io { command: FileCommand::Slow(options) } => slow::run(options),
        Command::Sys { command } => calls::run(command.typed()?),
        Command::Mem { command } => calls::run(command.typed(Family::Mem)?),
        Command::Fd { command } => calls::run(command.typed(Family::Fd)?),
        Command::Fork { command } => calls::run(command.typed(Family::Fork)?),
        Command::Sock { command } => calls::run(command.typed(Family::Sock)?),
        Command::Deny { fault } => calls::run(fault.typed()?),
        Command::Time { command: TimeCommand::Skew(options) } => time::run(*options),
        Command::Guard { id } => owners::guard(&id),
        Command::Ps { json } => owners::ps(json),
        Command::Stop { ids, all } => owners::stop(&ids, all),
        Command::Doctor { json } => doctor::run(json),
        Command::Profile { command } => profile::run(&command),
        Command::Completion { shell } => shell::completion(shell),
        Command::Manual { folder } => shell::manual(&folder),
        Command::Sweep => {
            probe::remove_stale();
            owners::sweep()
        }
    }
}
