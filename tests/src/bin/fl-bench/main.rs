//! What a decision costs, by `BPF_PROG_TEST_RUN`: each program beside a bare one in the same run.

mod profile;

use std::{fmt, net::Ipv4Addr, os::fd::AsFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, MapData, ProgramArray, lpm_trie::Key},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use chaos_ebpf::{
    abi::{Control, Direction, Window},
    packet::protocol,
};
use chaos_user::{
    fault::{Match, Rule, Tables},
    kernel::{
        object,
        programs::{Environment, Programs},
        sys,
    },
    spec::Impairments,
};
use clap::Parser;
use faultline_tests::verified;
use ipnet::{IpNet, Ipv4Net};

/// Runs of each program: so many measurements of so many runs each. The fastest counts, because whatever else the
/// machine does can only make one slower.
const RUNS: u32 = 2_000_000;
const MEASUREMENTS: u32 = 20;

/// Destination port of the first rule; each further rule has the next.
const FIRST_PORT: u16 = 1024;

/// Rules are taken for the last of so many.
const RULES: [u16; 2] = [1, 64];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The remote addresses the rules name: 10.x.y.1 or 10.x.y.0/24, x.y counting up.
#[derive(Clone, Copy)]
enum Peers {
    None,
    Addresses(u32),
    Prefixes(u32),
}

/// The source addresses the packets have.
#[derive(Clone, Copy)]
enum Keys {
    /// The first peer's.
    Hot,
    /// Random ones of so many peers'.
    Random(u32),
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "no peers"),
            Self::Addresses(count) => write!(f, "{count} addresses"),
            Self::Prefixes(count) => write!(f, "{count} prefixes"),
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hot => "hot key",
            Self::Random(_) => "random keys",
        })
    }
}

fn peer(index: u32) -> u32 {
    10 << 24 | index << 8
}

impl Peers {
    fn networks(self) -> Vec<IpNet> {
        let (count, host, length) = match self {
            Self::None => (0, 0, 32),
            Self::Addresses(count) => (count, 1, 32),
            Self::Prefixes(count) => (count, 0, 24),
        };
        let network = |index| Ipv4Net::new_assert(Ipv4Addr::from(peer(index) | host), length);
        (0..count).map(|index| network(index).into()).collect()
    }
}

#[derive(Debug, clap::Parser)]
#[command(name = "fl-bench")]
struct Cli {
    /// How many instructions the verifier looks at for each program instead
    #[arg(long)]
    verified: bool,
}

fn main() -> Result<()> {
    if Cli::parse().verified {
        for (name, most) in verified::all()?.most() {
            println!("{name} {most}");
        }
        return Ok(());
    }
    costs()
}

fn costs() -> Result<()> {
    println!("BPF_PROG_TEST_RUN, {RUNS} repeats, the fastest of {MEASUREMENTS} parts, nanoseconds a run");
    println!("{:<70} {:>5} {:>5} {:>6}", "PROGRAM", "BARE", "OURS", "ABOVE");
    let mut bare = Bare::load(Peers::None, 1)?;
    let pass = bare.run("fl_bare_pass", Keys::Hot)?;
    let drop = bare.run("fl_bare_drop", Keys::Hot)?;
    let tc = bare.run("fl_bare_tc", Keys::Hot)?;

    let armed = |rules, port| Case {
        fault: "loss 30%",
        rules,
        peers: Peers::None,
        keys: Keys::Hot,
        port,
        hook: Direction::In,
    };
    row("XDP, disarmed; beside a bare pass", pass, armed(1, FIRST_PORT).disarmed()?);
    for rules in RULES {
        let last = FIRST_PORT + rules - 1;
        row(
            &format!("XDP, {rules} rules by port, no match; beside a bare pass"),
            pass,
            armed(rules, 9).run()?,
        );
        row(
            &format!("XDP, {rules} rules by port, match; beside a bare drop"),
            drop,
            armed(rules, last).run()?,
        );
        let sent = |port| Case { hook: Direction::Out, ..armed(rules, port) };
        row(&format!("tc, {rules} rules by port, no match; beside a bare pass"), tc, sent(9).run()?);
        row(&format!("tc, {rules} rules by port, match; beside a bare pass"), tc, sent(last).run()?);
    }
    for fault in FAULTS {
        let case = Case { fault, hook: Direction::Out, ..armed(1, FIRST_PORT) };
        row(&format!("tc, {fault}, match; beside a bare pass"), tc, case.run()?);
    }
    for count in [1, 1_000, 65_536] {
        for peers in [Peers::Addresses(count), Peers::Prefixes(count)] {
            for keys in [Keys::Hot, Keys::Random(count)] {
                by_peer(peers, keys, count)?;
            }
        }
    }
    profile::rows(tc)
}

