//! Interfaces and their addresses.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
};

use super::{Netlink, attribute, text, u16_at, u32_at};
use crate::kernel::Result;

/// Length of `struct ifinfomsg`, which the attributes follow.
const HEADER: usize = 16;
/// Length of `struct ifaddrmsg`, likewise.
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
/// Where `tx_dropped` is in `struct rtnl_link_stats64`.
const TX_DROPPED: usize = 7 * 8;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
/// Longest primary name (`IFNAMSIZ` without its zero); a longer one can only be an alternative name.
const NAME_MAX: usize = 15;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What is on the wire: `ARPHRD_*`, 1 for Ethernet.
    pub layer: u16,
    /// `IFF_*`.
    pub flags: u32,
    /// Largest packet above the link layer.
    pub mtu: u32,
    /// The link-layer address, six bytes on Ethernet.
    pub address: Vec<u8>,
    /// The driver's kind (`veth`, `bridge`, ..); hardware and loopback have none.
    pub kind: Option<String>,
    /// The interface below, or a veth's peer (numbered in *its* network namespace).
    pub lower: Option<u32>,
    /// The root qdisc's kind.
    pub qdisc: Option<String>,
    /// How many wire packets a super-packet stands for at most.
    pub gso_max_segs: Option<u32>,
    /// Packets that were to be sent and could not.
    pub unsent: u64,
}

impl Link {
    /// Whether it has been set up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP.cast_unsigned() != 0
    }

    /// Whether packets on it begin with an Ethernet header.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        // Loopback has an (all-zero) Ethernet header as well.
        matches!(self.layer, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK)
    }

    fn parse(answer: &[u8]) -> Option<Self> {
        let attributes = answer.get(HEADER..)?;
        let number = |kind| attribute(attributes, kind).and_then(|value| u32_at(value, 0));
        Some(Self {
            index: u32_at(answer, 4)?,
            name: text(attribute(attributes, IFLA_IFNAME)?),
            layer: u16_at(answer, 2)?,
            flags: u32_at(answer, 8)?,
            mtu: number(IFLA_MTU).unwrap_or(0),
            address: attribute(attributes, IFLA_ADDRESS).unwrap_or_default().to_vec(),
            kind: attribute(attributes, IFLA_LINKINFO)
                .and_then(|info| attribute(info, IFLA_INFO_KIND))
                .map(text),
            lower: number(IFLA_LINK),
            qdisc: attribute(attributes, IFLA_QDISC).map(text),
            gso_max_segs: number(IFLA_GSO_MAX_SEGS),
            unsent: attribute(attributes, IFLA_STATS64)
                .and_then(|counts| counts.get(TX_DROPPED..)?.first_chunk())
                .map_or(0, |count| u64::from_ne_bytes(*count)),
        })
    }
}

/// An interface that sends nothing of its own, for [`Netlink::set_quiet`].
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    /// Largest packet above the link layer.
    pub mtu: u32,
}

/// A pair of virtual Ethernet interfaces, for [`Netlink::add_veth`].
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The end that stays in this network namespace.
    pub name: &'a str,
    /// The other end.
    pub peer: &'a str,
    /// Where the other end is born, if not here.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// How many wire packets a super-packet stands for at most, on both ends: 1 makes every packet one on the wire.
    pub gso_max_segs: Option<u32>,
}

impl<'a> Veth<'a> {
    /// A pair with both ends here and the kernel's defaults.
    #[must_use]
    pub fn new(name: &'a str, peer: &'a str) -> Self {
        Self { name, peer, peer_netns: None, gso_max_segs: None }
    }
}

