//! Loads the programs, specialised for one run, and fills their maps.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, PerCpuValues, SkStorage, lpm_trie::Key},
    programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier, Xdp},
    util::nr_cpus,
};
use chaos_ebpf::{
    abi::{self, Control, DIRECTIONS, Direction, MONOTONIC, RuleState, Session, Setup, effect, map, program},
    classify::End,
    decide::random_start,
};

use nix::time::{ClockId, clock_gettime};

use super::{
    Error, Result,
    btf::KernelTypes,
    counters::{Counters, MapIds},
    fields, maps, object,
    peers::{self, ProfileIds},
    sys,
};
use crate::{
    fault::{Prefixes, Tables},
    host::release,
};

/// The address maps of each end: whole IPv4 addresses, IPv4 prefixes, and the same for IPv6.
const ADDRESS_MAPS: [(End, [&str; 4]); 2] = [
    (End::Remote, [map::REMOTE4, map::REMOTE4_NET, map::REMOTE6, map::REMOTE6_NET]),
    (End::Local, [map::LOCAL4, map::LOCAL4_NET, map::LOCAL6, map::LOCAL6_NET]),
];

/// Who must never be touched, and what the packets look like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Environment {
    /// The owner's tgid, or 0 for nobody.
    pub owner_tgid: u32,
    /// Whether frames begin with an Ethernet header, or with IP.
    pub ethernet: bool,
    /// The interface.
    pub ifindex: u32,
    /// What tells it from all others of the machine; even.
    pub place: u32,
    /// The near ends of the detours, by [`Direction`]; 0 without.
    pub near: [u32; DIRECTIONS],
    /// The far ends, likewise.
    pub far: [u32; DIRECTIONS],
    /// Greater than that of all owners before.
    pub generation: u64,
    /// What is left alone whatever the rules say, a set of [`protect`](abi::protect) bits.
    pub protect: u32,
    /// The caller's own session, if that is one of these.
    pub session: Session,
}

/// The programs and their maps in the kernel, disarmed until [`Programs::set_control`] says otherwise. All of
/// it goes when this is dropped.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    rules: u32,
}

