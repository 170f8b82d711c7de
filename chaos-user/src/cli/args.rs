//! What can be typed.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use chaos_ebpf::abi::Window;
use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::NonEmptyStringValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use clap_complete::Shell;
use ipnet::IpNet;

use super::{
    call_args::{DenyOptions, FailCommand, SysCommand},
    slow::FileCommand,
    synonyms,
    time::TimeCommand,
    whom::{WhomOptions, with_everything},
};
use crate::{
    spec::{
        Chance, Cut, Exact, Exclusion, FaultSpec, Glob, Impairments, Loss, NetSpec, Peer, Percent, PortRange,
        Profile, Protocol, Question, Ramp, RecordType, Selectors, Sides, parse_count, parse_duration,
        parse_network, parse_whole, shown,
    },
    target::Netns,
};

/// Separates the faults of one run.
const AND: &str = "--and";

/// Inject faults from inside the Linux kernel. A fault lives exactly as long as the command that injects it.
#[derive(Debug, Parser)]
#[command(name = "faultline", bin_name = "faultline", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Do to an interface's packets what a bad network does, in the words of tc netem
    #[command(
        override_usage = "faultline net FAULT... --dev <IFACE> [OPTIONS] [--and FAULT... [OPTIONS]]...",
        after_help = FAULTS
    )]
    Net {
        #[command(flatten)]
        fault: FaultOptions,
        #[command(flatten)]
        run: RunOptions,
    },
    /// Have what processes do with files fail, take longer, or read what is not there
    Io {
        #[command(subcommand)]
        command: FileCommand,
    },
    /// Have system calls fail or take longer, by their names
    Sys {
        #[command(subcommand)]
        command: SysCommand,
    },
    /// Have memory be refused: --ops mmap,brk
    Mem {
        #[command(subcommand)]
        command: FailCommand,
    },
    /// Have there be no more files to open: EMFILE or ENFILE
    Fd {
        #[command(subcommand)]
        command: FailCommand,
    },
    /// Have there be no more processes and threads
    Fork {
        #[command(subcommand)]
        command: FailCommand,
    },
    /// Have what processes do with sockets fail: --ops create,bind,listen,accept,connect,sendmsg,recvmsg
    Sock {
        #[command(subcommand)]
        command: FailCommand,
    },
    /// Refuse files, sockets or programs, as a security policy would
    Deny {
        #[command(flatten)]
        fault: DenyOptions,
    },
    /// Have processes read wrong clocks, while the host's are right
    Time {
        #[command(subcommand)]
        command: TimeCommand,
    },
    /// What a run starts beside itself, to clean up at once should it be killed.
    #[command(name = crate::session::GUARD, hide = true)]
    Guard {
        /// The run.
        id: String,
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
    /// What links to peers are like: the profiles there are, and another one for a run that has one
    Profile {
        #[command(subcommand)]
        command: ProfileCommand,
    },
    /// Clear away what dead owners have left; every other command does so first
    Sweep,
    /// Print a script with which a shell completes what is typed
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Write the pages of the manual.
    #[command(hide = true)]
    Manual {
        /// Where to.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// List the profiles that come with Faultline
    List,
    /// Print one of them, with the sources of its figures, as a file of one's own would be
    Show {
        /// Its name
        name: String,
    },
    /// Put a profile in the place of the one a run has, at once and without a gap
    Apply {
        /// A file, or the name of one that comes with Faultline
        file: String,
        /// The run, as `faultline ps` shows it; the only one with a profile if not given
        #[arg(long)]
        id: Option<String>,
    },
}

/// What goes into the help of `net`.
const FAULTS: &str = "\
Faults, several of which may follow one another, and happen to the same packets in this order:
  loss PERCENT [CORRELATION]                        lost by chance
  loss gemodel P [R [1-H [1-K]]]                    lost in bursts (Gilbert-Elliott)
  duplicate PERCENT [CORRELATION]                   sent twice
  corrupt PERCENT [CORRELATION] [bits N] [offset N] bits flipped behind the IP header
  reorder PERCENT [CORRELATION] [gap N]             not delayed; needs delay
  rate RATE [OVERHEAD] [burst BYTES] [limit PACKETS] on a wire of 10mbit, say
  delay TIME [JITTER [CORRELATION]] [distribution uniform|normal|pareto|paretonormal|./FILE]
  partition                                         nothing gets through from or to a --peer
  blackhole                                         nothing gets through
  refuse [ERRNO]                                    connect() fails at once: ECONNREFUSED, or another
  reset                                             TCP connections are reset, at both ends
  timeout                                           TCP connections are made, and nothing more gets through
  dns nxdomain|servfail|refused|empty               DNS queries are answered so, at once
  dns drop                                          DNS queries are lost; dns delay 2s, dns loss 30%, ...
A first value written FROM..TO/TIME changes evenly in that time.

--to, --from, --port and --sport describe the packets as they go in the fault's direction. With --direction \
both they describe the conversation as it is sent, and what comes back is matched with the ends exchanged. \
Options of one name are alternatives; options of different names must all be met.

Further faults in the same run, of other packets, each with options of its own, follow after --and:
  faultline net loss 30% --dev eth0 --port 80 --and delay 20ms 5ms --port 443";

/// What is done to which packets.
#[derive(Debug, Args)]
pub(super) struct FaultOptions {
    /// The words that did not come first.
    #[arg(value_name = "FAULT", hide = true)]
    words: Vec<String>,
    /// Give each peer the delay, loss and rate that a profile says: a file with a peer a line, or 3g, lte, satellite,
    /// wifi-bad, dsl, cross-region
    #[arg(long, value_name = "NAME|FILE", value_parser = NonEmptyStringValueParser::new())]
    profile: Option<String>,
    /// Decide on loss once for each packet, or for each flow
    #[arg(long, value_name = "UNIT", default_value = "packet", hide_default_value = true)]
    per: Per,
    /// Let packets with less of a jitter overtake others
    #[arg(long)]
    reorder_by_jitter: bool,
    /// Put checksums right after corruption, so that the application gets the wrong data
    #[arg(long)]
    fix_checksum: bool,
    /// Change a fault's first value evenly: 0..100ms/30s, or delay=0..100ms/30s if there are several
    #[arg(long, value_name = "[FAULT=]FROM..TO/TIME", allow_hyphen_values = true)]
    ramp: Vec<String>,
    /// Only DNS queries for this name: api.example.com, *.example.com (not example.com itself)
    #[arg(long, value_name = "GLOB")]
    name: Vec<Glob>,
    /// Only DNS queries for these types of records: A, AAAA, TYPE65
    #[arg(long = "type", value_name = "TYPE[,TYPE]...", value_delimiter = ',')]
    types: Vec<RecordType>,
    /// Which packets: those the interface receives, those it sends, or both [default: out; of a cut, and of a profile with down and up: both]
    #[arg(long, value_name = "WAY")]
    direction: Option<Direction>,
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
    /// Only packets from or to this other host: an address, a network, a name, @FILE, container:ID, unit:NAME,
    /// cgroup:PATH or pid:N
    #[arg(long, value_name = "PEER", conflicts_with_all = ["to", "from"])]
    peer: Vec<Peer>,
    /// Leave these alone: other hosts as for --peer, port:22, proto:icmp
    #[arg(long, visible_alias = "except", value_name = "WHAT")]
    exclude: Vec<Exclusion>,
    /// Whose sockets' packets.
    #[command(flatten)]
    whom: WhomOptions,
    /// Of refuse: connections of all processes of this machine; without this, --cgroup / and --pid 1 are refused
    #[arg(long)]
    everything: bool,
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
    /// The interface; that of the target's network namespace if it has one only
    #[arg(long, value_name = "IFACE", value_parser = NonEmptyStringValueParser::new(), required_unless_present_any = ["cgroup", "unit", "container", "pid", "everything"])]
    dev: Option<String>,
    /// Network namespace of the interface: a name, a path, or pid:N for that of a process; that of the target if not
    /// given
    #[arg(long, value_name = "NAME|PATH|pid:N")]
    netns: Option<Netns>,
    /// Seed of the random numbers, to repeat a run; drawn and shown if not given
    #[arg(long, value_name = "N", value_parser = parse_whole, allow_hyphen_values = true)]
    seed: Option<u64>,
    /// How long, such as 30s, 5m or 1h30m; until interrupted if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    duration: Option<Duration>,
    /// How many packets may wait at once in each direction; 1000000 if not given
    #[arg(long, value_name = "PACKETS", value_parser = parse_count, allow_hyphen_values = true)]
    limit: Option<u64>,
    /// Switch the interface's segmentation and receive offloads off, so that a packet is one on the wire; as far as the interface
    /// does, by default for gemodel, duplicate, corrupt and reorder
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    exact: Option<bool>,
    /// Say what would be hit, by what, and what would have to be undone; touch nothing
    #[arg(long)]
    pub(super) plan: bool,
    /// Hit your own SSH session and 169.254.169.254 as well
    #[arg(long)]
    include_protected: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Per {
    Packet,
    Flow,
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
    #[command(flatten)]
    fault: FaultOptions,
}

/// The words of a fault and the options after them.
type Group = (Vec<String>, Vec<OsString>);

/// The arguments without the first fault's words, these words, and each group after an `--and`.
pub(super) type Parts = (Vec<OsString>, Vec<String>, Vec<Group>);

/// Takes arguments apart.
pub(super) fn split(arguments: impl Iterator<Item = OsString>) -> Result<Parts, clap::Error> {
    let arguments: Vec<_> = arguments.collect();
    // What is behind this is a command of somebody else's.
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (ours, command) = arguments.split_at(end);
    let mut groups = ours.split(|argument| argument == AND).map(<[_]>::to_vec);
    let mut first = groups.next().unwrap_or_default();
    let is_net = first.get(1).is_some_and(|command| command == "net");
    let (words, rest) = leading(first.split_off(if is_net { 2 } else { first.len() }))?;
    first.extend(rest);
    first.extend_from_slice(command);
    Ok((first, words, groups.map(leading).collect::<Result<_, _>>()?))
}

/// The words up to the first option. A number below zero is no option.
fn leading(mut arguments: Vec<OsString>) -> Result<Group, clap::Error> {
    let is_option = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text.strip_prefix('-').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
    };
    let end = arguments.iter().position(is_option).unwrap_or(arguments.len());
    let rest = arguments.split_off(end);
    let text = |word: OsString| {
        word.into_string().map_err(|word| {
            let message = format!("{} is not UTF-8", shown::name(&word));
            Cli::command().error(ErrorKind::InvalidUtf8, message)
        })
    };
    Ok((arguments.into_iter().map(text).collect::<Result<_, _>>()?, rest))
}

/// The faults after each `--and`.
pub(super) fn parse_further(groups: Vec<Group>, cli: &Cli) -> Result<Vec<FaultSpec>, clap::Error> {
    if !groups.is_empty() && !matches!(cli.command, Command::Net { .. }) {
        let message = format!("{AND} goes between the faults of one `faultline net`");
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
    }
    let parse = |(words, options): Group| {
        if words.is_empty() && options.is_empty() {
            let message = format!("{AND} is followed by a fault; write {AND} loss 1%, or leave it out");
            return Err(Cli::command().error(ErrorKind::MissingSubcommand, message));
        }
        further(options)?.fault.spec(words)
    };
    groups.into_iter().map(parse).collect()
}

fn further(group: Vec<OsString>) -> Result<Further, clap::Error> {
    synonyms::parse::<Further>(group).map_err(|error| {
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

impl FaultOptions {
    /// The fault of these words and the options.
    ///
    /// # Errors
    ///
    /// If the words mean nothing, or an option does not go with them.
    pub(super) fn spec(self, mut words: Vec<String>) -> Result<FaultSpec, clap::Error> {
        words.extend_from_slice(&self.words);
        let Self { per, reorder_by_jitter, fix_checksum, .. } = self;
        let invalid = |message: String| Cli::command().error(ErrorKind::ValueValidation, message);
        let mut impairments = match &self.profile {
            None => Impairments::parse(&words).map_err(|error| invalid(error.to_string()))?,
            Some(_) if !words.is_empty() => {
                let message =
                    "--profile goes with no other fault of the same packets; write --and between them";
                return Err(invalid(message.into()));
            }
            Some(name) => {
                let profile = Profile::load(name).map_err(|error| invalid(format!("--profile: {error}")))?;
                Impairments { profile: Some(Arc::new(profile)), ..Impairments::default() }
            }
        };
        for text in &self.ramp {
            let ramp = Ramp::option(text, &impairments);
            let ramp =
                ramp.map_err(|error| invalid(format!("invalid value '{text}' for '--ramp': {error}")))?;
            impairments.ramps.push(ramp);
        }
        if per == Per::Flow {
            let Some(Loss::Random(Chance { percent, correlation: Percent::NONE })) = impairments.loss else {
                return Err(invalid("--per flow goes with a plain loss: loss 5% --per flow".into()));
            };
            impairments.loss = Some(Loss::PerFlow(percent));
        }
        if reorder_by_jitter {
            let delay = impairments.delay.as_mut().filter(|delay| !delay.jitter.is_zero());
            delay
                .ok_or_else(|| invalid("--reorder-by-jitter needs a jitter: delay 100ms 10ms".into()))?
                .reorders = true;
        }
        if fix_checksum {
            let corrupt = impairments.corrupt.as_mut();
            corrupt.ok_or_else(|| invalid("--fix-checksum needs corrupt: corrupt 1%".into()))?.fix_checksum =
                true;
        }
        self.check_cut(impairments.cut).map_err(|message| invalid(message.into()))?;
        let has_sides = impairments.profile.as_ref().is_some_and(|profile| profile.has_sides);
        let sides = match (self.direction, impairments.cut) {
            (Some(Direction::In), _) => Sides::In,
            (None, None) if has_sides => Sides::Both,
            (Some(Direction::Out), _) | (None, None) => Sides::Out,
            (Some(Direction::Both), _) => Sides::Both,
            (None, Some(cut)) => cut.sides(),
        };
        let question = self.question(&impairments).map_err(invalid)?;
        let Self { skip, first, every, .. } = self;
        let window = Window { skip, first: first.unwrap_or(u64::MAX), every: every.unwrap_or(1) };
        Ok(FaultSpec { impairments, sides, selectors: Selectors { question, ..self.selectors() }, window })
    }

    /// Which DNS queries, if it is a fault of these.
    fn question(&self, impairments: &Impairments) -> Result<Option<Question>, String> {
        let dns = impairments.dns;
        let Self { name, types, direction, proto, .. } = self;
        if !dns && (!name.is_empty() || !types.is_empty()) {
            return Err(
                "--name and --type say which DNS queries: write dns nxdomain, say, as the fault".into()
            );
        }
        if dns && matches!(direction, Some(Direction::Both)) {
            return Err(
                "a query goes one way: write --direction out for those that are sent, in for those that are \
                        received"
                    .into(),
            );
        }
        if dns && proto.iter().any(|proto| !matches!(proto, Protocol::Udp | Protocol::Tcp)) {
            return Err("DNS is over --proto udp or tcp".into());
        }
        Ok(dns.then(|| Question { names: name.clone(), types: types.clone() }))
    }

    /// Whether the options go with a cut.
    fn check_cut(&self, cut: Option<Cut>) -> Result<(), &'static str> {
        with_everything(self.whom.clone().owners(), self.everything)?;
        if self.everything && !matches!(cut, Some(Cut::Refuse(_))) {
            return Err(
                "--everything goes with refuse: other faults are of an interface's packets at the most",
            );
        }
        let Some(cut) = cut else { return Ok(()) };
        let Self { peer, direction, proto, from, sport, whom, .. } = self;
        let tcp_alone = proto.iter().all(|proto| *proto == Protocol::Tcp);
        match cut {
            Cut::Partition if peer.is_empty() => {
                Err("partition needs to know from whom: --peer 10.0.0.0/8, say; blackhole does not")
            }
            Cut::Reset | Cut::Timeout if !tcp_alone => {
                Err("reset and timeout are of TCP connections: leave --proto out")
            }
            Cut::Refuse(_) if whom.is_empty() && !self.everything => Err(
                "refuse needs to know whose connect() fails: --cgroup, --unit, --container, --pid or --everything",
            ),
            Cut::Refuse(_) if direction.is_some() || !from.is_empty() || !sport.is_empty() => Err(
                "refuse comes before any packet: it has no --direction, and no --from or --sport are settled yet",
            ),
            _ => Ok(()),
        }
    }

    /// Which packets.
    fn selectors(self) -> Selectors {
        let Self { to, from, port, sport, proto, whom, everything, peer, exclude, .. } = self;
        let owners = with_everything(whom.owners(), everything).unwrap_or_default();
        let (peers, excluded) = (peer, exclude);
        Selectors { to, from, port, sport, proto, owners, everything, peers, excluded, question: None }
    }
}

impl RunOptions {
    /// What is to be done, on what.
    ///
    /// # Errors
    ///
    /// If an option does not go with the faults.
    pub(super) fn spec(&self, faults: Vec<FaultSpec>) -> Result<NetSpec, clap::Error> {
        let Self { dev, netns, seed, duration, limit, exact, include_protected, plan: _, json: _ } = self;
        let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
        let exact = match exact {
            Some(true) => Exact::Required,
            None if faults.iter().any(|fault| fault.impairments.is_of_packets()) => Exact::IfPossible,
            Some(false) | None => Exact::No,
        };
        let spec = NetSpec {
            device: dev.clone(),
            netns: netns.clone(),
            faults,
            seed: *seed,
            duration: *duration,
            limit,
            exact,
            include_protected: *include_protected,
        };
        if spec.device.is_some() && !spec.acts_on_packets() {
            let message = "refuse acts on connect(), which knows of no interface: leave --dev out";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(spec)
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

    fn parse(line: &str) -> Result<Vec<FaultSpec>, clap::Error> {
        let (first, words, further) = split(line.split(' ').map(OsString::from))?;
        let cli = Cli::try_parse_from(first)?;
        let mut all = parse_further(further, &cli)?;
        if let Command::Net { fault, .. } = cli.command {
            all.insert(0, fault.spec(words)?);
        }
        Ok(all)
    }

    #[test]
    fn further_faults() {
        let line = "faultline net loss 30% --dev d --port 80 --and loss 1% --port 443 --and loss 2%";
        let all = parse(line).expect("valid");
        let shown: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["loss 30% --port 80", "loss 1% --port 443", "loss 2%"]);
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
            ("--name", "dns drop --dev d --name a..b"),
            ("--name", "loss 1% --dev d --name a.b"),
            ("--type", "dns drop --dev d --type A,B"),
            ("--type", "loss 1% --dev d --type A"),
            ("--direction", "dns drop --dev d --direction both"),
            ("--proto", "dns drop --dev d --proto icmp"),
        ] {
            let error = parse(&format!("faultline net {line}")).expect_err(line);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(option), "{line}: {error}");
        }
    }
}
