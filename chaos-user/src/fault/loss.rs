//! Packet loss: each matching packet is dropped with the same chance, and nobody is told.

use chaos_ebpf::abi::Direction;

use super::{Match, Rule};
use crate::spec::{LossSpec, Selectors, Sides};

/// The rules of one loss: one for each direction it acts in.
#[must_use]
pub fn rules(spec: &LossSpec) -> Vec<Rule> {
    let directions = spec.sides.directions();
    directions
        .iter()
        .map(|direction| Rule {
            label: spec.to_string(),
            direction: *direction,
            matches: matches(&spec.selectors, spec.sides, *direction),
            window: spec.window,
            asked: spec.percent.fraction(),
            threshold: spec.percent.threshold(),
        })
        .collect()
}

/// Source and destination as remote and local end. A conversation is described as it is sent, so what is
/// received of it has its destination where the description has its source.
fn matches(selectors: &Selectors, sides: Sides, direction: Direction) -> Match {
    let Selectors { to, from, port, sport, proto } = selectors.clone();
    let protocols = proto.into_iter().flat_map(crate::spec::Protocol::numbers).collect();
    if direction == Direction::In && sides != Sides::Both {
        Match { remote: from, local: to, remote_ports: sport, local_ports: port, protocols }
    } else {
        Match { remote: to, local: from, remote_ports: port, local_ports: sport, protocols }
    }
}

#[cfg(test)]
mod tests {
    use chaos_ebpf::abi::Window;

    use super::*;
    use crate::spec::parse_network;

    fn to_web(sides: Sides) -> Vec<Rule> {
        let selectors = Selectors {
            to: vec![parse_network("10.0.0.2").expect("valid")],
            port: vec!["80".parse().expect("valid")],
            ..Selectors::default()
        };
        rules(&LossSpec { percent: "5%".parse().expect("valid"), sides, selectors, window: Window::ALL })
    }

    #[test]
    fn a_destination_is_remote_when_sent_and_local_when_received() {
        let [sent] = &to_web(Sides::Out)[..] else { panic!("one rule") };
        assert_eq!((sent.matches.remote.len(), sent.matches.remote_ports.len()), (1, 1));
        assert_eq!((sent.matches.local.len(), sent.matches.local_ports.len()), (0, 0));
        let [received] = &to_web(Sides::In)[..] else { panic!("one rule") };
        assert_eq!((received.matches.local.len(), received.matches.local_ports.len()), (1, 1));
        assert!(received.matches.remote.is_empty());
    }

    #[test]
    fn both_is_the_conversation() {
        let [received, sent] = &to_web(Sides::Both)[..] else { panic!("two rules") };
        assert_eq!((received.direction, sent.direction), (Direction::In, Direction::Out));
        assert_eq!(received.matches, sent.matches);
        assert_eq!(sent.matches.remote.len(), 1);
    }
}