impl Programs {
    /// Creates the maps and writes the rules. A program is loaded when it is first asked for.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn load(tables: &Tables, seed: u64, environment: Environment) -> Result<Self> {
        let types = KernelTypes::read()?;
        let mut setup = Setup {
            owner_tgid: environment.owner_tgid,
            ethernet: environment.ethernet.into(),
            ifindex: environment.ifindex,
            place: environment.place,
            links: environment.near,
            far_links: environment.far,
            generation: environment.generation,
            protect: environment.protect,
            session: environment.session,
            ahead_of_real: ahead_of_real()?,
            ..tables.setup
        };
        fields::look_up(fields::OF_PROCESSES, types, &mut setup)?;
        if !tables.cgroups.is_empty() {
            fields::look_up(fields::OF_CGROUPS, types, &mut setup.cgroup)?;
        }
        let mut loader = EbpfLoader::new();
        // Without statistics, whose words differ from version to version: what is said last is why.
        loader.verifier_log_level(VerifierLogLevel::DEBUG);
        loader.override_global(map::SETUP, &setup, true);
        for (name, entries) in sizes(tables) {
            loader.map_max_entries(name, entries);
        }
        let ebpf = loader.load(object::FAULTS).map_err(|error| Error::aya("load", "the maps", &error))?;
        let mut programs = Self { ebpf, rules: tables.rules.len() as u32 };
        programs.fill(tables, seed)?;
        for (direction, profile) in [Direction::In, Direction::Out].into_iter().zip(&tables.profile) {
            profile.iter().try_for_each(|profile| peers::fill(&mut programs.ebpf, direction, profile))?;
        }
        Ok(programs)
    }

    fn fill(&mut self, tables: &Tables, seed: u64) -> Result<()> {
        self.set_rules(&tables.rules)?;
        self.seed(seed)?;
        maps::set_all(&mut self.ebpf, map::DEVIATIONS, &tables.deviations.entries)?;
        let mut protocols: Array<_, u64> = self.typed(map::PROTOCOL)?;
        for (protocol, rules) in &tables.protocols {
            protocols
                .set(u32::from(*protocol), rules, 0)
                .map_err(|error| Error::aya("write", map::PROTOCOL, &error))?;
        }
        maps::insert_all(&mut self.ebpf, map::CGROUPS, tables.cgroups.clone())?;
        maps::insert_all(&mut self.ebpf, map::PROCESSES, tables.processes.clone())?;
        maps::set_all(&mut self.ebpf, map::NAMES, &tables.names)?;
        let records = tables.records.iter().map(|(record, rules)| (u32::from(*record), *rules));
        maps::insert_all(&mut self.ebpf, map::RECORDS, records)?;
        for (end, name) in [(End::Remote, map::REMOTE_PORT), (End::Local, map::LOCAL_PORT)] {
            let mut ports: Array<_, u64> = self.typed(name)?;
            for ((_, port), rules) in tables.ports.range((end, 0)..=(end, u16::MAX)) {
                ports.set(u32::from(*port), rules, 0).map_err(|error| Error::aya("write", name, &error))?;
            }
        }
        self.set_addresses(tables)
    }

    /// Writes the addresses; of those that are there before, none may be missing.
    ///
    /// # Errors
    ///
    /// The kernel's; `E2BIG` if there are too many more.
    pub fn set_addresses(&mut self, tables: &Tables) -> Result<()> {
        for (end, [v4, v4_net, v6, v6_net]) in ADDRESS_MAPS {
            if let Some(prefixes) = tables.v4.get(&end) {
                self.fill_addresses(prefixes, 32, v4, v4_net, |octets| u32::from_ne_bytes(*octets))?;
            }
            if let Some(prefixes) = tables.v6.get(&end) {
                self.fill_addresses(prefixes, 128, v6, v6_net, |octets| *octets)?;
            }
        }
        Ok(())
    }

    fn fill_addresses<A, K: Pod>(
        &mut self,
        prefixes: &Prefixes<A>,
        longest: u8,
        whole_name: &'static str,
        prefix_name: &'static str,
        key: impl Fn(&A) -> K,
    ) -> Result<()> {
        let mut whole: HashMap<_, K, u64> = self.typed(whole_name)?;
        for ((address, _), rules) in prefixes.iter().filter(|((_, length), _)| *length == longest) {
            whole.insert(key(address), rules, 0).map_err(|error| Error::aya("write", whole_name, &error))?;
        }
        let mut nets: LpmTrie<_, K, u64> = self.typed(prefix_name)?;
        for ((address, length), rules) in prefixes.iter().filter(|((_, length), _)| *length < longest) {
            let key = Key::new(u32::from(*length), key(address));
            nets.insert(&key, rules, 0).map_err(|error| Error::aya("write", prefix_name, &error))?;
        }
        Ok(())
    }

    fn seed(&mut self, seed: u64) -> Result<()> {
        let cpus = nr_cpus().map_err(|(path, source)| Error::new("read", path, source))? as u32;
        let rules = self.rules;
        let mut state: PerCpuArray<_, RuleState> = self.typed(map::STATE)?;
        for rule in 0..rules {
            let start = |cpu| RuleState { random: random_start(seed, rule, cpu), ..RuleState::default() };
            let starts: Vec<_> = (0..cpus).map(start).collect();
            let values =
                PerCpuValues::try_from(starts).map_err(|source| Error::new("write", map::STATE, source))?;
            state.set(rule, values, 0).map_err(|error| Error::aya("write", map::STATE, &error))?;
        }
        Ok(())
    }

    /// Writes the rules; while the control block is disarmed nothing reads them.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_rules(&mut self, rules: &[abi::Rule]) -> Result<()> {
        maps::set_all(&mut self.ebpf, map::RULES, rules)
    }

    /// Arms, renews or disarms: one write.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_control(&mut self, control: Control) -> Result<()> {
        maps::set_control(&mut self.ebpf, control)
    }

    /// Loads the XDP program and returns its fd.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn xdp(&mut self) -> Result<&ProgramFd> {
        let xdp: &mut Xdp = self.program(program::XDP)?;
        if xdp.fd().is_err() {
            xdp.load().map_err(|error| refused(program::XDP, error))?;
        }
        xdp.fd().map_err(|error| refused(program::XDP, error))
    }

    /// Loads the tc program for one direction and returns its fd.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn tc(&mut self, direction: Direction) -> Result<&ProgramFd> {
        let name = match direction {
            Direction::In => program::TC_IN,
            Direction::Out | Direction::Connect | Direction::Call => program::TC_OUT,
        };
        self.classifier(name)
    }

    /// Loads one of the programs of `connect(2)` and returns its fd.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn connect(&mut self, name: &'static str) -> Result<&ProgramFd> {
        let connect: &mut CgroupSockAddr = self.program(name)?;
        if connect.fd().is_err() {
            connect.load().map_err(|error| refused(name, error))?;
        }
        connect.fd().map_err(|error| refused(name, error))
    }

    /// Loads a tc program and returns its fd.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn classifier(&mut self, name: &'static str) -> Result<&ProgramFd> {
        let tc: &mut SchedClassifier = self.program(name)?;
        if tc.fd().is_err() {
            tc.load().map_err(|error| refused(name, error))?;
        }
        tc.fd().map_err(|error| refused(name, error))
    }

    /// Loads the program of new sockets and returns its fd.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn socket(&mut self) -> Result<&ProgramFd> {
        let socket: &mut CgroupSock = self.program(program::SOCKET)?;
        if socket.fd().is_err() {
            socket.load().map_err(|error| refused(program::SOCKET, error))?;
        }
        socket.fd().map_err(|error| refused(program::SOCKET, error))
    }

    /// Has new sockets of a process, and of those it has begun, be nobody's.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn forget_process(&mut self, pid: u32) -> Result<()> {
        let mut processes: HashMap<_, u32, u64> = self.typed(map::PROCESSES)?;
        // An entry is never deleted while a program can run.
        processes.insert(pid, 0, 0).map_err(|error| Error::aya("write", map::PROCESSES, &error))
    }

    /// Has a socket be one that these rules want.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn mark(&mut self, socket: &OwnedFd, rules: u64) -> Result<()> {
        let mut sockets: SkStorage<_, u64> = self.typed(map::SOCKETS)?;
        sockets.insert(socket, rules, 0).map_err(|error| Error::aya("write", map::SOCKETS, &error))
    }

    /// The map of the sockets that are marked.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn sockets(&self) -> Result<OwnedFd> {
        let Some(Map::SkStorage(map)) = self.ebpf.map(map::SOCKETS) else {
            return Err(Error::new("look-up", map::SOCKETS, io::ErrorKind::NotFound.into()));
        };
        let error = |source| Error::new("fcntl(F_DUPFD_CLOEXEC)", map::SOCKETS, source);
        map.fd().as_fd().try_clone_to_owned().map_err(error)
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        self.ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| Error::new("look-up", name, io::ErrorKind::NotFound.into()))
    }

    /// The numbers of the maps by which other processes follow the run.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn map_ids(&self) -> Result<MapIds> {
        maps::ids(&self.ebpf)
    }

    /// By what another process changes the profile; loads the program for it.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn profile_ids(&mut self, directions: [bool; DIRECTIONS]) -> Result<ProfileIds> {
        let program = self.classifier(program::FIGURES)?.try_clone();
        let program = program.map_err(|error| Error::aya("duplicate", program::FIGURES, &error))?;
        peers::ids(&self.ebpf, program.as_fd(), directions)
    }

    fn typed<'a, M>(&'a mut self, name: &'static str) -> Result<M>
    where
        M: TryFrom<&'a mut Map>,
    {
        maps::typed(&mut self.ebpf, name)
    }

    /// The counts of all rules, over all CPUs.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counters(&self) -> Result<Counters> {
        maps::counters(&self.ebpf, self.rules)
    }
}

