//! Interfaces.

use crate::kernel::{
    self,
    netlink::{Link, Netlink},
};

/// An interface of the current network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number there.
    pub ifindex: u32,
    /// Whether its frames begin with an Ethernet header, or with IP.
    pub ethernet: bool,
    /// Whether what it sends is what it receives.
    pub loopback: bool,
}

/// An interface that is not there, or of a kind whose packets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such interface.
    #[error("there is no interface {name} in this network namespace; there are {there}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// Those that are there.
        there: String,
    },
    /// None was named, and there is not just one.
    #[error("no interface was named, and in the target's network namespace {there}; name one with --dev")]
    NotOne {
        /// Those that could be meant.
        there: String,
    },
    /// Neither Ethernet nor bare IP.
    #[error("{name} is of link type {layer} (ARPHRD), and only Ethernet and bare IP interfaces can be read")]
    LinkType {
        /// Its name.
        name: String,
        /// Its type.
        layer: u16,
    },
    /// Bare IP, where a way round cannot be had.
    #[error("{name} has no Ethernet header, and delay, rate and corrupt need an interface that has one")]
    NoEthernet {
        /// Its name.
        name: String,
    },
    /// Loopback, whose packets have been routed when they are sent, and are not routed again.
    #[error(
        "delay, rate, corrupt, and duplicate --direction in cannot be had on {name}: the kernel takes no packet in \
         that comes back to it; aim at another interface"
    )]
    Loopback {
        /// Its name.
        name: String,
    },
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// Cellular modems; not in the libc crate.
const ARPHRD_RAWIP: u16 = 519;

impl Device {
    /// The only interface that is up, `lo` aside.
    ///
    /// # Errors
    ///
    /// [`DeviceError`].
    pub fn only() -> Result<Self, DeviceError> {
        let loopback = libc::IFF_LOOPBACK.cast_unsigned();
        let mut links = Netlink::open()?.links()?;
        links.retain(|link| link.is_up() && link.flags & loopback == 0);
        match &links[..] {
            [link] => Self::of(link),
            [] => Err(DeviceError::NotOne { there: "none is up but lo".into() }),
            several => {
                let names: Vec<_> = several.iter().map(|link| link.name.as_str()).collect();
                Err(DeviceError::NotOne { there: format!("there are {}", names.join(", ")) })
            }
        }
    }

    /// Looks an interface up by its name.
    ///
    /// # Errors
    ///
    /// [`DeviceError`].
    pub fn find(name: &str) -> Result<Self, DeviceError> {
        let mut netlink = Netlink::open()?;
        let Some(link) = netlink.link_by_name(name)? else {
            let there: Vec<_> = netlink.links()?.into_iter().map(|link| link.name).collect();
            return Err(DeviceError::Unknown { name: name.into(), there: there.join(", ") });
        };
        Self::of(&link)
    }

    fn of(link: &Link) -> Result<Self, DeviceError> {
        let ethernet = match link.layer {
            // Loopback has an Ethernet header of zeros and the type.
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => true,
            libc::ARPHRD_NONE
            | libc::ARPHRD_PPP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT
            | libc::ARPHRD_IPGRE
            | ARPHRD_RAWIP => false,
            layer => return Err(DeviceError::LinkType { name: link.name.clone(), layer }),
        };
        let loopback = link.layer == libc::ARPHRD_LOOPBACK;
        Ok(Self { name: link.name.clone(), ifindex: link.index, ethernet, loopback })
    }
}
