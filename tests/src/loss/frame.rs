//! Frames, from the `EtherType` on.

use std::net::IpAddr;

use super::Way;
use crate::{
    error::{Context, Result},
    lab::{FAR_DEVICE, Lab, NEAR_DEVICE},
    traffic::Frames,
};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Protocols with ports in their first four bytes.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Frames that come to `near`, or that it sends.
pub(super) fn open(lab: &Lab, way: Way) -> Result<Frames> {
    let (near, far) = ((&lab.near, NEAR_DEVICE), (&lab.far, FAR_DEVICE));
    match way {
        Way::In => Frames::open(far, near),
        Way::Out => Frames::open(near, far),
    }
}

/// A packet as it is written: `arp`, `icmp SOURCE TARGET`, `udp SOURCE PORT TARGET PORT`, or a protocol number in
/// its place.
pub(super) fn written(text: &str) -> Result<Vec<u8>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let address = |word: &str| word.parse::<IpAddr>().context(text);
    let port = |word: &str| word.parse::<u16>().context(text);
    let (name, source, target, ports) = match *words {
        ["arp"] => return Ok(arp()),
        [name, source, target] => (name, address(source)?, address(target)?, None),
        [name, source, sport, target, dport] => {
            (name, address(source)?, address(target)?, Some((port(sport)?, port(dport)?)))
        }
        _ => return Err(crate::error::Failure::new(format!("not a packet: {text}"))),
    };
    let protocol = match name {
        "tcp" => 6,
        "udp" => 17,
        "icmp" if source.is_ipv4() => 1,
        "icmp" => 58,
        number => number.parse().context(text)?,
    };
    Ok([ethertype(source), ip(source, target, protocol), transport(protocol, ports)].concat())
}

pub(super) fn arp() -> Vec<u8> {
    tagged(&[], ARP, vec![0; 28])
}

/// Behind these tags.
pub(super) fn tagged(tags: &[u16], ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    let tags = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 7]].concat());
    tags.chain(ethertype.to_be_bytes()).chain(payload).collect()
}

pub(super) fn ethertype(address: IpAddr) -> Vec<u8> {
    (if address.is_ipv4() { IPV4 } else { IPV6 }).to_be_bytes().into()
}

pub(super) fn ip(source: IpAddr, target: IpAddr, protocol: u8) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let head = [0x45, 0, 0, 60, 0, 1, 0, 0, 64, protocol, 0, 0];
            [&head[..], &source.octets(), &target.octets()].concat()
        }
        (source, target) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let head = [0x60, 0, 0, 0, 0, 40, protocol, 64];
            [&head[..], &octets(source), &octets(target)].concat()
        }
    }
}

/// 40 bytes that begin with the ports, if the protocol has them.
pub(super) fn transport(protocol: u8, ports: Option<(u16, u16)>) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    if let Some((source, target)) = ports.filter(|_| WITH_PORTS.contains(&protocol)) {
        bytes[..2].copy_from_slice(&source.to_be_bytes());
        bytes[2..4].copy_from_slice(&target.to_be_bytes());
    }
    bytes
}
