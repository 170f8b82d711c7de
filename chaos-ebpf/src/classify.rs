//! Which rules match a packet: every field yields the set of rules it satisfies, and their intersection is
//! the set of candidates. The cost does not depend on how many rules there are.

use crate::{
    abi::{Direction, Setup, protect},
    packet::{Headers, Network, protocol},
};

/// One end of a packet, seen from the host whose interface it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// The other host.
    Remote,
    /// This host.
    Local,
}

/// The rule tables that do not depend on the address family. A key that is not there yields no rules.
pub trait Tables: AddressTables<u32> + AddressTables<[u32; 4]> {
    /// Rules that name this protocol.
    fn protocol(&self, protocol: u8) -> u64;
    /// Rules that name this port.
    fn port(&self, end: End, port: u16) -> u64;
}

/// The rule tables of one address family.
pub trait AddressTables<A> {
    /// The family's bits in [`Setup::tables`], for `end`: whole addresses, prefixes.
    fn bits(end: End) -> (u32, u32);
    /// Rules that name this whole address.
    fn address(&self, end: End, address: &A) -> u64;
    /// Rules that name a prefix of this address. Only the longest is found, so its entry holds the rules of
    /// all the shorter ones around it as well.
    fn prefix(&self, end: End, address: &A) -> u64;
}

/// The rules that match a packet with these headers, going this way.
///
/// Dimensions nobody asks about are not looked up, and nothing more is once no rule is left.
#[inline(always)]
#[must_use]
pub fn classify(headers: &Headers, direction: Direction, setup: &Setup, tables: &impl Tables) -> u64 {
    let mut rules = setup.direction[direction as usize];
    if setup.any_protocol != u64::MAX {
        rules &=
            setup.any_protocol | if headers.has_protocol { tables.protocol(headers.protocol) } else { 0 };
    }
    if setup.any_remote_port & setup.any_local_port != u64::MAX && rules != 0 {
        rules &= by_ports(headers, direction, setup, tables);
    }
    if setup.any_remote & setup.any_local != u64::MAX && rules != 0 {
        let (source, destination) = (&headers.source, &headers.destination);
        rules &= match headers.network {
            Network::Other => setup.any_remote & setup.any_local,
            Network::V4 => by_addresses(&source[0], &destination[0], direction, setup, tables),
            Network::V6 => by_addresses(source, destination, direction, setup, tables),
        };
    }
    rules
}

/// `169.254.169.254`, as it lies in the packet.
const METADATA: u32 = u32::from_ne_bytes([169, 254, 169, 254]);

/// Whether a packet is of what is left alone whatever the rules say.
#[inline(always)]
#[must_use]
pub fn is_protected(headers: &Headers, direction: Direction, setup: &Setup) -> bool {
    let (remote, _) = ends(direction, &headers.source, &headers.destination);
    let is_v4 = matches!(headers.network, Network::V4);
    if setup.protect & protect::METADATA != 0 && is_v4 && remote[0] == METADATA {
        return true;
    }
    if setup.protect & protect::SESSION == 0 || headers.protocol != protocol::TCP || !headers.has_ports {
        return false;
    }
    let session = &setup.session;
    let (remote_port, local_port) = ends(direction, headers.source_port, headers.destination_port);
    let of_family = if session.v6 == 0 { is_v4 } else { matches!(headers.network, Network::V6) };
    let same = remote[0] == session.remote[0]
        && (is_v4
            || remote[1] == session.remote[1]
                && remote[2] == session.remote[2]
                && remote[3] == session.remote[3]);
    of_family && same && remote_port == session.remote_port && local_port == session.local_port
}

/// Whether a connection would be to the host itself: 127.0.0.0/8, `::1`, or no address, which the kernel takes for these.
#[inline(always)]
#[must_use]
pub fn is_loopback(headers: &Headers) -> bool {
    let [first, second, third, last] = headers.destination;
    if matches!(headers.network, Network::V4) {
        return first.to_ne_bytes()[0] == 127 || first == 0;
    }
    first | second | third == 0 && (last == 1_u32.to_be() || last == 0)
}

