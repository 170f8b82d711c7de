//! ICMP echo, counted in each direction: which requests came to the peer, which replies came back.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{
    datagrams::{Channel, Mark, Received, Record},
    socket,
};
use crate::{
    error::{Context, Result},
    lab::Route,
};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// linux/icmp.h, linux/icmpv6.h.
const ICMP_FILTER: i32 = 1;
const ICMPV6_FILTER: i32 = 1;

/// Echo requests with one identifier; the peer's kernel answers them.
#[derive(Debug)]
pub struct Echo {
    channel: Channel,
    identifier: u16,
    v6: bool,
}

/// What became of the requests and the replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoRecord {
    /// How many requests were sent.
    pub sent: u64,
    /// Requests the sender was told had not been sent, and the errno it was told.
    pub refused: Vec<(u32, i32)>,
    /// When each request was sent; only of paced ones.
    pub sent_at: Vec<u64>,
    /// Which requests came to the peer. It answered each of them.
    pub requests: Received,
    /// Which replies came back.
    pub replies: Received,
}

impl Echo {
    /// Requests from the route's one end to the other.
    ///
    /// # Errors
    ///
    /// The kernel's, `EPERM` without `CAP_NET_RAW`.
    pub fn open(route: Route<'_>, identifier: u16) -> Result<Self> {
        let Route { from, to, source, target } = route;
        let v6 = target.is_ipv6();
        let (request, reply) = if v6 { (ECHO_REQUEST_V6, ECHO_REPLY_V6) } else { (ECHO_REQUEST, ECHO_REPLY) };
        let requests = to.run(|| tap(target, request))?;
        let replies = from.run(|| tap(source, reply))?;
        let sender = from.run(|| {
            let sender = tap(source, 255)?;
            socket::connect(sender.as_fd(), target)?;
            Ok(sender)
        })?;
        let channel = Channel::new(from, sender, vec![requests, replies], 2)?;
        Ok(Self { channel, identifier, v6 })
    }

    /// Sends `count` requests as fast as they are answered.
    ///
    /// # Errors
    ///
    /// The kernel's, or when `deadline` has passed before all are sent.
    pub fn burst(&mut self, count: u32, deadline: Duration) -> Result<EchoRecord> {
        let Self { channel, identifier, v6 } = self;
        split(channel.burst(count, deadline, |mark| request(mark, *identifier, *v6))?)
    }

    /// Sends `count` requests, one each `interval`, and notes when.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn paced(&mut self, count: u32, interval: Duration) -> Result<EchoRecord> {
        let Self { channel, identifier, v6 } = self;
        split(channel.paced(count, interval, |mark| request(mark, *identifier, *v6))?)
    }
}

fn split(record: Record) -> Result<EchoRecord> {
    let Record { sent, refused, sent_at, mut received, .. } = record;
    let replies = received.pop().context("no second tap")?;
    let requests = received.pop().context("no first tap")?;
    Ok(EchoRecord { sent, refused, sent_at, requests, replies })
}

/// A raw socket on `address` that gets only ICMP messages of this type.
fn tap(address: IpAddr, wanted: u8) -> Result<OwnedFd> {
    let v6 = address.is_ipv6();
    let (domain, protocol) =
        if v6 { (libc::AF_INET6, libc::IPPROTO_ICMPV6) } else { (libc::AF_INET, libc::IPPROTO_ICMP) };
    let tap = socket::open(domain, libc::SOCK_RAW, protocol)?;
    filter(tap.as_fd(), wanted, v6)?;
    socket::bind(tap.as_fd(), address)?;
    socket::enlarge(tap.as_fd())?;
    Ok(tap)
}

/// Both kernels' filters are sets of types to keep out.
fn filter(tap: BorrowedFd<'_>, wanted: u8, v6: bool) -> Result {
    if v6 {
        let mut out = [u32::MAX; 8];
        out[usize::from(wanted) / 32] &= !(1 << (wanted % 32));
        return socket::set(tap, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &out, "ICMPV6_FILTER");
    }
    // Types above 31 have no bit and always pass; there are none here.
    let out = if wanted < 32 { !(1_u32 << wanted) } else { u32::MAX };
    socket::set(tap, libc::SOL_RAW, ICMP_FILTER, &out, "ICMP_FILTER")
}

fn request(mark: Mark, identifier: u16, v6: bool) -> Vec<u8> {
    let mut message = vec![if v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST }, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend((mark.sequence as u16).to_be_bytes());
    message.resize(64 - Mark::LENGTH, 0);
    message.extend(mark.bytes());
    if !v6 {
        // In v6 the kernel does it, as the checksum covers the addresses.
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_checksum_sums_to_zero() {
        let message = request(Mark { run: 1, sequence: 70_000 }, 0xbeef, false);
        assert_eq!(message.len(), 64);
        assert_eq!(checksum(&message), 0);
        // RFC 1071 section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
