//! A run that acts on packets and connections.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use chaos_ebpf::abi::{Control, DIRECTIONS, Direction};
use ipnet::IpNet;

use super::{
    Ending, Entry, Facts, HookRecord, RuleRecord, Run, RunReport, SessionError, enrol, journal::Journal,
    report::report, silent::Silent,
};
use crate::{
    fault::{Rule, Tables},
    host::{Demands, HostError, Use, rights},
    kernel::{
        self,
        attach::Attachment,
        change::{self, Interface},
        clock,
        counters::{Counters, MapIds},
        detour::{Detour, Queue},
        mechanism::{Mechanism, common},
        netlink::Netlink,
        probe,
        process::Process,
        programs::{self, Environment, Programs},
        sys,
    },
    spec::Exact,
    target::{Device, Protected, Target, Tree},
};

/// What is going to be done; nothing in it needs to be looked up or checked again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interface; none where no packets are hit.
    pub device: Option<Device>,
    /// Whose packets; without any, everybody's.
    pub targets: Vec<Target>,
    /// The rules, at most [`MAX_RULES`](chaos_ebpf::abi::MAX_RULES).
    pub rules: Vec<Rule>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// How many packets may wait in each direction.
    pub limit: u32,
    /// Whether the interface's own segmentation is switched off.
    pub exact: Exact,
    /// What is left alone whatever the rules say.
    pub protected: Protected,
}

impl Plan {
    /// The targets that rules of a kind are aimed at.
    pub(super) fn named_by(&self, kind: impl Fn(&Rule) -> bool) -> impl Iterator<Item = &Target> {
        let wanted: Vec<_> = self.rules.iter().filter(|rule| kind(rule)).map(|rule| &rule.matches).collect();
        self.targets.iter().filter(move |target| match target {
            Target::Cgroup(cgroup) => wanted.iter().flat_map(|it| &it.cgroups).any(|it| it.id == cgroup.id),
            Target::Process(tree) => wanted.iter().any(|it| it.processes.contains(&tree.pid)),
        })
    }

    /// Refuses what would only half work here. To be asked in the network namespace of the interface.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn check(&self) -> Result<(), HostError> {
        let by_filters = self.is_by_filters();
        let resets = self.rules.iter().any(Rule::resets);
        let mut uses = vec![Use::Programs];
        let exact = self.exact != Exact::No;
        if exact || by_filters || self.rules.iter().any(Rule::needs_detour) {
            uses.push(Use::Interfaces);
        }
        if resets {
            uses.push(Use::Segments);
        }
        Demands { uses, changes: exact || by_filters }.check()?;
        for target in self.targets.iter().filter(|target| resets || matches!(target, Target::Process(_))) {
            // Whether there still is one is asked elsewhere.
            target.processes().unwrap_or_default().into_iter().try_for_each(rights::may_have_sockets)?;
        }
        Ok(())
    }

    /// Whether filters, which do not go with their owner, will hold programs: where there are no links for tc. Should a driver
    /// refuse XDP there, they are asked for once more when that is known.
    fn is_by_filters(&self) -> bool {
        let Some(device) = &self.device else { return false };
        let has_links = sys::attached(sys::Target::Interface(device.ifindex), BPF_TCX_INGRESS).is_ok();
        let is_by_tc = |way: Direction| {
            let rules = self.rules.iter().filter(|rule| rule.direction == way);
            let faults: Vec<_> = rules.flat_map(Rule::faults).collect();
            !faults.is_empty() && common(&faults, way).next() != Some(Mechanism::XdpNative)
        };
        !has_links && [Direction::In, Direction::Out].into_iter().any(is_by_tc)
    }

    /// Where it acts, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        self.device.as_ref().map_or(NO_DEVICE, |device| &device.name)
    }
}

/// Their cgroups' folders, each once and without those below others: a program runs once for each that it is attached to.
fn outermost<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<&'a Path> {
    let all: BTreeSet<&Path> = targets.map(Target::folder).collect();
    let is_below = |folder: &Path| all.iter().any(|other| *other != folder && folder.starts_with(other));
    all.iter().copied().filter(|folder| !is_below(folder)).collect()
}

