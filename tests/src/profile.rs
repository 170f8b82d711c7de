//! Links that differ from peer to peer: each has what the profile says, also while that changes.
//!
//! Seeds are fixed; counts are compared with what `stats::acceptance` allows on any CPU's numbers.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};

use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::{Exit, Faultline},
    harness::{Need, Test, program, rounds},
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE, Options, Route, address},
    loss::Way,
    stats::acceptance,
    traffic::{
        monotonic_ns,
        probe::{Arrival, Pace, Probe},
    },
};

const ROOT: &[Need] = &[Need::Root];
const FQ: &[Need] = &[Need::Root, Need::Btf, Need::SchFq];
const IP: &[Need] = &[Need::Root, Need::Btf, Need::SchFq, Need::Program("ip")];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("profile::each_peer_has_its_own", each).needs(FQ).timeout(90),
    Test::new("profile::all_others_and_each_way", others).needs(FQ).timeout(60),
    Test::new("profile::those_that_come_with_it", built_in).needs(FQ).timeout(120),
    Test::new("profile::applied_while_packets_go", apply).needs(FQ).timeout(90),
    Test::new("profile::as_many_peers_as_can_be", many).needs(FQ).timeout(120),
    Test::new("profile::long_delays_hold_nobody_up", beside).needs(IP).timeout(60),
    Test::new("profile::killed", killed).needs(FQ).timeout(60).once(),
    Test::new("profile::with_everything_else", everything).needs(FQ).timeout(60),
    Test::new("profile::what_is_none", refused).needs(ROOT),
];

const PATIENCE: Duration = Duration::from_secs(60);
/// What the machine may add to a delay, however busy it is, in milliseconds.
const NOISE: i64 = 25;
/// How much too early most packets are at most: the way round is allowed for by what it took on average.
const EARLY: i64 = 3;

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fl-test-{name}-{}", std::process::id()));
        fs::write(&path, text).context(path.display())?;
        Ok(Self(path))
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A wire to a peer that has all these addresses.
fn lab(hosts: &[u8]) -> Result<Lab> {
    let lab = Lab::with(Options { wire_packets: true, side: false })?;
    hosts.iter().try_for_each(|host| lab.add_far_address(*host))?;
    Ok(lab)
}

fn arm(lab: &Lab, fault: &str) -> Result<Faultline> {
    let words = format!("net {fault} --dev {NEAR_DEVICE} --seed 1");
    let fault = Faultline::start_in(&lab.near, &words.split(' ').collect::<Vec<_>>())?;
    fault.wait_event("armed", PATIENCE)?;
    Ok(fault)
}

/// Ends a fault, which has to leave nothing.
fn end(fault: &Faultline) -> Result<serde_json::Value> {
    let exit = fault.interrupt()?;
    ensure!(exit.code == Some(130), "exit {:?}, not 130; stderr: {}", exit.code, exit.stderr);
    Ok(exit.event("summary")?.json.clone())
}

/// A flow to or from one of the peer's addresses.
fn flow(lab: &Lab, way: Way, family: Family, host: u8) -> Result<Probe> {
    let peer = address(family, 0, host);
    let route = match way {
        Way::Out => Route { target: peer, ..lab.outward(family) },
        Way::In => Route { source: peer, ..lab.inward(family) },
    };
    Probe::open(route, 4000 + u16::from(host), 5000 + u16::from(host))
}

fn few() -> Pace {
    Pace { count: 40, interval: Duration::from_millis(3), size: 64, linger: Duration::from_millis(500) }
}

fn milliseconds(arrivals: &[Arrival]) -> Vec<i64> {
    arrivals.iter().map(|arrival| arrival.delay.div_euclid(1_000_000)).collect()
}

/// That all came, about so late.
fn delayed(what: &str, flow: &Probe, asked: i64) -> Result {
    let (arrivals, sent) = flow.run(few())?;
    let mut delays = milliseconds(&arrivals);
    delays.sort_unstable();
    ensure!(delays.len() as u32 == sent, "{what}: {} of {sent} came", delays.len());
    let median = delays[delays.len() / 2];
    ensure!((asked - EARLY..asked + NOISE).contains(&median), "{what}: asked {asked} ms: {delays:?}");
    Ok(())
}

