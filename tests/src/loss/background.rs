//! What hosts and switches send of their own accord is counted apart, and a run that has hit nothing else says so.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use chaos_ebpf::abi::{Control, Direction, Window};
use chaos_user::{
    fault::{Match, Rule, Tables},
    kernel::{
        programs::{Environment, Programs},
        sys::test_run,
    },
    spec::Impairments,
};

use super::{
    PATIENCE, Way,
    frame::{self, tagged},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Event, Exit, Faultline},
    harness::patience,
    lab::{Family, Lab, NEAR_DEVICE, Route},
    life::scene::ps,
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const ECHO: u8 = 128;
/// What the warning says, and nothing else does.
const WARNING: &str = "no packet of a program was hit";

/// Of each kind one, and beside it what a program sends: with the address it goes to, and whether it is such a packet.
fn frames() -> Result<Vec<(&'static str, Vec<u8>, bool)>> {
    let to_all = vec![0xff; 6];
    let v4 = |protocol: u8| {
        frame::ip(Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(224, 0, 0, 22).into(), protocol)
    };
    let v6 = |next: u8| {
        let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        frame::ip(from.into(), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).into(), next)
    };
    let icmpv6 = |kind: u8| [vec![kind], vec![0; 39]].concat();
    let reported = [v6(0), vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0], icmpv6(143)].concat();
    let solicited = [v6(ICMPV6), icmpv6(NEIGHBOUR_SOLICITATION)].concat();
    let switches = vec![0x01, 0x80, 0xc2, 0, 0, 0];
    Ok(vec![
        ("ARP", to_all.clone(), frame::arp(), true),
        ("ARP, tagged", to_all.clone(), tagged(&[VLAN], 0x0806, vec![0; 28]), true),
        ("IGMP", to_all.clone(), tagged(&[], IPV4, [v4(2), vec![0x22; 40]].concat()), true),
        ("MLD", to_all.clone(), tagged(&[], IPV6, reported.clone()), true),
        ("MLD, tagged", to_all.clone(), tagged(&[VLAN, VLAN], IPV6, reported), true),
        ("neighbours", to_all.clone(), tagged(&[], IPV6, solicited), true),
        ("spanning tree", switches, tagged(&[], 38, vec![0x42; 46]), true),
        ("ping", to_all.clone(), tagged(&[], IPV6, [v6(ICMPV6), icmpv6(ECHO)].concat()), false),
        ("UDP", to_all.clone(), frame::written("udp 10.0.0.1 9 10.0.0.2 9")?, false),
        ("UDP over IPv6", to_all.clone(), frame::written("udp fd00::1 9 fd00::2 9")?, false),
        ("neither IP nor ARP", to_all, tagged(&[], 0x88b5, vec![0; 46]), false),
    ]
    .into_iter()
    .map(|(name, to, frame, apart)| (name, [to, vec![2; 6], frame].concat(), apart))
    .collect())
}

/// Of each fault, at each hook that can have it.
pub(super) fn of_each_kind() -> Result {
    for (words, by_xdp) in [
        ("loss 100%", true),
        ("loss gemodel 100% 0% 100% 100%", true),
        ("duplicate 100%", false),
        ("corrupt 100%", false),
        ("delay 10ms", false),
        ("delay 10ms reorder 100%", false),
        ("rate 100mbit", false),
        ("loss 0% duplicate 100% corrupt 100% rate 100mbit delay 10ms", false),
    ] {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let impairments = Impairments::parse(&words).context("words")?;
        let rule = |direction| Rule {
            label: String::new(),
            direction,
            matches: Match::default(),
            window: Window::ALL,
            impairments: impairments.clone(),
            spares: Vec::new(),
            names: Vec::new(),
        };
        let tables = Tables::new(&[rule(Direction::In), rule(Direction::Out)], 1);
        let mut programs =
            Programs::load(&tables, 1, Environment { ethernet: true, ..Environment::default() })?;
        programs.set_control(Control { epoch: 1, not_before: 0, lease_until: u64::MAX })?;
        for (name, frame, apart) in frames()? {
            let mut check = |hook: &str, rule: usize, run: &mut dyn FnMut(&mut Programs) -> Result| {
                let before = programs.counters()?.rules[rule];
                run(&mut programs)?;
                let after = programs.counters()?.rules[rule];
                let fired = after.fired.packets - before.fired.packets;
                let background = after.background - before.background;
                ensure!(
                    (fired, background) == (1, apart.into()),
                    "{words:?} at {hook}, {name}: fired {fired}, apart {background}"
                );
                Ok(())
            };
            if by_xdp {
                check("XDP", 0, &mut |programs| Ok(test_run(programs.xdp()?.as_fd(), &frame, 1).map(drop)?))?;
            }
            for (hook, direction) in [("tc in", Direction::In), ("tc out", Direction::Out)] {
                check(hook, direction as usize, &mut |programs| {
                    Ok(test_run(programs.tc(direction)?.as_fd(), &frame, 1).map(drop)?)
                })?;
            }
        }
    }
    Ok(())
}

/// Of `of_each_kind`'s rules the first is that of what is received.
const _: () = assert!(Direction::In as usize == 0 && Direction::Out as usize == 1);

/// A host that has its kernel look for a neighbour who is not there and report a group, over IPv4 and IPv6: four packets at
/// the least, as it asks three times. None of its own gets anywhere.
struct Talker {
    _groups: [UdpSocket; 2],
}

