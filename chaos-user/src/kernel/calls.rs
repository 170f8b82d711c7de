//! The programs of faults in system calls: where they are attached, by the first mechanism of the table that works.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use chaos_ebpf::{
    abi::{self, Control},
    call::{Inode, Offsets, Setup, map, program},
};

use super::{
    Error, Result,
    btf::KernelTypes,
    code::Code,
    counters::{Counters, MapIds},
    fields,
    hook::Site,
    maps,
    mechanism::Mechanism,
    object,
    probe::{self, perf::Event},
    roll::Roll,
    sys,
    wiring::{CallsError, Refusals, Wired, Wiring, wire},
};
use crate::fault::{CallRule, CallTables};

/// The name of a program's constants.
const SETUP: &str = "FL_SETUP";

/// The programs that say who belongs to a process, and their tracepoints.
pub(super) const FOLLOWED: [(&str, &str); 2] =
    [(program::FORKED, "sched_process_fork"), (program::GONE, "sched_process_exit")];

/// Processes that can belong to the targets at a time.
const PROCESSES: u32 = 1 << 15;

/// Finds out what the kernel knows files by.
#[derive(Debug)]
pub struct Identifier {
    code: Code,
    program: OwnedFd,
}

impl Identifier {
    /// Loads the program that asks.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new() -> Result<Self> {
        let types = KernelTypes::read()?;
        let code = Code::new(object::CALLS, &[])?;
        let setup = Setup { at: offsets(types)?, ..Setup::default() };
        let constants = (SETUP, sys::bytes_of(&setup));
        let program = code.load(program::IDENTIFY, Mechanism::RawTracepoint, "", types, constants)?;
        Ok(Self { code, program })
    }

    /// What the kernel knows an open file by. What `stat` says of files in overlays and in subvolumes is something else.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn inode(&mut self, file: BorrowedFd<'_>) -> Result<Inode> {
        let number = file.as_raw_fd();
        let error = || Error::new("look-up", format!("fd {number}"), io::ErrorKind::NotFound.into());
        if sys::call(self.program.as_fd(), &[u64::from(number.cast_unsigned())])? != 0 {
            return Err(error());
        }
        let found: aya::maps::Array<_, Inode> = maps::typed(self.code.maps_mut(), map::FOUND)?;
        found.get(&0, 0).map_err(|error| Error::aya("read", map::FOUND, &error))
    }
}

/// Who must never be hit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exempt {
    /// The owner's tgid.
    pub owner_tgid: u32,
    /// Its program, and the loader of programs it is linked with.
    pub files: [Inode; 2],
}

/// A program that is attached, until this is dropped.
#[derive(Debug)]
pub struct Attached {
    /// Where.
    pub site: Site,
    /// Why there.
    pub why: String,
    /// The kernel's number of the program.
    pub program: u32,
    /// The kernel's number of the link, if it is held by one.
    pub link: Option<u32>,
    _hold: Hold,
}

#[derive(Debug)]
#[expect(dead_code, reason = "it is held, and closed with its owner")]
enum Hold {
    Link(OwnedFd),
    Event(probe::perf::Attached),
}

/// The programs and their maps in the kernel, disarmed until [`CallPrograms::set_control`] says otherwise. All of it goes
/// when this is dropped.
#[derive(Debug)]
pub struct CallPrograms {
    code: Code,
    rules: u32,
    attached: Vec<Attached>,
}

impl CallPrograms {
    /// Creates and fills the maps, loads the programs, and attaches them.
    ///
    /// # Errors
    ///
    /// [`CallsError`]; nothing is attached then.
    pub fn new(
        rules: &[CallRule],
        tables: &CallTables,
        by: Option<Mechanism>,
        exempt: Exempt,
    ) -> std::result::Result<Self, CallsError> {
        let types = KernelTypes::read()?;
        let mut code = Code::new(object::CALLS, &sizes(tables))?;
        fill(&mut code, tables)?;
        let setup = Setup {
            owner_tgid: exempt.owner_tgid,
            exempt: exempt.files,
            at: offsets(types)?,
            ..tables.setup
        };
        let mut attached = Vec::new();
        if setup.processes != 0 {
            // First of all: those that come to be from here on are not to be missed.
            for (program, tracepoint) in FOLLOWED {
                let site = Site { mechanism: Mechanism::RawTracepoint, function: tracepoint.into(), program };
                let loaded = load(&code, &site, &setup, types)?;
                attached.push(attach(site, "who belongs to a process".into(), &loaded)?);
            }
        }
        let Chosen { loaded, calls } = choose(&code, rules, tables, setup, by, types)?;
        maps::set_all(code.maps_mut(), map::CALLS, &calls)?;
        for (site, Loaded { program, why, .. }) in loaded {
            attached.push(attach(site, why, &program)?);
        }
        Ok(Self { code, rules: tables.rules.len() as u32, attached })
    }

    /// What is attached, and where.
    #[must_use]
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Who is wanted as a process rather than by its cgroup.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn roll(&self) -> Result<Roll> {
        Roll::of(self.code.maps())
    }

    /// Writes the rules.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_rules(&mut self, rules: &[chaos_ebpf::call::Rule]) -> Result<()> {
        maps::set_all(self.code.maps_mut(), abi::map::RULES, rules)
    }

    /// Arms, renews or disarms: one write.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_control(&mut self, control: Control) -> Result<()> {
        maps::set_control(self.code.maps_mut(), control)
    }

    /// The counts of all rules, over all CPUs.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counters(&self) -> Result<Counters> {
        maps::counters(self.code.maps(), self.rules)
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

/// A program that is loaded, and not attached yet.
struct Loaded {
    setup: Setup,
    program: OwnedFd,
    why: String,
}

