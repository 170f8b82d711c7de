//! The programs of faults in clocks: one holds what is executed in the target until its vDSO has been seen to, others make
//! wrong what system calls read.

use aya::maps::{Array, Map, MapData, PerCpuArray};
use chaos_ebpf::{
    abi::{self, Control, Count, Direction, HookState, RuleState},
    call::{self, Setup},
    time::{Block, EVENT_BYTES, HOLD_CAP, MAX_CPUS, STUCK_CAP, Tally, Watch, map, program},
};

use super::{
    Error, Result,
    btf::KernelTypes,
    calls::{self, Attached, Exempt},
    code::Code,
    counters::MapIds,
    hold::{Events, Holds},
    hook::Site,
    maps,
    mechanism::Mechanism,
    object,
    roll::Roll,
};
use crate::fault::CallTables;

/// What becomes of the times that system calls read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rewrite {
    /// They stay.
    #[default]
    No,
    /// They are made wrong, but for those a vDSO reads: it sees to these itself.
    Raw,
    /// They are all made wrong.
    All,
}

/// How programs are held that have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// How many at once.
    pub most: u32,
    /// Longest before the owner has begun to see to it, in nanoseconds.
    pub hold_ns: u64,
    /// Longest after, in nanoseconds.
    pub stuck_ns: u64,
}

impl Holding {
    /// Where the owner sees to it on so many CPUs: one of them is left free. Where there is no other, none is held: the
    /// owner could not run meanwhile.
    #[must_use]
    pub fn on(cpus: usize) -> Self {
        Self { most: cpus.saturating_sub(1) as u32, hold_ns: HOLD_CAP, stuck_ns: STUCK_CAP }
    }
}

/// The programs and their maps in the kernel, disarmed until [`TimePrograms::set_control`] says otherwise. All of it goes
/// when this is dropped.
#[derive(Debug)]
pub struct TimePrograms {
    code: Code,
    attached: Vec<Attached>,
    holds: Holds,
    events: Events,
}

impl TimePrograms {
    /// Creates and fills the maps, loads the programs, and attaches them.
    ///
    /// # Errors
    ///
    /// The kernel's; nothing is attached then.
    pub fn new(tables: &CallTables, exempt: Exempt, holding: Holding, rewrite: Rewrite) -> Result<Self> {
        let types = KernelTypes::read()?;
        let cpus = aya::util::nr_cpus().map_err(|(file, source)| Error::new("read", file, source))?;
        let slots = (cpus as u32).clamp(1, MAX_CPUS);
        let mut sizes = calls::sizes(tables);
        sizes.extend([(map::HOLDS, slots), (map::EVENTS, EVENT_BYTES)]);
        let mut code = Code::new(object::CALLS, &sizes)?;
        calls::fill(&mut code, tables)?;
        maps::set_all(code.maps_mut(), map::BLOCKS, &[Block::RIGHT; 2])?;
        let setup = setup(tables, exempt, holding, rewrite, types)?;
        // Nothing is attached before everything is loaded.
        let loaded: Vec<_> = sites(setup.processes != 0, rewrite)
            .into_iter()
            .map(|(site, why)| Ok((calls::load(&code, &site, &setup, types)?, site, why)))
            .collect::<Result<_>>()?;
        let holds = match code.maps().map(map::HOLDS) {
            Some(Map::Array(map)) => Holds::new(map, slots)?,
            _ => return Err(maps::missing(map::HOLDS)),
        };
        let events = code.maps_mut().take_map(map::EVENTS).ok_or_else(|| maps::missing(map::EVENTS))?;
        let events = Events::new(events)?;
        let attached = loaded
            .into_iter()
            .map(|(program, site, why)| calls::attach(site, why.into(), &program))
            .collect::<Result<_>>()?;
        Ok(Self { code, attached, holds, events })
    }

    /// What is attached, and where.
    #[must_use]
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Who belongs to the target as a process rather than by its cgroup.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn roll(&self) -> Result<Roll> {
        Roll::of(self.code.maps())
    }