/// Source and destination as remote and local end.
#[inline(always)]
fn ends<T>(direction: Direction, source: T, destination: T) -> (T, T) {
    match direction {
        Direction::In => (source, destination),
        Direction::Out | Direction::Connect | Direction::Call => (destination, source),
    }
}

#[inline(always)]
fn by_ports(headers: &Headers, direction: Direction, setup: &Setup, tables: &impl Tables) -> u64 {
    if !headers.has_ports {
        return setup.any_remote_port & setup.any_local_port;
    }
    let (remote, local) = ends(direction, headers.source_port, headers.destination_port);
    let mut rules = u64::MAX;
    if setup.any_remote_port != u64::MAX {
        rules &= setup.any_remote_port | tables.port(End::Remote, remote);
    }
    if setup.any_local_port != u64::MAX {
        rules &= setup.any_local_port | tables.port(End::Local, local);
    }
    rules
}

#[inline(always)]
fn by_addresses<A, T: AddressTables<A>>(
    source: &A,
    destination: &A,
    direction: Direction,
    setup: &Setup,
    tables: &T,
) -> u64 {
    let (remote, local) = ends(direction, source, destination);
    by_address(End::Remote, remote, setup.any_remote, setup, tables)
        & by_address(End::Local, local, setup.any_local, setup, tables)
}

#[inline(always)]
fn by_address<A, T: AddressTables<A>>(end: End, address: &A, any: u64, setup: &Setup, tables: &T) -> u64 {
    let (whole, prefix) = T::bits(end);
    let mut rules = any;
    if setup.tables & whole != 0 {
        rules |= tables.address(end, address);
    }
    if setup.tables & prefix != 0 {
        rules |= tables.prefix(end, address);
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Session;

    fn tcp(source: (u32, u16), destination: (u32, u16)) -> Headers {
        Headers {
            network: Network::V4,
            has_protocol: true,
            has_ports: true,
            protocol: protocol::TCP,
            source: [source.0, 0, 0, 0],
            destination: [destination.0, 0, 0, 0],
            source_port: source.1,
            destination_port: destination.1,
            ..Headers::NONE
        }
    }

    #[test]
    fn only_what_is_protected_is() {
        let (here, there) = (u32::from_ne_bytes([10, 0, 0, 1]), u32::from_ne_bytes([10, 0, 0, 9]));
        let session = Session { remote: [there, 0, 0, 0], remote_port: 50_000, local_port: 22, v6: 0 };
        let setup = Setup { protect: protect::SESSION | protect::METADATA, session, ..Setup::default() };
        let received = |headers: &Headers| is_protected(headers, Direction::In, &setup);
        let sent = |headers: &Headers| is_protected(headers, Direction::Out, &setup);
        assert!(received(&tcp((there, 50_000), (here, 22))) && sent(&tcp((here, 22), (there, 50_000))));
        assert!(!received(&tcp((there, 50_001), (here, 22))) && !received(&tcp((there, 50_000), (here, 80))));
        assert!(!received(&tcp((here, 50_000), (there, 22))) && !sent(&tcp((there, 50_000), (here, 22))));
        let udp = Headers { protocol: protocol::UDP, ..tcp((there, 50_000), (here, 22)) };
        let v6 = Headers { network: Network::V6, ..tcp((there, 50_000), (here, 22)) };
        assert!(!received(&udp) && !received(&v6));
        assert!(sent(&tcp((here, 1), (METADATA, 80))) && received(&tcp((METADATA, 80), (here, 1))));
        assert!(!received(&tcp((here, 1), (METADATA, 80))));
        let nothing = Setup { session, ..Setup::default() };
        assert!(!is_protected(&tcp((there, 50_000), (here, 22)), Direction::In, &nothing));
    }
}
