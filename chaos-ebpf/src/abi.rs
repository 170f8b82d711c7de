//! The types both halves share, and the names of the programs and maps that carry them.
//!
//! Times are in ticks of the kernel's `jiffies_64` unless they say otherwise. Addresses are in network byte order, as they lie in the
//! packet; ports are in host order. A set of rules is a `u64`, bit *n* standing for rule *n*.

use crate::question::CLASSES;

/// How many rules one owner can have: the bits of a rule set.
pub const MAX_RULES: usize = 64;

/// At how many different depths the cgroups of one run's targets can be.
pub const MAX_LEVELS: usize = 8;

/// Program names: at most 15 bytes, which is what the kernel keeps.
pub mod program {
    /// XDP, ingress.
    pub const XDP: &str = "fl_xdp";
    /// tc, ingress.
    pub const TC_IN: &str = "fl_tc_in";
    /// tc, egress.
    pub const TC_OUT: &str = "fl_tc_out";
    /// tc, egress of the near end of a link: the packet waits.
    pub const QUEUE: &str = "fl_queue";
    /// tc, ingress of the far end of a link, by [`Direction`](super::Direction): back to the near end.
    pub const BOUNCE: [&str; 2] = ["fl_bounce_in", "fl_bounce_out"];
    /// tc, ingress of the near end of a link, likewise: back to the interface.
    pub const BACK: [&str; 2] = ["fl_back_in", "fl_back_out"];
    /// `connect(2)` of a cgroup's IPv4 sockets, and of its IPv6 sockets.
    pub const CONNECT: [&str; 2] = ["fl_connect4", "fl_connect6"];
    /// Run by hand: changes a peer's figures, see [`Change`](crate::figures::Change).
    pub const FIGURES: &str = "fl_figures";
    /// A socket of a cgroup is made.
    pub const SOCKET: &str = "fl_socket";
    /// What every name of ours begins with, in the kernel's listings.
    pub const PREFIX: &str = "fl_";
}

/// Map names, equal to the `static`s in the programs.
pub mod map {
    /// One [`Control`](super::Control).
    pub const CONTROL: &str = "FL_CONTROL";
    /// [`Rule`](super::Rule) by rule number.
    pub const RULES: &str = "FL_RULES";
    /// Per CPU, [`RuleState`](super::RuleState) by rule number.
    pub const STATE: &str = "FL_STATE";
    /// Per CPU, [`HookState`](super::HookState) by [`Direction`](super::Direction).
    pub const HOOKS: &str = "FL_HOOKS";
    /// How many packets a rule with a [`Window`](super::Window) has matched, over all CPUs.
    pub const SEQUENCE: &str = "FL_SEQUENCE";
    /// The TCP connections whose handshake may not be over, by [`decide::flow`](crate::decide::flow).
    pub const HANDSHAKES: &str = "FL_HANDSHAKES";
    /// [`Wire`](super::Wire) by rule number, over all CPUs.
    pub const WIRES: &str = "FL_WIRES";
    /// How late packets come back from their detour, in nanoseconds, by [`Direction`](super::Direction).
    pub const LATENESS: &str = "FL_LATENESS";
    /// The distributions of delays, one after the other: deviations in 1/8192 of the jitter.
    pub const DEVIATIONS: &str = "FL_DEVIATIONS";
    /// IP protocol number to rule set.
    pub const PROTOCOL: &str = "FL_PROTOCOL";
    /// Cgroup number to rule set.
    pub const CGROUPS: &str = "FL_CGROUPS";
    /// Process, by its tgid, to rule set: it, and whom it has begun.
    pub const PROCESSES: &str = "FL_PROCESSES";
    /// Socket to rule set, for those that such processes have made.
    pub const SOCKETS: &str = "FL_SOCKETS";
    /// Remote port to rule set; 65,536 entries when used.
    pub const REMOTE_PORT: &str = "FL_REMOTE_PORT";
    /// Local port to rule set; 65,536 entries when used.
    pub const LOCAL_PORT: &str = "FL_LOCAL_PORT";
    /// Whole remote IPv4 address to rule set.
    pub const REMOTE4: &str = "FL_REMOTE4";
    /// Remote IPv4 prefix to rule set.
    pub const REMOTE4_NET: &str = "FL_REMOTE4_NET";
    /// Whole remote IPv6 address to rule set.
    pub const REMOTE6: &str = "FL_REMOTE6";
    /// Remote IPv6 prefix to rule set.
    pub const REMOTE6_NET: &str = "FL_REMOTE6_NET";
    /// Whole local IPv4 address to rule set.
    pub const LOCAL4: &str = "FL_LOCAL4";
    /// Local IPv4 prefix to rule set.
    pub const LOCAL4_NET: &str = "FL_LOCAL4_NET";
    /// Whole local IPv6 address to rule set.
    pub const LOCAL6: &str = "FL_LOCAL6";
    /// Local IPv6 prefix to rule set.
    pub const LOCAL6_NET: &str = "FL_LOCAL6_NET";
    /// [`Peer`](crate::figures::Peer) by remote IPv4 address, a map for each [`Direction`](super::Direction).
    pub const PEERS4: [&str; 2] = ["FL_PEERS4_IN", "FL_PEERS4_OUT"];
    /// The same by IPv6 address.
    pub const PEERS6: [&str; 2] = ["FL_PEERS6_IN", "FL_PEERS6_OUT"];
    /// [`Peer`](crate::figures::Peer) of all that are in none of these, by [`Direction`](super::Direction).
    pub const OTHERS: &str = "FL_OTHERS";
    /// [`NameState`](super::NameState) by its number, 0 being the start.
    pub const NAMES: &str = "FL_NAMES";
    /// DNS record type to rule set.
    pub const RECORDS: &str = "FL_RECORDS";
    /// The constants the programs are specialised by, a [`Setup`](super::Setup).
    pub const SETUP: &str = "FL_SETUP";
}

