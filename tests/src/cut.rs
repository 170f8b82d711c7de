//! Connections that are cut: who reaches whom, while they are and afterwards.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::{fd::AsFd, unix::process::CommandExt},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use chaos_user::kernel::netlink::Veth;
use ipnet::IpNet;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};

use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, patience, program},
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE, Netns, Options, Route, address},
    loss::Way,
    traffic::{
        connection::Connection,
        probe::{Pace, Probe},
    },
};

const BPF: &[Need] = &[Need::Root, Need::Btf];
const ROUTED: &[Need] = &[Need::Root, Need::Btf, Need::Program("ip")];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("cut::partition_from_peers", partition).needs(BPF).timeout(60).waits(),
    Test::new("cut::blackhole_but_for", blackhole).needs(BPF),
    Test::new("cut::spares_the_way_in", protected).needs(BPF).waits(),
    Test::new("cut::five_hosts", five_hosts).needs(ROUTED).timeout(60).waits(),
    Test::new("cut::a_name_that_changes", a_name_that_changes).needs(BPF).timeout(60).waits(),
    Test::new("cut::peers_that_are_none", refused).needs(BPF),
];

const PATIENCE: Duration = Duration::from_secs(30);
const FEW: Pace =
    Pace { count: 20, interval: Duration::from_millis(1), size: 64, linger: Duration::from_millis(150) };

fn arm(netns: &Netns, fault: &str) -> Result<Faultline> {
    let fault = Faultline::start_in(netns, &fault.split(' ').collect::<Vec<_>>())?;
    fault.wait_event("armed", PATIENCE)?;
    Ok(fault)
}

/// Whether all packets of a flow come, or none.
fn passes(flow: &Probe) -> Result<bool> {
    let came = flow.run(FEW)?.0.len() as u32;
    ensure!(came == 0 || came == FEW.count, "{came} of {} came", FEW.count);
    Ok(came != 0)
}

/// By address and from a file, both ways and one; whoever else is at the other end of the wire is not cut off.
fn partition() -> Result {
    let lab = Lab::with(Options { wire_packets: false, side: false })?;
    lab.add_far_address(3)?;
    let peers = std::env::temp_dir().join(format!("fl-test-peers-{}", std::process::id()));
    fs::write(&peers, "# the first host\n10.77.0.2\n\nfd77::2/128 # and by IPv6\n")
        .context(peers.display())?;
    let file = format!("--peer @{}", peers.display());
    for family in Family::BOTH {
        let open = |way: Way, port| Probe::open(way.route(&lab, family), port, port);
        let flows = [open(Way::Out, 4000)?, open(Way::In, 4001)?];
        let other = lab.outward(family);
        let other = Probe::open(Route { target: address(family, 0, 3), ..other }, 4002, 4002)?;
        let by_address = format!("--peer {}", lab.outward(family).target);
        for (options, cut) in [
            (by_address.clone(), [true, true]),
            (format!("{file} --direction out"), [true, false]),
            (format!("{by_address} --direction in"), [false, true]),
        ] {
            let what = format!("{family} {options}");
            let fault = arm(&lab.near, &format!("net partition --dev {NEAR_DEVICE} {options}"))?;
            let passed = [passes(&flows[0])?, passes(&flows[1])?];
            let beside = passes(&other)?;
            fault.end()?;
            ensure!(passed == cut.map(|cut| !cut), "{what}: sent and received pass: {passed:?}");
            ensure!(beside, "{what}: the bystander is cut off");
            ensure!(passes(&flows[0])? && passes(&flows[1])?, "{what}: cut after");
        }
    }
    fs::remove_file(&peers).context(peers.display())
}

