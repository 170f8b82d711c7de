//! What a run would do, without doing any of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use chaos_ebpf::{abi::Direction, packet::protocol};

use super::Plan;
use crate::{
    fault::Rule,
    kernel::{
        self, ethtool,
        mechanism::{Fault, Mechanism, common, ways},
        netlink::Connection,
        probe::{Outlook, State},
    },
    spec::{Exact, Lines},
    target::{self, Flow, Named, Target},
};

/// What would be hit, by what, and what would have to be undone.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Preview {
    /// The interface, if packets would be hit.
    pub device: Option<String>,
    /// Its number there.
    pub ifindex: Option<u32>,
    /// Its network namespace, by its inode number.
    pub netns: u64,
    /// The rules, in order.
    pub rules: Vec<PreviewRule>,
    /// By direction, what they would be attached by.
    pub hooks: Vec<PreviewHook>,
    /// The processes that are aimed at; without any, all traffic of the interface is.
    pub targets: Vec<PreviewTarget>,
    /// The connections now open that a rule matches.
    pub flows: Vec<PreviewFlow>,
    /// What is left alone whatever the rules say.
    pub protected: String,
    /// What does not end by itself with the owner, and is written down before it is changed.
    pub journalled: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PreviewRule {
    /// Which way its packets go.
    pub direction: Direction,
    /// The fault as it was written.
    pub fault: String,
    /// Whether it only keeps others from acting.
    pub spares: bool,
}

/// Where the rules of one direction would be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PreviewHook {
    /// The direction.
    pub direction: Direction,
    /// What the kernel has for it, the first choice first.
    pub mechanisms: Vec<Mechanism>,
    /// What the kernel lacks for it.
    pub missing: Vec<Mechanism>,
    /// Of which of these only a try would tell whether the kernel has it.
    pub unknown: Vec<Mechanism>,
    /// Whether packets would wait in an interface of Faultline's own.
    pub detour: bool,
}

/// Some processes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PreviewTarget {
    /// Their cgroup, or the first of them.
    pub target: String,
    /// They.
    pub processes: Vec<Named>,
}

/// A connection, and what would hit it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PreviewFlow {
    /// The connection.
    #[serde(flatten)]
    pub flow: Flow,
    /// The numbers of the rules that match it.
    pub rules: Vec<usize>,
    /// Whether other rules keep all of these from it.
    pub spared: bool,
}

/// What could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A target is gone.
    #[error(transparent)]
    Target(#[from] target::CgroupError),
}

impl Preview {
    /// Whether the kernel has all that it takes.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.hooks.iter().all(|hook| hook.missing.is_empty() && !hook.mechanisms.is_empty())
    }
}

impl Plan {
    /// Looks, from the network namespace of the interface, and touches nothing.
    ///
    /// # Errors
    ///
    /// [`PreviewError`].
    pub fn preview(&self) -> Result<Preview, PreviewError> {
        let mut targets = Vec::new();
        for target in &self.targets {
            let processes = target::names(&target.processes()?)?;
            targets.push(PreviewTarget { target: target.to_string(), processes });
        }
        let flows = flows(&self.targets)?.into_iter().filter_map(|flow| self.hits(flow)).collect();
        let hooks = self.would_attach();
        Ok(Preview {
            device: self.device.as_ref().map(|device| device.name.clone()),
            ifindex: self.device.as_ref().map(|device| device.ifindex),
            netns: target::current_netns()?.inode,
            rules: self.rules.iter().map(rule).collect(),
            targets,
            flows,
            protected: self.protected.to_string(),
            journalled: self.would_change(&hooks)?,
            hooks,
        })
    }