/// Which way a packet goes, seen from the host whose interface it is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Direction {
    /// Received: the remote end is the source.
    In = 0,
    /// Sent: the remote end is the destination.
    Out = 1,
    /// Not yet sent: the connection that a process asks for.
    Connect = 2,
    /// No packet: a system call, or what the kernel does for one.
    Call = 3,
}

impl Direction {
    /// As it is written on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out | Self::Connect => "out",
            Self::Call => "call",
        }
    }
}

/// How many [`Direction`]s packets have.
pub const DIRECTIONS: usize = 2;

/// How many [`Direction`]s rules of the network have.
pub const SIDES: usize = 3;

/// How many [`Direction`]s there are, each a hook of its own.
pub const HOOKS: usize = 4;

/// The switch and the lease. One write arms, renews or disarms every program on every CPU.
///
/// The programs act while `not_before <= now < lease_until`; all zero is disarmed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Counts the owner's writes, so that a reader can tell them apart.
    pub epoch: u64,
    /// Nothing happens before this.
    pub not_before: u64,
    /// Nothing happens from here on, unless the owner has renewed it.
    pub lease_until: u64,
}

/// Constants of one load: what the verifier sees here it uses to remove the branches a run does not need.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Rules per [`Direction`].
    pub direction: [u64; SIDES],
    /// Rules that any remote address satisfies; the others are in the remote maps.
    pub any_remote: u64,
    /// Rules that any local address satisfies.
    pub any_local: u64,
    /// Rules that any protocol satisfies.
    pub any_protocol: u64,
    /// Rules that any remote port satisfies.
    pub any_remote_port: u64,
    /// Rules that any local port satisfies.
    pub any_local_port: u64,
    /// Rules that only keep others from acting.
    pub sparing: u64,
    /// Rules that any socket, and none, satisfies; the others want one of a cgroup, or of a process.
    pub any_cgroup: u64,
    /// Rules that do not want a DNS query; the others want one, for a name.
    pub any_name: u64,
    /// Rules that any record type satisfies, and none.
    pub any_record: u64,
    /// How deep the cgroups are that rules want, the root being 0; a level each.
    pub levels: [u8; MAX_LEVELS],
    /// Which maps hold anything, a set of [`table`] bits.
    pub tables: u32,
    /// The owner's tgid, as the kernel numbers it: what it asks for itself is never refused. 0 is nobody.
    pub owner_tgid: u32,
    /// Where `tgid` lies in the running kernel's `struct task_struct`, in bytes.
    pub tgid_offset: u32,
    /// 1 where frames begin with an Ethernet header, 0 where they begin with IP.
    pub ethernet: u32,
    /// What any rule does, a set of [`effect`] bits.
    pub effects: u32,
    /// The interface.
    pub ifindex: u32,
    /// The near ends of the links in which packets wait, by [`Direction`]; 0 without.
    pub links: [u32; DIRECTIONS],
    /// The far ends, likewise, in the network namespace that holds them.
    pub far_links: [u32; DIRECTIONS],
    /// What tells the interface from all others of the machine; even.
    pub place: u32,
    /// How many `levels` there are.
    pub level_count: u32,
    /// 1 if rules want sockets of processes.
    pub processes: u32,
    /// Where `real_parent` lies in the running kernel's `struct task_struct`, in bytes.
    pub parent_offset: u32,
    /// Where the running kernel keeps what of cgroups.
    pub cgroup: CgroupOffsets,
    /// What is left alone whatever the rules say, a set of [`protect`] bits.
    pub protect: u32,
    /// The caller's own session, one of these.
    pub session: Session,
    /// Of two owners on one interface the later has the greater number, and its programs are asked first.
    pub generation: u64,
    /// By how many nanoseconds `CLOCK_TAI` is ahead of `CLOCK_REALTIME`, by which `fq` takes the time of what is not IP; or
    /// [`MONOTONIC`], where it knows of no other clock.
    pub ahead_of_real: u64,
}