fn each() -> Result {
    let lab = lab(&[3, 4, 5, 6])?;
    let mut text = String::from("# who is where\n");
    for network in ["10.77.0.", "fd77::"] {
        writeln!(text, "{network}2 delay 40ms\n{network}3 delay 90ms 5ms # further off").context("a line")?;
        writeln!(text, "{network}4 loss 30%\n{network}5 rate 2mbit limit 10").context("a line")?;
    }
    let file = File::new("each", &text)?;
    let count = rounds(400);
    let pace = Pace { count, interval: Duration::from_millis(1), ..few() };
    // Of 1000 bytes each 2 ms, which with their headers are 4.2 mbit/s.
    let full = Pace { count: 250, interval: Duration::from_millis(2), size: 1000, ..few() };
    for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6), (Way::Out, Family::V6)] {
        let what = |peer: &str| format!("{} {family}, {peer}", way.name());
        let flows = [2, 3, 4, 5, 6].map(|host| flow(&lab, way, family, host));
        let [near, far, lossy, slow, free] = flows;
        let (near, far, lossy, slow, free) = (near?, far?, lossy?, slow?, free?);
        delayed(&what("before"), &far, 0)?;
        let fault = arm(&lab, &format!("--profile {} --direction {} --proto udp", file.name(), way.name()))?;
        delayed(&what("near"), &near, 40)?;
        delayed(&what("far"), &far, 90)?;
        delayed(&what("unlisted"), &free, 0)?;
        let came = lossy.run(pace)?.0.len() as u64;
        let expected = acceptance(count.into(), 0.7);
        ensure!(expected.contains(&came), "{}: {came} of {count} came", what("lossy"));
        let came = slow.run(full)?.0.len();
        // 120 packets in half a second, those that wait, and some more if the machine is late.
        ensure!((110..180).contains(&came), "{}: {came} of {} came", what("slow"), full.count);
        delayed(&what("unlisted, then"), &free, 0)?;
        let summary = end(&fault)?;
        let number = |path: &str| summary.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or(0);
        // Who is not in the file is matched, and nothing is done to it.
        let (matched, fired) = (number("/rules/0/matched/packets"), number("/rules/0/fired/packets"));
        let all = u64::from(4 * few().count + count + full.count);
        ensure!(matched == all, "{}: {matched} matched, not {all}: {summary}", what("counted"));
        ensure!(fired < matched - u64::from(2 * few().count) && fired > 300, "{summary}");
        delayed(&what("after"), &near, 0)?;
    }
    Ok(())
}

/// `default`, both sides, an exclusion, and a peer that is better off than the others.
fn others() -> Result {
    let lab = lab(&[3, 4])?;
    let file =
        File::new("others", "10.77.0.3 delay 0\nfd77::3 loss 0%\ndefault down delay 30ms up delay 70ms\n")?;
    for family in Family::BOTH {
        let open = |way, host| flow(&lab, way, family, host);
        let (sent, received) = (open(Way::Out, 2)?, open(Way::In, 2)?);
        let (spared, free) = (open(Way::Out, 4)?, open(Way::Out, 3)?);
        let excluded = address(family, 0, 4);
        let fault = arm(&lab, &format!("--profile {} --exclude {excluded}", file.name()))?;
        delayed(&format!("up {family}"), &sent, 70)?;
        delayed(&format!("down {family}"), &received, 30)?;
        delayed(&format!("with its own {family}"), &free, 0)?;
        delayed(&format!("excluded {family}"), &spared, 0)?;
        end(&fault)?;
        delayed(&format!("after {family}"), &sent, 0)?;
    }
    Ok(())
}

/// What is sent, and what is received, as the figures that are printed say.
fn built_in() -> Result {
    const ALL: [(&str, i64, i64); 6] = [
        ("3g", 150, 150),
        ("lte", 35, 35),
        ("satellite", 279, 279),
        ("wifi-bad", 25, 25),
        ("dsl", 25, 25),
        ("cross-region", 40, 40),
    ];
    let listed = Faultline::run(&["profile", "list"])?;
    let lab = lab(&[])?;
    let flows = [(Way::Out, Family::V4), (Way::In, Family::V6)];
    let flows = flows.map(|(way, family)| flow(&lab, way, family, 2));
    for (name, up, down) in ALL {
        let fault = arm(&lab, &format!("--profile {name}"))?;
        for (flow, asked) in flows.iter().zip([up, down]) {
            let flow = flow.as_ref().map_err(|error| Failure::new(error.to_string()))?;
            let (arrivals, sent) = flow.run(few())?;
            let mut delays = milliseconds(&arrivals);
            delays.sort_unstable();
            // One in 200 is lost by one of them.
            ensure!(delays.len() as u32 + 4 >= sent, "{name}: {} of {sent} came", delays.len());
            let median = delays[delays.len() / 2];
            // In order, what deviates by 20 ms is later than it would be.
            let most = asked + NOISE + if name == "wifi-bad" { 20 } else { 0 };
            ensure!((asked - EARLY..most).contains(&median), "{name}: asked {asked} ms: {delays:?}");
        }
        end(&fault)?;
        let shown = Faultline::run(&["profile", "show", name])?;
        ensure!(listed.stdout.contains(name) && shown.stdout.contains("# Source"), "{listed:?} {shown:?}");
    }
    Ok(())
}

