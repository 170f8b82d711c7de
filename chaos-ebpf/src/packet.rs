//! Finds what the rules ask about in a packet's headers.
//!
//! What is understood: Ethernet or bare IP; up to two VLAN tags (802.1Q, 802.1ad) before IP; IPv4 with options;
//! IPv6 with up to six hop-by-hop, routing, destination-options, fragment and authentication headers.
//! * A frame that is not IP, or IPv6 with more extension headers than that, has the fields that were found
//!   and no others: only rules that do not ask for the missing ones can match it.
//! * A fragment other than the first has no ports, and neither has a protocol other than TCP, UDP, SCTP, DCCP
//!   and UDP-Lite: rules with ports do not match it, rules without do.
//! * What is inside a tunnel is not looked at.
//! * A frame that ends before its headers do is an error, and the caller lets it through.

/// Read access to a frame.
pub trait Frame {
    /// Some bytes in a row.
    type View: View;
    /// The `length` bytes at `offset`, or `None` if the frame ends before.
    fn view(&self, offset: usize, length: usize) -> Option<Self::View>;
}

/// Bytes that are there: one check serves all reads of a header. Numbers come as they lie in memory.
pub trait View {
    /// The byte at `offset`, which lies within the view, as for the others.
    fn u8(&self, offset: usize) -> u8;
    /// Two bytes at `offset`.
    fn u16(&self, offset: usize) -> u16;
    /// Four bytes at `offset`.
    fn u32(&self, offset: usize) -> u32;
}

/// The network layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Not IP.
    Other,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What was found. Flat, and zero where nothing was: from a payload that only some variants have LLVM makes
/// code that computes on whatever lies there, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Which addresses there are.
    pub network: Network,
    /// Whether `protocol` was found.
    pub has_protocol: bool,
    /// Whether the ports were: the transport has them and this is not a later fragment.
    pub has_ports: bool,
    /// IP protocol number of the transport header.
    pub protocol: u8,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Source address in network byte order; the first word alone for IPv4.
    pub source: [u32; 4],
    /// Destination address, likewise.
    pub destination: [u32; 4],
    /// Where the transport header begins, in bytes from the start of the frame; 0 without one.
    pub transport: u32,
}

impl Headers {
    /// Nothing was found.
    pub const NONE: Self = Self {
        network: Network::Other,
        has_protocol: false,
        has_ports: false,
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        source: [0; 4],
        destination: [0; 4],
        transport: 0,
    };

    /// Takes note of the transport header, and of its ports unless this is a later fragment.
    #[inline(always)]
    fn transport(
        mut self,
        frame: &impl Frame,
        offset: usize,
        protocol: u8,
        first: bool,
    ) -> Result<Self, Truncated> {
        self.has_protocol = true;
        self.protocol = protocol;
        self.transport = offset as u32;
        let has_ports = matches!(
            protocol,
            protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE
        );
        if first && has_ports {
            let both = u32::from_be(frame.view(offset, 4).ok_or(Truncated)?.u32(0));
            self.has_ports = true;
            self.source_port = (both >> 16) as u16;
            self.destination_port = both as u16;
        }
        Ok(self)
    }
}

/// The frame ends before its headers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// `EtherType`s, in host order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad, the outer tag of two.
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

pub(crate) const ETHERNET: usize = 14;
pub(crate) const VLAN_TAGS: usize = 2;
const EXTENSION_HEADERS: usize = 6;

/// Finds the headers of a frame that begins with an Ethernet header, or with IP.
///
/// # Errors
///
/// [`Truncated`] if the frame ends before its headers do.
#[inline(always)]
pub fn parse(frame: &impl Frame, ethernet: bool) -> Result<Headers, Truncated> {
    if !ethernet {
        // No link layer says what follows; the version nibble does.
        return match frame.view(0, 2).ok_or(Truncated)?.u8(0) >> 4 {
            4 => ipv4(frame, 0),
            6 => ipv6(frame, 0),
            _ => Ok(Headers::NONE),
        };
    }
    let ethertype = u16::from_be(frame.view(0, ETHERNET).ok_or(Truncated)?.u16(ETHERNET - 2));
    // Constant offsets for what nearly all packets are.
    match ethertype {
        ethertype::IPV4 => ipv4(frame, ETHERNET),
        ethertype::IPV6 => ipv6(frame, ETHERNET),
        ethertype::VLAN | ethertype::QINQ => tagged(frame, ethertype),
        _ => Ok(Headers::NONE),
    }
}

