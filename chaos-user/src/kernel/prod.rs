//! Has an open TCP connection say something.
//!
//! A connection on which nothing is sent passes no hook. A SYN as if from its other end changes nothing, whatever its
//! numbers, and is answered by a segment that says the right ones (the challenge ACK of RFC 5961 section 4). That leaves by
//! the interface, where the programs see it. The SYN itself is received by way of `lo`.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

use etherparse::PacketBuilder;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
        sendto, socket,
    },
};

use super::{Error, Result, netlink::Netlink};

/// Sends such segments, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Prod {
    v4: OwnedFd,
    /// Not there without IPv6.
    v6: Option<OwnedFd>,
    /// What lies on this host: to another nothing is sent, whatever address a socket has.
    own: Vec<IpAddr>,
}

impl Prod {
    /// Opens it in the current network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open() -> Result<Self> {
        let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        let v4 = open(AddressFamily::Inet).map_err(|errno| Error::new("socket", "SOCK_RAW", errno.into()))?;
        Ok(Self { v4, v6: open(AddressFamily::Inet6).ok(), own: Netlink::open()?.addresses()? })
    }

    /// Has the connection between these ends say something, if it is still there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn provoke(&self, local: SocketAddr, remote: SocketAddr) -> Result<()> {
        if !local.ip().is_loopback() && !self.own.contains(&local.ip()) {
            return Ok(());
        }
        let (socket, to): (_, Box<dyn SockaddrLike>) = match (local, &self.v6) {
            (SocketAddr::V4(local), _) => {
                (&self.v4, Box::new(SockaddrIn::from(SocketAddrV4::new(*local.ip(), 0))))
            }
            (SocketAddr::V6(local), Some(v6)) => {
                (v6, Box::new(SockaddrIn6::from(SocketAddrV6::new(*local.ip(), 0, 0, local.scope_id()))))
            }
            (SocketAddr::V6(_), None) => return Ok(()),
        };
        let Some(segment) = segment(local, remote) else { return Ok(()) };
        match sendto(socket.as_raw_fd(), &segment, &*to, MsgFlags::empty()) {
            // The address has gone meanwhile, or a firewall does not want it.
            Ok(_) | Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EPERM | Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Error::new("sendto", local.to_string(), errno.into())),
        }
    }
}

/// A SYN as if from the other end, with its IP header; nothing if the ends are of different families.
fn segment(local: SocketAddr, remote: SocketAddr) -> Option<Vec<u8>> {
    const TTL: u8 = 64;
    let ip = match (remote.ip(), local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
        _ => return None,
    };
    let mut bytes = Vec::new();
    ip.tcp(remote.port(), local.port(), 0, 0).syn().write(&mut bytes, &[]).ok()?;
    Some(bytes)
}
