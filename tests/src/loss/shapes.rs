//! Frames of every shape that chaos-ebpf/src/packet.rs speaks of. Nothing is left to chance here.

use std::{net::UdpSocket, time::Duration};

use super::{
    BYSTANDER_PORT, PORT, SEED, Way, all_arrive, arm, end,
    frame::{self, ip, tagged},
    lab,
};
use crate::{
    ensure,
    error::{Context, Result},
    lab::{Family, Lab, Options, Route},
    traffic::Udp,
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const UDP: u8 = 17;

/// What is asked for in turn; a shape says which of these it meets.
const ASKED: [&str; 4] = ["", "--to 10.2.0.1 --to fd02::1", "--proto udp", "--port 53"];
const ALL: &[usize] = &[0, 1, 2, 3];
/// A later fragment: everything but the ports.
const NO_PORTS: &[usize] = &[0, 1, 2];
const ADDRESSES: &[usize] = &[0, 1];
/// Not IP, as far as can be told.
const UNKNOWN: &[usize] = &[0];
/// What cannot be read is let through, whatever is asked for.
const NEVER: &[usize] = &[];

struct Shape {
    name: &'static str,
    frame: Vec<u8>,
    meets: &'static [usize],
}

fn v4(fragment: u16, options: usize, protocol: u8) -> Vec<u8> {
    let mut header = ip([10, 1, 0, 1].into(), [10, 2, 0, 1].into(), protocol);
    header[0] += options as u8;
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header.resize(20 + 4 * options, 1);
    header
}

fn v6(next: u8) -> Vec<u8> {
    ip([0xfd01, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd02, 0, 0, 0, 0, 0, 0, 1].into(), next)
}

fn udp() -> Vec<u8> {
    frame::transport(UDP, Some((1000, 53)))
}

/// Options or a routing header, in `units` of 8 bytes after the first 8.
fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![0; 8 + 8 * usize::from(units)];
    header[..2].copy_from_slice(&[next, units]);
    header
}

fn fragment6(next: u8, field: u16) -> Vec<u8> {
    [vec![next, 0], field.to_be_bytes().to_vec(), vec![0, 0, 0, 9]].concat()
}

fn tags() -> Vec<Shape> {
    let v4_udp = || [v4(0, 0, UDP), udp()].concat();
    let v6_udp = || [v6(UDP), udp()].concat();
    let shape = |name, tags: &[u16], ethertype, payload, meets| Shape {
        name,
        frame: tagged(tags, ethertype, payload),
        meets,
    };
    vec![
        shape("v4", &[], IPV4, v4_udp(), ALL),
        shape("v6", &[], IPV6, v6_udp(), ALL),
        shape("v4, one tag", &[VLAN], IPV4, v4_udp(), ALL),
        shape("v6, one tag", &[VLAN], IPV6, v6_udp(), ALL),
        shape("v4, two tags", &[QINQ, VLAN], IPV4, v4_udp(), ALL),
        shape("v6, two tags", &[QINQ, VLAN], IPV6, v6_udp(), ALL),
        shape("v4, two tags of one kind", &[VLAN, VLAN], IPV4, v4_udp(), ALL),
        shape("v4, three tags", &[QINQ, VLAN, VLAN], IPV4, v4_udp(), UNKNOWN),
        shape("ARP", &[], 0x0806, vec![0; 28], UNKNOWN),
        shape("ARP, one tag", &[VLAN], 0x0806, vec![0; 28], UNKNOWN),
        shape("an experimental protocol", &[], 0x88b5, vec![0x45; 60], UNKNOWN),
        shape("802.3 with a length", &[], 46, vec![0x45; 46], UNKNOWN),
        shape("no more than Ethernet", &[], 0x88b5, Vec::new(), UNKNOWN),
    ]
}

