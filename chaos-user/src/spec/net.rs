//! A network fault as it was written.

use std::{fmt, time::Duration};

use chaos_ebpf::abi::{Direction, Window};

use super::{Impairments, Selectors};
use crate::target::Netns;

/// Which packets of an interface: those it receives, those it sends, or the conversation of both; or none, but what comes
/// before these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    /// Received.
    In,
    /// Sent.
    #[default]
    Out,
    /// Sent, and what comes back.
    Both,
    /// Asked for, by `connect(2)`.
    Connect,
}

impl Sides {
    /// The directions it stands for.
    #[must_use]
    pub fn directions(self) -> &'static [Direction] {
        match self {
            Self::In => &[Direction::In],
            Self::Out => &[Direction::Out],
            Self::Both => &[Direction::In, Direction::Out],
            Self::Connect => &[Direction::Connect],
        }
    }
}

/// What is done to which packets.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// What is done to them.
    pub impairments: Impairments,
    /// Where.
    pub sides: Sides,
    /// Which packets: as they go in the fault's direction, and with [`Sides::Both`] as they are sent; what
    /// comes back is matched with the ends exchanged.
    pub selectors: Selectors,
    /// Which of these by their order, in each direction for itself.
    pub window: Window,
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { impairments, sides: _, selectors, window } = self;
        write!(f, "{impairments}{selectors}{}", Ordered(window))
    }
}

/// A window as its options are written.
pub(super) struct Ordered<'a>(pub(super) &'a Window);

impl fmt::Display for Ordered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Window { skip, first, every }) = self;
        if *skip != 0 {
            write!(f, " --skip {skip}")?;
        }
        if *first != u64::MAX {
            write!(f, " --first {first}")?;
        }
        if *every != 1 {
            write!(f, " --every {every}")?;
        }
        Ok(())
    }
}

impl NetSpec {
    /// Whether any fault acts on packets, for which there must be an interface.
    #[must_use]
    pub fn acts_on_packets(&self) -> bool {
        self.faults.iter().any(|fault| fault.sides != Sides::Connect)
    }
}

/// Whether packets are to be those of the wire: an interface's offloads make one of several, and several of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exact {
    /// They are as they are.
    #[default]
    No,
    /// As far as the interface switches its offloads off.
    IfPossible,
    /// Or nothing is begun.
    Required,
}

/// Network faults on one interface.
#[derive(Clone, Debug, PartialEq)]
pub struct NetSpec {
    /// The interface's name; if none is given, the only one of the network namespace.
    pub device: Option<String>,
    /// The network namespace it lies in; if none is named, that of the target, or the caller's own.
    pub netns: Option<Netns>,
    /// The faults.
    pub faults: Vec<FaultSpec>,
    /// Seed of the random numbers; drawn if none is given.
    pub seed: Option<u64>,
    /// How long; until interrupted if it does not say.
    pub duration: Option<Duration>,
    /// How many packets may wait, if that was said.
    pub limit: Option<u32>,
    /// Whether the interface's own segmentation is switched off.
    pub exact: Exact,
    /// Whether the caller's own SSH session and the cloud's metadata may be hit as well.
    pub include_protected: bool,
}
