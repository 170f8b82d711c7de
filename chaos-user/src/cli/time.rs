//! `faultline time`: one run, from what was typed to the exit code.

use std::{collections::BTreeSet, ffi::OsString, time::Duration};

use clap::{ArgGroup, Args, CommandFactory, Subcommand, error::ErrorKind};

use super::{
    CliError, Code,
    args::Cli,
    command::Held,
    net::{inject, require_root},
    owners,
    report::{self, Reporter},
    whom::{WhomOptions, with_everything},
};
use crate::{
    fault::{CallTables, CgroupId, Wanted},
    kernel::{mechanism::Mechanism, signals::Waiting},
    session::{Ending, Prepared, SkewPlan},
    spec::{
        Clock, Invalid, Leap, Offset, Owner, Skew, SkewSpec, Slope, Strobe, parse_duration, parse_period,
    },
    target::{Cgroup, Target},
};

/// What is done to clocks.
#[derive(Debug, Subcommand)]
pub(super) enum TimeCommand {
    /// Have clocks be ahead or behind, go faster or slower, jump or stand still, for some processes alone
    #[command(override_usage = "faultline time skew [OPTIONS] [-- COMMAND [ARGUMENT]...]")]
    Skew(Box<SkewOptions>),
}

/// How wrong, which clocks, and whose.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("speed").args(["rate", "drift", "freeze"]))]
pub(super) struct SkewOptions {
    /// Ahead by this, or behind: 2d, -1h30m, +500ms
    #[arg(long, value_name = "±DURATION", allow_hyphen_values = true)]
    offset: Option<Offset>,
    /// So many times as fast as time: 2, 0.5
    #[arg(long, value_name = "R", value_parser = Slope::of_rate, allow_hyphen_values = true)]
    rate: Option<Slope>,
    /// Faster by so many parts in a million: 100, -50
    #[arg(long, value_name = "PPM", value_parser = Slope::of_drift, allow_hyphen_values = true)]
    drift: Option<Slope>,
    /// Standing still
    #[arg(long)]
    freeze: bool,
    /// Jump by the offset once more, so often
    #[arg(long, value_name = "DURATION", value_parser = parse_period)]
    jump_every: Option<Duration>,
    /// Wrong for ON, right for OFF, and so on: 10s/50s
    #[arg(long, value_name = "ON/OFF")]
    strobe: Option<Strobe>,
    /// Insert a second at the next midnight (UTC) that the clock tells: by telling it twice, or over a day
    #[arg(long, value_name = "HOW")]
    leap: Option<Leap>,
    /// Which clocks: realtime, tai, monotonic, monotonic_raw, boottime; each with its coarse twin
    #[arg(long, value_name = "CLOCK[,CLOCK]...", value_delimiter = ',', default_value = "realtime,tai")]
    clock: Vec<Clock>,
    /// Let monotonic clocks go backwards
    #[arg(long)]
    allow_backwards_monotonic: bool,
    /// Whose.
    #[command(flatten)]
    whom: WhomOptions,
    /// Of all processes of this machine; without this, --cgroup / and --pid 1 are refused
    #[arg(long)]
    everything: bool,
    /// How long, such as 30s, 5m or 1h30m; until interrupted, or the command ends, if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    duration: Option<Duration>,
    /// By this mechanism alone: vdso_patch, fexit
    #[arg(long, value_name = "MECHANISM", value_parser = parse_mechanism)]
    by: Option<Mechanism>,
    /// Say what would be changed; touch nothing
    #[arg(long)]
    plan: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// A program to start, with its arguments: its clocks are wrong from its first instruction on, and the fault ends with it
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_mechanism(text: &str) -> Result<Mechanism, Invalid> {
    let known = [Mechanism::VdsoPatch, Mechanism::Fexit];
    let found = known.into_iter().find(|mechanism| mechanism.name() == text);
    found.ok_or_else(|| {
        Invalid::new("not a mechanism by which clocks are wrong; there are vdso_patch and fexit")
    })
}

impl SkewOptions {
    fn spec(&self) -> Result<SkewSpec, clap::Error> {
        let still = self.freeze.then_some(Slope::STILL);
        let skew = Skew {
            offset: self.offset.unwrap_or_default(),
            slope: self.rate.or(self.drift).or(still).unwrap_or_default(),
            jump_every: self.jump_every,
            strobe: self.strobe,
            leap: self.leap,
        };
        let clocks: BTreeSet<Clock> = self.clock.iter().copied().collect();
        let invalid = |error: Invalid| Cli::command().error(ErrorKind::ValueValidation, error);
        let owners = with_everything(self.whom.clone().owners(), self.everything);
        let owners = owners.map_err(|message| invalid(Invalid::new(message)))?;
        let spec = SkewSpec {
            skew,
            clocks: clocks.into_iter().collect(),
            allow_backwards: self.allow_backwards_monotonic,
            owners,
            duration: self.duration,
            by: self.by,
        };
        spec.check().map_err(invalid)?;
        Ok(spec)
    }
}

/// Has clocks be wrong until their time is over or something ends it.
pub(super) fn run(options: SkewOptions) -> Result<Code, CliError> {
    let mut spec = options.spec()?;
    if spec.owners.is_empty() && options.command.is_empty() {
        return Err(CliError::WithoutClocks);
    }
    require_root()?;
    let waiting = Waiting::take()?;
    if !options.plan {
        owners::sweep_before()?;
    }
    let mut command = if options.command.is_empty() || options.plan {
        None
    } else {
        // It waits until all is in place.
        Some(Held::begin(&options.command)?)
    };
    spec.owners.extend(command.as_ref().map(|command| Owner::Process(command.pid())));
    let plan = look_up(spec, options.everything)?;
    plan.check()?;
    if options.plan {
        report::preview(&plan.preview()?, options.json)?;
        return Ok(Code::Success);
    }
    let reporter = Reporter::new(options.json, command.as_mut())?;
    let signals = waiting.hold()?;
    let injected = inject(Prepared::of_skew(plan)?, &signals, None, reporter);
    let Some(command) = command else { return Ok(injected?.0) };
    let has_begun = command.has_begun();
    // Whatever became of the fault, it is not left alone.
    let status = command.wait(&signals).map_err(CliError::Command)?;
    let (code, ending) = injected?;
    match (code, status) {
        (code, _) if !has_begun => Ok(code),
        // What was asked for was had: the command's word is the last.
        (Code::Success | Code::Interrupted | Code::Inconclusive, status) => Ok(Code::OfCommand(status)),
        (_, status) if ending == Ending::Unheard => Ok(Code::OfCommand(status)),
        (code, _) => Ok(code),
    }
}

/// Whose clocks are meant.
fn look_up(spec: SkewSpec, everything: bool) -> Result<SkewPlan, CliError> {
    let mut targets: Vec<Target> = Vec::new();
    let mut wanted = Wanted::default();
    for owner in &spec.owners {
        let target = Target::find(owner)?;
        if target.is_everybody() && !everything {
            return Err(CliError::Everybody(owner.clone()));
        }
        target.inhabitants(owner, true)?;
        match &target {
            Target::Cgroup(Cgroup { id, level, .. }) => {
                wanted.cgroups.push(CgroupId { id: *id, level: *level });
            }
            Target::Process(tree) => wanted.processes.push(tree.pid),
        }
        targets.push(target);
    }
    // Beside everybody there may be a command.
    if let Some((first, owner)) = targets.first().zip(spec.owners.first()).filter(|_| everything) {
        first.require_everybody(owner)?;
    }
    let tables = CallTables::of_owners(&wanted)?;
    Ok(SkewPlan { targets, spec, tables })
}