/// All but a port, a host and a protocol, each counted.
fn blackhole() -> Result {
    let lab = Lab::with(Options { wire_packets: true, side: false })?;
    lab.add_far_address(3)?;
    let route = lab.outward(Family::V4);
    let cut = Probe::open(route, 4000, 4000)?;
    let by_port = Probe::open(route, 4001, 5001)?;
    let back = Probe::open(lab.inward(Family::V4), 4002, 5001)?;
    let by_host = Probe::open(Route { target: address(Family::V4, 0, 3), ..route }, 4003, 4003)?;
    let fault = arm(
        &lab.near,
        &format!(
            "net blackhole --dev {NEAR_DEVICE} --except port:5001 --exclude 10.77.0.3 --exclude proto:icmp"
        ),
    )?;
    let passed = [passes(&cut)?, passes(&by_port)?, passes(&back)?, passes(&by_host)?];
    let exit = fault.end()?;
    let summary = &exit.event("summary")?.json;
    ensure!(passed == [false, true, true, true], "cut, port, port back, host: {passed:?}");
    ensure!(passes(&cut)?, "cut after");
    let rules = summary.get("rules").and_then(serde_json::Value::as_array).context("rules")?;
    let of = |direction: &str, fault: &str| -> u64 {
        let found = rules.iter().filter(|rule| rule["direction"] == direction && rule["fault"] == fault);
        found.filter_map(|rule| rule["matched"]["packets"].as_u64()).sum()
    };
    let count = u64::from(FEW.count);
    let spared =
        [of("out", "exclude port:5001"), of("in", "exclude port:5001"), of("out", "exclude 10.77.0.3/32")];
    ensure!(spared == [count; 3], "spared {spared:?}: {summary}");
    ensure!(rules.iter().filter(|rule| rule["spares"] == true).count() == 8, "{summary}");
    Ok(())
}

/// The caller's SSH connection, of all to that port, and the metadata service, as far as nothing else is asked.
fn protected() -> Result {
    let lab = Lab::new()?;
    for (netns, device, host) in [(&lab.near, NEAR_DEVICE, 1), (&lab.far, FAR_DEVICE, 254)] {
        let network = IpNet::new(Ipv4Addr::new(169, 254, 169, host).into(), 16).context("network")?;
        netns.netlink()?.add_address(netns.index(device)?, network)?;
    }
    let metadata = [1, 254].map(|host| IpAddr::from(Ipv4Addr::new(169, 254, 169, host)));
    let outward = lab.outward(Family::V4);
    let metadata = Probe::open(Route { source: metadata[0], target: metadata[1], ..outward }, 4000, 80)?;
    for family in Family::BOTH {
        let at = lab.inward(family).target;
        let listener = lab.near.run(|| TcpListener::bind((at, 6022)).context("listen"))?;
        ensure!(passes(&metadata)?, "no way to the metadata before");
        for (option, spared) in [(None, true), (Some("--include-protected"), false)] {
            let open = || Connection::open(&listener, |at| lab.far.run(|| Connection::connect(at)));
            let mut connections = [open()?, open()?];
            let client = connections[0].client.local_addr().context("getsockname")?;
            let session = format!("{} {} {at} 6022", client.ip(), client.port());
            let netns = lab.near.path();
            let netns = netns.to_string_lossy();
            let words = ["net", "blackhole", "--dev", NEAR_DEVICE, "--netns", &netns];
            let words: Vec<&str> = words.into_iter().chain(option).collect();
            let fault = Faultline::start_with(&words, |command| {
                command.env("SSH_CONNECTION", &session);
            })?;
            fault.wait_event("armed", PATIENCE)?;
            let works = [connections[0].works()?, connections[1].works()?, passes(&metadata)?];
            let exit = fault.end()?;
            let summary = &exit.event("summary")?.json;
            ensure!(works == [spared, false, spared], "{family} {option:?}: {works:?}");
            let counted = summary["spared"].as_u64().context("spared")?;
            // What is said, and what is sent to the metadata service.
            ensure!((counted > u64::from(FEW.count)) == spared, "{family} {option:?}: {summary}");
        }
    }
    Ok(())
}

