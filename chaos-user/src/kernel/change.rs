//! What the kernel does not take back when its owner ends: written down before it is made, and taken back by
//! whoever finds it written down.

use std::fs::File;

use chaos_ebpf::abi::Direction;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::{Result, filter, netlink::Netlink};

/// A change to an interface, in the network namespace that the caller has to enter.
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
}

impl Change {
    /// Whether several owners can have made it together; the last of them takes it back.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Filter { .. } => false,
            Self::Clsact { .. } => true,
        }
    }

    /// Takes it back. What is gone, or was never made, is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn undo(&self) -> Result<()> {
        match *self {
            Self::Filter { ifindex, direction, program } => filter::remove(ifindex, direction, program),
            Self::Clsact { ifindex } => filter::remove_clsact(ifindex),
        }
    }

    /// The program that is there as long as it is, if there is one.
    #[must_use]
    pub fn program(&self) -> Option<u32> {
        match self {
            Self::Filter { program, .. } => Some(*program),
            Self::Clsact { .. } => None,
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

    /// Whether another owner has written this change down.
    ///
    /// # Errors
    ///
    /// If what others have written cannot be read.
    fn is_others(&self, change: &Change) -> std::result::Result<bool, Unwritten>;

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
    if !filter::has_clsact(&mut netlink, ifindex)? || ledger.is_others(&change).map_err(unwritten)? {
        ledger.note(change).map_err(unwritten)?;
        netlink.add_clsact(ifindex)?;
    }
    Ok(())
}

/// What the ledger says, as an error of this half.
pub(super) fn unwritten(error: Unwritten) -> super::Error {
    super::Error::new("write", "the journal", std::io::Error::other(error))
}
