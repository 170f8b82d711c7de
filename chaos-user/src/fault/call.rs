//! Faults in system calls: from what was written, with everybody and everything looked up, to what the programs are given.

use std::collections::{BTreeMap, BTreeSet};

use chaos_ebpf::{
    abi::{self, MAX_LEVELS, MAX_RULES, Window},
    call::{ANYWHERE, Argument, Inode, LONGEST_WAIT, MAX_GLOBS, Name, Place, Rule, Setup, effect, nth},
    glob::Glob,
};

use super::{CgroupId, Deviations, TooMany, glob};
use crate::{
    kernel::hook::Effect,
    spec::{Action, CallFault, Calls, Impairments, Invalid, SpoilKind},
};

/// A fault, with what it is aimed at looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRule {
    /// As it was written.
    pub label: String,
    /// What is done.
    pub action: Action,
    /// To which calls.
    pub calls: Calls,
    /// Of whom, about what.
    pub wanted: Wanted,
    /// How likely, between 0 and 1.
    pub chance: f64,
    /// The same as the programs have it.
    pub threshold: u32,
    /// Which of these by their order.
    pub window: Window,
}

/// Whose calls, about what. Entries of one list are alternatives, and all lists must be met; an empty one asks nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// In which cgroups. Of these and `processes` either will do.
    pub cgroups: Vec<CgroupId>,
    /// By which processes.
    pub processes: Vec<u32>,
    /// Of which files, or beneath which directories, with the pattern of the entries that are meant.
    pub places: Vec<(Inode, Option<String>)>,
    /// By which users.
    pub users: Vec<u32>,
    /// By threads of which names.
    pub names: Vec<Name>,
    /// In file systems of which types.
    pub file_systems: Vec<Name>,
    /// On which devices, as the kernel numbers them.
    pub devices: Vec<u32>,
    /// Opened with which flags.
    pub flags: u32,
}

impl Wanted {
    /// Whether it asks what file a call is about.
    #[must_use]
    pub fn is_of_files(&self) -> bool {
        let Self { places, file_systems, devices, flags, .. } = self;
        !places.is_empty() || !file_systems.is_empty() || !devices.is_empty() || *flags != 0
    }
}

impl CallRule {
    /// The rule of a fault that wants these.
    #[must_use]
    pub fn new(fault: &CallFault, wanted: Wanted) -> Self {
        Self {
            label: fault.to_string(),
            action: fault.action.clone(),
            calls: fault.calls.clone(),
            wanted,
            chance: fault.percent.fraction(),
            threshold: fault.percent.threshold(),
            window: fault.window,
        }
    }

    /// What it does, as far as the mechanisms differ in it.
    #[must_use]
    pub fn effect(&self) -> Effect {
        match self.action {
            Action::Error(_) | Action::Full(_) => Effect::Fail,
            Action::Delay(_) => Effect::Wait,
            Action::Corrupt(_) => Effect::Spoil,
        }
    }

    /// The row, without an end.
    fn row(&self, deviations: &mut Deviations, seed: u64) -> Rule {
        let mut rule = Rule {
            window: self.window,
            seed,
            chance: self.threshold,
            flags: self.wanted.flags,
            ..Rule::NOTHING
        };
        match &self.action {
            Action::Error(errno) => {
                (rule.effects, rule.errno) = (effect::FAIL, -i64::from(*errno as i32));
            }
            Action::Full(errno) => {
                (rule.effects, rule.errno) = (effect::FAIL | effect::GROWTH, -i64::from(*errno as i32));
            }
            Action::Delay(delay) => {
                let whole = Impairments { delay: Some(delay.clone()), ..Impairments::default() };
                let (table, entries) = deviations.place(&whole);
                rule.effects = effect::WAIT;
                rule.delay = abi::Delay {
                    time: delay.time.as_nanos() as u64,
                    jitter: delay.jitter.as_nanos() as u64,
                    correlation: delay.correlation.threshold(),
                    table,
                    entries,
                    pad: 0,
                };
            }
            Action::Corrupt(spoil) => {
                rule.effects = match spoil.kind {
                    SpoilKind::Flip => effect::FLIP,
                    SpoilKind::Zero => effect::ZERO,
                    SpoilKind::Random => effect::SCRAMBLE,
                };
                (rule.bytes, rule.offset) = (spoil.bytes, spoil.offset.unwrap_or(ANYWHERE));
            }
        }
        if let Calls::Named(_, arguments) = &self.calls {
            rule.arguments = *arguments;
            rule.asks = u32::from(arguments.iter().any(|it| *it != Argument::default()));
        }
        rule
    }
}