/// Beside a bare program that looks the same address up in a map of the same peers and drops.
fn by_peer(peers: Peers, keys: Keys, count: u32) -> Result<()> {
    let lookup = match peers {
        Peers::Prefixes(_) => "fl_bare_lpm",
        _ => "fl_bare_hash",
    };
    let bare = Bare::load(peers, count)?.run(lookup, keys)?;
    for rules in RULES {
        let port = FIRST_PORT + rules - 1;
        let case = Case { fault: "loss 30%", rules, peers, keys, port, hook: Direction::In };
        row(&format!("XDP, {rules} rules, {peers}, {keys}, match"), bare, case.run()?);
    }
    Ok(())
}

fn row(what: &str, bare: u32, ours: u32) {
    println!("{what:<70} {bare:>5} {ours:>5} {:>+6}", i64::from(ours) - i64::from(bare));
}

/// The decisions of all faults. There is no detour here: what would be sent round is passed, and what happens
/// by chance does not.
const FAULTS: [&str; 9] = [
    "loss 30% 25%",
    "loss gemodel 1% 10%",
    "duplicate 0%",
    "corrupt 0%",
    "delay 1ms",
    "delay 1ms 100us 25% distribution normal",
    "delay 1ms reorder 100%",
    "rate 1tbit",
    "loss 1% rate 1tbit delay 1ms",
];

/// One measurement of our program.
struct Case {
    fault: &'static str,
    rules: u16,
    peers: Peers,
    keys: Keys,
    port: u16,
    hook: Direction,
}

impl Case {
    fn run(&self) -> Result<u32> {
        self.measure(u64::MAX)
    }

    fn disarmed(&self) -> Result<u32> {
        self.measure(0)
    }

    fn measure(&self, lease_until: u64) -> Result<u32> {
        let rules = (0..self.rules).map(|index| self.rule(index)).collect::<Result<Vec<_>>>()?;
        // Nobody's packets are spared: the test runs are made by this very process.
        let environment = Environment { ethernet: true, ..Environment::default() };
        let mut programs = Programs::load(&Tables::new(&rules, 1), 1, environment)?;
        programs.set_control(Control { epoch: 1, not_before: 0, lease_until })?;
        let packet = packet(self.port);
        match self.hook {
            Direction::Out | Direction::Connect | Direction::Call => {
                fastest(programs.tc(Direction::Out)?, &packet)
            }
            Direction::In => match self.keys {
                Keys::Hot => fastest(programs.xdp()?, &packet),
                Keys::Random(count) => Bare::load(Peers::None, count)?.random(programs.xdp()?, &packet),
            },
        }
    }

    fn rule(&self, index: u16) -> Result<Rule> {
        let port = (FIRST_PORT + index).to_string();
        let remote = self.peers.networks();
        let port = port.parse().into_iter().collect();
        let (remote_ports, local_ports) = match self.hook {
            Direction::In => (Vec::new(), port),
            Direction::Out | Direction::Connect | Direction::Call => (port, Vec::new()),
        };
        let words: Vec<_> = self.fault.split(' ').map(ToString::to_string).collect();
        Ok(Rule {
            label: String::new(),
            direction: self.hook,
            matches: Match { remote, local_ports, remote_ports, ..Match::default() },
            window: Window::ALL,
            impairments: Impairments::parse(&words)?,
            spares: Vec::new(),
            names: Vec::new(),
        })
    }
}

