//! What can be typed of faults in system calls.

use std::time::Duration;

use chaos_ebpf::{
    abi::Window,
    call::{ARGUMENTS, Argument},
};
use clap::{Args, CommandFactory, Subcommand, error::ErrorKind};
use nix::errno::Errno;
use syscalls::Sysno;

use super::{args::Cli, whom::WhomOptions};
use crate::{
    kernel::{hook::takes_fd, mechanism::Mechanism},
    spec::{
        Action, CallFault, CallMatch, CallSpec, Calls, DeviceSpec, Family, Invalid, NameSpec, Op, OpenFlags,
        PathSpec, Percent, UserSpec, parse_argument, parse_calls, parse_count, parse_duration, parse_errno,
        parse_whole,
    },
};

/// What is done to what processes do with files.
#[derive(Debug, Subcommand)]
pub(super) enum IoCommand {
    /// Have it fail
    Error {
        /// How: EIO, ENOSPC, a number
        #[arg(value_name = "ERRNO", value_parser = parse_errno)]
        errno: Errno,
        #[command(flatten)]
        options: OpOptions,
    },
    /// Have it take longer: TIME [JITTER [CORRELATION]] [distribution NAME|./FILE], as in `net delay`
    Delay {
        /// How long, such as 1ms 200us distribution normal
        #[arg(value_name = "TIME", required = true)]
        words: Vec<String>,
        #[command(flatten)]
        options: OpOptions,
    },
    /// Have what was read be wrong: [flip|zero|random] [bytes N] [offset N]
    Corrupt {
        /// What becomes of how many bytes, and where they begin in what was read
        #[arg(value_name = "HOW")]
        words: Vec<String>,
        #[command(flatten)]
        options: CallOptions,
    },
    /// Have everything fail that would make a file or a directory larger
    Full {
        /// ENOSPC or EDQUOT
        #[arg(value_name = "ERRNO", default_value = "ENOSPC", value_parser = parse_full)]
        errno: Errno,
        #[command(flatten)]
        options: CallOptions,
    },
}

/// What is done to system calls.
#[derive(Debug, Subcommand)]
pub(super) enum SysCommand {
    /// Have them fail, without being made
    Error {
        /// Which: fsync, or several: fsync,fdatasync
        #[arg(value_name = "SYSCALL[,SYSCALL]...")]
        calls: String,
        /// How: EIO, ENOSPC, a number
        #[arg(value_name = "ERRNO", value_parser = parse_errno)]
        errno: Errno,
        #[command(flatten)]
        options: SysOptions,
    },
    /// Have them take longer
    Delay {
        /// Which: fsync, or several: fsync,fdatasync
        #[arg(value_name = "SYSCALL[,SYSCALL]...")]
        calls: String,
        /// How long, as in `io delay`
        #[arg(value_name = "TIME", required = true)]
        words: Vec<String>,
        #[command(flatten)]
        options: SysOptions,
    },
}

/// What fails, where there is nothing else that could happen.
#[derive(Debug, Subcommand)]
pub(super) enum FailCommand {
    /// Have it fail
    Error {
        /// How
        #[arg(value_name = "ERRNO", value_parser = parse_errno)]
        errno: Option<Errno>,
        #[command(flatten)]
        options: OpOptions,
    },
}

/// What is refused.
#[derive(Debug, Args)]
pub(super) struct DenyOptions {
    /// How: EACCES or EPERM
    #[arg(value_name = "ERRNO", default_value = "EACCES", value_parser = parse_errno)]
    errno: Errno,
    #[command(flatten)]
    options: OpOptions,
}

/// Options of what is of operations.
#[derive(Debug, Args)]
pub(super) struct OpOptions {
    /// Which operations: open,read,write,...
    #[arg(long, value_name = "OP[,OP]...", value_delimiter = ',')]
    ops: Vec<String>,
    #[command(flatten)]
    call: CallOptions,
}

/// Options of what is of system calls.
#[derive(Debug, Args)]
pub(super) struct SysOptions {
    /// Only calls with this argument: 0=3 for a first one of 3, 1~0x40 for a second one with this bit; all must be met
    #[arg(long, value_name = "N=VALUE|N~MASK", value_parser = parse_argument)]
    arg: Vec<(usize, Argument)>,
    #[command(flatten)]
    call: CallOptions,
}