fn applied(words: &[&str]) -> Result<Exit> {
    let exit = Faultline::run(&[&["profile", "apply"], words].concat())?;
    ensure!(exit.code == Some(0), "{words:?}: {exit:?}");
    Ok(exit)
}

/// Of a flow whose figures change again and again no packet goes without those of one profile or the other; another
/// peer's stay, one gets some and one loses them.
fn apply() -> Result {
    const OLD: i64 = 200;
    const NEW: i64 = 400;
    let lab = lab(&[3, 4, 5])?;
    let old = "10.77.0.2 delay 200ms\n10.77.0.3 delay 200ms\n10.77.0.5 delay 200ms rate 100mbit\n";
    let new = "10.77.0.5 delay 200ms rate 100mbit\n10.77.0.4 delay 400ms\n10.77.0.2 delay 400ms\n";
    let (old, new) = (File::new("old", old)?, File::new("new", new)?);
    let open = |host| flow(&lab, Way::Out, Family::V4, host);
    let (target, gone, added, stays) = (open(2)?, open(3)?, open(4)?, open(5)?);
    let fault = arm(&lab, &format!("--profile {}", old.name()))?;
    delayed("gone, before", &gone, OLD)?;
    delayed("added, before", &added, 0)?;
    let pace = Pace { count: 3000, interval: Duration::from_millis(1), ..few() };
    let (arrivals, applies) = thread::scope(|scope| {
        let probes = [&target, &stays].map(|flow| scope.spawn(move || flow.run(pace)));
        let mut applies = 0;
        let deadline = Instant::now() + Duration::from_millis(2500);
        // Ends with the new one.
        while Instant::now() < deadline || applies % 2 == 0 {
            applied(&[if applies % 2 == 0 { new.name() } else { old.name() }])?;
            applies += 1;
        }
        let [target, stays] = probes.map(|probes| {
            let panicked = |_| Failure::new("the probes panicked");
            probes.join().map_err(panicked)?
        });
        Ok::<_, Failure>(([target?, stays?], applies))
    })?;
    println!("{applies} profiles in {:?}", pace.interval * pace.count);
    for ((arrivals, sent), (name, least)) in arrivals.iter().zip([("target", OLD), ("stays", OLD)]) {
        let delays = milliseconds(arrivals);
        ensure!(delays.len() as u32 == *sent, "{name}: {} of {sent} came", delays.len());
        // A machine that is too busy allows packets' way round more than it takes at times, but never so much.
        let shortest = delays.iter().min();
        ensure!(shortest.is_some_and(|delay| *delay > least / 2), "{name}: one went without: {shortest:?}");
    }
    delayed("target", &target, NEW)?;
    delayed("stays", &stays, OLD)?;
    delayed("gone", &gone, 0)?;
    delayed("added", &added, NEW)?;

    // What is not right is not applied in part.
    let bad = File::new("bad", "10.77.0.2 delay 10ms\n10.77.0.5 delay 10ms\n10.77.0.4 delay soon\n")?;
    let exit = Faultline::run(&["profile", "apply", bad.name()])?;
    let place = format!("{}:3: ", bad.name());
    ensure!(exit.code == Some(2) && exit.stderr.contains(&place), "{exit:?}");
    delayed("target, then", &target, NEW)?;

    // Of two runs one has to be named.
    let other = arm(&lab, "--profile lte --port 9")?;
    let exit = Faultline::run(&["profile", "apply", old.name()])?;
    ensure!(exit.code == Some(2) && exit.stderr.contains("--id"), "{exit:?}");
    let id = fault.events().iter().find_map(|event| event.json["id"].as_str().map(ToOwned::to_owned));
    let id = id.context("no id")?;
    applied(&[old.name(), "--id", &id])?;
    delayed("by id", &target, OLD)?;
    end(&other)?;
    // From peers to the same for all, and without the others' word.
    applied(&["cross-region"])?;
    delayed("for all", &added, 40)?;
    end(&fault)?;
    delayed("after", &target, 0)?;
    let exit = Faultline::run(&["profile", "apply", old.name()])?;
    ensure!(exit.code == Some(3) && exit.stderr.contains("no run has a profile"), "{exit:?}");
    Ok(())
}