/// What is going to be attached.
struct Chosen {
    loaded: BTreeMap<Site, Loaded>,
    /// By system call, for the tracepoint of all of them.
    calls: Vec<u64>,
}

/// Loads what each rule takes, by the first mechanism that works. One that the kernel refuses is left out, and all is looked
/// at again without it: nothing is attached before everything is loaded.
fn choose(
    code: &Code,
    rules: &[CallRule],
    tables: &CallTables,
    setup: Setup,
    by: Option<Mechanism>,
    types: &KernelTypes,
) -> std::result::Result<Chosen, CallsError> {
    let mut refusals = Refusals::new();
    // They would load and attach all the same, and never be asked.
    match probe::security_modules() {
        Ok(active) if !active.iter().any(|module| module == "bpf") => {
            let active = active.join(",");
            let reason = format!("bpf is not among the active security modules ({active})");
            refusals.insert((Mechanism::Lsm, None), reason);
        }
        Err(error) => _ = refusals.insert((Mechanism::Lsm, None), error.to_string()),
        Ok(_) => {}
    }
    let mut loaded: BTreeMap<Site, Loaded> = BTreeMap::new();
    'again: loop {
        let Wiring { sites, calls } = wire(rules, tables, setup, by, types, &refusals)?;
        loaded.retain(|site, it| sites.get(site).is_some_and(|wanted| wanted.setup == it.setup));
        for (site, Wired { setup, units, why }) in sites {
            if loaded.contains_key(&site) {
                continue;
            }
            match load(code, &site, &setup, types) {
                Ok(program) => _ = loaded.insert(site, Loaded { setup, program, why }),
                Err(error) => {
                    // Who may not do this at all may not do it anywhere.
                    let everywhere = error.errno() == libc::EPERM;
                    let units: Vec<_> =
                        if everywhere { vec![None] } else { units.into_iter().map(Some).collect() };
                    let reason = error.to_string();
                    refusals.extend(units.into_iter().map(|unit| ((site.mechanism, unit), reason.clone())));
                    continue 'again;
                }
            }
        }
        return Ok(Chosen { loaded, calls });
    }
}

/// Loads a program for its place.
pub(super) fn load(code: &Code, site: &Site, setup: &Setup, types: &KernelTypes) -> Result<OwnedFd> {
    code.load(site.program, site.mechanism, &site.function, types, (SETUP, sys::bytes_of(setup)))
}

/// Attaches it there.
pub(super) fn attach(site: Site, why: String, program: &OwnedFd) -> Result<Attached> {
    let info = sys::program_info(program.as_fd())?;
    let (hold, link) = match site.mechanism {
        Mechanism::KprobeOverride => {
            let function = CString::new(site.function.as_str()).unwrap_or_default();
            let event = Event::function(&function)?.attach(program)?;
            let link = event.link.as_ref().map(|link| sys::link_info(link.as_fd())).transpose()?;
            (Hold::Event(event), link.map(|link| link.id))
        }
        mechanism => {
            let name = (mechanism == Mechanism::RawTracepoint).then_some(site.function.as_str());
            let link = sys::raw_tracepoint(program.as_fd(), name)?;
            let id = sys::link_info(link.as_fd())?.id;
            (Hold::Link(link), Some(id))
        }
    };
    Ok(Attached { site, why, program: info.id, link, _hold: hold })
}

/// Writes what the programs look things up in.
pub(super) fn fill(code: &mut Code, tables: &CallTables) -> Result<()> {
    let to = code.maps_mut();
    maps::set_all(to, abi::map::RULES, &tables.rules)?;
    maps::set_all(to, abi::map::DEVIATIONS, &tables.deviations.entries)?;
    maps::insert_all(to, abi::map::CGROUPS, tables.cgroups.clone())?;
    maps::insert_all(to, map::PLACES, tables.places.iter().copied())?;
    maps::set_all(to, map::GLOBS, &tables.globs)?;
    maps::insert_all(to, map::USERS, tables.users.clone())?;
    maps::insert_all(to, map::NAMES, tables.names.clone())?;
    maps::insert_all(to, map::FILE_SYSTEMS, tables.file_systems.clone())?;
    maps::insert_all(to, map::DEVICES, tables.devices.clone())
}

/// How many entries the maps need whose size depends on the run; the kernel refuses none at all.
pub(super) fn sizes(tables: &CallTables) -> Vec<(&'static str, u32)> {
    let processes = if tables.processes.is_empty() { 1 } else { PROCESSES };
    let sizes = [
        (abi::map::DEVIATIONS, tables.deviations.entries.len()),
        (abi::map::CGROUPS, tables.cgroups.len()),
        (abi::map::PROCESSES, processes as usize),
        (map::PLACES, tables.places.len()),
        (map::GLOBS, tables.globs.len()),
        (map::USERS, tables.users.len()),
        (map::NAMES, tables.names.len()),
        (map::FILE_SYSTEMS, tables.file_systems.len()),
        (map::DEVICES, tables.devices.len()),
    ];
    sizes.into_iter().map(|(name, entries)| (name, entries.max(1) as u32)).collect()
}

/// Where the running kernel keeps what.
///
/// # Errors
///
/// If its types cannot be read.
pub(super) fn offsets(types: &KernelTypes) -> Result<Offsets> {
    let mut at = Offsets::default();
    // All of them: a program that reads one which was not looked up would read another.
    for group in [fields::OF_CALLS, fields::OF_FILES, fields::OF_CLOCKS, fields::OF_RAW_CLOCKS] {
        fields::look_up(group, types, &mut at)?;
    }
    Ok(at)
}