/// Options of all of these.
#[derive(Debug, Args)]
pub(super) struct CallOptions {
    /// Only of this file, or of everything beneath this directory; the last component may be a glob: '/data/*.db'
    #[arg(long, value_name = "PATH")]
    path: Vec<PathSpec>,
    /// Only in file systems of this type: ext4, xfs, overlay
    #[arg(long, value_name = "TYPE")]
    fstype: Vec<NameSpec>,
    /// Only in file systems on this device: 8:1, /dev/sda1
    #[arg(long, value_name = "MAJOR:MINOR|FILE")]
    dev_block: Vec<DeviceSpec>,
    /// Only of files that were opened with all of these: O_DIRECT,O_SYNC
    #[arg(long, value_name = "FLAG[,FLAG]...")]
    open_flags: Option<OpenFlags>,
    /// Whose calls.
    #[command(flatten)]
    whom: WhomOptions,
    /// Only by threads of this name, as `ps -o comm` shows it
    #[arg(long, value_name = "NAME")]
    comm: Vec<NameSpec>,
    /// Only by processes of this user (their effective one)
    #[arg(long, value_name = "USER")]
    uid: Vec<UserSpec>,
    /// Whoever and whatever: without this, a process, a cgroup or a path must be named, and --cgroup / and --pid 1 are
    /// refused without a path
    #[arg(long)]
    everything: bool,
    /// How many of the calls that match are hit
    #[arg(
        long,
        value_name = "PERCENT",
        default_value = "100%",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    percent: Percent,
    /// Let the first N matching calls through
    #[arg(long, value_name = "N", value_parser = parse_whole, allow_hyphen_values = true, default_value_t = 0, hide_default_value = true)]
    skip: u64,
    /// Act on N matching calls at most, those after the skipped ones
    #[arg(long, value_name = "N", value_parser = parse_count, allow_hyphen_values = true)]
    first: Option<u64>,
    /// Act on each N-th of these only
    #[arg(long, value_name = "N", value_parser = parse_count, allow_hyphen_values = true)]
    every: Option<u64>,
    #[command(flatten)]
    run: CallRunOptions,
}

/// What belongs to the run.
#[derive(Debug, Args)]
pub(super) struct CallRunOptions {
    /// Seed of the random numbers, to repeat a run; drawn and shown if not given
    #[arg(long, value_name = "N", value_parser = parse_whole, allow_hyphen_values = true)]
    seed: Option<u64>,
    /// How long, such as 30s, 5m or 1h30m; until interrupted if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    duration: Option<Duration>,
    /// By this mechanism, and not by the best there is: lsm, fmod_ret_security, fmod_ret_syscall, kprobe_override, fentry,
    /// raw_tracepoint
    #[arg(long, value_name = "MECHANISM", value_parser = parse_mechanism)]
    by: Option<Mechanism>,
    /// Let calls wait for more than 10ms, up to 2s, which keeps their CPU for as long
    #[arg(long)]
    pub(super) allow_busy_wait: bool,
    /// Say what would be hit, and by what; touch nothing
    #[arg(long)]
    pub(super) plan: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// How a disk is full.
fn parse_full(text: &str) -> Result<Errno, Invalid> {
    let errno = parse_errno(text)?;
    if [Errno::ENOSPC, Errno::EDQUOT].contains(&errno) {
        return Ok(errno);
    }
    Err(Invalid::new("a full file system says ENOSPC, and a quota EDQUOT; any other is `io error`"))
}

fn parse_mechanism(text: &str) -> Result<Mechanism, Invalid> {
    let all = [
        Mechanism::Lsm,
        Mechanism::FmodRetSecurity,
        Mechanism::FmodRetSyscall,
        Mechanism::KprobeOverride,
        Mechanism::Fentry,
        Mechanism::Fexit,
        Mechanism::RawTracepoint,
    ];
    all.into_iter().find(|mechanism| mechanism.name() == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|mechanism| mechanism.name()).collect();
        Invalid::new(format!("not a mechanism by which calls are hit; there are {}", names.join(", ")))
    })
}

/// A fault, and what belongs to its run.
pub(super) struct Typed {
    pub(super) spec: CallSpec,
    pub(super) run: CallRunOptions,
}

fn invalid(message: impl ToString) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message.to_string())
}

impl IoCommand {
    pub(super) fn typed(self) -> Result<Typed, clap::Error> {
        match self {
            Self::Error { errno, options } => options.typed(Family::Io, Action::Error(errno)),
            Self::Delay { words, options } => {
                let action = Action::delay(&words).map_err(invalid)?;
                options.typed(Family::Io, action)
            }
            Self::Corrupt { words, options } => {
                let action = Action::corrupt(&words).map_err(invalid)?;
                options.typed(Family::Io, action, Calls::Ops(vec![Op::Read]))
            }
            Self::Full { errno, options } => {
                options.typed(Family::Io, Action::Full(errno), Calls::Ops(Op::GROWING.to_vec()))
            }
        }
    }
}

