//! The TCP connections of a network namespace, as the kernel itself lists them, with what it knows of whose they are: no
//! process is looked at.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{Netlink, attribute, u32_at};
use crate::kernel::Result;

/// A connection that both ends know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// This host's end.
    pub local: SocketAddr,
    /// The other.
    pub remote: SocketAddr,
    /// The number of its socket's cgroup; 0 if nobody has it any more.
    pub cgroup: u64,
    /// What a map of the programs keeps with its socket; 0 for nothing.
    pub rules: u64,
}

/// A connection to the kernel's list, of one network namespace.
#[derive(Debug)]
pub struct Connections {
    netlink: Netlink,
    /// The map.
    storage: Option<OwnedFd>,
}

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `INET_DIAG_REQ_SK_BPF_STORAGES` with `SK_DIAG_BPF_STORAGE_REQ_MAP_FD` in it.
const WITH_STORAGES: u16 = 2;
const OF_MAP: u16 = 1;
/// `INET_DIAG_SK_BPF_STORAGES` with `SK_DIAG_BPF_STORAGE` with `SK_DIAG_BPF_STORAGE_MAP_VALUE` in it.
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const MAP_VALUE: u16 = 3;
/// `INET_DIAG_CGROUP_ID`.
const CGROUP: u16 = 21;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg`, in bytes.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// Their states, by their bits: established, either half closed, closing at both ends. Not one that is being made, and none
/// that nobody has any more.
const STANDING: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// The request for all of a family.
#[derive(Clone, Debug)]
struct Listing(Vec<u8>);

impl Listing {
    fn new(family: i32, storage: Option<&OwnedFd>) -> Self {
        // family, protocol, extensions, padding; states; which socket: any.
        let mut bytes = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        bytes.extend(STANDING.to_ne_bytes());
        bytes.resize(REQUEST, 0);
        if let Some(map) = storage {
            for (length, kind) in [(12_u16, WITH_STORAGES), (8, OF_MAP)] {
                bytes.extend(length.to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
            }
            bytes.extend(map.as_raw_fd().to_ne_bytes());
        }
        Self(bytes)
    }
}

impl NetlinkSerializable for Listing {
    fn message_type(&self) -> u16 {
        BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl Connections {
    /// Connects to that of the calling thread's network namespace. `storage` is a map of sockets with rules.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open(storage: Option<OwnedFd>) -> Result<Self> {
        Ok(Self { netlink: Netlink::open_protocol(NETLINK_SOCK_DIAG, "NETLINK_SOCK_DIAG")?, storage })
    }

    /// All that stand now.
    ///
    /// # Errors
    ///
    /// The kernel's: `ENOENT` if it has no such list.
    pub fn all(&mut self) -> Result<Vec<Connection>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let listing = Listing::new(family, self.storage.as_ref());
            let answers = self.netlink.dump(&listing, "netlink(SOCK_DIAG_BY_FAMILY)", "TCP connections")?;
            all.extend(answers.iter().filter_map(|answer| parse(answer)));
        }
        Ok(all)
    }
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions; `struct inet_diag_sockid`: ports, addresses, interface,
/// cookie; and so on; and attributes.
fn parse(answer: &[u8]) -> Option<Connection> {
    let attributes = answer.get(ANSWER..)?;
    let family = i32::from(*answer.first()?);
    let end = |port: usize, address: usize, interface: u32| {
        let port = u16::from_be_bytes(*answer.get(port..)?.first_chunk()?);
        let octets: [u8; 16] = *answer.get(address..)?.first_chunk()?;
        if family == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            return Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port));
        }
        let address = Ipv6Addr::from(octets);
        Some(match IpAddr::from(address).to_canonical() {
            // Only with its interface is it an address to send to.
            IpAddr::V6(_) if address.is_unicast_link_local() => {
                SocketAddrV6::new(address, port, 0, interface).into()
            }
            // IPv4 in an IPv6 socket is IPv4 on the wire.
            plain => SocketAddr::new(plain, port),
        })
    };
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let storage = |value| attribute(attribute(value, STORAGE)?, MAP_VALUE).and_then(number);
    Some(Connection {
        local: end(4, 8, u32_at(answer, 40)?)?,
        remote: end(6, 24, 0)?,
        cgroup: attribute(attributes, CGROUP).and_then(number).unwrap_or(0),
        rules: attribute(attributes, STORAGES).and_then(storage).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (value.len() + 4) as u16;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
    }

    fn answer(family: i32, local: &[u8], remote: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut answer = vec![family as u8, 1, 0, 0, 0x1b, 0x58, 0, 80];
        answer.extend(local);
        answer.resize(24, 0);
        answer.extend(remote);
        answer.resize(40, 0);
        answer.extend(7_u32.to_ne_bytes());
        answer.resize(ANSWER, 0);
        [answer, attributes.concat()].concat()
    }

    #[test]
    fn answers() {
        let value = [nested(2, &5_u32.to_ne_bytes()), nested(MAP_VALUE, &6_u64.to_ne_bytes())].concat();
        let attributes = [nested(CGROUP, &42_u64.to_ne_bytes()), nested(STORAGES, &nested(STORAGE, &value))];
        let found =
            parse(&answer(libc::AF_INET, &[10, 0, 0, 1], &[10, 0, 0, 2], &attributes)).expect("whole");
        assert_eq!(
            (found.local.to_string(), found.remote.to_string()),
            ("10.0.0.1:7000".into(), "10.0.0.2:80".into())
        );
        assert_eq!((found.cgroup, found.rules), (42, 6));

        let [mapped, link] =
            ["::ffff:10.0.0.1", "fe80::1"].map(|it| it.parse::<Ipv6Addr>().expect("one").octets());
        let found = parse(&answer(libc::AF_INET6, &mapped, &mapped, &[])).expect("whole");
        assert_eq!((found.local.to_string(), found.cgroup, found.rules), ("10.0.0.1:7000".into(), 0, 0));
        let found = parse(&answer(libc::AF_INET6, &link, &link, &[])).expect("whole");
        assert_eq!(
            (found.local.to_string(), found.remote.to_string()),
            ("[fe80::1%7]:7000".into(), "[fe80::1]:80".into())
        );
        assert_eq!(parse(&[0; ANSWER - 1]), None);
    }
}
