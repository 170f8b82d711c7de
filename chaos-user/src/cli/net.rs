//! `faultline net`: one run, from what was typed to the exit code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    time::Duration,
};

use chaos_ebpf::abi::Direction;

use super::{
    CliError, Code,
    args::RunOptions,
    out::say,
    owners,
    report::{self, Reporter},
    verdict::code,
};
use crate::{
    fault::{
        self, CgroupId,
        net::{self, Addresses, Found},
    },
    host::{self, HostError, Use, rights},
    kernel::{
        self,
        signals::{Signals, Waiting},
    },
    session::{Ending, Observer, Plan, Prepared, SessionError, watch},
    spec::{Exclusion, FaultSpec, NetSpec, Owner, Selectors, Sides},
    target::{
        Cgroup, CgroupError, Device, DeviceError, Home, Names, Netns, Protected, Target, addresses,
        current_netns,
    },
};

/// Does to packets what was asked until its time is over or something ends it.
pub(super) fn run(first: FaultSpec, further: Vec<FaultSpec>, options: &RunOptions) -> Result<Code, CliError> {
    let spec = options.spec(std::iter::once(first).chain(further).collect())?;
    // What can be told from the words alone is told first.
    let unknown: Vec<_> = spec.faults.iter().map(|fault| (fault, Found::default())).collect();
    net::check_room(&fault::check(net::rules(&unknown))?, spec.limit.unwrap_or(net::MOST_WAITING))?;
    require_root()?;
    let waiting = Waiting::take()?;
    if !options.plan {
        owners::sweep_before()?;
    }
    let targets = targets(&spec)?;
    let network = network(&spec, &targets)?;
    let rules = rules(&spec, &targets, network.as_ref())?;
    let names: BTreeSet<_> = rules.iter().flat_map(|rule| rule.names.iter().cloned()).collect();
    let follows = !names.is_empty() && !options.plan;
    // From here, where they have been looked up first.
    let names = follows.then(|| Names::follow(names)).transpose()?;
    // So do those who print: a thread keeps the namespace that it is in.
    let reporter = (!options.plan).then(|| Reporter::new(options.json, None)).transpose()?;
    let home = network.as_ref().map(Netns::enter).transpose()?;
    let plan = plan(&spec, rules, targets)?;
    plan.check()?;
    let Some(reporter) = reporter else {
        let preview = plan.preview()?;
        report::preview(&preview, options.json)?;
        return Ok(if preview.is_possible() { Code::Success } else { Code::NotStarted });
    };
    let device = plan.device.as_ref().map(|device| device.name.clone());
    let signals = waiting.hold()?;
    let prepared = Prepared::new(plan).map_err(|error| cause(error, device.as_deref()))?;
    if prepared.holds_itself() {
        // One that stays only keeps the namespace from ending with those it belongs to.
        let _ = home.map(Home::go);
    }
    Ok(inject(prepared, &signals, names.as_ref(), reporter)?.0)
}

/// From what is prepared to the exit code, and what ended it.
pub(super) fn inject(
    prepared: Prepared,
    signals: &Signals,
    names: Option<&Names>,
    mut reporter: Reporter<'_>,
) -> Result<(Code, Ending), CliError> {
    let done = act(prepared, signals, names, &mut reporter);
    let printed = reporter.finish(signals);
    let done = done?;
    printed?;
    Ok(done)
}

/// Whatever fails here, the fault is ended in order.
fn act(
    prepared: Prepared,
    signals: &Signals,
    names: Option<&Names>,
    reporter: &mut Reporter<'_>,
) -> Result<(Code, Ending), CliError> {
    warn_of_run();
    reporter.prepared(&prepared);
    let (ending, ended) = match signals.wait(Some(reporter.output()), Duration::ZERO) {
        Ok(None) => {
            let mut armed = prepared.arm()?;
            reporter.armed(&armed);
            (watch(&mut armed, signals, names, reporter), armed.end())
        }
        Ok(Some(news)) => (Ok(news.into()), prepared.end()),
        // It has not begun.
        Err(error) => {
            let dirty = prepared.end().dirty;
            return Err(dirty.map_or_else(|| error.into(), |dirty| SessionError::from(dirty).into()));
        }
    };
    let ending = match ending {
        Ok(Ending::TargetGone) if reporter.has_command() => Ok(Ending::CommandEnded),
        ending => ending,
    };
    let code = code(&ending, &ended);
    reporter.ended(&ending, &ended, code);
    match (ended.dirty, ending) {
        (Some(dirty), _) => Err(SessionError::from(dirty).into()),
        (None, Err(error)) => Err(CliError::Ended(error)),
        (None, Ok(ending)) => Ok((code, ending)),
    }
}