const LEAST: u64 = 4;

impl Talker {
    /// Each of another number looks for another neighbour and joins another group: for one that was just looked for, or left,
    /// less is sent.
    fn on(route: Route<'_>, index: u32, number: u8) -> Result<Self> {
        let IpAddr::V4(own) = route.source else { return Err(crate::error::Failure::new("not IPv4")) };
        route.from.run(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("bind")?;
            v4.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, number), &own).context("join")?;
            v6.join_multicast_v6(&Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 7, number.into()), index)
                .context("join")?;
            v4.send_to(b"who", (Ipv4Addr::new(10, 77, 0, 100 + number), 9)).context("send")?;
            v6.send_to(b"who", (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(number)), 9))
                .context("send")?;
            Ok(Self { _groups: [v4, v6] })
        })
    }
}

/// What one rule has hit, and how much of that came by itself.
fn hit(event: &Event) -> Result<(u64, u64)> {
    let rules = event.rules()?;
    Ok((rules[0].fired.packets, rules[0].fired_background))
}

/// Waits until so much has been hit that came by itself.
fn wait(fault: &Faultline, least: u64) -> Result<(u64, u64)> {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        let now = hit(&fault.wait_event("progress", PATIENCE)?)?;
        if now.1 >= least {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "{now:?} hit, of which {least} are waited for");
    }
}

fn warns(exit: &Exit) -> Result<bool> {
    let remarks = exit.event("summary")?.get("/remarks")?.as_array().context("remarks")?.clone();
    Ok(remarks.iter().filter_map(|remark| remark.as_str()).any(|remark| remark.contains(WARNING)))
}

/// On an idle wire, with and without one packet of a program's, and where just these packets are asked for.
pub(super) fn alone_is_told() -> Result {
    for (fault, way, meant) in [
        ("loss 100%", Way::Out, false),
        ("loss 100% --direction in", Way::In, false),
        ("duplicate 100%", Way::Out, false),
        ("corrupt 100% --proto icmp --proto 2", Way::Out, false),
        ("loss 100% --proto 58", Way::Out, true),
    ] {
        let lab = Lab::new()?;
        let route = way.route(&lab, Family::V4);
        let device = if way == Way::Out { NEAR_DEVICE } else { crate::lab::FAR_DEVICE };
        let index = route.from.index(device)?;
        // ARP has no protocol of IP's, and only two of the four are of IPv6.
        let least = if fault.contains("--proto") { 2 } else { LEAST };
        let words: Vec<&str> =
            ["net"].into_iter().chain(fault.split(' ')).chain(["--dev", NEAR_DEVICE]).collect();
        let arm = || {
            let fault = Faultline::start_in(&lab.near, &words)?;
            fault.wait_event("armed", PATIENCE)?;
            Ok::<_, crate::error::Failure>(fault)
        };
        let idle = arm()?;
        let talker = Talker::on(route, index, 0)?;
        let (fired, background) = wait(&idle, least)?;
        ensure!(fired == background, "{fault}: {background} of {fired} came by themselves");
        let listed = ps()?;
        let rule = listed.iter().find(|it| it["pid"] == idle.pid().as_raw()).context("not listed")?["rules"]
            [0]
        .clone();
        ensure!(rule["fired_background"].as_u64() >= Some(least), "{fault}: ps says {rule}");
        let exit = idle.end()?;
        ensure!(warns(&exit)? != meant, "{fault}: {}", exit.event("summary")?.json);
        drop(talker);
        if fault.contains("--proto") {
            continue;
        }

        let busy = arm()?;
        let _talker = Talker::on(route, index, 1)?;
        route.from.run(|| {
            let socket = UdpSocket::bind((route.source, 0)).context("bind")?;
            socket.send_to(b"one", (route.target, 9)).context("send").map(drop)
        })?;
        let (fired, background) = wait(&busy, least)?;
        ensure!(fired == background + 1, "{fault}: {background} of {fired}, and one that did not");
        let exit = busy.end()?;
        ensure!(!warns(&exit)?, "{fault}, with a packet: {}", exit.event("summary")?.json);
    }
    said_to_people()
}

/// A run that ends by itself has fired, and exits as one that has.
fn said_to_people() -> Result {
    let lab = Lab::new()?;
    let route = lab.outward(Family::V4);
    let index = lab.near.index(NEAR_DEVICE)?;
    let netns = lab.near.path();
    let netns = netns.to_string_lossy();
    let words = ["net", "loss", "100%", "--dev", NEAR_DEVICE, "--netns", &netns, "--for", "3s"];
    let exit = std::thread::scope(|scope| {
        let run = scope.spawn(|| Faultline::run(&words));
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        for number in 0..100 {
            if run.is_finished() || Instant::now() > deadline {
                break;
            }
            let _talker = Talker::on(route, index, number)?;
            // It is not said when it is armed; whatever comes meanwhile is one of these.
            std::thread::sleep(Duration::from_millis(200));
        }
        run.join().map_err(|_| crate::error::Failure::new("the thread panicked"))?
    })?;
    ensure!(exit.code == Some(0), "{exit:?}");
    let lines: Vec<&str> = exit.stdout.lines().collect();
    let has = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    ensure!(
        has(&["warning: ", WARNING]) && has(&["rule 0: ", "it hit: neighbour discovery"]),
        "{}",
        exit.stdout
    );
    Ok(())
}