/// All that the programs of a run look things up in.
#[derive(Clone, Debug, Default)]
pub struct CallTables {
    /// What all programs are specialised by; the loader adds what is a hook's own.
    pub setup: Setup,
    /// The rules, without an end.
    pub rules: Vec<Rule>,
    /// The distributions of their delays.
    pub deviations: Deviations,
    /// By a cgroup's number.
    pub cgroups: BTreeMap<u64, u64>,
    /// By a process's number.
    pub processes: BTreeMap<u32, u64>,
    /// By file.
    pub places: Vec<(Inode, Place)>,
    /// By their numbers.
    pub globs: Vec<Glob>,
    /// By a user's number.
    pub users: BTreeMap<u32, u64>,
    /// By a thread's name.
    pub names: BTreeMap<Name, u64>,
    /// By a file system's type.
    pub file_systems: BTreeMap<Name, u64>,
    /// By a device's number.
    pub devices: BTreeMap<u32, u64>,
}

impl CallTables {
    /// Compiles the rules.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub fn new(rules: &[CallRule], seed: u64) -> Result<Self, CallError> {
        if rules.len() > MAX_RULES {
            return Err(TooMany::Rules(rules.len()).into());
        }
        let mut tables = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            tables.add(1 << index, &rule.wanted)?;
            let row = rule.row(&mut tables.deviations, nth(seed, index as u64));
            tables.rules.push(row);
        }
        let wanted: Vec<_> = rules.iter().map(|rule| &rule.wanted).collect();
        tables.close(&wanted)?;
        Ok(tables)
    }

    /// Compiles what says no more than whose, for one rule that does nothing.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub fn of_owners(wanted: &Wanted) -> Result<Self, CallError> {
        let mut tables = Self { rules: vec![Rule::NOTHING], ..Self::default() };
        tables.add(1, wanted)?;
        tables.close(&[wanted])?;
        Ok(tables)
    }

    fn add(&mut self, bit: u64, wanted: &Wanted) -> Result<(), CallError> {
        let Wanted { cgroups, processes, places, users, names, file_systems, devices, flags: _ } = wanted;
        cgroups.iter().for_each(|cgroup| *self.cgroups.entry(cgroup.id).or_default() |= bit);
        processes.iter().for_each(|pid| *self.processes.entry(*pid).or_default() |= bit);
        users.iter().for_each(|uid| *self.users.entry(*uid).or_default() |= bit);
        names.iter().for_each(|name| *self.names.entry(*name).or_default() |= bit);
        file_systems.iter().for_each(|name| *self.file_systems.entry(*name).or_default() |= bit);
        devices.iter().for_each(|device| *self.devices.entry(*device).or_default() |= bit);
        for (inode, pattern) in places {
            self.setup.numbers |= 1 << (inode.number & 63);
            let found = self.places.iter().position(|(known, _)| known == inode);
            let index = found.unwrap_or_else(|| {
                self.places.push((*inode, Place::default()));
                self.places.len() - 1
            });
            let Some(pattern) = pattern else {
                self.places[index].1.rules |= bit;
                continue;
            };
            if self.globs.len() == MAX_GLOBS {
                return Err(CallError::Globs);
            }
            self.places[index].1.globs |= 1 << self.globs.len();
            self.globs.push(glob::compile(pattern, bit).map_err(CallError::Glob)?);
        }
        Ok(())
    }

    /// Bits without a rule count as satisfied, so that "nobody asks" is all ones.
    fn close(&mut self, wanted: &[&Wanted]) -> Result<(), CallError> {
        let free = |asks: fn(&Wanted) -> bool| {
            let asking = wanted.iter().enumerate().filter(|(_, wanted)| asks(wanted));
            asking.fold(u64::MAX, |any, (index, _)| any & !(1 << index))
        };
        let levels: BTreeSet<u8> =
            wanted.iter().flat_map(|wanted| &wanted.cgroups).map(|cgroup| cgroup.level).collect();
        if levels.len() > MAX_LEVELS {
            return Err(TooMany::Levels(levels.len()).into());
        }
        let setup = &mut self.setup;
        setup.any_owner = free(|wanted| !wanted.cgroups.is_empty() || !wanted.processes.is_empty());
        setup.any_place = free(|wanted| !wanted.places.is_empty());
        setup.any_user = free(|wanted| !wanted.users.is_empty());
        setup.any_name = free(|wanted| !wanted.names.is_empty());
        setup.any_file_system = free(|wanted| !wanted.file_systems.is_empty());
        setup.any_device = free(|wanted| !wanted.devices.is_empty());
        setup.processes = u32::from(!self.processes.is_empty());
        if let [(id, rules)] = self.cgroups.iter().collect::<Vec<_>>()[..] {
            (setup.cgroup, setup.of_cgroup) = (*id, *rules);
        }
        setup.single = u32::from(self.rules.len() == 1);
        setup.asks = u32::from(self.rules.iter().any(|rule| rule.asks != 0));
        setup.globs = u32::from(!self.globs.is_empty());
        setup.level_count = levels.len() as u32;
        for (to, level) in setup.levels.iter_mut().zip(levels) {
            *to = level;
        }
        Ok(())
    }

    /// Longest that a call can be made to wait by all rules together, in nanoseconds.
    #[must_use]
    pub fn longest_wait(rules: &[CallRule]) -> u64 {
        let longest = |rule: &CallRule| match &rule.action {
            Action::Delay(delay) => {
                let widest = delay.jitter.saturating_mul(delay.distribution.widest());
                (delay.time + widest).as_nanos() as u64
            }
            _ => 0,
        };
        rules.iter().map(longest).sum()
    }
}

