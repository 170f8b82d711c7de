//! Options by the names that they have elsewhere: they are not taken, but answered with ours.

use std::ffi::OsString;

use clap::{
    Command, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// An option of ours, and the names that other tools have for it.
const NAMES: &[(&str, &[&str])] = &[
    ("for", &["duration", "time"]),
    ("dev", &["interface", "iface", "device"]),
    ("peer", &["host", "target"]),
    ("port", &["dport", "egress-port"]),
    ("sport", &["ingress-port"]),
    ("proto", &["protocol"]),
    ("pid", &["process"]),
    ("unit", &["service"]),
    ("plan", &["dry-run"]),
];

/// Takes words for what they mean.
///
/// # Errors
///
/// What they do not mean, for people.
pub(super) fn parse<T: Parser>(words: Vec<OsString>) -> Result<T, clap::Error> {
    T::try_parse_from(&words).map_err(|mut error| {
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
            && let Some(ours) = ours(option, &T::command(), &words)
        {
            // Nobody means it as a value.
            error.insert(ContextKind::Suggested, ContextValue::None);
            error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{ours}")));
        }
        error
    })
}

/// What an option is called here, of the command that these words are for.
fn ours(option: &str, command: &Command, words: &[OsString]) -> Option<&'static str> {
    let (ours, _) =
        NAMES.iter().find(|(_, others)| others.iter().any(|other| option == format!("--{other}")))?;
    let command =
        words.iter().fold(command, |command, word| command.find_subcommand(word).unwrap_or(command));
    command.get_arguments().any(|option| option.get_long() == Some(ours)).then_some(*ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn names_of_elsewhere_are_answered() {
        for (line, found, said) in [
            ("net loss 1% --dev lo --duration 5s", "--duration", "--for"),
            ("net loss 1% --interface lo", "--interface", "--dev"),
            ("io error EIO --ops read --duration=5s", "--duration", "--for"),
            ("time skew --offset 1h --dry-run", "--dry-run", "--plan"),
        ] {
            let words = format!("faultline {line}").split(' ').map(OsString::from).collect();
            let error = parse::<Cli>(words).expect_err(line).to_string();
            assert!(error.contains(&format!("'{found}' found")), "{line}: {error}");
            assert!(
                error.contains(&format!("exists: '{said}'")) && !error.contains("value"),
                "{line}: {error}"
            );
        }
        let words = "faultline ps --duration 5s".split(' ').map(OsString::from).collect();
        let error = parse::<Cli>(words).expect_err("no such option").to_string();
        assert!(!error.contains("--for"), "{error}");
    }
}
