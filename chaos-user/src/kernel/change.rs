//! What the kernel does not take back when its owner ends: written down before it is made, and taken back by
//! whoever finds it written down.

use std::{
    fmt,
    fs::File,
    io,
    time::{Duration, Instant},
};

use chaos_ebpf::abi::Direction;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    ethtool::{Ethtool, Feature, SEGMENTATION},
    filter,
    memory::VdsoChange,
    netlink::{Link, Netlink},
    throttle::Throttle,
};

/// What kind of fault a change is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Packets and connections.
    Net,
    /// Block devices.
    Disk,
    /// Clocks.
    Clock,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Net, Self::Disk, Self::Clock];

    /// As it is written down.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Disk => "disk",
            Self::Clock => "clock",
        }
    }

    /// How its changes are written down: another number for every other way.
    #[must_use]
    pub const fn version(self) -> u32 {
        match self {
            Self::Net | Self::Disk | Self::Clock => 1,
        }
    }
}

/// An interface, told from others wherever it is moved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number where it was.
    pub ifindex: u32,
    /// Its name there.
    pub name: String,
    /// Its link-layer address, if it has one; that goes with it.
    pub address: Vec<u8>,
    /// The driver's kind.
    pub kind: Option<String>,
}

impl Interface {
    /// The one with this number in the caller's network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's, or that there is none.
    pub fn find(netlink: &mut Netlink, ifindex: u32) -> Result<Self> {
        let none = || {
            let none = io::Error::from_raw_os_error(libc::ENODEV);
            Error::new("netlink(RTM_GETLINK)", format!("interface {ifindex}"), none)
        };
        Ok(Self::of(netlink.link_by_index(ifindex)?.ok_or_else(none)?))
    }

    /// Whether it is where it was: in the network namespace of this connection.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn stays(&self, netlink: &mut Netlink) -> Result<bool> {
        Ok(netlink.link_by_index(self.ifindex)?.is_some_and(|link| self.is_here(&link)))
    }

    fn of(link: Link) -> Self {
        Self { ifindex: link.index, name: link.name, address: link.address, kind: link.kind }
    }

    /// Whether it has an address by which it is known elsewhere.
    #[must_use]
    pub fn has_address(&self) -> bool {
        self.address.iter().any(|byte| *byte != 0)
    }

    /// Whether this is it, where it was. Another may have its number and its name by now.
    fn is_here(&self, link: &Link) -> bool {
        let is_it = if self.has_address() { self.is_known_as(link) } else { self.name == link.name };
        self.ifindex == link.index && is_it
    }

    fn is_known_as(&self, link: &Link) -> bool {
        self.has_address() && self.address == link.address && self.kind == link.kind
    }
}

/// How long what is of processes may take to be taken back. Other owners wait for as long, but there may be nobody who comes again.
pub const LONGEST: Duration = Duration::from_secs(2);

/// Where a change was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// Here, or there is nothing more to take back.
    Here,
    /// Not here: what was changed is gone, or has been moved to another network namespace.
    NotHere,
}

/// A change to an interface, in the network namespace that the caller has to enter, to a cgroup, or to processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
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
    /// Features of an interface that are switched off.
    Features {
        /// Which.
        interface: Interface,
        /// As they were.
        before: Vec<Feature>,
    },
    /// Limits of a cgroup on a block device. Nobody else has any on both meanwhile.
    Throttle(Throttle),
    /// Processes' vDSOs, whichever those are.
    Vdso(VdsoChange),
}