/// See [`Setup::ahead_of_real`].
pub const MONOTONIC: u64 = u64::MAX;

/// Fields of the running kernel's types, in bytes from the start of each; all zero if nothing asks for cgroups.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupOffsets {
    /// `sk_cgrp_data` in `struct sock`, which begins with the pointer to the cgroup.
    pub of_socket: u32,
    /// `level` in `struct cgroup`.
    pub level: u32,
    /// `ancestors` in it: pointers by level, itself included.
    pub ancestors: u32,
    /// `kn` in it.
    pub node: u32,
    /// `id` in `struct kernfs_node`.
    pub node_id: u32,
}

/// A TCP connection, seen from this host. Addresses are in network byte order, that of IPv4 being the first word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The other host.
    pub remote: [u32; 4],
    /// Its port.
    pub remote_port: u16,
    /// This host's port.
    pub local_port: u16,
    /// 1 for IPv6.
    pub v6: u32,
}

/// Bits of [`Setup::protect`].
pub mod protect {
    /// The cloud's instance metadata, `169.254.169.254`.
    pub const METADATA: u32 = 1 << 0;
    /// [`Setup::session`](super::Setup::session).
    pub const SESSION: u32 = 1 << 1;
    /// Connections to the host itself, where these are refused.
    pub const LOOPBACK: u32 = 1 << 2;
}

/// Bits of [`Rule::effects`].
pub mod effect {
    /// Loss with the chance [`Rule::loss`](super::Rule::loss).
    pub const LOSS: u32 = 1 << 0;
    /// Loss in bursts, [`Rule::bursts`](super::Rule::bursts).
    pub const BURSTS: u32 = 1 << 1;
    /// [`Rule::loss`](super::Rule::loss) is the chance of a flow, all of whose packets share one fate.
    pub const PER_FLOW: u32 = 1 << 2;
    /// The packet comes twice.
    pub const DUPLICATE: u32 = 1 << 3;
    /// Bits of the packet are flipped.
    pub const CORRUPT: u32 = 1 << 4;
    /// Its checksum is put right afterwards.
    pub const FIX_CHECKSUM: u32 = 1 << 5;
    /// Some packets are not delayed, and overtake the others.
    pub const REORDER: u32 = 1 << 6;
    /// The packet comes later.
    pub const DELAY: u32 = 1 << 7;
    /// No packet overtakes another, by having less of a jitter, say.
    pub const KEEP_ORDER: u32 = 1 << 8;
    /// Packets take their time on a wire that is shared by all of the rule.
    pub const RATE: u32 = 1 << 9;
    /// The packet of a TCP connection becomes a reset of both its ends.
    pub const RESET: u32 = 1 << 10;
    /// The packets of TCP connections are lost once these stand.
    pub const TIMEOUT: u32 = 1 << 11;
    /// `connect(2)` fails with [`Rule::errno`](super::Rule::errno).
    pub const REFUSE: u32 = 1 << 14;
    /// Each peer has [`Figures`](crate::figures::Figures) of its own; then the rule does nothing else.
    pub const PROFILE: u32 = 1 << 13;
    /// A DNS query is answered by [`Rule::answer`](super::Rule::answer), without reaching anybody.
    pub const ANSWER: u32 = 1 << 12;
    /// What loses packets.
    pub const ANY_LOSS: u32 = LOSS | BURSTS | PER_FLOW;
    /// What asks for the state of a TCP connection.
    pub const OF_CONNECTIONS: u32 = RESET | TIMEOUT;
    /// What makes packets wait, for which a link is needed.
    pub const WAITING: u32 = DELAY | RATE | PROFILE;
}