/// What stands where an interface's name would, for a run that has none.
pub const NO_DEVICE: &str = "connect()";

/// All that it has in the kernel.
#[derive(Debug)]
pub(super) struct NetRun {
    plan: Arc<Plan>,
    tables: Tables,
    programs: Programs,
    attachments: Vec<Attachment>,
    detours: Vec<Detour>,
    silent: Option<Silent>,
    /// Where the interface is to stay, if more than links is about it. Not otherwise: this keeps its network namespace.
    place: Option<(RefCell<Netlink>, Interface)>,
    /// How many addresses more names have come to stand for.
    learnt: usize,
    /// What was asked of the interface and could not be had.
    inexact: Option<String>,
}

impl NetRun {
    /// What is said of a plan before anything is done.
    pub(super) fn facts(plan: &Plan) -> Facts {
        Facts {
            place: plan.place().to_owned(),
            device: plan.device.as_ref().map(|device| device.name.clone()),
            ifindex: plan.device.as_ref().map_or(0, |device| device.ifindex),
            rules: plan.rules.iter().map(rule_record).collect(),
            seed: Some(plan.seed),
            duration: plan.duration,
            protected: plan.protected.to_string(),
            spares_a_session: plan.protected.session.is_some(),
        }
    }

    /// Loads and attaches, disarmed.
    pub(super) fn attach(plan: Plan, journal: &mut Journal) -> Result<Self, SessionError> {
        let tables = Tables::new(&plan.rules, plan.seed);
        let mut detours = Vec::new();
        let (mut near, mut far) = ([0; DIRECTIONS], [0; DIRECTIONS]);
        let directions: Vec<_> =
            [Direction::In, Direction::Out].into_iter().filter(|way| tables.acts(*way)).collect();
        for direction in &directions {
            if let Some(detour) = detour(&plan, *direction, journal.id())? {
                (near[*direction as usize], far[*direction as usize]) = (detour.near, detour.far);
                detours.push((*direction, detour));
            }
        }
        let (protect, session) = plan.protected.given();
        let ifindex = plan.device.as_ref().map_or(0, |device| device.ifindex);
        let environment = Environment {
            protect,
            session,
            owner_tgid: probe::own_tgid()?,
            ethernet: plan.device.as_ref().is_some_and(|device| device.ethernet),
            ifindex,
            place: place(journal.begun().netns.inode, ifindex),
            near,
            far,
            generation: clock::exact(),
        };
        SessionError::if_interrupted()?;
        let mut programs = Programs::load(&tables, plan.seed, environment)?;
        for (direction, detour) in &mut detours {
            detour.attach(&mut programs, *direction)?;
        }
        let mut attachments = Vec::new();
        let mut inexact = None;
        if let Some(device) = &plan.device {
            for direction in directions {
                SessionError::if_interrupted()?;
                let rules = plan.rules.iter().filter(|rule| rule.direction == direction);
                let faults: Vec<_> = rules.flat_map(Rule::faults).collect();
                attachments.push(Attachment::new(&mut programs, device, &faults, direction, journal)?);
            }
            SessionError::if_interrupted()?;
            inexact = not_exact(&plan, device, journal)?;
        }
        for folder in outermost(plan.named_by(|rule| rule.direction == Direction::Connect)) {
            attachments.extend(Attachment::to_cgroup(&mut programs, folder)?);
        }
        let trees = || plan.targets.iter().filter(|target| matches!(target, Target::Process(_)));
        // New sockets first: those that are made meanwhile are not to be missed.
        for folder in outermost(trees()) {
            attachments.push(Attachment::of_sockets(&mut programs, folder)?);
        }
        let rules_of = |process| tables.processes.get(&process).copied().unwrap_or(0);
        mark_sockets(&enrol::trees(&plan.targets, rules_of), &mut programs)?;
        let detours: Vec<_> = detours.into_iter().map(|(_, detour)| detour).collect();
        let silent = if plan.rules.iter().any(Rule::resets) {
            let sockets = (!tables.processes.is_empty()).then(|| programs.sockets()).transpose()?;
            Some(Silent::begin(sockets)?)
        } else {
            None
        };
        let plan = Arc::new(plan);
        let mut run =
            Self { plan, tables, programs, attachments, detours, silent, place: None, learnt: 0, inexact };
        if ifindex != 0 && !(journal.changes().is_empty() && run.holds_itself()) {
            let mut netlink = Netlink::open()?;
            let interface = Interface::find(&mut netlink, ifindex)?;
            run.place = Some((RefCell::new(netlink), interface));
        }
        // One that has ended until here is nobody's.
        run.forget_the_dead()?;
        Ok(run)
    }
}