/// Addresses from 10.77.0.2 on, each with a delay of its own.
fn all_peers(first_delay: u32) -> Result<String> {
    let mut text = String::new();
    let first = u32::from(Ipv4Addr::new(10, 77, 0, 2));
    for peer in 0..65_536 {
        let microseconds = first_delay * 1000 + peer;
        writeln!(text, "{} delay {microseconds}us loss 0.01%", Ipv4Addr::from(first + peer))
            .context("a line")?;
    }
    Ok(text)
}

/// How long it takes to set up and to change is printed.
fn many() -> Result {
    let lab = lab(&[3])?;
    let files = [File::new("many", &all_peers(50)?)?, File::new("more", &all_peers(120)?)?];
    let flows = [2, 3].map(|host| flow(&lab, Way::Out, Family::V4, host));
    let [first, second] = flows;
    let (first, second) = (first?, second?);
    let begun = monotonic_ns();
    let fault = arm(&lab, &format!("--profile {}", files[0].name()))?;
    println!("65536 peers: {} ms from the command to the first packet", (monotonic_ns() - begun) / 1_000_000);
    delayed("the first", &first, 50)?;
    delayed("the second", &second, 50)?;
    println!("{}", applied(&[files[1].name()])?.stdout.trim());
    delayed("the first, changed", &first, 120)?;
    // All others instead: those that are gone are not in the way of the new ones.
    let others: String =
        (0..65_536).map(|peer| format!("{} delay 9ms\n", Ipv4Addr::from(0x0b00_0000 + peer))).collect();
    let others = File::new("others", &others)?;
    println!("{}", applied(&[others.name()])?.stdout.trim());
    delayed("the first, gone", &first, 0)?;
    end(&fault)?;
    delayed("after", &first, 0)
}

/// Thousands of packets wait long, each for a peer of its own, and those that are to wait for a short time do.
fn beside() -> Result {
    const PEERS: u32 = 2000;
    const SLOW: u32 = u32::from_be_bytes([10, 128, 0, 0]);
    const FAST: u32 = u32::from_be_bytes([10, 129, 0, 0]);
    let lab = lab(&[])?;
    for (netns, words) in [
        (&lab.near, "route add 10.128.0.0/15 via 10.77.0.2"),
        (&lab.far, "route add local 10.128.0.0/15 dev lo"),
    ] {
        let mut ip = Command::new(program("ip").context("no program ip")?);
        ip.args(words.split(' '));
        let output = netns.run(|| ip.output().context("ip"))?;
        ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let line = |first: u32, delay: &str| -> String {
        (0..PEERS).map(|peer| format!("{} delay {delay}\n", Ipv4Addr::from(first + peer))).collect()
    };
    let file = File::new("beside", &(line(SLOW, "2s") + &line(FAST, "20ms")))?;
    let receiver = lab.far.run(|| UdpSocket::bind("0.0.0.0:5000").context("bind"))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).context("SO_RCVBUFFORCE")?;
    receiver.set_read_timeout(Some(Duration::from_millis(500))).context("SO_RCVTIMEO")?;
    let sender = lab.near.run(|| UdpSocket::bind("10.77.0.1:0").context("bind"))?;
    let fault = arm(&lab, &format!("--profile {}", file.name()))?;
    let begin = Instant::now();
    for peer in (SLOW..SLOW + PEERS).chain(FAST..FAST + PEERS) {
        sender.send_to(&peer.to_be_bytes(), (Ipv4Addr::from(peer), 5000)).context("send")?;
    }
    let took = begin.elapsed();
    ensure!(
        took < Duration::from_millis(1500),
        "this machine is too slow: {took:?} for {} packets",
        2 * PEERS
    );
    // Nobody's two seconds are over when the last of the others has come.
    let mut peer = [0; 4];
    let mut came = Vec::new();
    while came.len() < 2 * PEERS as usize && receiver.recv(&mut peer).is_ok() {
        came.push(u32::from_be_bytes(peer) >= FAST);
    }
    end(&fault)?;
    let late = came.iter().skip(PEERS as usize).filter(|fast| **fast).count();
    let all = came.iter().filter(|fast| **fast).count();
    ensure!(
        late == 0 && all as u32 == PEERS,
        "{all} of {PEERS} came, {late} of them after one that waits for 2 s"
    );
    Ok(())
}

