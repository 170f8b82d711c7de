//! `faultline net`: one run, from what was typed to the exit code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    io::Read,
};

use super::{CliError, Code, args::RunOptions, report::Reporter};
use crate::{
    fault::{self, CgroupId, net},
    session::{self, Armed, Ending, Plan, Prepared, RuleReport, SessionError, Signals, watch},
    spec::{FaultSpec, NetSpec, Owner},
    target::{Cgroup, CgroupError, Device, DeviceError, Home, Netns},
};

/// Does to packets what was asked until its time is over or something ends it.
pub(super) fn run(first: FaultSpec, further: Vec<FaultSpec>, options: &RunOptions) -> Result<Code, CliError> {
    let spec = options.spec(std::iter::once(first).chain(further).collect());
    // What can be told from the words alone is told first.
    net::check_room(&rules(&spec, &[])?, spec.limit.unwrap_or(net::MOST_WAITING))?;
    require_root()?;
    let signals = Signals::take()?;
    session::sweep()?;
    let targets = targets(&spec)?;
    let home = network(&spec, &targets)?.as_ref().map(Netns::enter).transpose()?;
    let plan = plan(&spec, rules(&spec, &targets)?, targets)?;
    let device = plan.device.name.clone();
    let mut reporter = Reporter::new(options.json);

    let prepared = Prepared::new(plan).map_err(|error| cause(error, &device))?;
    if prepared.holds_itself() {
        // One that stays only keeps the namespace from ending with those it belongs to.
        let _ = home.map(Home::go);
    }
    // Whatever fails from here on, the fault is ended in order and that is what is reported.
    let (ending, rules) = match reporter.prepared(&prepared).and_then(|()| signals.next()) {
        Ok(None) => watched(prepared.arm()?, &signals, &mut reporter)?,
        Ok(Some(signal)) => (Ending::Signal(signal), prepared.end()?),
        Err(_) => (Ending::Unheard, prepared.end()?),
    };
    let code = code(ending, rules.iter().any(|rule| rule.fired.packets > 0));
    reporter.ended(ending, &rules, code)?;
    Ok(code)
}

/// The rules of all faults, for targets that have been found or are still to be.
fn rules(spec: &NetSpec, targets: &[(Owner, Cgroup)]) -> Result<Vec<fault::Rule>, CliError> {
    let of = |fault: &FaultSpec| {
        let owners = &fault.selectors.owners;
        let found = targets.iter().filter(|(owner, _)| owners.contains(owner));
        let cgroups: Vec<_> =
            found.map(|(_, cgroup)| CgroupId { id: cgroup.id, level: cgroup.level }).collect();
        net::rules(fault, &cgroups)
    };
    Ok(fault::check(spec.faults.iter().flat_map(of).collect())?)
}

/// The cgroups of everybody a fault is aimed at, each once.
fn targets(spec: &NetSpec) -> Result<Vec<(Owner, Cgroup)>, CliError> {
    let owners: BTreeSet<_> = spec.faults.iter().flat_map(|fault| &fault.selectors.owners).collect();
    owners.into_iter().map(|owner| Ok((owner.clone(), Cgroup::find(owner)?))).collect()
}

/// The network namespace that was named, or that of the targets.
fn network(spec: &NetSpec, targets: &[(Owner, Cgroup)]) -> Result<Option<Netns>, CliError> {
    let mut processes = Vec::new();
    for (owner, cgroup) in targets {
        // Also where the namespace was named: a target nobody is in is none.
        match cgroup.network(owner) {
            Err(CgroupError::Scattered { .. }) if spec.netns.is_some() => {}
            found => processes.push((owner, found?)),
        }
    }
    if spec.netns.is_some() {
        return Ok(spec.netns.clone());
    }
    let mut namespaces = BTreeMap::new();
    for (owner, process) in processes {
        let netns = Netns::of_process(process);
        namespaces.insert(netns.inode()?, (owner, netns));
    }
    match namespaces.len() {
        0 | 1 => Ok(namespaces.into_values().next().map(|(_, netns)| netns)),
        count => {
            let owner = targets.last().map(|(owner, _)| owner.clone());
            let scattered = |owner| CgroupError::Scattered { owner, count }.into();
            owner.map_or(Ok(None), |owner| Err(scattered(owner)))
        }
    }
}

/// From the first packet to the last.
fn watched(
    mut armed: Armed,
    signals: &Signals,
    reporter: &mut Reporter,
) -> Result<(Ending, Vec<RuleReport>), CliError> {
    let ending = match reporter.armed(&armed) {
        Ok(()) => watch(&mut armed, signals, reporter),
        Err(_) => Ok(Ending::Unheard),
    };
    let rules = armed.end()?;
    Ok((ending?, rules))
}

/// An interface that has gone meanwhile is what is to be said, not the call that did not find it.
fn cause(error: SessionError, device: &str) -> CliError {
    match Device::find(device) {
        Err(gone @ DeviceError::Unknown { .. }) => gone.into(),
        _ => error.into(),
    }
}

fn plan(spec: &NetSpec, rules: Vec<fault::Rule>, targets: Vec<(Owner, Cgroup)>) -> Result<Plan, CliError> {
    let device = spec.device.as_deref().map_or_else(Device::only, Device::find)?;
    let seed = spec.seed.map_or_else(draw_seed, Ok)?;
    if !device.ethernet && rules.iter().any(fault::Rule::needs_detour) {
        return Err(DeviceError::NoEthernet { name: device.name }.into());
    }
    if device.loopback && rules.iter().any(|rule| rule.needs_detour() || rule.comes_in_again()) {
        return Err(DeviceError::Loopback { name: device.name }.into());
    }
    let limit = spec.limit.unwrap_or(net::MOST_WAITING);
    let targets = targets.into_iter().map(|(_, cgroup)| cgroup).collect();
    Ok(Plan { device, targets, rules, seed, duration: spec.duration, limit, exact: spec.exact })
}

/// 32 bits are enough to tell runs apart, and short enough to type again.
fn draw_seed() -> io::Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}

fn code(ending: Ending, fired: bool) -> Code {
    match ending {
        Ending::Elapsed if fired => Code::Success,
        Ending::Elapsed => Code::Inconclusive,
        Ending::Signal(_) => Code::Interrupted,
        Ending::Lapsed(_) | Ending::DeviceGone | Ending::TargetGone | Ending::Unheard => Code::Aborted,
    }
}

/// Refuses anybody but root, before anything is tried that would only half work.
pub(super) fn require_root() -> Result<(), CliError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(CliError::NotRoot) }
}