/// Longest wait without [`LONGEST_WAIT`] having been allowed, in nanoseconds.
pub const SHORT_WAIT: u64 = 10_000_000;

/// What one run cannot have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// More rules, or cgroups.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// More globs.
    #[error("--path: more than {MAX_GLOBS} globs; further ones can go into a second run")]
    Globs,
    /// A glob that is none.
    #[error("--path: {0}")]
    Glob(Invalid),
    /// A wait that nobody has allowed.
    #[error(
        "delay: a call would wait for up to {wait}, and a program in the kernel waits by keeping its CPU: nothing else runs \
         there meanwhile, where the kernel is not preemptible. Above {short} write --allow-busy-wait as well, up to {longest}",
        short = shown(SHORT_WAIT), longest = shown(LONGEST_WAIT)
    )]
    LongWait {
        /// How long.
        wait: String,
    },
    /// A wait that cannot be had.
    #[error("delay: a call would wait for up to {wait}, and {longest} are the most that can be had", longest = shown(LONGEST_WAIT))]
    TooLong {
        /// How long.
        wait: String,
    },
}

/// Checks that the calls wait no longer than was allowed.
///
/// # Errors
///
/// [`CallError`].
pub fn check_wait(rules: &[CallRule], allowed: bool) -> Result<(), CallError> {
    let longest = CallTables::longest_wait(rules);
    let wait = shown(longest);
    match longest {
        _ if longest > LONGEST_WAIT => Err(CallError::TooLong { wait }),
        _ if longest > SHORT_WAIT && !allowed => Err(CallError::LongWait { wait }),
        _ => Ok(()),
    }
}

fn shown(nanoseconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_nanos(nanoseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CallMatch, Family, Op, Percent};

    fn fault(action: Action) -> CallFault {
        CallFault {
            family: Family::Io,
            action,
            calls: Calls::Ops(vec![Op::Read]),
            matches: CallMatch::default(),
            percent: Percent::ALL,
            window: Window::ALL,
        }
    }

    fn delay(text: &str) -> Action {
        Action::delay(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()).expect("valid")
    }

    #[test]
    fn what_asks_for_nothing_is_satisfied() {
        let file = Inode { number: 0x45, generation: 1, device: 2 };
        let aimed = Wanted {
            cgroups: vec![CgroupId { id: 7, level: 2 }],
            places: vec![(file, None)],
            ..Wanted::default()
        };
        let glob = Wanted { places: vec![(file, Some("*.db".into()))], users: vec![5], ..Wanted::default() };
        let rules = [aimed, glob].map(|wanted| CallRule::new(&fault(delay("1ms")), wanted));
        let tables = CallTables::new(&rules, 1).expect("they fit");
        let Setup { any_owner, any_place, any_user, any_name, numbers, .. } = tables.setup;
        assert_eq!((any_owner, any_place, any_user, any_name), (!1, !3, !2, u64::MAX));
        assert_eq!(numbers, 1 << 5);
        assert_eq!(tables.places, [(file, Place { rules: 1, globs: 1 })]);
        assert_eq!((tables.globs.len(), tables.globs[0].rules), (1, 2));
        assert_ne!(tables.rules[0].seed, tables.rules[1].seed);
    }

    #[test]
    fn long_waits_are_allowed_first() {
        let rules = |text: &str| [CallRule::new(&fault(delay(text)), Wanted::default())];
        assert_eq!(check_wait(&rules("10ms"), false), Ok(()));
        assert!(matches!(check_wait(&rules("9ms 2ms"), false), Err(CallError::LongWait { .. })));
        assert_eq!(check_wait(&rules("9ms 2ms"), true), Ok(()));
        assert!(matches!(check_wait(&rules("3s"), true), Err(CallError::TooLong { .. })));
    }
}