/// So many addresses of a family more can names come to stand for in one run; a name has rarely ten.
pub const NAMES_ROOM: u32 = 1024;

/// How many entries the maps need whose size depends on the run; the kernel refuses none at all.
fn sizes(tables: &Tables) -> Vec<(&'static str, u32)> {
    let mut sizes = vec![
        (map::DEVIATIONS, tables.deviations.entries.len() as u32),
        (map::CGROUPS, tables.cgroups.len() as u32),
        (map::PROCESSES, tables.processes.len() as u32),
        (map::HANDSHAKES, if tables.setup.effects & effect::TIMEOUT == 0 { 1 } else { 1 << 16 }),
        (map::NAMES, tables.names.len() as u32),
        (map::RECORDS, tables.records.len() as u32),
    ];
    let idle = map::PEERS4.iter().zip(map::PEERS6).zip(&tables.profile).filter(|(_, used)| used.is_none());
    sizes.extend(idle.flat_map(|((v4, v6), _)| [(*v4, 1), (v6, 1)]));
    for (end, any, name) in [
        (End::Remote, tables.setup.any_remote_port, map::REMOTE_PORT),
        (End::Local, tables.setup.any_local_port, map::LOCAL_PORT),
    ] {
        debug_assert_eq!(any != u64::MAX, tables.ports.keys().any(|key| key.0 == end));
        sizes.push((name, if any == u64::MAX { 1 } else { 1 << 16 }));
    }
    for (end, [v4, v4_net, v6, v6_net]) in ADDRESS_MAPS {
        let (whole4, all4) = lengths(tables.v4.get(&end), 32);
        let (whole6, all6) = lengths(tables.v6.get(&end), 128);
        let room = if tables.follows && end == End::Remote { NAMES_ROOM } else { 0 };
        sizes.extend([
            (v4, whole4 + room),
            (v4_net, all4 - whole4),
            (v6, whole6 + room),
            (v6_net, all6 - whole6),
        ]);
    }
    sizes.into_iter().map(|(name, entries)| (name, entries.max(1))).collect()
}

