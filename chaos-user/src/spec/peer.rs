//! The other end: what was typed after `--peer` and `--exclude`.

use std::{fmt, path::PathBuf, str::FromStr};

use ipnet::IpNet;

use super::{Invalid, Owner, PortRange, Protocol, parse_network, parse_pid};

/// Other hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// An address or a network.
    Network(IpNet),
    /// All addresses of a name.
    Name(String),
    /// What a file lists, a line each.
    File(PathBuf),
    /// Wherever these processes are: all addresses of their network namespace.
    Processes(Owner),
}

impl FromStr for Peer {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some(path) = text.strip_prefix('@') {
            return if path.is_empty() { Err(bad()) } else { Ok(Self::File(path.into())) };
        }
        let of = |make: fn(String) -> Owner, name: &str| {
            if name.is_empty() { Err(bad()) } else { Ok(Self::Processes(make(name.into()))) }
        };
        match text.split_once(':') {
            Some(("cgroup", path)) => return of(Owner::Cgroup, path),
            Some(("unit", name)) => return of(Owner::Unit, name),
            Some(("container", id)) => return of(Owner::Container, id),
            Some(("pid", pid)) => return parse_pid(pid).map(|pid| Self::Processes(Owner::Process(pid))),
            _ => {}
        }
        match parse_network(text) {
            Ok(network) => Ok(Self::Network(network)),
            // With a slash, a colon or digits alone it was meant to be an address.
            Err(error) if text.contains(['/', ':']) => Err(error),
            Err(_) if is_name(text) => Ok(Self::Name(text.into())),
            Err(_) => Err(bad()),
        }
    }
}

fn bad() -> Invalid {
    Invalid::new(
        "not a peer; write an address, a network as 10.0.0.0/8, a name, @FILE, container:ID, unit:NAME, cgroup:PATH or pid:N",
    )
}

/// Whether a resolver could know it; the last part of a host's name is never a number.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "{network}"),
            Self::Name(name) => f.write_str(name),
            Self::File(path) => write!(f, "@{}", super::shown::name(path)),
            Self::Processes(owner) => {
                write!(f, "{}:{}", owner.option().trim_start_matches('-'), owner.name())
            }
        }
    }
}

/// What a fault leaves alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// The other host.
    Peer(Peer),
    /// A port, at either end.
    Port(PortRange),
    /// A protocol.
    Protocol(Protocol),
}

impl FromStr for Exclusion {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once(':') {
            Some(("port", port)) => port.parse().map(Self::Port),
            Some(("proto", protocol)) => protocol.parse().map(Self::Protocol),
            _ => text
                .parse()
                .map(Self::Peer)
                .map_err(|error| Invalid::new(format!("{error}; or port:22 or proto:icmp"))),
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "{peer}"),
            Self::Port(ports) => write!(f, "port:{ports}"),
            Self::Protocol(protocol) => write!(f, "proto:{protocol}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers() {
        for text in
            ["10.0.0.0/8", "fd00::1/128", "db.example.org", "@peers", "container:web", "cgroup:/a", "unit:x"]
        {
            let peer = text.parse::<Peer>().map(|peer| peer.to_string());
            assert_eq!(peer.as_deref(), Ok(text));
        }
        assert_eq!("db".parse(), Ok(Peer::Name("db".into())));
        for text in ["", "@", "10.0.0.0/33", "10.0.0", "1.2.3.4.5", "a b", "fd00::/x", "unit:", "-x!"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn exclusions() {
        for text in ["10.0.0.7/32", "port:22", "port:8000-8999", "proto:icmp", "db"] {
            let exclusion = text.parse::<Exclusion>().map(|exclusion| exclusion.to_string());
            assert_eq!(exclusion.as_deref(), Ok(text));
        }
        for text in ["port:", "port:70000", "proto:quic", "10.0.0.0/33"] {
            assert!(text.parse::<Exclusion>().is_err(), "{text}");
        }
    }
}
