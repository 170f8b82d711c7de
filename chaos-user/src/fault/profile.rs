//! Profiles as the kernel is given them: an entry for each peer in each direction.

use std::{net::IpAddr, time::Duration};

use chaos_ebpf::{
    abi::Direction,
    figures::{Figures, Peer},
};

use super::net::{FULL_PACKET, byte_time, wire_time};
use crate::spec::{Percent, Profile, Side};

/// The entries of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// By IPv4 address, as it lies in the packet.
    pub v4: Vec<(u32, Peer)>,
    /// By IPv6 address, likewise.
    pub v6: Vec<([u32; 4], Peer)>,
    /// Of everybody else.
    pub others: Peer,
}

impl Peers {
    /// What a profile says of packets going this way.
    #[must_use]
    pub fn new(profile: &Profile, direction: Direction) -> Self {
        let mut peers = Self::default();
        for (address, link) in &profile.peers {
            let peer = peer(&link[direction as usize]);
            match address {
                IpAddr::V4(address) => peers.v4.push((u32::from_ne_bytes(address.octets()), peer)),
                IpAddr::V6(address) => peers.v6.push((words(address.octets()), peer)),
            }
        }
        if let Some(link) = &profile.others {
            peers.others = peer(&link[direction as usize]);
        }
        peers
    }
}

fn words(octets: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(octets.as_chunks().0) {
        *word = u32::from_ne_bytes(*octets);
    }
    words
}

fn peer(side: &Side) -> Peer {
    let nanoseconds = |time: Duration| time.as_nanos() as u64;
    let Side { loss, delay, rate } = side;
    let (delay, jitter) = delay.unwrap_or_default();
    let figures = Figures {
        wait: Figures::wait(nanoseconds(delay), nanoseconds(jitter)),
        byte_time: rate.map_or(0, |(bits, _)| byte_time(bits)),
        limit: rate.map_or(0, |(bits, limit)| wire_time(bits, u64::from(limit) * FULL_PACKET)),
        loss: loss.map_or(0, Percent::threshold),
        there: 1,
    };
    Peer { figures, ..Peer::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let text = "10.0.0.7 down delay 2ms 1ms up loss 100%\nfd00::1 rate 8mbit limit 10\n";
        let profile = Profile::parse("FILE", text).expect("valid");
        let [received, sent] = [Direction::In, Direction::Out].map(|way| Peers::new(&profile, way));
        let [(address, down)] = received.v4[..] else { panic!("one address") };
        assert_eq!(address.to_ne_bytes(), [10, 0, 0, 7]);
        let delay = Figures::delay(down.figures.wait);
        assert_eq!((delay.time, delay.jitter, down.figures.loss), (2_000_000, 1_000_000, 0));
        assert_eq!((sent.v4[0].1.figures.loss, sent.v4[0].1.figures.wait), (u32::MAX, 0));
        let [(address, peer)] = sent.v6[..] else { panic!("one address") };
        assert_eq!(
            address.map(u32::to_ne_bytes).concat(),
            "fd00::1".parse::<std::net::Ipv6Addr>().expect("valid").octets()
        );
        // A microsecond a byte.
        assert_eq!((peer.figures.byte_time, peer.figures.limit), (1000 << 20, 15_140_000));
        assert_eq!((received.v6.len(), received.others.figures.there), (1, 0));
    }
}