fn lengths<A>(prefixes: Option<&Prefixes<A>>, longest: u8) -> (u32, u32) {
    let Some(prefixes) = prefixes else { return (0, 0) };
    let whole = prefixes.keys().filter(|(_, length)| *length == longest).count();
    (whole as u32, prefixes.len() as u32)
}

/// A program the kernel did not take.
fn refused(name: &'static str, error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let error =
                Error::new("bpf(BPF_PROG_LOAD)", sys::said_of(name, &verifier_log.to_string()), io_error);
            match KernelTypes::read() {
                Ok(types) => fields::explain(error, types),
                Err(_) => error,
            }
        }
        error => Error::aya("load", name, &error),
    }
}

/// See [`Setup::ahead_of_real`]. A kernel that says that it is older may know of other clocks all the same: it then takes the
/// time for what it is, and says so in its log.
fn ahead_of_real() -> Result<u64> {
    const ASKS_FOR_THE_CLOCK: (u32, u32) = (7, 2);
    if !release::is_at_least(&release::running()?, ASKS_FOR_THE_CLOCK) {
        return Ok(MONOTONIC);
    }
    let now = |clock: ClockId, name: &str| {
        let time = clock_gettime(clock).map_err(|errno| Error::new("clock_gettime", name, errno.into()))?;
        Ok::<_, Error>(Duration::from(time))
    };
    // Whole seconds, whatever passes between the two.
    let (real, tai) =
        (now(ClockId::CLOCK_REALTIME, "CLOCK_REALTIME")?, now(ClockId::CLOCK_TAI, "CLOCK_TAI")?);
    let ahead = (tai.saturating_sub(real) + Duration::from_millis(500)).as_secs();
    Ok(Duration::from_secs(ahead).as_nanos() as u64)
}