/// The rules of all faults, with everybody they speak of looked up.
fn rules(
    spec: &NetSpec,
    targets: &[(Owner, Target)],
    network: Option<&Netns>,
) -> Result<Vec<fault::Rule>, CliError> {
    let here =
        network.map_or_else(|| Ok::<_, CliError>(current_netns()?.inode), |netns| Ok(netns.inode()?))?;
    let found = |fault: &FaultSpec| {
        let Selectors { owners, peers, excluded, .. } = &fault.selectors;
        let (mut cgroups, mut processes) = (Vec::new(), Vec::new());
        for (_, target) in targets.iter().filter(|(owner, _)| owners.contains(owner)) {
            match target {
                Target::Cgroup(Cgroup { id, level, .. }) => cgroups.push(CgroupId { id: *id, level: *level }),
                Target::Process(tree) => processes.push(tree.pid),
            }
        }
        let mut all = Addresses::default();
        for peer in peers {
            all.extend([addresses(peer, here).map_err(CliError::Peer)?]);
        }
        let of = |exclusion: &Exclusion| match exclusion {
            Exclusion::Peer(peer) => addresses(peer, here).map_err(CliError::Excluded),
            Exclusion::Port(_) | Exclusion::Protocol(_) => Ok(Addresses::default()),
        };
        let excluded = excluded.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let others = || excluded.iter().flat_map(|addresses: &Addresses| &addresses.networks);
        let lost = all.networks.iter().find(|peer| others().any(|other| other.contains(*peer)));
        lost.map_or(Ok(()), |peer| Err(CliError::PeerExcluded { peer: *peer }))?;
        Ok::<_, CliError>(Found { cgroups, processes, peers: all, excluded })
    };
    let faults = spec.faults.iter().map(|fault| Ok((fault, found(fault)?)));
    Ok(fault::check(net::rules(&faults.collect::<Result<Vec<_>, CliError>>()?))?)
}

/// Everybody a fault is aimed at, each once.
fn targets(spec: &NetSpec) -> Result<Vec<(Owner, Target)>, CliError> {
    let owners: BTreeSet<_> = spec.faults.iter().flat_map(|fault| &fault.selectors.owners).collect();
    let found = owners.into_iter().map(|owner| Ok((owner.clone(), Target::find(owner)?)));
    let found = found.collect::<Result<Vec<_>, CliError>>()?;
    // Packets are an interface's at the most; what is asked for by connect() is everybody's.
    for fault in spec.faults.iter().filter(|fault| fault.sides == Sides::Connect) {
        for (owner, target) in found.iter().filter(|(owner, _)| fault.selectors.owners.contains(owner)) {
            if fault.selectors.everything {
                target.require_everybody(owner)?;
            } else if target.is_everybody() {
                return Err(CliError::Everybody(owner.clone()));
            }
        }
    }
    Ok(found)
}

/// The network namespace that was named, or that of the targets.
fn network(spec: &NetSpec, targets: &[(Owner, Target)]) -> Result<Option<Netns>, CliError> {
    let mut processes = Vec::new();
    for (owner, target) in targets {
        // Also where the namespace was named: a target nobody is in is none.
        match target.network(owner) {
            Err(CgroupError::Scattered { .. }) if spec.netns.is_some() || !spec.acts_on_packets() => {}
            found => processes.push((owner, found?)),
        }
    }
    if spec.netns.is_some() {
        return Ok(spec.netns.clone());
    }
    let mut namespaces = BTreeMap::new();
    for (owner, process) in processes {
        let netns = Netns::of_process(process).known()?;
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

/// An interface that has gone meanwhile is what is to be said, not the call that did not find it.
fn cause(error: SessionError, device: Option<&str>) -> CliError {
    match device.map(Device::find) {
        Some(Err(gone @ DeviceError::Unknown { .. })) => gone.into(),
        _ => error.into(),
    }
}

fn plan(spec: &NetSpec, rules: Vec<fault::Rule>, targets: Vec<(Owner, Target)>) -> Result<Plan, CliError> {
    let device = if spec.acts_on_packets() { Some(device(spec, &rules)?) } else { None };
    let seed = spec.seed.map_or_else(draw_seed, Ok)?;
    let limit = spec.limit.unwrap_or(net::MOST_WAITING);
    let targets = targets.into_iter().map(|(_, target)| target).collect();
    let refuses = rules.iter().any(|rule| rule.direction == Direction::Connect);
    let protected = if spec.include_protected {
        Protected::default()
    } else {
        Protected::all(refuses).map_err(CliError::Protected)?
    };
    let NetSpec { duration, exact, .. } = *spec;
    Ok(Plan { device, targets, rules, seed, duration, limit, exact, protected })
}

/// The interface, if what is asked for can be had on it.
fn device(spec: &NetSpec, rules: &[fault::Rule]) -> Result<Device, DeviceError> {
    let device = spec.device.as_deref().map_or_else(Device::only, Device::find)?;
    if !device.ethernet && rules.iter().any(fault::Rule::needs_detour) {
        return Err(DeviceError::NoEthernet { name: device.name });
    }
    if device.loopback && rules.iter().any(|rule| rule.needs_detour() || rule.comes_in_again()) {
        return Err(DeviceError::Loopback { name: device.name });
    }
    Ok(device)
}

/// 32 bits are enough to tell runs apart, and short enough to type again.
pub(super) fn draw_seed() -> kernel::Result<u64> {
    const RANDOM: &str = "/dev/urandom";
    let error = |call| move |source| kernel::Error::new(call, RANDOM, source);
    let mut bytes = [0; 4];
    File::open(RANDOM).map_err(error("open"))?.read_exact(&mut bytes).map_err(error("read"))?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}

/// Refuses anybody but root, and whom root's rights were taken from, before anything is tried that would only half work.
pub(super) fn require_root() -> Result<(), CliError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::NotRoot);
    }
    Ok(rights::require(&[Use::Programs]).map_err(HostError::from)?)
}

/// Says so where the record of a run may be seen by nobody else.
fn warn_of_run() {
    if let Some(warning) = host::run::warning() {
        say(warning);
    }
}
