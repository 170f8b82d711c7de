//! Every shape the programs can be specialised to is one the verifier takes.

use std::{
    collections::BTreeSet,
    os::fd::AsFd,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use chaos_ebpf::abi::{Control, Direction, MAX_RULES, Window};
use chaos_user::{
    fault::{Match, Rule, Tables},
    kernel::{
        programs::{Environment, Programs},
        sys::test_run,
    },
};
use ipnet::IpNet;

use super::frame;
use crate::{
    ensure,
    error::{Context, Failure, Result},
    lab::Family,
};

const XDP_DROP: u32 = 1;
const TC_ACT_REDIRECT: u32 = 7;

/// What an end's address can be asked for: a kind of table each, and all kinds at once.
const ADDRESSES: [&[&str]; 6] = [
    &[],
    &["10.0.0.1/32"],
    &["10.0.0.0/24"],
    &["fd00::1/128"],
    &["fd00::/64"],
    &["10.0.0.1/32", "10.0.0.0/24", "fd00::1/128", "fd00::/64"],
];

/// How many values each dimension of a [`Shape`] has.
const DIMENSIONS: [usize; 6] = [ADDRESSES.len(), ADDRESSES.len(), 4, 2, 2, 2];

/// Which of the programs' branches are there: remote and local address, ports of which ends (bits), protocol,
/// Ethernet header, 64 rules instead of one.
type Shape = [usize; DIMENSIONS.len()];

/// Every two values of any two dimensions meet in one of these shapes, though not every three: all 1,152 would
/// take minutes.
pub(super) fn every_shape() -> Result {
    try_shapes(&pairs())
}

/// The shape with everything in it and a few more, for kernels that load slowly.
pub(super) fn some_shapes() -> Result {
    const EACH: usize = 8;
    let most = DIMENSIONS.map(|values| values - 1);
    let shapes: Vec<Shape> = pairs().into_iter().step_by(EACH).chain([most]).collect();
    try_shapes(&shapes)
}

fn try_shapes(shapes: &[Shape]) -> Result {
    println!("{} shapes", shapes.len());
    let next = AtomicUsize::new(0);
    let work = || -> Result {
        while let Some(shape) = shapes.get(next.fetch_add(1, Ordering::Relaxed)) {
            try_shape(*shape).map_err(|failure| Failure::new(format!("shape {shape:?}: {failure}")))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let helper = scope.spawn(work);
        work()?;
        helper.join().map_err(|_| Failure::new("the helping thread panicked"))?
    })
}

fn all() -> Vec<Shape> {
    let mut shapes = vec![[0; DIMENSIONS.len()]];
    for (dimension, values) in DIMENSIONS.iter().enumerate() {
        let with = |shape: &Shape, value| {
            let mut shape = *shape;
            shape[dimension] = value;
            shape
        };
        shapes = shapes.iter().flat_map(|shape| (0..*values).map(move |value| with(shape, value))).collect();
    }
    shapes
}

type Pair = [(usize, usize); 2];

fn pairs_in(shape: &Shape) -> impl Iterator<Item = Pair> {
    let values: Vec<(usize, usize)> = shape.iter().copied().enumerate().collect();
    (0..values.len()).flat_map(move |one| {
        let values = values.clone();
        (0..one).map(move |other| [values[other], values[one]])
    })
}

/// Nothing used, everything used, and then always the shape with the most pairs that have not met.
fn pairs() -> Vec<Shape> {
    let all = all();
    let mut open: BTreeSet<Pair> = all.iter().flat_map(pairs_in).collect();
    let mut chosen: Vec<Shape> = all.first().into_iter().chain(all.last()).copied().collect();
    loop {
        for pair in chosen.iter().flat_map(pairs_in) {
            open.remove(&pair);
        }
        let news = |shape: &&Shape| pairs_in(shape).filter(|pair| open.contains(pair)).count();
        match all.iter().max_by_key(news) {
            Some(shape) if !open.is_empty() => chosen.push(*shape),
            _ => return chosen,
        }
    }
}

/// Loads all three programs and runs each once on packets that meet everything asked for, but for the family or
/// the protocol.
fn try_shape(shape: Shape) -> Result {
    let [remote, local, ports, protocol, ethernet, many] = shape;
    let ethernet = ethernet == 1;
    let rules = rules(shape)?;
    let environment = Environment { ethernet, ..Environment::default() };
    let mut programs = Programs::load(&Tables::new(&rules, 1), 1, environment)?;
    programs.set_control(Control { epoch: 1, not_before: 0, lease_until: u64::MAX })?;
    for family in Family::BOTH {
        let there = [remote, local].iter().all(|end| {
            let networks = ADDRESSES[*end];
            networks.is_empty() || networks.iter().any(|text| text.contains(':') == (family == Family::V6))
        });
        for (name, other) in [("udp", false), ("47", true)] {
            let packet = packet(family, name, ethernet)?;
            let hit = there && !(other && (ports != 0 || protocol != 0));
            let (received, sent) = (hit, hit && many == 1);
            let verdicts = [
                ("XDP", test_run(programs.xdp()?.as_fd(), &packet, 1)?.verdict == XDP_DROP, received),
                ("tc in", is_redirected(&mut programs, Direction::In, &packet)?, received),
                ("tc out", is_redirected(&mut programs, Direction::Out, &packet)?, sent),
            ];
            for (program, lost, right) in verdicts {
                ensure!(lost == right, "{program}: {name} {family} lost is {lost}, not {right}");
            }
        }
    }
    Ok(())
}

fn is_redirected(programs: &mut Programs, direction: Direction, packet: &[u8]) -> Result<bool> {
    Ok(test_run(programs.tc(direction)?.as_fd(), packet, 1)?.verdict == TC_ACT_REDIRECT)
}

/// One rule for what is received, or 64 by turns for both directions.
fn rules([remote, local, ports, protocol, _, many]: Shape) -> Result<Vec<Rule>> {
    let networks = |end: usize| -> Result<Vec<IpNet>> {
        ADDRESSES[end].iter().map(|text| text.parse().context(text)).collect()
    };
    let port = |bit: usize| -> Result<Vec<_>> {
        if ports & bit == 0 { Ok(Vec::new()) } else { Ok(vec!["53".parse().context("port")?]) }
    };
    let matches = Match {
        remote: networks(remote)?,
        local: networks(local)?,
        remote_ports: port(1)?,
        local_ports: port(2)?,
        protocols: if protocol == 0 { Vec::new() } else { vec![17] },
        ..Match::default()
    };
    let rule = |number: usize| Rule {
        label: String::new(),
        direction: if number.is_multiple_of(2) { Direction::In } else { Direction::Out },
        matches: matches.clone(),
        window: Window::ALL,
        impairments: super::everything_lost(),
        spares: Vec::new(),
        names: Vec::new(),
    };
    Ok((0..if many == 0 { 1 } else { MAX_RULES }).map(rule).collect())
}

/// From an address and port to the same, so that it does not matter which end is which.
fn packet(family: Family, protocol: &str, ethernet: bool) -> Result<Vec<u8>> {
    let address = if family == Family::V4 { "10.0.0.1" } else { "fd00::1" };
    let frame = frame::written(&format!("{protocol} {address} 53 {address} 53"))?;
    // From the EtherType on.
    Ok(if ethernet { [vec![0; 12], frame].concat() } else { frame[2..].to_vec() })
}
