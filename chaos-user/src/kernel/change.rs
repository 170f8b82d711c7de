//! What the kernel does not take back when its owner ends: written down before it is made, and taken back by
//! whoever finds it written down.

use std::fs::File;

use chaos_ebpf::abi::Direction;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::{
    Result,
    ethtool::{Ethtool, Feature, SEGMENTATION},
    filter, gone,
    memory::VdsoChange,
    netlink::Netlink,
    throttle::Throttle,
};

/// A change to an interface, in the network namespace that the caller has to enter, to a cgroup, or to processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A filter that runs a program. The program's number is never given again, so nobody else's filter can be
    /// taken for it.
    Filter {
        /// The interface.
        ifindex: u32,
        /// Which side of it.
        direction: Direction,
        /// The program's number.
        program: u32,
    },
    /// The `clsact` on which filters hang.
    Clsact {
        /// The interface.
        ifindex: u32,
    },
    /// Features of the interface that are switched off.
    Features {
        /// The interface.
        ifindex: u32,
        /// As they were.
        before: Vec<Feature>,
    },
    /// Limits of a cgroup on a block device. Nobody else has any on both meanwhile.
    Throttle(Throttle),
    /// Processes' vDSOs, whichever those are.
    Vdso(VdsoChange),
}

impl Change {
    /// Whether several owners can have made it together; the last of them takes it back.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Filter { .. } | Self::Throttle(_) | Self::Vdso(_) => false,
            Self::Clsact { .. } | Self::Features { .. } => true,
        }
    }

    /// Whether it is in a network namespace, which has to be entered to take it back.
    #[must_use]
    pub fn is_in_netns(&self) -> bool {
        !matches!(self, Self::Throttle(_) | Self::Vdso(_))
    }

    /// Whether it does nothing where it could not be taken back: an attempt has made it so.
    #[must_use]
    pub fn is_inert_alone(&self) -> bool {
        match self {
            Self::Vdso(_) => true,
            Self::Filter { .. } | Self::Clsact { .. } | Self::Features { .. } | Self::Throttle(_) => false,
        }
    }

    /// Takes it back. What is gone, or was never made, is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn undo(&self) -> Result<()> {
        match self {
            Self::Filter { ifindex, direction, program } => filter::remove(*ifindex, *direction, *program),
            Self::Clsact { ifindex } => filter::remove_clsact(*ifindex),
            Self::Features { ifindex, before } => {
                let set = Ethtool::open(*ifindex).and_then(|ethtool| ethtool.set(before));
                gone::is_nothing(set).map(drop)
            }
            Self::Throttle(throttle) => throttle.undo(),
            Self::Vdso(vdso) => vdso.undo(),
        }
    }

    /// The program that is there as long as it is, if there is one.
    #[must_use]
    pub fn program(&self) -> Option<u32> {
        match self {
            Self::Filter { program, .. } => Some(*program),
            Self::Clsact { .. } | Self::Features { .. } | Self::Throttle(_) | Self::Vdso(_) => None,
        }
    }

    /// The limits of a cgroup, if it is these.
    #[must_use]
    pub fn throttle(&self) -> Option<&Throttle> {
        match self {
            Self::Throttle(throttle) => Some(throttle),
            Self::Filter { .. } | Self::Clsact { .. } | Self::Features { .. } | Self::Vdso(_) => None,
        }
    }
}

/// Why something could not be written down.
pub type Unwritten = Box<dyn std::error::Error + Send + Sync>;

/// Where changes are written down.
pub trait Ledger {
    /// Keeps all other owners from changing anything until the result is dropped.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    fn hold(&self) -> std::result::Result<Flock<File>, Unwritten>;

    /// What other owners have written down of this network namespace.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    fn of_others(&self) -> std::result::Result<Vec<Change>, Unwritten>;

    /// Writes a change down that is about to be made.
    ///
    /// # Errors
    ///
    /// If it cannot be written; it must not be made then.
    fn note(&mut self, change: Change) -> std::result::Result<(), Unwritten>;
}

/// Sees to it that the interface has a `clsact`: the last owner who uses it removes it, unless somebody else had
/// made it.
///
/// # Errors
///
/// The kernel's, or the ledger's.
pub(super) fn clsact(ifindex: u32, ledger: &mut dyn Ledger) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let change = Change::Clsact { ifindex };
    if !filter::has_clsact(&mut netlink, ifindex)? || ledger.of_others().map_err(unwritten)?.contains(&change)
    {
        ledger.note(change).map_err(unwritten)?;
        netlink.add_clsact(ifindex)?;
    }
    Ok(())
}

/// Switches off what makes one packet of several, and several of one.
///
/// # Errors
///
/// The kernel's, or the ledger's.
pub fn features_off(ifindex: u32, ledger: &mut dyn Ledger) -> Result<()> {
    let _held = ledger.hold().map_err(unwritten)?;
    let others = ledger.of_others().map_err(unwritten)?;
    let same = |change: &Change| matches!(change, Change::Features { ifindex: of, .. } if *of == ifindex);
    // What others have switched off was not off before them.
    if let Some(theirs) = others.into_iter().find(same) {
        return ledger.note(theirs).map_err(unwritten);
    }
    let ethtool = Ethtool::open(ifindex)?;
    let before: Vec<_> = ethtool.features(SEGMENTATION)?.into_iter().filter(|(_, on)| *on).collect();
    let off: Vec<_> = before.iter().map(|(name, _)| (name.clone(), false)).collect();
    ledger.note(Change::Features { ifindex, before }).map_err(unwritten)?;
    ethtool.set(&off)
}

/// What the ledger says, as an error of this half.
pub(super) fn unwritten(error: Unwritten) -> super::Error {
    super::Error::new("write", "the journal", std::io::Error::other(error))
}