    /// Arms, renews or disarms: one write.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_control(&mut self, control: Control) -> Result<()> {
        maps::set_control(self.code.maps_mut(), control)
    }

    /// Says how wrong the clocks are that system calls read. Each block has the next number, from 1 on: it is written
    /// where the one before it is not, and in force at once.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_block(&mut self, number: u64, block: &Block) -> Result<()> {
        let maps = self.code.maps_mut();
        let mut blocks: Array<_, Block> = maps::typed(maps, map::BLOCKS)?;
        blocks
            .set((number & 1) as u32, block, 0)
            .map_err(|error| Error::aya("write", map::BLOCKS, &error))?;
        maps::set_all(maps, map::TURN, &[number])
    }

    /// Has the rule end at this tick.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn expire(&mut self, tick: u64) -> Result<()> {
        let rule = call::Rule { expires_at: tick, ..call::Rule::NOTHING };
        maps::set_all(self.code.maps_mut(), abi::map::RULES, &[rule])
    }

    /// Writes down for others to see how many programs were met, and how many of them had their clocks changed.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_counts(&mut self, met: u64, skewed: u64) -> Result<()> {
        let [met, skewed] = [met, skewed].map(|packets| Count { packets, ..Count::default() });
        let maps = self.code.maps_mut();
        let rule = RuleState { matched: met, fired: skewed, ..RuleState::default() };
        maps::set_first_cpu(maps, abi::map::STATE, 0, rule)?;
        maps::set_first_cpu(
            maps,
            abi::map::HOOKS,
            Direction::Call as u32,
            HookState { seen: met, ..HookState::default() },
        )
    }

    /// What was counted, over all CPUs.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn tally(&self) -> Result<Tally> {
        let map = self.code.maps().map(map::TALLY);
        let tally: PerCpuArray<&MapData, Tally> =
            map.and_then(|map| map.try_into().ok()).ok_or_else(|| maps::missing(map::TALLY))?;
        let each = tally.get(&0, 0).map_err(|error| Error::aya("read", map::TALLY, &error))?;
        Ok(each.iter().fold(Tally::default(), |sum, cpu| Tally {
            execs: sum.execs + cpu.execs,
            held: sum.held + cpu.held,
            given_up: sum.given_up + cpu.given_up,
            crowded: sum.crowded + cpu.crowded,
            stuck: sum.stuck + cpu.stuck,
            untold: sum.untold + cpu.untold,
            reads: sum.reads + cpu.reads,
            rewritten: sum.rewritten + cpu.rewritten,
        }))
    }

    /// Who is held, for other threads.
    #[must_use]
    pub fn holds(&self) -> Holds {
        self.holds.clone()
    }

    /// What is executed, for other threads.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// The numbers of the maps by which other processes follow the run.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn map_ids(&self) -> Result<MapIds> {
        maps::ids(self.code.maps())
    }

    /// Detaches everything; what was counted can still be read.
    pub fn detach(&mut self) {
        self.attached.clear();
    }
}

/// Where the programs go, and why; those first that say who is of the target.
fn sites(of_processes: bool, rewrite: Rewrite) -> Vec<(Site, &'static str)> {
    let site = |mechanism, function: &str, program| Site { mechanism, function: function.into(), program };
    let traced = |function, program| site(Mechanism::RawTracepoint, function, program);
    let mut sites = Vec::new();
    if of_processes {
        sites.extend(
            calls::FOLLOWED
                .map(|(program, tracepoint)| (traced(tracepoint, program), "who belongs to a process")),
        );
    }
    sites.push((traced("sched_process_exec", program::EXECED), "programs wait for their vDSO to be seen to"));
    if rewrite != Rewrite::No {
        let functions =
            [("__x64_sys_clock_gettime", program::GETTIME), ("__x64_sys_gettimeofday", program::TIMEOFDAY)];
        sites.extend(functions.map(|(function, program)| {
            (site(Mechanism::Fexit, function, program), "what system calls read of clocks")
        }));
    }
    sites
}

/// What the programs are specialised by.
fn setup(
    tables: &CallTables,
    exempt: Exempt,
    holding: Holding,
    rewrite: Rewrite,
    types: &KernelTypes,
) -> Result<Setup> {
    let at = calls::offsets(types)?;
    let Holding { most, hold_ns, stuck_ns } = holding;
    let watch = Watch { hold_ns, stuck_ns, most, rewrite_all: u32::from(rewrite == Rewrite::All) };
    // The one rule there is.
    let mut rules = tables.setup.rules;
    rules[call::kind::READ] = 1;
    let (owner_tgid, exempt) = (exempt.owner_tgid, exempt.files);
    Ok(Setup { rules, owner_tgid, exempt, watch, at, ..tables.setup })
}