#[inline(always)]
fn tagged(frame: &impl Frame, mut ethertype: u16) -> Result<Headers, Truncated> {
    let mut offset = ETHERNET;
    for _ in 0..VLAN_TAGS {
        if ethertype != ethertype::VLAN && ethertype != ethertype::QINQ {
            break;
        }
        ethertype = u16::from_be(frame.view(offset, 4).ok_or(Truncated)?.u16(2));
        offset += 4;
    }
    match ethertype {
        ethertype::IPV4 => ipv4(frame, offset),
        ethertype::IPV6 => ipv6(frame, offset),
        _ => Ok(Headers::NONE),
    }
}

#[inline(always)]
fn ipv4(frame: &impl Frame, offset: usize) -> Result<Headers, Truncated> {
    let header = frame.view(offset, 20).ok_or(Truncated)?;
    let length = usize::from(header.u8(0) & 0xf) * 4;
    let first = u16::from_be(header.u16(6)) & 0x1fff == 0;
    let mut headers = Headers { network: Network::V4, ..Headers::NONE };
    headers.source[0] = header.u32(12);
    headers.destination[0] = header.u32(16);
    headers.transport(frame, offset + length, header.u8(9), first)
}

#[inline(always)]
fn ipv6(frame: &impl Frame, offset: usize) -> Result<Headers, Truncated> {
    let header = frame.view(offset, 40).ok_or(Truncated)?;
    let mut next = header.u8(6);
    let words = |offset| {
        [header.u32(offset), header.u32(offset + 4), header.u32(offset + 8), header.u32(offset + 12)]
    };
    let headers = Headers { network: Network::V6, source: words(8), destination: words(24), ..Headers::NONE };
    let mut transport = offset + 40;
    let mut first = true;
    for _ in 0..EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let extension = frame.view(transport, 4).ok_or(Truncated)?;
        let units = usize::from(extension.u8(1));
        // RFC 8200 section 4, RFC 4302 section 2.2: each counts its length in a unit of its own.
        let length = match next {
            protocol::AUTHENTICATION => units * 4 + 8,
            protocol::FRAGMENT => {
                first = u16::from_be(extension.u16(2)) & 0xfff8 == 0;
                8
            }
            _ => units * 8 + 8,
        };
        next = extension.u8(0);
        transport += length;
        if !first {
            break;
        }
    }
    if is_extension(next) && first {
        return Ok(headers);
    }
    headers.transport(frame, transport, next, first)
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
    )
}

