//! Whom a fault is aimed at, as it can be typed.

use clap::{Args, builder::NonEmptyStringValueParser};

use crate::spec::{Owner, parse_pid};

/// Cgroups, by whatever name.
#[derive(Clone, Debug, Args)]
pub(super) struct GroupOptions {
    /// Only this cgroup with those below it: its path in the hierarchy, or of its folder
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    cgroup: Vec<String>,
    /// Only this systemd unit
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    unit: Vec<String>,
    /// Only this container (Docker, containerd, CRI-O, Podman, runc)
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    container: Vec<String>,
}

/// Cgroups, and processes.
#[derive(Clone, Debug, Args)]
pub(super) struct WhomOptions {
    #[command(flatten)]
    groups: GroupOptions,
    /// Only this process, its threads, and those it begins
    #[arg(long, value_name = "PID", value_parser = parse_pid, allow_hyphen_values = true)]
    pid: Vec<u32>,
}

impl GroupOptions {
    pub(super) fn owners(self) -> Vec<Owner> {
        let Self { cgroup, unit, container } = self;
        let owners = cgroup.into_iter().map(Owner::Cgroup);
        let owners = owners.chain(unit.into_iter().map(Owner::Unit));
        owners.chain(container.into_iter().map(Owner::Container)).collect()
    }
}

/// Those that are named; with `--everything` all processes, named so or not at all.
pub(super) fn with_everything(owners: Vec<Owner>, everything: bool) -> Result<Vec<Owner>, &'static str> {
    let is_everybody = |owner: &Owner| *owner == Owner::Process(1) || *owner == Owner::everybody();
    match everything {
        true if owners.is_empty() => Ok(vec![Owner::everybody()]),
        true if !owners.iter().all(is_everybody) => {
            Err("--everything is of everybody: leave it out, or --pid, --cgroup, --unit and --container")
        }
        _ => Ok(owners),
    }
}

impl WhomOptions {
    pub(super) fn owners(self) -> Vec<Owner> {
        let mut owners = self.groups.owners();
        owners.extend(self.pid.into_iter().map(Owner::Process));
        owners
    }

    /// Whether nobody is named.
    pub(super) fn is_empty(&self) -> bool {
        let GroupOptions { cgroup, unit, container } = &self.groups;
        cgroup.is_empty() && unit.is_empty() && container.is_empty() && self.pid.is_empty()
    }
}