/// Marks the sockets that those who belong to these have, again and again until there is nobody new: one that is begun meanwhile has
/// sockets of who began it, which that one may have closed by its turn.
fn mark_sockets(trees: &[(&Tree, u64)], programs: &mut Programs) -> Result<(), SessionError> {
    let mut marked: BTreeMap<Process, u64> = BTreeMap::new();
    for _ in 0..enrol::ROUNDS {
        let mut is_new = false;
        for (process, rules) in enrol::members(trees)? {
            if marked.insert(process, rules) != Some(rules) {
                is_new = true;
                SessionError::if_interrupted()?;
                kernel::sockets::each(process, |socket| programs.mark(socket, rules))?;
            }
        }
        if !is_new {
            break;
        }
    }
    Ok(())
}

impl Run for NetRun {
    fn hooks(&self) -> Vec<HookRecord> {
        self.attachments.iter().map(hook_record).collect()
    }

    fn map_ids(&self) -> kernel::Result<Option<MapIds>> {
        self.programs.map_ids().map(Some)
    }

    fn more_entries(&mut self) -> kernel::Result<Vec<Entry>> {
        let used = self.tables.profile.each_ref().map(Option::is_some);
        if !used.contains(&true) {
            return Ok(Vec::new());
        }
        let ids = self.programs.profile_ids(used)?;
        Ok(vec![Entry::Profile { ids, limit: self.plan.limit }])
    }

    fn holds_itself(&self) -> bool {
        self.detours.is_empty() && self.silent.is_none()
    }

    fn expire(&mut self, tick: u64) -> kernel::Result<()> {
        for rule in &mut self.tables.rules {
            rule.expires_at = tick;
        }
        self.programs.set_rules(&self.tables.rules)
    }

    fn set_control(&mut self, control: Control) -> kernel::Result<()> {
        self.programs.set_control(control)
    }

    fn targets(&self) -> &[Target] {
        &self.plan.targets
    }

    /// Those of cgroups go with these, which is looked at elsewhere.
    fn ending(&self) -> kernel::Result<Option<Ending>> {
        for attachment in self.attachments.iter().filter(|it| it.direction != Direction::Connect) {
            if !attachment.alive()? {
                return Ok(Some(Ending::DeviceGone));
            }
        }
        // Links go with it, and what is beside them does not.
        match &self.place {
            Some((netlink, interface)) if !interface.stays(&mut netlink.borrow_mut())? => {
                Ok(Some(Ending::DeviceMoved))
            }
            _ => Ok(None),
        }
    }

    fn is_ramped(&self) -> bool {
        self.plan.rules.iter().any(|rule| !rule.impairments.ramps.is_empty())
    }

    fn ramp(&mut self, elapsed: Duration) -> kernel::Result<()> {
        self.tables.ramp(&self.plan.rules, elapsed, self.plan.seed);
        self.programs.set_rules(&self.tables.rules)
    }

    /// Takes note of what a name stands for now. What it stood for before stays: many answer with a few of their
    /// addresses at a time, and connections to those before go on.
    fn learn(&mut self, name: &str, addresses: &[IpNet]) -> kernel::Result<()> {
        let Self { plan, tables, programs, learnt, .. } = self;
        if *learnt + addresses.len() > programs::NAMES_ROOM as usize {
            return Ok(());
        }
        let plan = Arc::make_mut(plan);
        let new = plan.rules.iter_mut().map(|rule| rule.learn(name, addresses)).max().unwrap_or(0);
        if new == 0 {
            return Ok(());
        }
        *learnt += new;
        let known = Tables::new(&plan.rules, plan.seed);
        (tables.v4, tables.v6) = (known.v4, known.v6);
        programs.set_addresses(tables)
    }