/// A name comes to stand for another host while the fault runs: that is cut off as well.
fn a_name_that_changes() -> Result {
    const HOSTS: &str = "/etc/hosts";
    let lab = Lab::new()?;
    lab.add_far_address(3)?;
    let hosts = std::env::temp_dir().join(format!("fl-test-hosts-{}", std::process::id()));
    let stands_for =
        |address: IpAddr| fs::write(&hosts, format!("{address} fl-peer.test\n")).context(hosts.display());
    let outward = lab.outward(Family::V4);
    let other = Route { target: address(Family::V4, 0, 3), ..outward };
    let flows = [Probe::open(outward, 4000, 4000)?, Probe::open(other, 4001, 4001)?];
    stands_for(outward.target)?;
    let netns = lab.near.path().to_string_lossy().into_owned();
    let words = ["net", "partition", "--peer", "fl-peer.test", "--dev", NEAR_DEVICE, "--netns", &netns];
    let fault = Faultline::start_with(&words, |command| {
        let file = hosts.clone();
        let own_hosts = move || {
            const NOTHING: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
            Ok(mount(Some(&file), HOSTS, NOTHING, MsFlags::MS_BIND, NOTHING)?)
        };
        // SAFETY: system calls alone, between fork and exec.
        unsafe { command.pre_exec(own_hosts) };
    })?;
    fault.wait_event("armed", PATIENCE)?;
    ensure!([passes(&flows[0])?, passes(&flows[1])?] == [false, true], "at first");
    stands_for(other.target)?;
    let deadline = Instant::now() + patience(PATIENCE);
    // Of those that are sent while it is found out some come.
    while !flows[1].run(FEW)?.0.is_empty() {
        ensure!(Instant::now() < deadline, "the name's new address is not cut off");
    }
    ensure!(!passes(&flows[0])?, "the name's first address is not cut off any more");
    fault.end()?;
    ensure!([passes(&flows[0])?, passes(&flows[1])?] == [true, true], "after");
    fs::remove_file(&hosts).context(hosts.display())
}

const HOSTS: u8 = 5;

/// Five hosts and a router between them.
struct Ring {
    hosts: Vec<Netns>,
    receivers: Vec<UdpSocket>,
    senders: Vec<UdpSocket>,
    _router: Netns,
}

fn host_address(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 78, host, 1).into()
}

impl Ring {
    fn new() -> Result<Self> {
        const PORT: u16 = 7000;
        let router = Netns::new()?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        router.run(|| fs::write(forward, "1").context(forward))?;
        let (mut hosts, mut receivers, mut senders) = (Vec::new(), Vec::new(), Vec::new());
        for host in 0..HOSTS {
            let netns = Netns::new()?;
            let device = format!("to-{host}");
            netns
                .netlink()?
                .add_veth(&Veth { peer_netns: Some(router.as_fd()), ..Veth::new(NEAR_DEVICE, &device) })?;
            let gateway = Ipv4Addr::new(10, 78, host, 254).into();
            for (netns, device, address) in
                [(&netns, NEAR_DEVICE, host_address(host)), (&router, &*device, gateway)]
            {
                let (mut netlink, index) = (netns.netlink()?, netns.index(device)?);
                netlink.set_up(index, true)?;
                netlink.add_address(index, IpNet::new(address, 24).context(address)?)?;
            }
            netns.run(|| {
                let mut ip = Command::new(program("ip").context("no program ip")?);
                let output = ip.args(["route", "add", "default", "via", &gateway.to_string()]).output();
                let output = output.context("ip")?;
                ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
                Ok(())
            })?;
            let bind = |port| netns.run(|| UdpSocket::bind((host_address(host), port)).context("bind"));
            let receiver = bind(PORT)?;
            receiver.set_nonblocking(true).context("O_NONBLOCK")?;
            receivers.push(receiver);
            senders.push(bind(0)?);
            hosts.push(netns);
        }
        Ok(Self { hosts, receivers, senders, _router: router })
    }

    /// Who is reached by whom, one way: what is sent until all have come that should, and a moment longer.
    fn reached(&self, expected: &dyn Fn(u8, u8) -> bool) -> Result<Vec<(u8, u8)>> {
        let pairs = || (0..HOSTS).flat_map(|from| (0..HOSTS).map(move |to| (from, to)));
        let wanted: Vec<_> = pairs().filter(|(from, to)| from != to && expected(*from, *to)).collect();
        let (start, mut complete) = (Instant::now(), None);
        let mut came = std::collections::BTreeSet::new();
        // Neighbours are looked for at first, which takes its time.
        while start.elapsed() < Duration::from_secs(5)
            && complete.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(200))
        {
            for (from, to) in pairs().filter(|(from, to)| from != to) {
                let port = self.receivers[usize::from(to)].local_addr().context("getsockname")?.port();
                self.senders[usize::from(from)].send_to(&[from], (host_address(to), port)).context("send")?;
            }
            thread::sleep(Duration::from_millis(10));
            for (to, receiver) in (0..).zip(&self.receivers) {
                let mut buffer = [0; 8];
                while let Ok((_, sender)) = receiver.recv_from(&mut buffer) {
                    let from = (0..HOSTS).find(|host| host_address(*host) == sender.ip());
                    came.extend(from.map(|from| (from, to)));
                }
            }
            if complete.is_none() && wanted.iter().all(|pair| came.contains(pair)) {
                complete = Some(Instant::now());
            }
        }
        Ok(came.into_iter().collect())
    }

    fn check(&self, what: &str, expected: &dyn Fn(u8, u8) -> bool) -> Result {
        let reached = self.reached(expected)?;
        let pairs = (0..HOSTS).flat_map(|from| (0..HOSTS).map(move |to| (from, to)));
        let right: Vec<_> = pairs.filter(|(from, to)| from != to && expected(*from, *to)).collect();
        ensure!(reached == right, "{what}: reached {reached:?}, not {right:?}");
        Ok(())
    }
}

