//! What can be typed.

use std::{ffi::OsString, time::Duration};

use chaos_ebpf::abi::Window;
use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::NonEmptyStringValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use ipnet::IpNet;

use crate::{
    spec::{
        LossSpec, NetSpec, Percent, PortRange, Protocol, Selectors, Sides, parse_count, parse_duration,
        parse_network, parse_whole,
    },
    target::Netns,
};

/// Separates the faults of one run.
const AND: &str = "--and";

/// Inject faults from inside the Linux kernel. A fault lives exactly as long as the command that injects it.
#[derive(Debug, Parser)]
#[command(name = "faultline", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it lives as long as the process")]
pub(super) enum Command {
    /// Inject a network fault
    Net {
        #[command(subcommand)]
        fault: Net,
    },
    /// List the faults of all owners
    Ps {
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// End faults: ask their owners, and wait until nothing of them is left
    Stop {
        /// Ids, as `faultline ps` shows them
        #[arg(value_name = "ID", required_unless_present = "all")]
        ids: Vec<String>,
        /// All faults of all owners
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Say what this kernel can do, found by trying it on throw-away objects
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Clear away what dead owners have left; every other command does so first
    Sweep,
}

#[derive(Debug, Subcommand)]
pub(super) enum Net {
    /// Lose packets, as a bad wire would: each with the same chance, and nobody is told
    #[command(after_help = "\
--to, --from, --port and --sport describe the packets as they go in the fault's direction. With --direction \
both they describe the conversation as it is sent, and what comes back is matched with the ends exchanged. \
Options of one name are alternatives; options of different names must all be met.\n\n\
Further faults in the same run, each with its own options of the first group, follow after --and:\n  \
faultline net loss 30% --dev eth0 --port 80 --and loss 1% --port 443")]
    Loss {
        #[command(flatten)]
        loss: LossOptions,
        #[command(flatten)]
        run: RunOptions,
    },
}

/// One loss of packets.
#[derive(Debug, Args)]
pub(super) struct LossOptions {
    /// Chance of each matching packet to be lost, such as 30% or 0.01%
    #[arg(value_name = "PERCENT", allow_hyphen_values = true)]
    percent: Percent,
    /// Which packets: those the interface receives, those it sends, or both
    #[arg(long, value_name = "WAY", default_value = "out", hide_default_value = false)]
    direction: Direction,
    /// Only packets to this address or network
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    to: Vec<IpNet>,
    /// Only packets from this address or network
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    from: Vec<IpNet>,
    /// Only packets to this port or range of ports
    #[arg(long, value_name = "N[-M]", allow_hyphen_values = true)]
    port: Vec<PortRange>,
    /// Only packets from this port or range of ports
    #[arg(long, value_name = "N[-M]", allow_hyphen_values = true)]
    sport: Vec<PortRange>,
    /// Only packets of this protocol: tcp, udp, icmp (either family's) or a number
    #[arg(long, value_name = "PROTO")]
    proto: Vec<Protocol>,
    /// Let the first N matching packets through
    #[arg(long, value_name = "N", value_parser = parse_whole, allow_hyphen_values = true, default_value_t = 0, hide_default_value = true)]
    skip: u64,
    /// Act on N matching packets at most, those after the skipped ones
    #[arg(long, value_name = "N", value_parser = parse_count, allow_hyphen_values = true)]
    first: Option<u64>,
    /// Act on each N-th of these only
    #[arg(long, value_name = "N", value_parser = parse_count, allow_hyphen_values = true)]
    every: Option<u64>,
}

/// What all faults of one run share.
#[derive(Debug, Args)]
pub(super) struct RunOptions {
    /// The interface
    #[arg(long, value_name = "IFACE", value_parser = NonEmptyStringValueParser::new())]
    dev: String,
    /// Network namespace of the interface: a name, a path, or pid:N for that of a process
    #[arg(long, value_name = "NAME|PATH|pid:N")]
    netns: Option<Netns>,
    /// Seed of the random numbers, to repeat a run; drawn and shown if not given
    #[arg(long, value_name = "N", value_parser = parse_whole, allow_hyphen_values = true)]
    seed: Option<u64>,
    /// How long, such as 30s, 5m or 1h30m; until interrupted if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    duration: Option<Duration>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Direction {
    In,
    Out,
    Both,
}

/// A fault after `--and`.
#[derive(Debug, Parser)]
#[command(name = "faultline net ... --and", no_binary_name = true, disable_help_subcommand = true)]
pub(super) struct Further {
    #[command(subcommand)]
    fault: FurtherFault,
}

#[derive(Debug, Subcommand)]
enum FurtherFault {
    /// Lose packets
    Loss {
        #[command(flatten)]
        loss: LossOptions,
    },
}

/// The arguments up to the first `--and`, and those of each one after.
pub(super) fn split(arguments: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<Vec<OsString>>) {
    let arguments: Vec<_> = arguments.collect();
    let mut groups = arguments.split(|argument| argument == AND).map(<[_]>::to_vec);
    (groups.next().unwrap_or_default(), groups.collect())
}

/// The faults after each `--and`.
pub(super) fn parse_further(groups: Vec<Vec<OsString>>, cli: &Cli) -> Result<Vec<LossSpec>, clap::Error> {
    if !groups.is_empty() && !matches!(cli.command, Command::Net { .. }) {
        let message = format!("{AND} goes between the faults of one `faultline net`");
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
    }
    let parse = |group: Vec<OsString>| match further(group)?.fault {
        FurtherFault::Loss { loss } => Ok(loss.spec()),
    };
    groups.into_iter().map(parse).collect()
}

fn further(group: Vec<OsString>) -> Result<Further, clap::Error> {
    if group.is_empty() {
        let message = format!("{AND} is followed by a fault; write {AND} loss 1%, or leave it out");
        return Err(Cli::command().error(ErrorKind::MissingSubcommand, message));
    }
    Further::try_parse_from(group).map_err(|error| {
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(name)) if error.kind() == ErrorKind::UnknownArgument => name,
            _ => return error,
        };
        let run = RunOptions::augment_args(clap::Command::new("run"));
        let of_the_run = |name: &str| run.get_arguments().any(|option| option.get_long() == Some(name));
        if unknown.strip_prefix("--").is_some_and(of_the_run) {
            let message = format!("{unknown} is an option of the whole run; write it before the first {AND}");
            return Cli::command().error(ErrorKind::ArgumentConflict, message);
        }
        error
    })
}

