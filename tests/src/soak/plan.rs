//! What is going to be done in a step. It follows from the seed, the number of the step, and what the kernel can do.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{
    faults::{Fault, Kind, draw},
    random::Random,
};

/// What happens to owners, or to what they act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// `faultline stop ID`
    Stop,
    /// `faultline stop --all`
    StopAll,
    /// `SIGINT`
    Interrupt,
    /// `SIGTERM`
    Terminate,
    /// `SIGHUP`
    HangUp,
    /// `SIGQUIT`
    Quit,
    /// Their time is over.
    Duration,
    /// `SIGKILL`
    Kill,
    /// The same, and that of the guard.
    KillWithGuard,
    /// `SIGSTOP` for longer than the lease.
    Pause,
    /// The kernel's killer, for want of memory.
    OutOfMemory,
    /// The interface is deleted.
    InterfaceDeleted,
    /// It is moved to another network namespace.
    InterfaceMoved,
    /// Its namespace goes.
    NamespaceGone,
    /// The target's processes are killed and their cgroup is removed.
    CgroupGone,
    /// The target ends.
    TargetEnds,
    /// It is moved to another cgroup.
    TargetMoved,
    /// The owner and its guard are killed, and who sweeps first sees other processes, mounts, networks or cgroups.
    SweptFrom(Namespace),
    /// They are killed, and the record ends within a line.
    TornLine,
    /// They are killed, and there is a line in the record that nobody understands.
    UnknownLine,
    /// Nobody reads what it prints any more, and the pipe is full.
    OutputFull,
}

/// What a sweep has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Namespace {
    /// Processes.
    Pid,
    /// Mounts, without those of cgroups.
    Mount,
    /// A network.
    Network,
    /// A root of cgroups.
    Cgroup,
}

impl Namespace {
    /// As it is asked for.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Cgroup => "cgroup",
        }
    }
}

/// How often each is chosen. What takes seconds is rare.
const EVENTS: &[(u64, Event)] = &[
    (6, Event::Stop),
    (5, Event::StopAll),
    (4, Event::Interrupt),
    (4, Event::Terminate),
    (2, Event::HangUp),
    (1, Event::Quit),
    (6, Event::Duration),
    (8, Event::Kill),
    (8, Event::KillWithGuard),
    (2, Event::Pause),
    (3, Event::OutOfMemory),
    (4, Event::InterfaceDeleted),
    (6, Event::InterfaceMoved),
    (4, Event::NamespaceGone),
    (4, Event::CgroupGone),
    (4, Event::TargetEnds),
    (3, Event::TargetMoved),
    (3, Event::SweptFrom(Namespace::Pid)),
    (2, Event::SweptFrom(Namespace::Mount)),
    (2, Event::SweptFrom(Namespace::Network)),
    (2, Event::SweptFrom(Namespace::Cgroup)),
    (3, Event::TornLine),
    (4, Event::UnknownLine),
    (3, Event::OutputFull),
];

impl Event {
    fn kind(self) -> Kind {
        match self {
            Self::InterfaceDeleted | Self::InterfaceMoved | Self::NamespaceGone => Kind::Interface,
            Self::CgroupGone | Self::TargetEnds | Self::TargetMoved => Kind::Aimed,
            Self::KillWithGuard | Self::SweptFrom(_) | Self::TornLine | Self::UnknownLine => Kind::Recorded,
            _ => Kind::Any,
        }
    }

    /// Whether it takes the interface from everybody, so that the step has one for itself.
    pub(super) fn takes_interface(self) -> bool {
        self.kind() == Kind::Interface
    }

    /// Whether it takes the target away.
    pub(super) fn takes_target(self) -> bool {
        matches!(self, Self::CgroupGone | Self::TargetEnds)
    }

    /// Whether it is one of a run that is armed: before that there is nothing that it could be done to.
    fn is_of_armed(self) -> bool {
        matches!(
            self,
            Self::Duration | Self::OutputFull | Self::TornLine | Self::UnknownLine | Self::SweptFrom(_)
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::StopAll => "stop --all",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
            Self::Quit => "SIGQUIT",
            Self::Duration => "time over",
            Self::Kill => "SIGKILL",
            Self::KillWithGuard => "SIGKILL with guard",
            Self::Pause => "SIGSTOP beyond the lease",
            Self::OutOfMemory => "OOM kill",
            Self::InterfaceDeleted => "interface deleted",
            Self::InterfaceMoved => "interface moved",
            Self::NamespaceGone => "network namespace gone",
            Self::CgroupGone => "cgroup gone",
            Self::TargetEnds => "target ends",
            Self::TargetMoved => "target moved",
            Self::SweptFrom(namespace) => {
                return write!(f, "swept from another {} namespace", namespace.name());
            }
            Self::TornLine => "torn line",
            Self::UnknownLine => "unknown line",
            Self::OutputFull => "output full",
        })
    }
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// So long after the start, wherever that is in their lives.
    Started(Duration),
    /// As soon as all are armed, or so long after.
    Armed(Duration),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(time) => write!(f, "{time:?} after the start"),
            Self::Armed(time) => write!(f, "{time:?} after arming"),
        }
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Its number.
    pub(super) number: u64,
    /// What is begun, each with an owner of its own.
    pub(super) faults: Vec<Fault>,
    /// What happens.
    pub(super) event: Event,
    /// When.
    pub(super) moment: Moment,
    /// Whether it happens to all owners, or to the first alone.
    pub(super) to_all: bool,
    /// How many others list and sweep meanwhile, all the time.
    pub(super) readers: u64,
    /// Whether the owners let everybody write what they make, if it is up to them.
    pub(super) is_careless: bool,
    /// Whether the last owner has a pid namespace of its own.
    pub(super) is_elsewhere: bool,
}