impl SysCommand {
    pub(super) fn typed(self) -> Result<Typed, clap::Error> {
        let (calls, action, options) = match self {
            Self::Error { calls, errno, options } => (calls, Action::Error(errno), options),
            Self::Delay { calls, words, options } => {
                (calls, Action::delay(&words).map_err(invalid)?, options)
            }
        };
        let calls = parse_calls(&calls).map_err(invalid)?;
        let mut arguments = [Argument::default(); ARGUMENTS];
        for (place, argument) in options.arg {
            let known = &mut arguments[place];
            if known.mask & argument.mask & (known.value ^ argument.value) != 0 {
                return Err(invalid(format!("--arg: nothing is both for argument {place}")));
            }
            *known = Argument { mask: known.mask | argument.mask, value: known.value | argument.value };
        }
        options.call.typed(Family::Sys, action, Calls::Named(calls, arguments))
    }
}

impl FailCommand {
    pub(super) fn typed(self, family: Family) -> Result<Typed, clap::Error> {
        let Self::Error { errno, options } = self;
        let missing = || invalid(format!("{} error: ERRNO is missing", family.name()));
        let errno = errno.or(family.errnos().first().copied()).ok_or_else(missing)?;
        options.typed(family, Action::Error(errno))
    }
}

impl DenyOptions {
    pub(super) fn typed(self) -> Result<Typed, clap::Error> {
        self.options.typed(Family::Deny, Action::Error(self.errno))
    }
}

impl OpOptions {
    fn typed(self, family: Family, action: Action) -> Result<Typed, clap::Error> {
        let known = family.ops();
        let mut ops = Vec::new();
        for text in &self.ops {
            let op = Op::among(&known, text)
                .map_err(|error| invalid(format!("invalid value '{text}' for '--ops': {error}")))?;
            if !ops.contains(&op) {
                ops.push(op);
            }
        }
        let ops = if ops.is_empty() { family.usual() } else { ops };
        self.call.typed(family, action, Calls::Ops(ops))
    }
}

impl CallOptions {
    fn typed(self, family: Family, action: Action, calls: Calls) -> Result<Typed, clap::Error> {
        if let Action::Error(errno) = action
            && !family.errnos().is_empty()
            && !family.errnos().contains(&errno)
        {
            let all: Vec<_> = family.errnos().iter().map(|errno| format!("{errno:?}")).collect();
            let (name, all) = (family.name(), all.join(" or "));
            return Err(invalid(format!(
                "{name}: it cannot end with {errno:?}; the kernel has {all} for it"
            )));
        }
        if self.percent == Percent::NONE {
            return Err(invalid("invalid value '0%' for '--percent': nothing would ever be hit"));
        }
        let matches = CallMatch {
            owners: self.whom.owners(),
            everything: self.everything,
            paths: self.path,
            file_systems: self.fstype,
            devices: self.dev_block,
            flags: self.open_flags.unwrap_or_default(),
            comms: self.comm,
            users: self.uid,
        };
        check_files(&matches, &calls)?;
        if matches.everything && !matches.owners.is_empty() {
            return Err(invalid(
                "--everything is of everybody: leave it out, or --pid, --cgroup, --unit and --container",
            ));
        }
        let window =
            Window { skip: self.skip, first: self.first.unwrap_or(u64::MAX), every: self.every.unwrap_or(1) };
        let fault = CallFault { family, action, calls, matches, percent: self.percent, window };
        let run = self.run;
        let spec = CallSpec { faults: vec![fault], seed: run.seed, duration: run.duration, by: run.by };
        Ok(Typed { spec, run })
    }
}

/// Refuses to ask for files where there are none.
fn check_files(matches: &CallMatch, calls: &Calls) -> Result<(), clap::Error> {
    let asked = [
        ("--path", !matches.paths.is_empty()),
        ("--fstype", !matches.file_systems.is_empty()),
        ("--dev-block", !matches.devices.is_empty()),
        ("--open-flags", matches.flags != OpenFlags::default()),
    ];
    let Some((option, _)) = asked.into_iter().find(|(_, asked)| *asked) else { return Ok(()) };
    let is_of_none = |op: &&Op| !Op::OF_FILES.contains(op);
    let none = match calls {
        Calls::Ops(ops) => ops.iter().find(is_of_none).map(|op| op.name()),
        Calls::Named(calls, _) => calls.iter().find(|call| !takes_fd(**call)).map(Sysno::name),
    };
    if let Some(name) = none {
        return Err(invalid(format!(
            "{option}: {name} is given no open file to be looked at; leave {option} out"
        )));
    }
    let Calls::Ops(ops) = calls else { return Ok(()) };
    let without = ops.iter().find(|op| matches.flags != OpenFlags::default() && !op.is_of_open_files());
    match without {
        Some(op) => {
            Err(invalid(format!("--open-flags: {op} is not of an open file; leave --open-flags out")))
        }
        None => Ok(()),
    }
}
