//! What a command says when it cannot do what was asked.

use clap::error::ErrorKind;
use ipnet::IpNet;

use super::{
    Code,
    out::{OutputError, say},
};
use crate::{
    fault::{CallError, TooMany, net::TooManyWaiting},
    host::HostError,
    kernel::{self, signals},
    session::{ApplyError, Dirty, JournalError, PreviewError, SessionError, SweepError},
    spec::{Invalid, Owner},
    target::{CgroupError, DeviceError, NetnsError, PeerError, PlaceError},
};

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The rules.
    #[error("--and: {0}")]
    Rules(#[from] TooMany),
    /// More than can wait.
    #[error("delay: {0}")]
    Room(#[from] TooManyWaiting),
    /// Faults in system calls that cannot be.
    #[error(transparent)]
    Calls(#[from] CallError),
    /// One that would hit everybody, everywhere.
    #[error(
        "whose calls, or of which files? Say it with --pid, --cgroup, --unit, --container or --path, or write --everything"
    )]
    Unaimed,
    /// Of nobody.
    #[error("whose clocks? Say it with --pid, --cgroup, --unit or --container, or write a command after --")]
    WithoutClocks,
    /// A limit of nobody.
    #[error("who is slow? Say it with --cgroup, --unit or --container")]
    WithoutCgroup,
    /// One that would hit everybody, by a target that is all processes.
    #[error("{0} is every process of this machine: write --everything in its place if that is meant")]
    Everybody(Owner),
    /// What this process may not do, or not where it is.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A limit that would hit whom nothing may hit.
    #[error(
        "{who} is in {place}, and a limit of a cgroup is of all in it; start it elsewhere, or aim at another"
    )]
    Held {
        /// The cgroup.
        place: String,
        /// Who is in it.
        who: &'static str,
    },
    /// Files.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A profile.
    #[error("--profile: {0}")]
    Profile(#[source] Invalid),
    /// One that does not come with Faultline.
    #[error("there is no profile {0}; `faultline profile list` lists those there are")]
    NoBuiltIn(String),
    /// Another profile for a run.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A fault that nobody has.
    #[error("there is no fault {0}; `faultline ps` lists those there are")]
    UnknownFault(String),
    /// The caller is not root.
    #[error("only root can do this: run it through sudo")]
    NotRoot,
    /// The interface.
    #[error("--dev: {0}")]
    Device(#[from] DeviceError),
    /// What is to be left alone.
    #[error("look for your own SSH session, which no fault hits: {0}; --include-protected does not look")]
    Protected(#[source] kernel::Error),
    /// Whose packets.
    #[error(transparent)]
    Target(#[from] CgroupError),
    /// The other hosts.
    #[error("--peer: {0}")]
    Peer(#[source] PeerError),
    /// Those that are left alone.
    #[error("--exclude: {0}")]
    Excluded(#[source] PeerError),
    /// One that is both.
    #[error("{peer} is a --peer and excluded as well: nothing of it would be hit")]
    PeerExcluded {
        /// Its addresses.
        peer: IpNet,
    },
    /// The network namespace.
    #[error("--netns: {0}")]
    Netns(#[from] NetnsError),
    /// What a run needs beside the fault: its signals, threads, random numbers.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The fault itself.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It was ended by an error, and is reverted.
    #[error("the fault was ended before its time: {0}")]
    Ended(#[source] SessionError),
    /// What has become of the command that was started under it.
    #[error("the fault is over; {0}")]
    Command(#[source] kernel::Error),
    /// What it would do.
    #[error("--plan: {0}")]
    Preview(#[from] PreviewError),
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
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Arguments(error) if !error.use_stderr() => Code::Success,
            // What was typed means nothing, on any machine and at any time.
            Self::Arguments(_)
            | Self::Rules(_)
            | Self::Room(_)
            | Self::Calls(_)
            | Self::Everybody(_)
            | Self::Unaimed
            | Self::WithoutClocks
            | Self::WithoutCgroup
            | Self::Place(PlaceError::Glob(_))
            | Self::Profile(_)
            | Self::NoBuiltIn(_)
            | Self::PeerExcluded { .. }
            | Self::UnknownFault(_)
            | Self::Apply(ApplyError::Several { .. } | ApplyError::Without { .. } | ApplyError::Room(_)) => {
                Code::InvalidInput
            }
            Self::Peer(error) | Self::Excluded(error) if error.is_of_words() => Code::InvalidInput,
            // What lies there is not known.
            Self::Sweep(SweepError::Journal(JournalError::Refused { .. })) => Code::Dirty,
            // It cannot be done here, or now.
            Self::NotRoot
            | Self::Host(_)
            | Self::Held { .. }
            | Self::Place(_)
            | Self::Device(_)
            | Self::Protected(_)
            | Self::Target(_)
            | Self::Apply(_)
            | Self::Preview(_)
            | Self::Peer(_)
            | Self::Excluded(_)
            | Self::Netns(_)
            | Self::Kernel(_)
            | Self::Journal(_)
            | Self::Sweep(SweepError::Journal(_)) => Code::NotStarted,
            Self::Session(SessionError::Interrupted) => Code::Interrupted,
            Self::Session(SessionError::Dirty(_) | SessionError::Left { .. }) => Code::Dirty,
            Self::Session(_) => Code::NotStarted,
            Self::Sweep(_) | Self::Dirty(_) => Code::Dirty,
            Self::Ended(_) | Self::Command(_) | Self::Output(_) => Code::Aborted,
        }
    }

    /// Prints it, once. A signal ends what waits for somebody to read it, with the same code.
    pub fn print(&self) {
        signals::end_with(self.code().number());
        match self {
            // Whoever has asked for it knows.
            Self::Session(SessionError::Interrupted) => {}
            // Help, asked for or for want of anything else, and version.
            Self::Arguments(error)
                if !error.use_stderr()
                    || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
            {
                drop(error.print());
            }
            Self::Arguments(error) => say(sentence(&error.to_string())),
            error => say(error),
        }
    }
}

/// What clap says in paragraphs, as one sentence and without the usage: it names the option already.
fn sentence(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraphs = text.split("\n\n").map(str::trim);
    let help = |paragraph: &str| ["Usage:", "For more"].iter().any(|help| paragraph.starts_with(help));
    let told = paragraphs.filter(|paragraph| !paragraph.is_empty() && !help(paragraph));
    let line = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    // Of a misspelt option it is said how to pass it as a value, which nobody has in mind here.
    let useful = |line: String| match line.starts_with("tip: to pass") {
        true => "--help lists what there is".into(),
        false => line,
    };
    told.map(line).map(useful).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence() {
        let text = "error: unexpected argument '--dve' found\n\n  tip: a similar argument exists: '--dev'\n\n\
                    Usage: faultline net loss --dev <IFACE> <PERCENT>\n\nFor more information, try '--help'.\n";
        let tip = "error: unexpected argument '-x' found\n\n  tip: to pass '-x' as a value, use '-- -x'\n";
        assert_eq!(sentence(tip), "unexpected argument '-x' found; --help lists what there is");
        let expected = "unexpected argument '--dve' found; tip: a similar argument exists: '--dev'";
        assert_eq!(sentence(text), expected);
        let text =
            "error: the following required arguments were not provided:\n  --dev <IFACE>\n\nUsage: x\n";
        assert_eq!(sentence(text), "the following required arguments were not provided: --dev <IFACE>");
    }
}