    /// Whether a rule resets this connection: one that takes it, and is aimed at its owner. `cgroups` has the rules that are
    /// aimed at sockets of a cgroup.
    pub(super) fn resets(&self, connection: &Connection, cgroups: &BTreeMap<u64, u64>) -> bool {
        let Connection { local, remote, cgroup, rules } = *connection;
        let aimed = rules | cgroups.get(&cgroup).copied().unwrap_or(0);
        let resets = |number: &usize| {
            let rule = &self.rules[*number];
            rule.resets() && (rule.matches.is_of_everybody() || aimed >> number & 1 == 1)
        };
        let hit = self.hit(protocol::TCP, local, remote).filter(|(_, spared)| !spared);
        hit.is_some_and(|(rules, _)| rules.iter().any(resets))
    }

    /// The connection with the rules that match it, if any does.
    fn hits(&self, flow: Flow) -> Option<PreviewFlow> {
        let Flow { protocol, local, remote, .. } = flow;
        let (rules, spared) = self.hit(protocol, local, remote)?;
        Some(PreviewFlow { flow, rules, spared })
    }

    /// The numbers of the rules that match a connection, if any does, and whether others keep all of these from it.
    fn hit(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<(Vec<usize>, bool)> {
        let has_link = |rule: &Rule| {
            let profile = rule.impairments.profile.as_ref();
            profile.is_none_or(|profile| remote.ip().is_unspecified() || profile.covers(remote.ip()))
        };
        // What is refused is not open yet.
        let takes = |rule: &Rule| {
            rule.direction != Direction::Connect
                && rule.matches.takes(protocol, local, remote)
                && has_link(rule)
        };
        let matching = self.rules.iter().enumerate().filter(|(_, rule)| takes(rule));
        let (sparing, rules): (Vec<_>, Vec<_>) = matching.partition(|(_, rule)| !rule.spares.is_empty());
        let rules: Vec<usize> = rules.into_iter().map(|(number, _)| number).collect();
        let is_spared = |number: &usize| sparing.iter().any(|(_, rule)| rule.spares.contains(number));
        let protected = self.protected.covers(protocol, local, remote);
        let spared = protected || rules.iter().all(is_spared);
        (!rules.is_empty()).then_some((rules, spared))
    }

    fn would_attach(&self) -> Vec<PreviewHook> {
        let kernel = Outlook::default();
        let mut hooks = Vec::new();
        for direction in [Direction::In, Direction::Out, Direction::Connect] {
            let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.direction == direction).collect();
            let faults: Vec<Fault> = rules.iter().flat_map(|rule| rule.faults()).collect();
            if faults.is_empty() {
                continue;
            }
            let mechanisms: Vec<_> =
                common(&faults, direction).filter(|mechanism| !kernel.lacks(*mechanism)).collect();
            let detour = rules.iter().any(|rule| rule.needs_detour());
            // Any way to have a fault needs the same but for what it is attached by.
            let first = faults.iter().filter_map(|fault| ways(*fault, direction).next());
            let needed: BTreeSet<_> = first.flat_map(|way| way.needs).copied().collect();
            let missing = needed.iter().copied().filter(|it| kernel.lacks(*it)).collect();
            let all = mechanisms.iter().chain(&needed).copied();
            let unknown = all.filter(|it| kernel.state(*it) == State::Unknown).collect();
            hooks.push(PreviewHook { direction, mechanisms, missing, unknown, detour });
        }
        hooks
    }

    fn would_change(&self, hooks: &[PreviewHook]) -> kernel::Result<Vec<String>> {
        let Some(device) = &self.device else { return Ok(Vec::new()) };
        let name = &device.name;
        let mut changes = Vec::new();
        for hook in hooks.iter().filter(|hook| hook.mechanisms.first() == Some(&Mechanism::Clsact)) {
            changes.push(format!("a filter on clsact of {name}, {}", hook.direction.name()));
        }
        if self.exact != Exact::No {
            let mut ethtool = ethtool::Ethtool::open(device.ifindex)?;
            let features = ethtool.features(ethtool::SEGMENTATION)?;
            let mut stays = ethtool.active(ethtool::SEGMENTATION)?;
            stays.retain(|name| features.iter().all(|feature| feature.name != *name));
            if !stays.is_empty() {
                changes
                    .push(format!("nothing of {} of {name}, which cannot be switched off", stays.join(", ")));
            }
            let on = features.into_iter().filter(|feature| feature.asked).map(|feature| feature.name);
            let on: Vec<_> = on.collect();
            changes.push(match &on[..] {
                [] => format!("nothing of the offloads of {name}, which are off"),
                on => format!("offloads of {name} switched off: {}", on.join(", ")),
            });
        }
        Ok(changes)
    }
}