    fn forget_the_dead(&mut self) -> kernel::Result<()> {
        let Self { plan, tables, programs, .. } = self;
        for target in plan.targets.iter().filter(|target| !target.exists()) {
            if let Target::Process(tree) = target
                && tables.processes.remove(&tree.pid).is_some()
            {
                programs.forget_process(tree.pid)?;
            }
        }
        Ok(())
    }

    /// Has connections that are silent say something, so that they can be reset.
    fn prod(&self) -> kernel::Result<()> {
        self.silent.as_ref().map_or(Ok(()), |silent| silent.turn(&self.plan))
    }

    fn counters(&self) -> kernel::Result<Counters> {
        self.programs.counters()
    }

    fn report(&self, counters: &Counters) -> RunReport {
        let mut report = report(&self.plan.rules, counters);
        report.remarks.extend(self.inexact.clone());
        report
    }

    /// What waits still comes, by the way back and past the programs, which are disarmed.
    fn detach(&mut self) -> kernel::Result<u64> {
        let queues: kernel::Result<Vec<_>> = self.detours.iter().map(|detour| detour.drain(DRAIN)).collect();
        self.silent = None;
        self.attachments.clear();
        self.detours.clear();
        Ok(queues?.iter().map(|queue| queue.lost + u64::from(queue.waiting)).sum())
    }
}

/// An even number of this interface's and, but for one chance in two billion, no other's on the machine, with which
/// packets are marked.
fn place(netns: u64, ifindex: u32) -> u32 {
    // Namespaces' numbers are next to each other, as interfaces' are: they must not add up to the same.
    ((netns as u32).wrapping_mul(0x9e37_79b1) ^ ifindex << 1) & !1
}

/// Switches offloads off, as far as that is asked for, and says what stays on.
fn not_exact(plan: &Plan, device: &Device, journal: &mut Journal) -> Result<Option<String>, SessionError> {
    if plan.exact == Exact::No {
        return Ok(None);
    }
    let stays = change::features_off(device.ifindex, journal)?;
    if stays.is_empty() {
        return Ok(None);
    }
    let (device, stays) = (device.name.clone(), stays.join(", "));
    if plan.exact == Exact::Required {
        return Err(SessionError::NotExact { device, stays });
    }
    Ok(Some(format!("{device} cannot switch off {stays}: what it makes of several packets is hit whole")))
}

/// The way round of the packets that go this way, if any need one.
fn detour(plan: &Plan, direction: Direction, id: &str) -> Result<Option<Detour>, SessionError> {
    let rules: Vec<_> = plan.rules.iter().filter(|rule| rule.direction == direction).collect();
    if !rules.iter().any(|rule| rule.needs_detour()) {
        return Ok(None);
    }
    let waits = rules.iter().any(|rule| rule.impairments.waits());
    let queue = waits.then_some(Queue { limit: plan.limit, horizon: HORIZON });
    let checksums = !rules.iter().any(|rule| rule.impairments.breaks_checksums());
    let name = format!("fl-{id}-{}", direction.name());
    match Detour::new(&name, queue, checksums) {
        Err(error) if error.call == "netlink(RTM_NEWQDISC)" && error.errno() == libc::ENOENT => {
            Err(SessionError::NoQueue(error))
        }
        made => Ok(Some(made?)),
    }
}

/// What fq lets wait: several delays in a row, and what waits before a wire.
const HORIZON: Duration = Duration::from_secs(600);

/// How long what waits is given to come out when a fault ends.
const DRAIN: Duration = Duration::from_secs(1);

fn rule_record(rule: &Rule) -> RuleRecord {
    RuleRecord { fault: rule.label.clone(), direction: rule.direction, asked: rule.impairments.chance() }
}

fn hook_record(attachment: &Attachment) -> HookRecord {
    HookRecord {
        direction: attachment.direction,
        hook: attachment.mechanism,
        function: None,
        why: attachment.why.clone(),
        program_id: Some(attachment.program),
        link_id: attachment.link(),
    }
}