fn network() -> Vec<Shape> {
    let shape4 = |name, header: Vec<u8>, meets| Shape {
        name,
        frame: tagged(&[], IPV4, [header, udp()].concat()),
        meets,
    };
    let shape6 = |name, headers: &[Vec<u8>], meets| Shape {
        name,
        frame: tagged(&[], IPV6, [headers.concat(), udp()].concat()),
        meets,
    };
    let many = |count: usize| {
        let mut headers = vec![v6(60)];
        headers.extend(vec![extension(60, 0); count - 1]);
        headers.push(extension(UDP, 0));
        headers
    };
    vec![
        shape4("v4 with options", v4(0, 10, UDP), ALL),
        shape4("v4 that must not be fragmented", v4(0x4000, 0, UDP), ALL),
        shape4("first v4 fragment", v4(0x2000, 0, UDP), ALL),
        shape4("later v4 fragment", v4(0x2005, 0, UDP), NO_PORTS),
        shape4("last v4 fragment", v4(0x000a, 0, UDP), NO_PORTS),
        shape4("ICMP", v4(0, 0, 1), ADDRESSES),
        shape4("GRE", v4(0, 0, 47), ADDRESSES),
        shape6("hop-by-hop", &[v6(0), extension(UDP, 2)], ALL),
        shape6("routing, destination", &[v6(43), extension(60, 1), extension(UDP, 0)], ALL),
        shape6("authentication", &[v6(51), [vec![UDP, 4], vec![0; 22]].concat()], ALL),
        shape6("first v6 fragment", &[v6(44), fragment6(UDP, 1)], ALL),
        shape6("later v6 fragment", &[v6(44), fragment6(UDP, 0x21)], NO_PORTS),
        shape6("last v6 fragment", &[v6(44), fragment6(UDP, 0x40)], NO_PORTS),
        shape6("six extension headers", &many(6), ALL),
        shape6("seven extension headers", &many(7), ADDRESSES),
    ]
}

/// Cut in each header. The kernel takes no frame with less than a whole tag and half an `EtherType`.
fn truncated() -> Vec<Shape> {
    let cut = |name, frame: Vec<u8>, length: usize| Shape {
        name,
        frame: frame[..2 + length].to_vec(),
        meets: NEVER,
    };
    let v4_udp = || [v4(0, 0, UDP), udp()].concat();
    let v6_udp = || [v6(0), extension(UDP, 0), udp()].concat();
    vec![
        cut("v4 without a header", tagged(&[], IPV4, v4_udp()), 0),
        cut("v4 header cut", tagged(&[], IPV4, v4_udp()), 19),
        cut("v4 ports cut", tagged(&[], IPV4, v4_udp()), 23),
        cut("v6 header cut", tagged(&[], IPV6, v6_udp()), 39),
        cut("v6 extension cut", tagged(&[], IPV6, v6_udp()), 43),
        cut("v6 ports cut", tagged(&[], IPV6, v6_udp()), 51),
        cut("tagged v4 header cut", tagged(&[VLAN], IPV4, v4_udp()), 4 + 19),
        cut("second tag cut", tagged(&[QINQ, VLAN], IPV4, v4_udp()), 4 + 2),
    ]
}