impl Step {
    /// The step of this number.
    pub(super) fn draw(seed: u64, number: u64, abilities: &BTreeSet<String>) -> Self {
        let mut random = Random::of_step(seed, number);
        let event = random.weighed(EVENTS);
        let is_elsewhere = match event {
            Event::StopAll => random.chance(50),
            Event::Stop | Event::Kill => random.chance(10),
            _ => false,
        };
        let count = random.weighed(&[(60, 1), (28, 2), (12, 3)]) + u64::from(is_elsewhere);
        let mut faults: Vec<Fault> = (0..count)
            .map(|place| {
                let is_foreign = is_elsewhere && place + 1 == count;
                draw(&mut random, if is_foreign { Kind::Foreign } else { event.kind() }, abilities)
            })
            .collect();
        let moment = match random.below(10) {
            0..4 if !event.is_of_armed() => Moment::Started(Duration::from_millis(random.below(250))),
            0..7 => Moment::Armed(Duration::ZERO),
            _ => Moment::Armed(Duration::from_millis(random.below(600))),
        };
        if event == Event::Duration {
            for fault in &mut faults {
                let time = format!("{}ms", random.between(50, 900));
                let ends_at = fault.words.iter().position(|word| matches!(word.as_str(), "--and" | "--"));
                let place = ends_at.unwrap_or(fault.words.len());
                fault.words.splice(place..place, ["--for".to_owned(), time]);
            }
        }
        let to_all = random.chance(50);
        let readers = random.weighed(&[(70, 0), (20, 1), (10, 3)]);
        let is_careless = random.chance(30);
        Self { number, faults, event, moment, to_all, readers, is_careless, is_elsewhere }
    }

    /// Whether this owner is one that the event happens to.
    pub(super) fn hits(&self, place: usize) -> bool {
        place == 0 || self.to_all || self.event.takes_interface() || self.event.takes_target()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lab::NEAR_DEVICE, soak::faults::FAMILIES};

    /// A kernel that can do all of it, and the machine's own.
    fn abilities(names: &str) -> BTreeSet<String> {
        names.split(' ').map(String::from).collect()
    }

    const HOST: &str = "loss duplicate corrupt reset timeout refuse aim dns io_delay sys_delay time_skew tcx";
    const ALL: &str = "loss duplicate corrupt reset timeout refuse aim dns io_delay sys_delay time_skew delay rate \
                       io_error io_corrupt io_slow sys_error mem_error fd_error fork_error sock_error deny";

    #[test]
    fn a_seed_repeats_a_plan() {
        let plan =
            |seed| -> Vec<Step> { (0..200).map(|it| Step::draw(seed, it, &abilities(HOST))).collect() };
        assert_eq!(plan(9), plan(9));
        assert_ne!(plan(9), plan(10));
        assert_eq!(plan(9)[77], Step::draw(9, 77, &abilities(HOST)));
    }

    #[test]
    fn everything_comes_up() {
        let plan: Vec<Step> = (0..3000).map(|it| Step::draw(1, it, &abilities(ALL))).collect();
        for (_, event) in EVENTS {
            assert!(plan.iter().any(|step| step.event == *event), "{event}");
        }
        for family in FAMILIES {
            let has = |step: &Step| step.faults.iter().any(|fault| fault.family == *family);
            assert!(plan.iter().any(has), "{family:?}");
        }
    }

    #[test]
    fn what_a_kernel_cannot_do_is_rarely_asked_for() {
        let abilities = abilities(HOST);
        let plan: Vec<Step> = (0..3000).map(|it| Step::draw(1, it, &abilities)).collect();
        let faults: Vec<&Fault> = plan.iter().flat_map(|step| &step.faults).collect();
        let refused = faults.iter().filter(|fault| !fault.family.is_in(&abilities)).count();
        assert!(refused > 0 && refused < faults.len() / 20, "{refused} of {}", faults.len());
    }

    #[test]
    fn an_interface_that_is_taken_away_is_nobody_elses() {
        for step in (0..3000).map(|it| Step::draw(1, it, &abilities(ALL))) {
            let on_it = step.faults.iter().all(|fault| {
                let words = fault.line();
                words.contains(NEAR_DEVICE) && !words.contains("{pid}") && !words.contains("{cgroup}")
            });
            assert!(!step.event.takes_interface() || on_it, "{step:?}");
            let last = step.faults.last().map(Fault::line).unwrap_or_default();
            assert!(!step.is_elsewhere || !last.contains("{pid}"), "{step:?}");
        }
    }
}