/// Bits of [`Setup::tables`].
pub mod table {
    /// Whole remote IPv4 addresses.
    pub const REMOTE4: u32 = 1 << 0;
    /// Remote IPv4 prefixes.
    pub const REMOTE4_NET: u32 = 1 << 1;
    /// Whole remote IPv6 addresses.
    pub const REMOTE6: u32 = 1 << 2;
    /// Remote IPv6 prefixes.
    pub const REMOTE6_NET: u32 = 1 << 3;
    /// Whole local IPv4 addresses.
    pub const LOCAL4: u32 = 1 << 4;
    /// Local IPv4 prefixes.
    pub const LOCAL4_NET: u32 = 1 << 5;
    /// Whole local IPv6 addresses.
    pub const LOCAL6: u32 = 1 << 6;
    /// Local IPv6 prefixes.
    pub const LOCAL6_NET: u32 = 1 << 7;
}

/// Which of the packets a rule matches it may act on, by their order: of those after the first `skip`, the
/// first `first`, and of these each `every`-th.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Packets let through before the rule begins.
    pub skip: u64,
    /// Packets after that for which the rule lasts; [`u64::MAX`] for ever.
    pub first: u64,
    /// 1 for all of them, *n* for the *n*-th, the 2*n*-th, ...; never 0.
    pub every: u64,
}

impl Window {
    /// Every packet.
    pub const ALL: Self = Self { skip: 0, first: u64::MAX, every: 1 };
}

/// A chance, and how much one packet's fate is that of the one before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chance {
    /// See [`decide::fires`](crate::decide::fires).
    pub threshold: u32,
    /// The chance, likewise, to meet the fate of the packet before instead of one of its own.
    pub correlation: u32,
}

/// The Gilbert-Elliott model: two states, each with a chance of loss; all thresholds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bursts {
    /// p: from the good state to the bad one.
    pub to_bad: u32,
    /// r: from the bad state to the good one.
    pub to_good: u32,
    /// 1-h: loss in the bad state.
    pub bad_loss: u32,
    /// 1-k: loss in the good state.
    pub good_loss: u32,
}

/// How long packets wait.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Without jitter, in nanoseconds; below 2^36.
    pub time: u64,
    /// What a deviation of 8192 stands for, in nanoseconds; below 2^36.
    pub jitter: u64,
    /// Chance to have the deviation of the packet before.
    pub correlation: u32,
    /// Where the distribution begins in [`map::DEVIATIONS`].
    pub table: u32,
    /// How many entries it has; 0 for the uniform distribution, which has no table.
    pub entries: u32,
    /// Not used.
    pub pad: u32,
}

/// How fast a wire is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds a byte takes, times 2^20.
    pub byte_time: u64,
    /// How long a wire that was idle may be ahead of its rate, in nanoseconds.
    pub burst: u64,
    /// How much may wait before it, in nanoseconds; what comes then is lost.
    pub limit: u64,
    /// Bytes that every packet takes in addition; negative for headers that are not on the wire.
    pub overhead: i32,
    /// Not used.
    pub pad: u32,
}

/// What a rule does, in this order, and until when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule does nothing from here on; [`u64::MAX`] leaves the end to the lease alone.
    pub expires_at: u64,
    /// Which packets, by their order.
    pub window: Window,
    /// The rules that do nothing to its packets; then it does nothing else.
    pub spares: u64,
    /// What it does, a set of [`effect`] bits.
    pub effects: u32,
    /// 1 if `window` leaves anything out, so that packets must be numbered.
    pub numbered: u32,
    /// Loss, unless it is in bursts.
    pub loss: Chance,
    /// Loss in bursts.
    pub bursts: Bursts,
    /// Duplication.
    pub duplicate: Chance,
    /// Corruption.
    pub corrupt: Chance,
    /// How many bits are flipped; at most [`MAX_BITS`].
    pub corrupt_bits: u32,
    /// Where, in bytes behind the IP header; negative for anywhere there.
    pub corrupt_offset: i32,
    /// Reordering: the chance of a packet not to wait.
    pub reorder: Chance,
    /// Of how many packets only the last may be reordered; 0 and 1 for each.
    pub reorder_gap: u32,
    /// Of the flows, see [`effect::PER_FLOW`].
    pub flow_seed: u32,
    /// Waiting.
    pub delay: Delay,
    /// The wire, which comes before the delay.
    pub rate: Rate,
    /// Why a connection is refused.
    pub errno: u32,
    /// How DNS queries are answered: the header's RCODE, plus one; 0 if they are not.
    pub answer: u32,
}