/// The bare programs.
struct Bare {
    ebpf: Ebpf,
}

impl Bare {
    /// With `peers` in their maps, and `keys` source addresses to draw from.
    fn load(peers: Peers, keys: u32) -> Result<Self> {
        let networks = peers.networks();
        let entries = u32::try_from(networks.len())?.max(1);
        let mut ebpf = EbpfLoader::new()
            .override_global("FL_KEYS", &keys, true)
            .map_max_entries("FL_ADDRESSES", entries)
            .map_max_entries("FL_PREFIXES", entries)
            .load(object::BASELINES)?;
        for network in networks {
            let IpNet::V4(network) = network else { continue };
            let key = u32::from_ne_bytes(network.addr().octets());
            if network.prefix_len() == 32 {
                let mut map: HashMap<_, u32, u64> =
                    ebpf.map_mut("FL_ADDRESSES").ok_or("no FL_ADDRESSES")?.try_into()?;
                map.insert(key, 1, 0)?;
            } else {
                let mut map: LpmTrie<_, u32, u64> =
                    ebpf.map_mut("FL_PREFIXES").ok_or("no FL_PREFIXES")?.try_into()?;
                map.insert(&Key::new(u32::from(network.prefix_len()), key), 1, 0)?;
            }
        }
        Ok(Self { ebpf })
    }

    fn run(&mut self, name: &str, keys: Keys) -> Result<u32> {
        let program = self.fd(name)?;
        let packet = packet(9);
        match keys {
            Keys::Hot => fastest(&program, &packet),
            Keys::Random(_) => self.random(&program, &packet),
        }
    }

    /// Behind the program that gives the packet another source address every time.
    fn random(&mut self, program: &ProgramFd, packet: &[u8]) -> Result<u32> {
        self.behind("fl_random_key", "FL_NEXT", program, packet)
    }

    /// Behind this program, which goes on with what is in that map.
    fn behind(&mut self, first: &str, map: &str, program: &ProgramFd, packet: &[u8]) -> Result<u32> {
        let first = self.fd(first)?;
        let next = self.ebpf.map_mut(map).ok_or_else(|| format!("no {map}"))?;
        let mut next: ProgramArray<&mut MapData> = next.try_into()?;
        next.set(0, program, 0)?;
        fastest(&first, packet)
    }

    fn fd(&mut self, name: &str) -> Result<ProgramFd> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| format!("no program {name}"))?;
        if program.fd().is_err() {
            if let Ok(xdp) = <&mut Xdp>::try_from(&mut *program) {
                xdp.load()?;
            } else {
                <&mut SchedClassifier>::try_from(&mut *program)?.load()?;
            }
        }
        Ok(program.fd()?.try_clone()?)
    }
}

fn fastest(program: impl AsFd, packet: &[u8]) -> Result<u32> {
    let mut fastest = u32::MAX;
    for _ in 0..MEASUREMENTS {
        fastest = fastest.min(sys::test_run(program.as_fd(), packet, RUNS / MEASUREMENTS)?.nanoseconds);
    }
    Ok(fastest)
}

/// A UDP packet of 60 bytes from the first peer.
fn packet(port: u16) -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14] = 0x45;
    packet[14 + 9] = protocol::UDP;
    packet[14 + 12..14 + 16].copy_from_slice(&(peer(0) | 1).to_be_bytes());
    packet[14 + 16..14 + 20].copy_from_slice(&[192, 0, 2, 1]);
    packet[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
    packet[36..38].copy_from_slice(&port.to_be_bytes());
    packet
}