/// How long the headers of each segment of a super-packet are, in bytes: what the wire carries again for
/// every segment but the first.
#[inline(always)]
#[must_use]
pub fn segment_header(frame: &impl Frame, headers: &Headers) -> u32 {
    match headers.protocol {
        protocol::TCP => {
            let words = frame.view(headers.transport as usize, 13).map_or(0, |header| header.u8(12) >> 4);
            headers.transport + u32::from(words) * 4
        }
        protocol::UDP => headers.transport + 8,
        _ => headers.transport,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Frame for Vec<u8> {
        type View = Vec<u8>;
        fn view(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
            self.get(offset..offset + length).map(<[u8]>::to_vec)
        }
    }

    impl View for Vec<u8> {
        fn u8(&self, offset: usize) -> u8 {
            self[offset]
        }
        fn u16(&self, offset: usize) -> u16 {
            u16::from_ne_bytes([self[offset], self[offset + 1]])
        }
        fn u32(&self, offset: usize) -> u32 {
            u32::from_ne_bytes(std::array::from_fn(|byte| self[offset + byte]))
        }
    }

    pub(crate) fn ethernet(tags: &[u16], ethertype: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame
    }

    pub(crate) fn ipv4(options: usize, fragment: u16, protocol: u8) -> Vec<u8> {
        let mut header = vec![0; 20 + options * 4];
        header[0] = 0x45 + options as u8;
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header[9] = protocol;
        header[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        header
    }

    pub(crate) fn ipv6(next: u8) -> Vec<u8> {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[6] = next;
        header[8] = 0xfd;
        header[23] = 1;
        header[24] = 0xfd;
        header[39] = 2;
        header
    }

    fn udp() -> Vec<u8> {
        vec![0x30, 0x39, 0, 53, 0, 8, 0, 0]
    }

    const DNS: Option<(u16, u16)> = Some((12345, 53));

    fn protocol(headers: &Headers) -> Option<u8> {
        headers.has_protocol.then_some(headers.protocol)
    }

    fn ports(headers: &Headers) -> Option<(u16, u16)> {
        headers.has_ports.then_some((headers.source_port, headers.destination_port))
    }

    #[test]
    fn tags_and_options() {
        for tags in [&[][..], &[ethertype::VLAN], &[ethertype::QINQ, ethertype::VLAN]] {
            for options in [0, 1, 10] {
                let frame = [ethernet(tags, ethertype::IPV4), ipv4(options, 0x4000, 17), udp()].concat();
                let headers = parse(&frame, true).expect("whole");
                assert_eq!((protocol(&headers), ports(&headers)), (Some(17), DNS));
                assert_eq!(headers.transport as usize, frame.len() - 8);
                assert_eq!(headers.network, Network::V4);
                let addresses = [headers.source[0], headers.destination[0]];
                assert_eq!(addresses.map(u32::from_be), [0x0a00_0001, 0x0a00_0002]);
            }
        }
        let three = [ethertype::VLAN; 3];
        let frame = [ethernet(&three, ethertype::IPV4), ipv4(0, 0, 17), udp()].concat();
        assert_eq!(parse(&frame, true), Ok(Headers::NONE));
    }

    #[test]
    fn bare_ip() {
        assert_eq!(ports(&parse(&[ipv4(0, 0, 17), udp()].concat(), false).expect("whole")), DNS);
        assert_eq!(ports(&parse(&[ipv6(17), udp()].concat(), false).expect("whole")), DNS);
        assert_eq!(parse(&vec![0xf0; 64], false), Ok(Headers::NONE));
    }

    #[test]
    fn fragments_have_ports_only_in_the_first() {
        let first = [ipv4(0, 0x2000, 17), udp()].concat();
        let later = [ipv4(0, 0x2005, 17), udp()].concat();
        assert_eq!(ports(&parse(&first, false).expect("whole")), DNS);
        let headers = parse(&later, false).expect("whole");
        assert_eq!((protocol(&headers), ports(&headers)), (Some(17), None));
        // Also where the fragment is shorter than a transport header.
        assert!(parse(&later[..22].to_vec(), false).is_ok());

        let first6 = [ipv6(44), vec![17, 0, 0, 1, 0, 0, 0, 9], udp()].concat();
        let later6 = [ipv6(44), vec![17, 0, 0, 0x21, 0, 0, 0, 9], udp()].concat();
        assert_eq!(ports(&parse(&first6, false).expect("whole")), DNS);
        let headers = parse(&later6, false).expect("whole");
        assert_eq!((protocol(&headers), ports(&headers)), (Some(17), None));
    }

    #[test]
    fn extension_headers() {
        let options = |next: u8| [vec![next, 1], vec![0; 14]].concat();
        let authentication = |next: u8| [vec![next, 4], vec![0; 22]].concat();
        let frame = [ipv6(0), options(60), options(51), authentication(17), udp()].concat();
        let headers = parse(&frame, false).expect("whole");
        assert_eq!((protocol(&headers), ports(&headers)), (Some(17), DNS));
        assert_eq!(headers.transport as usize, frame.len() - 8);

        let mut seven = ipv6(60);
        for _ in 0..6 {
            seven.extend(options(60));
        }
        seven.extend(options(17));
        seven.extend(udp());
        let headers = parse(&seven, false).expect("whole");
        assert_eq!(headers.network, Network::V6);
        assert_eq!((protocol(&headers), ports(&headers)), (None, None));
    }

    #[test]
    fn not_ip() {
        let arp = [ethernet(&[], 0x0806), vec![0; 28]].concat();
        assert_eq!(parse(&arp, true), Ok(Headers::NONE));
        let icmp = [ipv4(0, 0, 1), vec![8, 0, 0, 0]].concat();
        let headers = parse(&icmp, false).expect("whole");
        assert_eq!((protocol(&headers), ports(&headers)), (Some(1), None));
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = [ethernet(&[ethertype::VLAN], ethertype::IPV6), ipv6(6), vec![0; 4]].concat();
        assert!(parse(&whole, true).is_ok());
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length].to_vec(), true), Err(Truncated), "{length}");
        }
    }

    #[test]
    fn segment_headers() {
        let mut tcp = vec![0; 32];
        tcp[12] = 0x80;
        let frame = [ethernet(&[], ethertype::IPV4), ipv4(0, 0, 6), tcp].concat();
        assert_eq!(segment_header(&frame, &parse(&frame, true).expect("whole")), 14 + 20 + 32);
        let frame = [ethernet(&[], ethertype::IPV6), ipv6(17), udp()].concat();
        assert_eq!(segment_header(&frame, &parse(&frame, true).expect("whole")), 14 + 40 + 8);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..256), ethernet: bool) {
            if let Ok(headers) = parse(&frame, ethernet) {
                let _ = segment_header(&frame, &headers);
            }
        }
    }
}