impl Rule {
    /// Does nothing to any packet.
    pub const NOTHING: Self = Self {
        expires_at: u64::MAX,
        window: Window::ALL,
        spares: 0,
        effects: 0,
        numbered: 0,
        loss: Chance { threshold: 0, correlation: 0 },
        bursts: Bursts { to_bad: 0, to_good: 0, bad_loss: 0, good_loss: 0 },
        duplicate: Chance { threshold: 0, correlation: 0 },
        corrupt: Chance { threshold: 0, correlation: 0 },
        corrupt_bits: 1,
        corrupt_offset: -1,
        reorder: Chance { threshold: 0, correlation: 0 },
        reorder_gap: 0,
        flow_seed: 0,
        delay: Delay { time: 0, jitter: 0, correlation: 0, table: 0, entries: 0, pad: 0 },
        rate: Rate { byte_time: 0, burst: 0, limit: 0, overhead: 0, pad: 0 },
        errno: 0,
        answer: 0,
    };
}

/// A state of the automaton that knows all names which rules want.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameState {
    /// The rules that want a name which ends here.
    pub rules: u64,
    /// The next state, by the class of the next byte.
    pub next: [u16; CLASSES],
}

/// Most bits that one packet is corrupted by.
pub const MAX_BITS: u32 = 32;

/// What a rule's packets share over all CPUs; times are `CLOCK_MONOTONIC` nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// When the last byte leaves that is on the wire or waits for it.
    pub busy_until: u64,
    /// When the last packet arrives that has been let through.
    pub last: u64,
}

/// Packets, the segments they are on the wire, and the bytes these make there (without preamble and FCS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Count {
    /// Packets as the hook sees them: a GSO or GRO super-packet is one.
    pub packets: u64,
    /// Packets as they are on the wire.
    pub segments: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// What one rule has done on one CPU, and the state of its random numbers there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleState {
    /// See [`decide::random`](crate::decide::random).
    pub random: u64,
    /// Packets that met all of the rule's conditions while it was in force.
    pub matched: Count,
    /// Packets it acted on.
    pub fired: Count,
    /// Packets among these that come by themselves, see [`is_background`](crate::background::is_background).
    pub background: u64,
    /// Packets among those it acted on that were lost by chance.
    pub lost: u64,
    /// That were lost because too much waited for the wire.
    pub overlimit: u64,
    /// That came twice.
    pub duplicated: u64,
    /// That were corrupted.
    pub corrupted: u64,
    /// That overtook others.
    pub reordered: u64,
    /// That waited.
    pub delayed: u64,
    /// The last deviation from the delay, in nanoseconds.
    pub deviation: i64,
    /// Which [`effect`]s the last packet met.
    pub last: u32,
    /// 1 in the bad state of the Gilbert-Elliott model.
    pub bad: u32,
    /// Packets since the last that was reordered.
    pub since: u32,
    /// Not used.
    pub pad: u32,
    /// A number on its way through the program.
    pub scratch: u64,
}

/// What one hook has seen on one CPU while armed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookState {
    /// All packets.
    pub seen: Count,
    /// Packets among them whose headers could not be made out; they were let through.
    pub unparsed: u64,
    /// Packets that rules would have hit, and that are protected.
    pub spared: u64,
    /// A pointer on its way through the program.
    pub scratch: u64,
    /// By what it is told whether the packet comes by itself.
    pub clue: u64,
    /// Which flow it is of, by [`decide::flow`](crate::decide::flow), if any rule asks.
    pub flow: u64,
}

const _: () = assert!(size_of::<Control>() == 24);
const _: () = assert!(size_of::<Setup>() == 224);
const _: () = assert!(size_of::<Session>() == 24);
const _: () = assert!(size_of::<Window>() == 24);
const _: () = assert!(size_of::<Delay>() == 32);
const _: () = assert!(size_of::<Rate>() == 32);
const _: () = assert!(size_of::<Rule>() == 184);
const _: () = assert!(size_of::<NameState>() == 136);
const _: () = assert!(size_of::<Wire>() == 16);
const _: () = assert!(size_of::<Count>() == 24);
const _: () = assert!(size_of::<RuleState>() == 144);
const _: () = assert!(size_of::<HookState>() == 64);

#[cfg(feature = "user")]
mod pod {
    use super::{Control, HookState, NameState, Rule, RuleState, Setup, Wire};

    // SAFETY: `#[repr(C)]`, integers only, and the sizes asserted above leave no padding.
    unsafe impl aya::Pod for Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Setup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RuleState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HookState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Wire {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameState {}
}

impl Count {
    /// Adds one packet that is `segments` packets and `bytes` bytes on the wire.
    #[inline(always)]
    pub fn add(&mut self, segments: u32, bytes: u64) {
        self.packets += 1;
        self.segments += u64::from(segments);
        self.bytes += bytes;
    }
}