impl Netlink {
    /// All interfaces of the network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(&message, "netlink(RTM_GETLINK)", "all interfaces")?;
        Ok(answers.iter().filter_map(|answer| Link::parse(answer)).collect())
    }

    /// The interface of this name (or alternative name), if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's, except that there is none.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>> {
        if name.is_empty() {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(if name.len() > NAME_MAX {
            LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), &[0]].concat()))
        } else {
            LinkAttribute::IfName(name.to_owned())
        });
        self.link(message, name)
    }

    /// The interface of this number, if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's, except that there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.link(with_index(index), &format!("interface {index}"))
    }

    fn link(&mut self, message: LinkMessage, object: &str) -> Result<Option<Link>> {
        match self.request(RouteNetlinkMessage::GetLink(message), 0, "netlink(RTM_GETLINK)", object) {
            Ok(answers) => Ok(answers.first().and_then(|answer| Link::parse(answer))),
            // ERANGE: longer than even an alternative name can be.
            Err(error) if matches!(error.errno(), libc::ENODEV | libc::ERANGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a veth pair. Either end going takes the other with it.
    ///
    /// # Errors
    ///
    /// The kernel's; `EEXIST` if a name is taken.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let Veth { name, peer, peer_netns, gso_max_segs } = *veth;
        let end = |name: &str| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.to_owned()));
            message.attributes.extend(gso_max_segs.map(LinkAttribute::GsoMaxSegs));
            message
        };
        let mut other = end(peer);
        other.attributes.extend(peer_netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        let mut message = end(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.new_link(message, &format!("veth {name} and {peer}"))
    }

    /// Makes an interface of a kind that needs no parameters (`ifb`, `dummy`, ..).
    ///
    /// # Errors
    ///
    /// The kernel's; `EOPNOTSUPP` where it does not have the kind.
    pub fn add_link(&mut self, name: &str, kind: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::from(kind))]));
        self.new_link(message, &format!("{kind} {name}"))
    }

    fn new_link(&mut self, message: LinkMessage, object: &str) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.request(RouteNetlinkMessage::NewLink(message), flags, "netlink(RTM_NEWLINK)", object).map(drop)
    }

    /// Removes an interface.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENODEV` if it is gone.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let message = RouteNetlinkMessage::DelLink(with_index(index));
        self.request(message, 0, "netlink(RTM_DELLINK)", &format!("interface {index}")).map(drop)
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let mut message = with_index(index);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.set_link(message, &format!("interface {index} {}", if up { "up" } else { "down" }))
    }

    /// Makes an interface one that nobody's addresses are looked for on, and that gives itself none.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_quiet(&mut self, index: u32, quiet: Quiet) -> Result<()> {
        let mut message = with_index(index);
        message.header.change_mask = LinkFlags::Noarp | LinkFlags::Multicast;
        message.header.flags = LinkFlags::Noarp;
        message.attributes.push(LinkAttribute::Mtu(quiet.mtu));
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        self.set_link(message, &format!("interface {index} quiet"))
    }

    /// Moves an interface to another network namespace, where it arrives down and without addresses.
    ///
    /// # Errors
    ///
    /// The kernel's; `EEXIST` if its name is taken there.
    pub fn set_netns(&mut self, index: u32, netns: BorrowedFd<'_>) -> Result<()> {
        let mut message = with_index(index);
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        self.set_link(message, &format!("interface {index} to another network namespace"))
    }

    /// Sets how many wire packets a super-packet stands for at most.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_gso_max_segs(&mut self, index: u32, segments: u32) -> Result<()> {
        let mut message = with_index(index);
        message.attributes.push(LinkAttribute::GsoMaxSegs(segments));
        self.set_link(message, &format!("gso_max_segs {segments} of interface {index}"))
    }

    fn set_link(&mut self, message: LinkMessage, object: &str) -> Result<()> {
        self.request(RouteNetlinkMessage::SetLink(message), 0, "netlink(RTM_SETLINK)", object).map(drop)
    }

    /// The addresses of all interfaces of the network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(&message, "netlink(RTM_GETADDR)", "all addresses")?;
        let address = |answer: &Vec<u8>| {
            let attributes = answer.get(ADDRESS_HEADER..)?;
            // That of the other end of a point-to-point link is not ours.
            let own = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
            let v4 = || Some(IpAddr::from(*own.first_chunk::<4>().filter(|_| own.len() == 4)?));
            v4().or_else(|| Some(IpAddr::from(*own.first_chunk::<16>()?)))
        };
        Ok(answers.iter().filter_map(address).collect())
    }

    /// Gives an interface an address, usable at once: v6 without duplicate address detection.
    ///
    /// # Errors
    ///
    /// The kernel's; `EEXIST` if the interface has it.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.attributes = match address.addr() {
            host @ IpAddr::V4(_) => {
                message.header.family = AddressFamily::Inet;
                vec![AddressAttribute::Local(host), AddressAttribute::Address(host)]
            }
            host @ IpAddr::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
                vec![AddressAttribute::Address(host), AddressAttribute::Flags(AddressFlags::Nodad)]
            }
        };
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let object = format!("{address} on interface {index}");
        self.request(RouteNetlinkMessage::NewAddress(message), flags, "netlink(RTM_NEWADDR)", &object)
            .map(drop)
    }
}

fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}
