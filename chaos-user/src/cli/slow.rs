//! `faultline io slow`: one run, from what was typed to the exit code.

use std::{collections::BTreeSet, time::Duration};

use clap::{Args, CommandFactory, Subcommand, error::ErrorKind};

use super::{
    CliError, Code,
    args::Cli,
    call_args::IoCommand,
    net::{inject, require_root},
    owners,
    report::{self, Reporter},
    whom::GroupOptions,
};
use crate::{
    kernel::{signals::Waiting, throttle::BlockDevice},
    session::{Prepared, SlowPlan, SlowRule},
    spec::{DeviceSpec, PathSpec, SlowOp, SlowSpec, Speed, parse_duration, shown},
    target::{Cgroup, PlaceError, Target, device_number, devices_of, disk},
};

/// What is done to what processes do with files, and to the devices these are on.
#[derive(Debug, Subcommand)]
pub(super) enum FileCommand {
    #[command(flatten)]
    Calls(IoCommand),
    /// Have a cgroup read and write a block device no faster than this: 1mb/s (a million bytes), 1mib/s, 100 iops
    Slow(SlowOptions),
}

/// How slow, and who.
#[derive(Debug, Args)]
pub(super) struct SlowOptions {
    /// How much a second, for reads and for writes each: 500kb/s, 100 iops, or both
    #[arg(value_name = "RATE|N iops", required = true)]
    words: Vec<String>,
    /// Only reads, or only writes
    #[arg(
        long,
        value_name = "OP[,OP]",
        value_delimiter = ',',
        default_value = "read,write",
        hide_default_value = true
    )]
    ops: Vec<SlowOp>,
    /// Which device: 8:0, /dev/sda; of a partition the whole disk
    #[arg(long, value_name = "MAJOR:MINOR|FILE", required_unless_present = "path")]
    dev_block: Vec<DeviceSpec>,
    /// The device that the file system of this file or directory is on, as the target sees it
    #[arg(long, value_name = "PATH")]
    path: Vec<PathSpec>,
    /// Who.
    #[command(flatten)]
    whom: GroupOptions,
    /// What cannot be, to say so.
    #[arg(long, hide = true, value_name = "PID")]
    pid: Vec<String>,
    /// How long, such as 30s, 5m or 1h30m; until interrupted if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    duration: Option<Duration>,
    /// Say what would be changed; touch nothing
    #[arg(long)]
    plan: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl SlowOptions {
    fn spec(self) -> Result<SlowSpec, clap::Error> {
        let invalid = |message: &str| Cli::command().error(ErrorKind::ValueValidation, message.to_owned());
        if !self.pid.is_empty() {
            return Err(invalid(
                "--pid: the kernel has limits of cgroups, not of processes; name that with --cgroup, --unit or --container",
            ));
        }
        if self.path.iter().any(|path| path.glob.is_some()) {
            return Err(invalid("--path: a limit is of a whole device; write a file or a directory on it"));
        }
        let speed = Speed::parse(&self.words).map_err(|error| invalid(&error.to_string()))?;
        let owners = self.whom.owners();
        let Self { ops, dev_block: devices, path: paths, duration, .. } = self;
        Ok(SlowSpec { speed, ops, owners, devices, paths, duration })
    }
}

/// Slows down what was asked until its time is over or something ends it.
pub(super) fn run(options: SlowOptions) -> Result<Code, CliError> {
    let (plan, json) = (options.plan, options.json);
    let spec = options.spec()?;
    if spec.owners.is_empty() {
        return Err(CliError::WithoutCgroup);
    }
    require_root()?;
    let waiting = Waiting::take()?;
    if !plan {
        owners::sweep_before()?;
    }
    let found = look_up(&spec)?;
    found.check()?;
    if plan {
        report::preview(&found.preview()?, json)?;
        return Ok(Code::Success);
    }
    let reporter = Reporter::new(json, None)?;
    let signals = waiting.hold()?;
    Ok(inject(Prepared::of_slow(found)?, &signals, None, reporter)?.0)
}

/// Whose cgroups and which devices are meant, each once.
fn look_up(spec: &SlowSpec) -> Result<SlowPlan, CliError> {
    let mut targets: Vec<Target> = Vec::new();
    for owner in &spec.owners {
        let target = Target::find(owner)?;
        let processes = target.inhabitants(owner, true)?;
        let place = target.to_string();
        for (process, who) in [(std::process::id(), "Faultline itself"), (1, "the first process")] {
            if processes.contains(&process) {
                return Err(CliError::Held { place, who });
            }
        }
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    let devices = devices(spec, &targets)?;
    let ops: Vec<_> = spec.ops.iter().map(|op| op.name()).collect();
    let mut rules = Vec::new();
    for target in &targets {
        let Target::Cgroup(cgroup) = target else { continue };
        rules.extend(devices.iter().map(|device| rule(spec, &ops.join(","), cgroup, *device)));
    }
    Ok(SlowPlan { targets, rules, duration: spec.duration })
}

fn rule(spec: &SlowSpec, ops: &str, cgroup: &Cgroup, device: BlockDevice) -> SlowRule {
    let label = format!(
        "io slow {} --ops {ops} --cgroup {} --dev-block {device}",
        spec.speed,
        shown::name(&cgroup.path)
    );
    SlowRule { cgroup: cgroup.clone(), device, limits: spec.speed.limits(&spec.ops), label }
}

fn devices(spec: &SlowSpec, targets: &[Target]) -> Result<BTreeSet<BlockDevice>, PlaceError> {
    let mut found = BTreeSet::new();
    for device in &spec.devices {
        // As the kernel has it: 12 bits and 20.
        let number = device_number(device)?;
        found.insert(disk(BlockDevice { major: number >> 20, minor: number & 0xf_ffff })?);
    }
    for path in &spec.paths {
        for device in devices_of(path, targets)? {
            found.insert(disk(device)?);
        }
    }
    Ok(found)
}
