//! Which packets: addresses, ports, protocols; and durations.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use chaos_ebpf::packet::protocol;
use ipnet::IpNet;

use super::{Exclusion, Invalid, Owner, Peer, Question};

/// What a packet must be for a rule to match it. An empty list asks nothing; the entries of one list are
/// alternatives; all lists must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// Destination networks.
    pub to: Vec<IpNet>,
    /// Source networks.
    pub from: Vec<IpNet>,
    /// Destination ports.
    pub port: Vec<PortRange>,
    /// Source ports.
    pub sport: Vec<PortRange>,
    /// Protocols.
    pub proto: Vec<Protocol>,
    /// Whose packets.
    pub owners: Vec<Owner>,
    /// Whether these may be all processes of the machine, where that must be said.
    pub everything: bool,
    /// The other host.
    pub peers: Vec<Peer>,
    /// What of all this is left alone.
    pub excluded: Vec<Exclusion>,
    /// The DNS query it must be, if it must be one.
    pub question: Option<Question>,
}

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, from, port, sport, proto, owners, everything: _, peers, excluded, question } = self;
        let options = |name: &str, values: Vec<String>| -> Vec<String> {
            values.into_iter().map(|value| format!(" --{name} {value}")).collect()
        };
        let all = [
            options("to", to.iter().map(ToString::to_string).collect()),
            options("from", from.iter().map(ToString::to_string).collect()),
            options("port", port.iter().map(ToString::to_string).collect()),
            options("sport", sport.iter().map(ToString::to_string).collect()),
            options("proto", proto.iter().map(ToString::to_string).collect()),
            owners.iter().map(|owner| format!(" {owner}")).collect(),
            options("peer", peers.iter().map(ToString::to_string).collect()),
            options("exclude", excluded.iter().map(ToString::to_string).collect()),
        ];
        question.iter().try_for_each(|question| write!(f, "{question}"))?;
        f.write_str(&all.concat().concat())
    }
}

/// A network in CIDR notation, or an address for itself alone.
///
/// # Errors
///
/// [`Invalid`] for anything else, a prefix longer than the address included.
pub fn parse_network(text: &str) -> Result<IpNet, Invalid> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let bad = || Invalid::new("not an address or network; write it as 10.0.0.0/8, 10.0.0.7 or fd00::/8");
    let (address, length) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let length: u32 = length.parse().map_err(|_| bad())?;
    let (family, longest) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .map(|network| network.trunc())
        .ok_or_else(|| {
            Invalid::new(format!("an {family} prefix is at most {longest} bits long, not {length}"))
        })
}

/// A duration as systemd and kubectl write it: `30s`, `5m`, `1h30m`, `250ms`.
///
/// # Errors
///
/// [`Invalid`] for anything else, and for nothing and zero.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(Invalid::new("a duration is longer than nothing")),
        Ok(duration) => Ok(duration),
        Err(_) => Err(Invalid::new("not a duration; write it as 30s, 5m, 1h30m or 250ms")),
    }
}

/// A whole number.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub fn parse_whole(text: &str) -> Result<u64, Invalid> {
    text.parse().map_err(|_| Invalid::new("not a whole number; write 0, 1, 2 and so on"))
}

/// A whole number that is not 0.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub fn parse_count(text: &str) -> Result<u64, Invalid> {
    parse_whole(text)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| Invalid::new("not a count; write 1, 2, 3 and so on"))
}

/// A process's number.
///
/// # Errors
///
/// [`Invalid`] for anything else.
pub fn parse_pid(text: &str) -> Result<u32, Invalid> {
    let pid = text.parse::<u32>().ok().filter(|pid| (1..=i32::MAX.cast_unsigned()).contains(pid));
    pid.ok_or_else(|| Invalid::new("not a process's number, which is 1 or more"))
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Where name servers are.
    pub const NAME_SERVERS: Self = Self { first: 53, last: 53 };

    /// The ports.
    #[must_use]
    pub fn ports(self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| Invalid::new("not a port; write 443 or 8000-8999, between 0 and 65535"))
        };
        let (first, last) = match text.split_once('-') {
            None => (port(text)?, port(text)?),
            Some((first, last)) => (port(first)?, port(last)?),
        };
        if first > last {
            return Err(Invalid::new(format!("a range goes upwards; write {last}-{first}")));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// An IP protocol by its name or number; `icmp` is that of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and `ICMPv6`.
    Icmp,
    /// Any other.
    Number(u8),
}

impl Protocol {
    /// The numbers it stands for.
    #[must_use]
    pub fn numbers(self) -> Vec<u8> {
        match self {
            Self::Tcp => vec![protocol::TCP],
            Self::Udp => vec![protocol::UDP],
            Self::Icmp => vec![protocol::ICMP, protocol::ICMPV6],
            Self::Number(number) => vec![number],
        }
    }
}

impl FromStr for Protocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            number => number.parse().map(Self::Number).map_err(|_| {
                Invalid::new("not a protocol; write tcp, udp, icmp or a number between 0 and 255")
            }),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let shown = |text| parse_network(text).map(|network| network.to_string());
        assert_eq!(shown("10.0.0.7"), Ok("10.0.0.7/32".into()));
        assert_eq!(shown("10.1.2.3/8"), Ok("10.0.0.0/8".into()));
        assert_eq!(shown("fd00::1"), Ok("fd00::1/128".into()));
        assert_eq!(shown("::/0"), Ok("::/0".into()));
        for text in
            ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "fd00::/129", "host", "10.0.0.0/999"]
        {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ports() {
        let shown = |text: &str| text.parse::<PortRange>().map(|range| range.to_string());
        assert_eq!(shown("443"), Ok("443".into()));
        assert_eq!(shown("8000-8999"), Ok("8000-8999".into()));
        for text in ["", "70000", "9-8", "-1", "1-", "http"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn protocols() {
        assert_eq!("icmp".parse().map(Protocol::numbers), Ok(vec![1, 58]));
        assert_eq!("132".parse().map(Protocol::numbers), Ok(vec![132]));
        assert!("256".parse::<Protocol>().is_err() && "TCPX".parse::<Protocol>().is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_whole("0"), Ok(0));
        assert_eq!(parse_count("18446744073709551615"), Ok(u64::MAX));
        for text in ["", "-1", "1.5", "0x10", "18446744073709551616"] {
            assert!(parse_whole(text).is_err() && parse_count(text).is_err(), "{text}");
        }
        assert!(parse_count("0").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        for text in ["", "0s", "5", "-1s", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