/// Nothing is left of a profile whose owner was killed, and nobody can change it any more.
fn killed() -> Result {
    let lab = lab(&[])?;
    let namespaces = [&lab.near];
    let before = Inventory::settled(&namespaces)?;
    let flow = flow(&lab, Way::Out, Family::V4, 2)?;
    let file = File::new("killed", "10.77.0.2 delay 50ms\nfd77::2 delay 50ms\n")?;
    let fault = arm(&lab, &format!("--profile {} --direction both", file.name()))?;
    delayed("before", &flow, 50)?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(PATIENCE)?;
    let exit = Faultline::run(&["profile", "apply", file.name()])?;
    ensure!(exit.code == Some(3), "{exit:?}");
    before.wait_until_equal(&namespaces, Duration::from_secs(5))?;
    delayed("after", &flow, 0)
}

/// A profile beside all other faults of a run: the largest programs there are with one.
fn everything() -> Result {
    let lab = lab(&[3])?;
    let file = File::new("everything", "10.77.0.2 delay 50ms 1ms rate 100mbit\nfd77::2 delay 50ms\n")?;
    let rest =
        "loss 5% 25% duplicate 5% corrupt 5% reorder 5% delay 20ms 2ms distribution normal rate 100mbit";
    let words = format!(
        "net --profile {} --direction both --dev {NEAR_DEVICE} --seed 1 --and {rest} --direction both --port 9",
        file.name()
    );
    let fault = Faultline::start_in(&lab.near, &words.split(' ').collect::<Vec<_>>())?;
    fault.wait_event("armed", PATIENCE)?;
    for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6)] {
        delayed(way.name(), &flow(&lab, way, family, 2)?, 50)?;
        delayed("unlisted", &flow(&lab, way, family, 3)?, 0)?;
    }
    end(&fault).map(drop)
}

/// Each is told by its file and line, before anything is begun.
fn refused() -> Result {
    let too_many: String = (0..=65_536).map(|peer| format!("{} delay 1ms\n", Ipv4Addr::from(peer))).collect();
    for (text, says) in [
        ("", ": nothing is in it"),
        ("10.0.0.1 delay 1ms\n\nweb delay 1ms\n", ":3: 'web' is no address"),
        ("10.0.0.1 delay 1ms\n10.0.0.1 loss 1%\n", ":2: '10.0.0.1' is in line 1 already"),
        ("10.0.0.1 loss 130%\n", ":1: invalid value '130%' for 'loss <PERCENT>'"),
        ("10.0.0.1 delay 61s\n", ":1: invalid value '61s' for 'delay <TIME>'"),
        ("10.0.0.1 corrupt 1%\n", ":1: a profile cannot have corrupt"),
        ("default delay 1ms 1ms distribution normal\n", ":1: a profile cannot have a distribution"),
        ("10.0.0.0/8 delay 1ms\n", ":1: '10.0.0.0/8' is no address"),
        (&too_many, ":65537: there are more than 65536 peers"),
    ] {
        let file = File::new("bad", text)?;
        let exit = Faultline::run(&["net", "--profile", file.name(), "--dev", NEAR_DEVICE])?;
        let says = format!("faultline: --profile: {}{says}", file.name());
        ensure!(exit.code == Some(2) && exit.stderr.contains(&says), "{says}: {exit:?}");
    }
    for (words, says) in [
        ("--profile nowhere", "without a file there are 3g, lte, satellite, wifi-bad, dsl, cross-region"),
        ("--profile /nowhere", "/nowhere: cannot be read"),
        ("--profile /dev/zero", "/dev/zero: not a file"),
        ("loss 1% --profile lte", "--profile goes with no other fault"),
        ("--profile lte --and --profile dsl", "more than one profile"),
        ("--profile lte --per flow", "--per flow"),
        ("--profile satellite --limit 10", "10 can wait"),
    ] {
        let (first, further) =
            words.split_once(" --and ").map_or((words, None), |(first, further)| (first, Some(further)));
        let mut line = format!("net {first} --dev {NEAR_DEVICE}");
        if let Some(further) = further {
            line += &format!(" --and {further}");
        }
        let exit = Faultline::run(&line.split(' ').collect::<Vec<_>>())?;
        ensure!(exit.code == Some(2) && exit.stderr.contains(says), "{words}: {exit:?}");
    }
    let exit = Faultline::run(&["profile", "show", "5g"])?;
    ensure!(exit.code == Some(2) && exit.stderr.contains("no profile 5g"), "{exit:?}");
    let exit = Faultline::run(&["profile", "apply", "lte", "--id", "nobod"])?;
    ensure!(exit.code == Some(2) && exit.stderr.contains("no fault nobod"), "{exit:?}");
    ensure!(Path::new("/dev/zero").exists(), "no /dev/zero");
    Ok(())
}
