//! Two hosts and a wire: network namespaces without names, joined by veth. Nothing of it is in the file system,
//! and all of it vanishes with the process.
//!
//! `near` is where the faults are; `far` is the peer. With [`Options::side`] there is a third host on a wire of
//! its own to `near`, which no fault aimed at the first wire may touch.

mod neighbour;
mod netns;
mod xdp;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use chaos_user::kernel::netlink::Veth;
use ipnet::IpNet;

pub use self::{
    netns::Netns,
    xdp::{Verdict, attach_xdp, returning},
};
use crate::error::{Context, Failure, Result};

/// The interface of `near` that leads to `far`: the one to aim at.
pub const NEAR_DEVICE: &str = "to-far";
/// The interface of `far` that leads to `near`.
pub const FAR_DEVICE: &str = "to-near";
/// The interface of `near` that leads to `side`.
pub const SIDE_DEVICE: &str = "to-side";
/// How long a new wire may take to carry its first packet.
const SETTLE: Duration = Duration::from_secs(5);

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// What a lab has beyond two hosts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Every packet that the hooks see is one packet on the wire (`gso_max_segs 1`).
    pub wire_packets: bool,
    /// A third host, on its own wire to `near`.
    pub side: bool,
}

/// The hosts and their wires.
#[derive(Debug)]
pub struct Lab {
    /// Where the faults are.
    pub near: Netns,
    /// The peer.
    pub far: Netns,
    /// The third host, if asked for.
    pub side: Option<Netns>,
}

/// From which host to which, and under what addresses.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Who sends, or opens the connection.
    pub from: &'a Netns,
    /// Who receives.
    pub to: &'a Netns,
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub target: IpAddr,
}

impl Route<'_> {
    /// The way back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, source: self.target, target: self.source }
    }
}

/// The address of host `host` (1 is `near`, 2 its peer) on wire `wire` (0 leads to `far`, 1 to `side`).
#[must_use]
pub fn address(family: Family, wire: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, wire, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, wire.into(), 0, 0, 0, 0, 0, host.into()).into(),
    }
}

impl Lab {
    /// Two hosts and a wire, with the kernel's defaults.
    ///
    /// # Errors
    ///
    /// The kernel's, `EPERM` without root.
    pub fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    /// Like [`new`](Self::new), with what the options add. It carries packets when this returns.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with(options: Options) -> Result<Self> {
        let near = Netns::new().context("near")?;
        let far = Netns::new().context("far")?;
        let side = if options.side { Some(Netns::new().context("side")?) } else { None };
        let lab = Self { near, far, side };
        lab.lay_wire(0, NEAR_DEVICE, &lab.far, options)?;
        if let Some(side) = &lab.side {
            lab.lay_wire(1, SIDE_DEVICE, side, options)?;
        }
        Ok(lab)
    }

    /// From `near` to `far`: what leaves the faulted interface.
    #[must_use]
    pub fn outward(&self, family: Family) -> Route<'_> {
        self.route(0, &self.far, family)
    }

    /// From `far` to `near`: what arrives at the faulted interface.
    #[must_use]
    pub fn inward(&self, family: Family) -> Route<'_> {
        self.outward(family).reversed()
    }

    /// From `near` to `side`, past the faulted interface.
    ///
    /// # Errors
    ///
    /// If the lab has no `side`.
    pub fn aside(&self, family: Family) -> Result<Route<'_>> {
        Ok(self.route(1, self.side.as_ref().context("a lab without Options::side")?, family))
    }

    /// Gives `far` one more address on the first wire and makes it known to `near`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn add_far_address(&self, host: u8) -> Result {
        for family in Family::BOTH {
            let address = address(family, 0, host);
            self.far.netlink()?.add_address(self.far.index(FAR_DEVICE)?, network(address)?)?;
            introduce(&self.near, NEAR_DEVICE, address, &self.far, FAR_DEVICE)?;
            settle(Route { target: address, ..self.outward(family) })?;
        }
        Ok(())
    }

    fn route<'a>(&'a self, wire: u8, to: &'a Netns, family: Family) -> Route<'a> {
        let (source, target) = (address(family, wire, 1), address(family, wire, 2));
        Route { from: &self.near, to, source, target }
    }

    fn lay_wire(&self, wire: u8, near_device: &str, peer: &Netns, options: Options) -> Result {
        self.near.netlink()?.add_veth(&Veth {
            peer_netns: Some(peer.as_fd()),
            gso_max_segs: options.wire_packets.then_some(1),
            ..Veth::new(near_device, FAR_DEVICE)
        })?;
        let ends = [(&self.near, near_device, 1), (peer, FAR_DEVICE, 2)];
        for (netns, device, host) in ends {
            let mut netlink = netns.netlink()?;
            let index = netns.index(device)?;
            silence(netns, device)?;
            netlink.set_up(index, true)?;
            for family in Family::BOTH {
                netlink.add_address(index, network(address(family, wire, host))?)?;
            }
        }
        let [(near, near_device, near_host), (far, far_device, far_host)] = ends;
        for family in Family::BOTH {
            introduce(near, near_device, address(family, wire, far_host), far, far_device)?;
            introduce(far, far_device, address(family, wire, near_host), near, near_device)?;
            settle(self.route(wire, peer, family))?;
            settle(self.route(wire, peer, family).reversed())?;
        }
        Ok(())
    }
}

fn network(address: IpAddr) -> Result<IpNet> {
    IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).context(address)
}

/// Keeps the kernel from sending anything of its own accord: no link-local address, so no router solicitation.
/// Reports of the groups it has joined it sends at any rate, twice; the second follows at once instead of within
/// a second, and both are gone when [`settle`] returns.
fn silence(netns: &Netns, device: &str) -> Result {
    for (name, value) in [("addr_gen_mode", "1"), ("mldv2_unsolicited_report_interval", "1")] {
        let file = format!("/proc/sys/net/ipv6/conf/{device}/{name}");
        netns.run(|| std::fs::write(&file, value).context(&file))?;
    }
    Ok(())
}

/// Tells `netns` that `address` is at the other host's interface.
fn introduce(netns: &Netns, device: &str, address: IpAddr, other: &Netns, other_device: &str) -> Result {
    let index = netns.index(device)?;
    let link = other.netlink()?.link_by_name(other_device)?.context(other_device)?;
    netns.run(|| neighbour::add_permanent(index, address, &link.address))
}

/// Waits until a packet gets through: the carrier comes up a little after the interface.
fn settle(route: Route<'_>) -> Result {
    let bind = |address: IpAddr| UdpSocket::bind((address, 0)).context(format_args!("bind {address}"));
    let receiver = route.to.run(|| bind(route.target))?;
    let sender = route.from.run(|| bind(route.source))?;
    let target: SocketAddr = receiver.local_addr().context("getsockname")?;
    receiver.set_read_timeout(Some(Duration::from_millis(2))).context("SO_RCVTIMEO")?;
    let deadline = Instant::now() + SETTLE;
    while Instant::now() < deadline {
        sender.send_to(b"settle", target).context(format_args!("send to {target}"))?;
        if receiver.recv(&mut [0; 16]).is_ok() {
            return Ok(());
        }
    }
    Err(Failure::new(format!("no packet from {} to {target} in {SETTLE:?}", route.source)))
}
