//! Packets that come by themselves: hosts, their kernels and switches send them of their own accord, so that a link that nobody
//! uses carries them as well.
//! * Address resolution and neighbour discovery: ARP, `ICMPv6` 133 to 137 (routers, neighbours, redirects).
//! * Reports of multicast groups, and the queries for them: IGMP, `ICMPv6` 130 to 132 and 143 (MLD).
//! * What never leaves its link: frames to 01:80:c2:00:00:00 to 0f (spanning tree, LACP, LLDP, 802.1X, pauses).
//!
//! A program may send any of it; for a program's sake it is hardly ever sent.

use crate::packet::{ETHERNET, Frame, VLAN_TAGS, View, ethertype, protocol};

/// Whether a packet could be one of these, by its protocol, 0 without one: what nearly all packets have is none of theirs.
#[inline(always)]
#[must_use]
pub fn may_be_background(protocol: u8) -> bool {
    protocol == 0 || protocol == protocol::IGMP || protocol == protocol::ICMPV6
}

/// Whether one that could be is. Of a later fragment of an `ICMPv6` message the first byte is taken for the type, as the headers do
/// not say that it is one: it may be taken for what it is not.
#[inline(always)]
#[must_use]
pub fn is_background(frame: &impl Frame, v6: bool, protocol: u8, transport: usize, ethernet: bool) -> bool {
    match protocol {
        protocol::IGMP => true,
        protocol::ICMPV6 => {
            v6 && frame.view(transport, 1).is_some_and(|header| matches!(header.u8(0), 130..=137 | 143))
        }
        _ => ethernet && (stays_on_link(frame) || is_arp(frame)),
    }
}

/// Whether no bridge hands it on (IEEE 802.1Q, table 8-1).
#[inline(always)]
fn stays_on_link(frame: &impl Frame) -> bool {
    frame.view(0, 6).is_some_and(|to| {
        to.u32(0) == u32::from_ne_bytes([0x01, 0x80, 0xc2, 0x00]) && to.u8(4) == 0 && to.u8(5) & 0xf0 == 0
    })
}

/// Whether it is ARP, behind as many tags as there may be.
#[inline(always)]
fn is_arp(frame: &impl Frame) -> bool {
    for tags in 0..=VLAN_TAGS {
        let found = frame.view(ETHERNET - 2 + 4 * tags, 2).map_or(0, |found| u16::from_be(found.u16(0)));
        match found {
            ethertype::ARP => return true,
            ethertype::VLAN | ethertype::QINQ => {}
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::may_be_background;
    use crate::packet::{
        Headers, Network, ethertype, parse, protocol,
        tests::{ethernet, ipv4, ipv6},
    };

    fn is_background(frame: &Vec<u8>, ethernet: bool) -> bool {
        let Headers { network, protocol, transport, .. } = parse(frame, ethernet).expect("whole");
        let v6 = matches!(network, Network::V6);
        may_be_background(protocol) && super::is_background(frame, v6, protocol, transport as usize, ethernet)
    }

    /// Each kind, with and without tags; and beside it the nearest that is a program's.
    #[test]
    fn what_comes_by_itself() {
        let icmpv6 = |kind: u8| vec![kind, 0, 0, 0, 0, 0, 0, 0];
        for tags in [&[][..], &[ethertype::VLAN], &[ethertype::QINQ, ethertype::VLAN]] {
            let arp = [ethernet(tags, ethertype::ARP), vec![0; 28]].concat();
            let igmp = [ethernet(tags, ethertype::IPV4), ipv4(1, 0, protocol::IGMP), vec![0x22; 8]].concat();
            let ping = [ethernet(tags, ethertype::IPV4), ipv4(0, 0, protocol::ICMP), vec![133; 8]].concat();
            assert!(is_background(&arp, true) && is_background(&igmp, true) && !is_background(&ping, true));
            // Protocol 58 of IPv4 is nobody's.
            let odd = [ethernet(tags, ethertype::IPV4), ipv4(0, 0, protocol::ICMPV6), vec![135; 8]].concat();
            assert!(!is_background(&odd, true));
            for kind in 0..=u8::MAX {
                let discovery = [ethernet(tags, ethertype::IPV6), ipv6(58), icmpv6(kind)].concat();
                // As MLD comes, with a router alert.
                let options = vec![58, 0, 5, 2, 0, 0, 1, 0];
                let report = [ethernet(tags, ethertype::IPV6), ipv6(0), options, icmpv6(kind)].concat();
                let expected = [130, 131, 132, 133, 134, 135, 136, 137, 143].contains(&kind);
                assert_eq!([&discovery, &report].map(|it| is_background(it, true)), [expected; 2], "{kind}");
            }
            let datagram = [ethernet(tags, ethertype::IPV6), ipv6(17), vec![135; 8]].concat();
            assert!(!is_background(&datagram, true));
        }
    }

    #[test]
    fn what_stays_on_its_link_comes_by_itself() {
        let to = |last: [u8; 3], ethertype: u16| {
            [vec![0x01, 0x80, 0xc2], last.to_vec(), vec![0; 6], ethertype.to_be_bytes().to_vec(), vec![0; 46]]
                .concat()
        };
        // Spanning tree (a length, no type), LACP, LLDP.
        for (last, ethertype) in [([0, 0, 0], 38), ([0, 0, 2], 0x8809), ([0, 0, 0xe], 0x88cc)] {
            assert!(is_background(&to(last, ethertype), true), "{last:?}");
        }
        for last in [[0, 0, 0x10], [0, 1, 0], [1, 0, 0]] {
            assert!(!is_background(&to(last, 0x88cc), true), "{last:?}");
        }
        // A frame that begins with no Ethernet header has no such address, whatever it begins with.
        assert!(!is_background(&to([0, 0, 0], 38), false));
    }
}