/// Two sides, then one way only, then a host on its own; whole again after each, and after the owners are killed.
fn five_hosts() -> Result {
    let ring = Ring::new()?;
    ring.check("before", &|_, _| true)?;
    let net = |host: u8| format!("10.78.{host}.0/24");
    let side = |host: u8| host < 2;
    let cut = |host: u8, options: &str| {
        arm(&ring.hosts[usize::from(host)], &format!("net partition --dev {NEAR_DEVICE} {options}"))
    };
    let far_side = format!("--peer {} --peer {} --peer {}", net(2), net(3), net(4));
    let faults = [cut(0, &far_side)?, cut(1, &far_side)?];
    ring.check("two sides", &|from, to| side(from) == side(to))?;
    for fault in &faults {
        fault.end()?;
    }
    ring.check("after two sides", &|_, _| true)?;
    let fault = cut(3, &format!("--direction in --peer {}", net(4)))?;
    ring.check("one way", &|from, to| (from, to) != (4, 3))?;
    fault.end()?;
    let faults = [
        cut(0, "--peer 10.78.0.0/16 --except 10.78.4.1")?,
        cut(2, &format!("--peer {} --direction out", net(1)))?,
    ];
    let alone = |from: u8, to: u8| {
        let of_first = (from == 0 && to != 4) || (to == 0 && from != 4);
        !of_first && (from, to) != (2, 1)
    };
    ring.check("one on its own", &alone)?;
    for fault in &faults {
        fault.kill(Signal::SIGKILL)?;
    }
    ring.check("after SIGKILL", &|_, _| true)
}

fn refused() -> Result {
    let folder = std::env::temp_dir();
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(format!("fl-test-{name}-{}", std::process::id()));
        fs::write(&path, text).context(path.display())?;
        Ok(format!("@{}", path.display()))
    };
    let (bad, empty) = (file("bad", "10.0.0.1\n10.0.0.0/33\n")?, file("empty", "# nobody\n")?);
    let rows: &[(&[&str], i32, &[&str])] = &[
        (&["partition"], 2, &["--peer"]),
        (&["partition", "delay", "1ms", "--peer", "10.0.0.1"], 2, &["no other fault"]),
        (&["partition", "--peer", "10.0.0.0/33"], 2, &["--peer", "32 bits"]),
        (&["partition", "--peer", "no-such-host.invalid"], 3, &["--peer", "does not resolve"]),
        (&["partition", "--peer", &bad], 2, &["--peer", ":2:", "32 bits"]),
        (&["partition", "--peer", &empty], 3, &["has no address"]),
        (&["partition", "--peer", "@/no/such/file"], 2, &["/no/such/file"]),
        (&["partition", "--peer", "container:nobody"], 3, &["no such container"]),
        (&["partition", "--peer", "10.0.0.1", "--except", "10.0.0.0/8"], 2, &["10.0.0.1", "excluded"]),
        (&["partition", "--peer", "10.0.0.1", "--to", "10.0.0.2"], 2, &["--to", "--peer"]),
        (&["blackhole", "--exclude", "port:70000"], 2, &["--exclude", "65535"]),
        (&["blackhole", "--exclude", "proto:quic"], 2, &["--exclude", "quic"]),
    ];
    for (words, code, said) in rows {
        Faultline::check_refused(&[&["net"], *words, &["--dev", "lo"]].concat(), *code, said)?;
    }
    for path in [bad, empty] {
        fs::remove_file(path.trim_start_matches('@')).context(path)?;
    }
    Ok(())
}
