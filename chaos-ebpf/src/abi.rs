//! The types both halves share, and the names of the programs and maps that carry them.
//!
//! All times are in ticks of the kernel's `jiffies_64`. Addresses are in network byte order, as they lie in the
//! packet; ports are in host order. A set of rules is a `u64`, bit *n* standing for rule *n*.

/// How many rules one owner can have: the bits of a rule set.
pub const MAX_RULES: usize = 64;

/// Program names: at most 15 bytes, which is what the kernel keeps.
pub mod program {
    /// XDP, ingress.
    pub const XDP: &str = "fl_xdp";
    /// tc, ingress.
    pub const TC_IN: &str = "fl_tc_in";
    /// tc, egress.
    pub const TC_OUT: &str = "fl_tc_out";
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
    /// IP protocol number to rule set.
    pub const PROTOCOL: &str = "FL_PROTOCOL";
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
}

impl Direction {
    /// As it is written on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// How many [`Direction`]s there are.
pub const DIRECTIONS: usize = 2;

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
    pub direction: [u64; DIRECTIONS],
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
    /// Which maps hold anything, a set of [`table`] bits.
    pub tables: u32,
    /// The owner's tgid, as the kernel numbers it: what it sends itself is never touched. 0 is nobody.
    pub owner_tgid: u32,
    /// Where `tgid` lies in the running kernel's `struct task_struct`, in bytes.
    pub tgid_offset: u32,
    /// 1 where frames begin with an Ethernet header, 0 where they begin with IP.
    pub ethernet: u32,
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

/// What a rule does and until when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule does nothing from here on; [`u64::MAX`] leaves the end to the lease alone.
    pub expires_at: u64,
    /// Which packets, by their order.
    pub window: Window,
    /// Chance to fire, see [`decide::fires`](crate::decide::fires).
    pub threshold: u32,
    /// 1 if `window` leaves anything out, so that packets must be numbered.
    pub numbered: u32,
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
}

/// What one hook has seen on one CPU while armed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookState {
    /// All packets.
    pub seen: Count,
    /// Packets among them whose headers could not be made out; they were let through.
    pub unparsed: u64,
}

const _: () = assert!(size_of::<Control>() == 24);
const _: () = assert!(size_of::<Setup>() == 72);
const _: () = assert!(size_of::<Window>() == 24);
const _: () = assert!(size_of::<Rule>() == 40);
const _: () = assert!(size_of::<Count>() == 24);
const _: () = assert!(size_of::<RuleState>() == 56);
const _: () = assert!(size_of::<HookState>() == 32);

#[cfg(feature = "user")]
mod pod {
    use super::{Control, HookState, Rule, RuleState, Setup};

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