impl LossOptions {
    pub(super) fn spec(self) -> LossSpec {
        let Self { percent, direction, to, from, port, sport, proto, skip, first, every } = self;
        let sides = match direction {
            Direction::In => Sides::In,
            Direction::Out => Sides::Out,
            Direction::Both => Sides::Both,
        };
        let window = Window { skip, first: first.unwrap_or(u64::MAX), every: every.unwrap_or(1) };
        LossSpec { percent, sides, selectors: Selectors { to, from, port, sport, proto }, window }
    }
}

impl RunOptions {
    pub(super) fn spec(&self, faults: Vec<LossSpec>) -> NetSpec {
        let Self { dev, netns, seed, duration, json: _ } = self;
        NetSpec { device: dev.clone(), netns: netns.clone(), faults, seed: *seed, duration: *duration }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
        Further::command().debug_assert();
    }

    fn parse(line: &str) -> Result<(Cli, Vec<LossSpec>), clap::Error> {
        let (first, further) = split(line.split(' ').map(OsString::from));
        let cli = Cli::try_parse_from(first)?;
        let further = parse_further(further, &cli)?;
        Ok((cli, further))
    }

    #[test]
    fn further_faults() {
        let line = "faultline net loss 30% --dev d --port 80 --and loss 1% --port 443 --and loss 2%";
        let (_, further) = parse(line).expect("valid");
        let shown: Vec<_> = further.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["loss 1% --port 443", "loss 2%"]);
        for line in [
            "faultline ps --and loss 1%",
            "faultline net loss 1% --dev d --and",
            "faultline net loss 1% --dev d --and loss 1% --dev e",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_bad_value_names_its_option() {
        for (option, line) in [
            ("<PERCENT>", "loss 130% --dev d"),
            ("<PERCENT>", "loss -5% --dev d"),
            ("<PERCENT>", "loss abc --dev d"),
            ("--port", "loss 1% --dev d --port 70000"),
            ("--port", "loss 1% --dev d --port 9-8"),
            ("--to", "loss 1% --dev d --to 10.0.0.0/33"),
            ("--from", "loss 1% --dev d --from somewhere"),
            ("--for", "loss 1% --dev d --for "),
            ("--proto", "loss 1% --dev d --proto 256"),
            ("--every", "loss 1% --dev d --every 0"),
            ("--direction", "loss 1% --dev d --direction up"),
            ("--dev", "loss 1%"),
        ] {
            let error = parse(&format!("faultline net {line}")).expect_err(line);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(option), "{line}: {error}");
        }
    }
}