impl Change {
    /// Of what kind of fault it is.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::Filter { .. } | Self::Clsact { .. } | Self::Features { .. } => Family::Net,
            Self::Throttle(_) => Family::Disk,
            Self::Vdso(_) => Family::Clock,
        }
    }

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

    /// Takes it back; processes may take until then. What is gone, or was never made, is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn undo(&self, end: Instant) -> Result<Undone> {
        match self {
            Self::Filter { ifindex, direction, program } => filter::remove(*ifindex, *direction, *program)?,
            Self::Clsact { ifindex } => filter::remove_clsact(*ifindex)?,
            Self::Features { interface, before } => {
                if !interface.stays(&mut Netlink::open()?)? {
                    return Ok(Undone::NotHere);
                }
                return features_on(interface.ifindex, before);
            }
            Self::Throttle(throttle) => throttle.undo()?,
            Self::Vdso(vdso) => vdso.undo(end)?,
        }
        Ok(Undone::Here)
    }

    /// Takes it back in a network namespace to which what was changed may have been moved.
    ///
    /// # Errors
    ///
    /// The kernel's, or that there are several that it can be.
    pub fn undo_moved(&self) -> Result<Undone> {
        let Self::Features { interface, before } = self else { return Ok(Undone::NotHere) };
        let links = Netlink::open()?.links()?;
        let mut off = Vec::new();
        for link in links.iter().filter(|link| interface.is_known_as(link)) {
            // Another of the same address has what it has.
            if are_off(link.index, before)? {
                off.push(link);
            }
        }
        match off[..] {
            [] => Ok(Undone::NotHere),
            [link] => features_on(link.index, before),
            _ => {
                let several = io::Error::other(format!("{} interfaces have its address", off.len()));
                Err(Error::new("find", format!("the interface that was {}", interface.name), several))
            }
        }
    }

    /// Takes it back where it was made and nothing has what it is known by: somebody may have given it another address, and another
    /// name. Its number there is no other's, as long as nobody asks for one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn undo_by_number(&self) -> Result<Undone> {
        let Self::Features { interface, before } = self else { return Ok(Undone::NotHere) };
        let link = Netlink::open()?.link_by_index(interface.ifindex)?;
        let is_it = link.is_some_and(|link| link.kind == interface.kind);
        if is_it && are_off(interface.ifindex, before)? {
            return features_on(interface.ifindex, before);
        }
        Ok(Undone::NotHere)
    }

    /// The interface with which it may be moved to another network namespace, if it goes with one.
    #[must_use]
    pub fn moves_with(&self) -> Option<&Interface> {
        match self {
            Self::Features { interface, .. } => Some(interface),
            Self::Filter { .. } | Self::Clsact { .. } | Self::Throttle(_) | Self::Vdso(_) => None,
        }
    }

    /// The command that takes it back.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Features { interface, before } => {
                let on: Vec<_> = before.iter().map(|feature| format!("{} on", feature.name)).collect();
                format!("ethtool -K {} {}", interface.name, on.join(" "))
            }
            Self::Throttle(throttle) => throttle.remedy(),
            Self::Filter { .. } | Self::Clsact { .. } | Self::Vdso(_) => "faultline sweep".into(),
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

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter { ifindex, direction, .. } => {
                write!(f, "filters of packets {} on interface {ifindex}", direction.name())
            }
            Self::Clsact { ifindex } => write!(f, "filters on interface {ifindex}"),
            Self::Features { interface, .. } => write!(f, "offloads of interface {}", interface.name),
            Self::Throttle(throttle) => throttle.fmt(f),
            Self::Vdso(_) => f.write_str("changed clocks"),
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
    fn hold(&self) -> std::result::Result<File, Unwritten>;

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

/// Switches off what makes one packet of several, and several of one; what stays on whatever it is asked for.
///
/// # Errors
///
/// The kernel's, or the ledger's.
pub fn features_off(ifindex: u32, ledger: &mut dyn Ledger) -> Result<Vec<String>> {
    let _held = ledger.hold().map_err(unwritten)?;
    let others = ledger.of_others().map_err(unwritten)?;
    let mut ethtool = Ethtool::open(ifindex)?;
    let mut on = ethtool.features(SEGMENTATION)?;
    on.retain(|feature| feature.asked);
    let theirs = others
        .into_iter()
        .find(|change| matches!(change, Change::Features { interface, .. } if interface.ifindex == ifindex));
    let change = match theirs {
        // What others have switched off was not off before them.
        Some(theirs) => theirs,
        None => Change::Features {
            interface: Interface::find(&mut Netlink::open()?, ifindex)?,
            before: on.clone(),
        },
    };
    let Change::Features { before, .. } = &change else { return Ok(Vec::new()) };
    // What others did not write down is not theirs to switch on again.
    let is_theirs = |now: &&Feature| before.iter().any(|feature| feature.name == now.name);
    let off: Vec<_> = on.iter().filter(is_theirs).map(|feature| feature.name.clone()).collect();
    ledger.note(change).map_err(unwritten)?;
    ethtool.set(off.iter().map(String::as_str), false)?;
    ethtool.active(SEGMENTATION)
}

fn are_off(ifindex: u32, before: &[Feature]) -> Result<bool> {
    let now = Ethtool::open(ifindex)?.features(SEGMENTATION);
    let Some(now) = unless_gone(ifindex, now)? else { return Ok(false) };
    let is_off = |name: &str| now.iter().any(|now| now.name == name && !now.asked);
    Ok(before.iter().all(|feature| is_off(&feature.name)))
}

/// Switches features on; an interface that goes meanwhile is not here.
fn features_on(ifindex: u32, before: &[Feature]) -> Result<Undone> {
    let on = Ethtool::open(ifindex)?.restore(before);
    Ok(if unless_gone(ifindex, on)?.is_some() { Undone::Here } else { Undone::NotHere })
}

/// Nothing if there is no such interface. The kernel says the same of one that is there, and whose device is being reset or sleeps.
fn unless_gone<T>(ifindex: u32, done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(error) if error.errno() == libc::ENODEV => match Netlink::open()?.link_by_index(ifindex)? {
            None => Ok(None),
            Some(_) => Err(error),
        },
        done => done.map(Some),
    }
}

/// What the ledger says, as an error of this half.
pub(super) fn unwritten(error: Unwritten) -> Error {
    Error::new("write", "the journal", io::Error::other(error))
}
