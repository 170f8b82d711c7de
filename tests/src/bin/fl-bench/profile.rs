//! What a decision by a profile costs, beside the look-up alone and beside what no delay can do without.

use std::{fmt::Write as _, net::Ipv4Addr, sync::Arc};

use aya::maps::HashMap;
use chaos_ebpf::{
    abi::{Control, Direction, Window},
    figures::Peer,
};
use chaos_user::{
    fault::{Match, Peers as Entries, Rule, Tables},
    kernel::programs::{Environment, Programs},
    spec::{Impairments, Profile},
};

use super::{Bare, Keys, Peers, Result, fastest, packet, peer, row};

/// Rows for some numbers of peers, each with a delay of its own; `pass` is what a bare program takes.
pub(super) fn rows(pass: u32) -> Result<()> {
    row(
        "tc, profile of everybody else, no peers; beside a bare pass",
        pass,
        ours(&parse("default delay 1ms")?, Keys::Hot)?,
    );
    for count in [1, 1_000, 65_536] {
        let mut text = String::new();
        for index in 0..count {
            writeln!(text, "{} delay {}us", Ipv4Addr::from(peer(index) | 1), 1000 + index)?;
        }
        let profile = parse(&text)?;
        for keys in [Keys::Hot, Keys::Random(count)] {
            let ours = ours(&profile, keys)?;
            for (program, what) in
                [("fl_bare_peer", "look-up"), ("fl_bare_wait", "look-up, clock and detour")]
            {
                let what = format!("tc, profile of {count} peers, {keys}; beside a bare {what}");
                row(&what, bare(&profile, program, keys)?, ours);
            }
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Arc<Profile>> {
    Ok(Arc::new(Profile::parse("the bench", text)?))
}

fn ours(profile: &Arc<Profile>, keys: Keys) -> Result<u32> {
    let rule = Rule {
        label: String::new(),
        direction: Direction::Out,
        matches: Match::default(),
        window: Window::ALL,
        impairments: Impairments { profile: Some(Arc::clone(profile)), ..Impairments::default() },
        spares: Vec::new(),
        names: Vec::new(),
    };
    let environment = Environment { ethernet: true, ..Environment::default() };
    let mut programs = Programs::load(&Tables::new(&[rule], 1), 1, environment)?;
    programs.set_control(Control { epoch: 1, not_before: 0, lease_until: u64::MAX })?;
    let program = programs.tc(Direction::Out)?;
    match keys {
        Keys::Hot => fastest(program, &sent()),
        Keys::Random(count) => {
            Bare::load(Peers::None, count)?.behind("fl_random_peer", "FL_NEXT_TC", program, &sent())
        }
    }
}

/// A bare program with the same entries in a map like ours.
fn bare(profile: &Profile, program: &str, keys: Keys) -> Result<u32> {
    let count = if let Keys::Random(count) = keys { count } else { 1 };
    let mut bare = Bare::load(Peers::None, count)?;
    let map = bare.ebpf.map_mut("FL_PEERS").ok_or("no FL_PEERS")?;
    let mut map: HashMap<_, u32, Peer> = map.try_into()?;
    for (address, peer) in Entries::new(profile, Direction::Out).v4 {
        map.insert(address, peer, 0)?;
    }
    let program = bare.fd(program)?;
    match keys {
        Keys::Hot => fastest(&program, &sent()),
        Keys::Random(_) => bare.behind("fl_random_peer", "FL_NEXT_TC", &program, &sent()),
    }
}

/// A packet to the first peer.
fn sent() -> Vec<u8> {
    let mut packet = packet(9);
    packet[14 + 16..14 + 20].copy_from_slice(&(peer(0) | 1).to_be_bytes());
    packet
}