/// Every shape, both ways, against everything that can be asked for.
pub(super) fn rows() -> Result {
    let lab = lab()?;
    let mut bystander = Udp::open(lab.aside(Family::V4)?, 4000, PORT)?;
    let shapes: Vec<Shape> = [tags(), network(), truncated()].into_iter().flatten().collect();
    let frames: Vec<Vec<u8>> = shapes.iter().map(|shape| shape.frame.clone()).collect();
    let mut wires = Vec::new();
    for way in Way::BOTH {
        wires.push((way, frame::open(&lab, way)?));
    }
    for (number, options) in ASKED.iter().enumerate() {
        for (way, wire) in &mut wires {
            let came = wire.send(&frames)?;
            let whole = shapes.iter().zip(came).filter(|(_, came)| *came != 1).map(|(shape, _)| shape.name);
            let missing: Vec<_> = whole.collect();
            ensure!(missing.is_empty(), "before {options:?}, {way:?}: missing {missing:?}");
        }
        let faults = Way::BOTH.map(|way| format!("loss 100% --direction {} {options}", way.name()));
        let faultline = arm(&lab, SEED, &faults)?;
        let mut came = Vec::new();
        for (_, wire) in &mut wires {
            came.push(wire.send(&frames)?);
        }
        all_arrive("bystander", &mut bystander, 100)?;
        let rules = end(&faultline)?;
        let hit = shapes.iter().filter(|shape| shape.meets.contains(&number)).count() as u64;
        for ((way, came), rule) in Way::BOTH.iter().zip(came).zip(&rules) {
            for (Shape { name, meets, .. }, came) in shapes.iter().zip(came) {
                let right = u32::from(!meets.contains(&number));
                ensure!(came == right, "{options:?}, {way:?}: {name} came {came} times, not {right}");
            }
            let counted = [rule.seen, rule.matched, rule.fired].map(|count| count.packets);
            let right = [shapes.len() as u64, hit, hit];
            ensure!(counted == right, "{options:?}, {way:?}: counted {counted:?}, not {right:?}");
        }
    }
    for (way, wire) in &mut wires {
        ensure!(wire.send(&frames)?.iter().all(|came| *came == 1), "after, {way:?}: lost some");
    }
    Ok(())
}

/// How long is waited for a datagram that is to come, and for one that is not: what was lost the counts say.
const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(50);

/// Datagrams that the kernel cuts in three and puts together again: a rule with a port takes the first fragment, one
/// without all of them; either way the datagram is lost.
pub(super) fn fragments() -> Result {
    let lab = Lab::with(Options { wire_packets: false, side: true })?;
    for family in Family::BOTH {
        for way in Way::BOTH {
            let route = way.route(&lab, family);
            let mut flow = Datagrams::open(route, PORT)?;
            let mut bystander = Datagrams::open(route, BYSTANDER_PORT)?;
            ensure!(flow.arrives(LONG)? && bystander.arrives(LONG)?, "{family}, {way:?}: lost before");
            for (options, fragments) in
                [(format!("--port {PORT}"), 1), (format!("--proto udp --to {}", route.target), 3)]
            {
                let fault = format!("loss 100% --direction {} {options}", way.name());
                let faultline = arm(&lab, SEED, &[fault])?;
                let lost = !flow.arrives(SHORT)?;
                let spared = fragments == 3 || bystander.arrives(LONG)?;
                let rules = end(&faultline)?;
                ensure!(lost && spared, "{family}, {way:?}, {options}: lost {lost}, spared {spared}");
                let counted = (rules[0].matched.packets, rules[0].fired.packets);
                let right = (fragments, fragments);
                ensure!(counted == right, "{family}, {way:?}, {options}: {counted:?}, not {right:?}");
                ensure!(flow.arrives(LONG)?, "{family}, {way:?}, {options}: lost after");
            }
        }
    }
    Ok(())
}

/// Datagrams of 4,000 bytes, one at a time.
struct Datagrams {
    sender: UdpSocket,
    receiver: UdpSocket,
    number: u8,
}

impl Datagrams {
    fn open(route: Route<'_>, port: u16) -> Result<Self> {
        let Route { from, to, source, target } = route;
        let receiver = to.run(|| UdpSocket::bind((target, port)).context("bind"))?;
        let sender = from.run(|| UdpSocket::bind((source, 0)).context("bind"))?;
        sender.connect((target, port)).context("connect")?;
        Ok(Self { sender, receiver, number: 0 })
    }

    /// Whether one comes in time.
    fn arrives(&mut self, time: Duration) -> Result<bool> {
        self.number += 1;
        self.sender.send(&[self.number; 4000]).context("send")?;
        self.receiver.set_read_timeout(Some(time)).context("SO_RCVTIMEO")?;
        let mut datagram = [0; 4000];
        Ok(self.receiver.recv(&mut datagram).is_ok() && datagram == [self.number; 4000])
    }
}