/// The connections now open of these, or of everybody if there are none.
fn flows(targets: &[Target]) -> Result<Vec<Flow>, PreviewError> {
    let mut processes = Vec::new();
    for target in targets {
        processes.extend(target.processes()?);
    }
    Ok(target::flows((!targets.is_empty()).then_some(&processes[..]))?)
}

fn rule(rule: &Rule) -> PreviewRule {
    let Rule { label, direction, spares, .. } = rule;
    PreviewRule { direction: *direction, fault: label.clone(), spares: !spares.is_empty() }
}

impl fmt::Display for PreviewTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, processes } = self;
        let names: Vec<_> = processes.iter().map(|it| format!("{} ({})", it.name, it.pid)).collect();
        write!(f, "{target}: {}", names.join(", "))
    }
}

/// How it was found out what the kernel has.
pub(super) const ASKED: &str =
    "asked of this kernel: its types, its modules, and programs that were loaded and attached to nothing";

/// What is said of what only a try would tell.
pub(super) fn unsure(unknown: &[Mechanism]) -> String {
    if unknown.is_empty() {
        return String::new();
    }
    let names: Vec<_> = unknown.iter().map(|it| it.name()).collect();
    format!("; only a try would tell: {}", names.join(", "))
}

/// How many connections people are shown.
const SHOWN: usize = 20;

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Lines(f);
        let Self { device, ifindex: _, netns, rules, hooks, targets, flows, protected, journalled } = self;
        let device = device.as_deref().unwrap_or("no interface");
        writeln!(f, "plan, nothing is touched: {device} in network namespace {netns}")?;
        for (number, rule) in rules.iter().enumerate() {
            writeln!(f, "  rule {number}: {:<3}  {}", rule.direction.name(), rule.fault)?;
        }
        for PreviewHook { direction, mechanisms, missing, unknown, detour } in hooks {
            let names =
                |list: &[Mechanism]| list.iter().map(|it| it.name()).collect::<Vec<_>>().join(", else ");
            let own = if *detour { "; packets wait in an interface of its own" } else { "" };
            let lacking =
                if missing.is_empty() { String::new() } else { format!("; not here: {}", names(missing)) };
            let unsure = unsure(unknown);
            writeln!(f, "  hook {:<3}  {}{own}{lacking}{unsure}", direction.name(), names(mechanisms))?;
        }
        match &targets[..] {
            [] => writeln!(f, "  target: everybody who uses {device}")?,
            targets => {
                for target in targets {
                    writeln!(f, "  target: {target}")?;
                }
            }
        }
        writeln!(f, "  open connections and sockets that match: {}", flows.len())?;
        for PreviewFlow { flow, rules, spared } in flows.iter().take(SHOWN) {
            let Flow { protocol, local, remote, process, stands: _ } = flow;
            let protocol = if *protocol == protocol::TCP { "tcp" } else { "udp" };
            let process =
                process.as_ref().map_or_else(String::new, |it| format!("  {} ({})", it.name, it.pid));
            let rules = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let spared = if *spared { ", spared" } else { "" };
            writeln!(f, "    {protocol}  {local} - {remote}{process}  rule {rules}{spared}")?;
        }
        if flows.len() > SHOWN {
            writeln!(f, "    and {} more; --json lists all", flows.len() - SHOWN)?;
        }
        let nothing = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
        writeln!(f, "  protected: {}", nothing(protected))?;
        writeln!(
            f,
            "  to be undone by more than the end of the process: {}",
            nothing(&journalled.join("; "))
        )?;
        writeln!(f, "  {ASKED}")
    }
}
