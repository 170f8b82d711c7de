//! What every other test stands on: the lab carries packets, the traffic counts them right, nothing is lost
//! without a fault, and nothing stays.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::bpf_prog_type;
use chaos_user::kernel::sys::{Program, load};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, fork, pause},
};

use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{Need, Test},
    inventory::Inventory,
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE, Options, Verdict, attach_xdp, returning},
    traffic::{
        Bulk, Counters, Echo, Received, Requests, Udp,
        requests::{Exchange, Until},
    },
};

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("ground::udp_loses_nothing", udp_loses_nothing).timeout(60).slow(),
    Test::new("ground::udp_loses_nothing_under_native_xdp", udp_under_xdp)
        .needs(&[Need::Root, Need::XdpNative])
        .timeout(60)
        .slow(),
    Test::new("ground::udp_loss_is_seen", udp_loss_is_seen),
    Test::new("ground::paced_udp_keeps_time", paced_udp_keeps_time).slow(),
    Test::new("ground::echo_loses_nothing", echo_loses_nothing),
    Test::new("ground::echo_loss_is_seen_by_direction", echo_loss_is_seen_by_direction),
    Test::new("ground::requests_lose_nothing", requests_lose_nothing),
    Test::new("ground::bulk_carries", bulk_carries),
    Test::new("ground::wire_packets_are_wire_packets", wire_packets),
    Test::new("ground::other_processes_find_the_namespaces", other_processes),
    Test::new("ground::a_lab_dies_with_its_process", a_lab_dies_with_its_process),
    Test::new("ground::inventory_sees", inventory_sees),
    Test::new("ground::faultline_is_driven", faultline_is_driven).needs(&[Need::Root, Need::Btf]),
];

const PATIENCE: Duration = Duration::from_secs(30);
const MANY: u32 = 200_000;
/// A lab with all three hosts, so that it is used by one test at least.
fn lab() -> Result<Lab> {
    Lab::with(Options { wire_packets: true, side: true })
}

fn udp_loses_nothing() -> Result {
    let lab = lab()?;
    for family in Family::BOTH {
        for route in [lab.outward(family), lab.inward(family), lab.aside(family)?] {
            let record = Udp::open(route, 4000, 5000)?.burst(MANY / 4, PATIENCE)?;
            check_whole(&format!("UDP {family}"), record.sent, MANY / 4, &record.received[0])?;
        }
    }
    let record = Udp::open(lab.outward(Family::V4), 4000, 5000)?.burst(MANY, PATIENCE)?;
    check_whole("UDP", record.sent, MANY, &record.received[0])
}

/// With a program attached veth receives by NAPI from a ring of 256, and merges packets (GRO).
fn udp_under_xdp() -> Result {
    let lab = lab()?;
    let _far = attach_xdp(&lab.far, FAR_DEVICE, Verdict::Pass)?;
    let _near = attach_xdp(&lab.near, NEAR_DEVICE, Verdict::Pass)?;
    for family in Family::BOTH {
        let record = Udp::open(lab.outward(family), 4000, 5000)?.burst(MANY, PATIENCE)?;
        check_whole(&format!("UDP {family}"), record.sent, MANY, &record.received[0])?;
        let echo = Echo::open(lab.outward(family), 7)?.burst(MANY / 10, PATIENCE)?;
        check_whole(&format!("echo request {family}"), echo.sent, MANY / 10, &echo.requests)?;
        check_whole(&format!("echo reply {family}"), echo.sent, MANY / 10, &echo.replies)?;
    }
    Ok(())
}

fn check_whole(what: &str, sent: u64, asked: u32, received: &Received) -> Result {
    let Received { duplicates, reordered, foreign, .. } = received;
    ensure!(sent == u64::from(asked), "{what}: {sent} of {asked} sent");
    ensure!(received.lost() == 0, "{what}: lost {:?}", received.missing());
    ensure!(
        (*duplicates, *reordered, *foreign) == (0, 0, 0),
        "{what}: {duplicates} twice, {reordered} out of order, {foreign} not ours"
    );
    Ok(())
}

fn udp_loss_is_seen() -> Result {
    let lab = lab()?;
    let mut flow = Udp::open(lab.outward(Family::V4), 4000, 5000)?;
    let mut aside = Udp::open(lab.aside(Family::V4)?, 4001, 5001)?;
    let drop_all = attach_xdp(&lab.far, FAR_DEVICE, Verdict::Drop)?;
    let record = flow.burst(1000, PATIENCE)?;
    ensure!(record.received[0].lost() == 1000, "{} of 1000 lost", record.received[0].lost());
    let record = aside.burst(1000, PATIENCE)?;
    check_whole("bystander", record.sent, 1000, &record.received[0])?;
    drop(drop_all);
    let record = flow.burst(1000, PATIENCE)?;
    check_whole("afterwards", record.sent, 1000, &record.received[0])
}

fn paced_udp_keeps_time() -> Result {
    let lab = lab()?;
    let interval = Duration::from_millis(1);
    let record = Udp::open(lab.outward(Family::V4), 4000, 5000)?.paced(500, interval)?;
    check_whole("paced UDP", record.sent, 500, &record.received[0])?;
    // A busy machine wakes a sleeper late, but the next in time again: the rate holds, not each gap.
    let gaps: Vec<u64> = record.sent_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let took = gaps.iter().sum::<u64>();
    ensure!((490_000_000..600_000_000).contains(&took), "500 packets at 1 ms took {took} ns");
    Ok(())
}

fn echo_loses_nothing() -> Result {
    let lab = lab()?;
    for family in Family::BOTH {
        for route in [lab.outward(family), lab.inward(family), lab.aside(family)?] {
            let record = Echo::open(route, 7)?.burst(10_000, PATIENCE)?;
            check_whole(&format!("request {family}"), record.sent, 10_000, &record.requests)?;
            check_whole(&format!("reply {family}"), record.sent, 10_000, &record.replies)?;
        }
    }
    Ok(())
}

fn echo_loss_is_seen_by_direction() -> Result {
    let lab = lab()?;
    for family in Family::BOTH {
        let mut echo = Echo::open(lab.outward(family), 7)?;
        for (netns, device, requests, replies) in
            [(&lab.far, FAR_DEVICE, 500, 500), (&lab.near, NEAR_DEVICE, 0, 500)]
        {
            let _drop_all = attach_xdp(netns, device, Verdict::Drop)?;
            let record = echo.burst(500, PATIENCE)?;
            let lost = (record.requests.lost(), record.replies.lost());
            ensure!(lost == (requests, replies), "{family}, all dropped at {device}: lost {lost:?} of 500");
        }
    }
    Ok(())
}

fn requests_lose_nothing() -> Result {
    let lab = lab()?;
    for family in Family::BOTH {
        let mut requests = Requests::open(lab.outward(family), 6000, 32)?;
        let until = Until::Segments(20_000, PATIENCE);
        let exchange = requests.run(until)?;
        let Exchange { answered, forward, backward, retransmits, .. } = exchange;
        ensure!(answered >= 10_000, "{family}: {answered} answers to 20,000 segments");
        ensure!(forward.sent == forward.received, "{family}: {forward:?}");
        ensure!(backward.sent == backward.received, "{family}: {backward:?}");
        ensure!(retransmits == 0, "{family}: {retransmits} retransmits");

        let drop_all = attach_xdp(&lab.far, FAR_DEVICE, Verdict::Drop)?;
        let exchange = requests.run(Until::Elapsed(Duration::from_millis(700)))?;
        let Exchange { answered, forward, backward, .. } = exchange;
        // Each of the 32 sends its request, and again after 0.2 s and 0.4 s; what was on its way back still comes.
        ensure!(forward.received == 0 && forward.sent >= 64, "{family}: all dropped, {forward:?}");
        ensure!(backward.lost() == 0 && answered <= 32, "{family}: {answered} answers, {backward:?}");
        drop(drop_all);
        let exchange = requests.run(Until::Segments(5000, PATIENCE))?;
        ensure!(exchange.forward.lost() == 0, "{family}: afterwards {:?}", exchange.forward);
    }
    Ok(())
}

fn bulk_carries() -> Result {
    let lab = Lab::new()?;
    let bulk = Bulk { port: 7000, time: Duration::from_secs(1), congestion: "reno" };
    for family in Family::BOTH {
        let transfer = bulk.run(lab.outward(family))?;
        println!("{family}: {:.2} Gbit/s, {} retransmits", transfer.rate() / 1e9, transfer.retransmits);
        ensure!(transfer.rate() > 50e6, "{family}: {:.0} bit/s", transfer.rate());
        let counted = transfer.counters.get("TcpRetransSegs");
        // Where a CPU is late for a handshake or an end, its segment is sent again, which the connection's own count lacks: the
        // one by whoever listens, the other when it has been read.
        let own = transfer.retransmits as i64;
        ensure!(
            (own..=own + 2).contains(&counted),
            "{family}: {} retransmits by TCP_INFO, {counted} by the namespace",
            transfer.retransmits
        );
    }
    Ok(())
}

/// With `wire_packets` TCP builds no super-packets; the default lab shows that it otherwise would.
fn wire_packets() -> Result {
    let bulk = Bulk { port: 7000, time: Duration::from_millis(300), congestion: "reno" };
    let size = |lab: &Lab| {
        let before = Counters::read(&lab.near)?;
        let transfer = bulk.run(lab.outward(Family::V4))?;
        // `IpExtOutOctets` and `IpOutRequests` count super-packets as one.
        let grown = Counters::read(&lab.near)?.since(&before);
        ensure!(transfer.bytes > 0, "nothing was carried");
        Ok(grown.get("IpExtOutOctets") / grown.get("IpOutRequests").max(1))
    };
    let (wire, default) = (size(&lab()?)?, size(&Lab::new()?)?);
    println!("mean packet: {wire} bytes with wire_packets, {default} without");
    ensure!(wire <= 1500, "packets of {wire} bytes with wire_packets");
    ensure!(default > 3000, "packets of {default} bytes without: nothing is merged, so this shows nothing");
    Ok(())
}

/// What `faultline --netns PATH` does: a process that has nothing of ours but the path.
fn other_processes() -> Result {
    let lab = lab()?;
    let path = lab.far.path();
    let mut other = Command::new("/proc/self/exe");
    other.arg("--list").stdout(Stdio::null());
    let enter = move || {
        setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
        if_nametoindex(FAR_DEVICE)?;
        Ok(())
    };
    // SAFETY: this process has no other thread that could hold a lock across the fork.
    unsafe { other.pre_exec(enter) };
    let status = other.status().context("a process in the namespace of far")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// A namespace lasts as long as the last process that holds it, and SIGKILL ends that.
fn a_lab_dies_with_its_process() -> Result {
    let Lab { near, far, side: _ } = lab()?;
    // SAFETY: the child does nothing but wait for its end.
    let child = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => loop {
            pause();
        },
        ForkResult::Parent { child } => child,
    };
    drop(far);
    let device = || Ok::<_, Failure>(near.netlink()?.link_by_name(NEAR_DEVICE)?);
    let alive = device()?.is_some();
    kill(child, Signal::SIGKILL).context("kill")?;
    waitpid(child, None).context("waitpid")?;
    ensure!(alive, "{NEAR_DEVICE} went though another process held the peer's namespace");
    let deadline = Instant::now() + Duration::from_secs(5);
    while device()?.is_some() {
        ensure!(
            Instant::now() < deadline,
            "{NEAR_DEVICE} is still there 5 s after the last holder of its peer"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What is attached shows up, and is gone again; so does a file.
fn inventory_sees() -> Result {
    let lab = lab()?;
    let before = Inventory::take(&[&lab.near, &lab.far])?;
    ensure!(before.difference(&before.clone()).is_none(), "it differs from itself");
    let index = lab.near.index(NEAR_DEVICE)?;
    lab.near.netlink()?.add_clsact(index)?;
    lab.far.netlink()?.set_gso_max_segs(lab.far.index(FAR_DEVICE)?, 9)?;
    let program = load_named("fl_inventory")?;
    let after = Inventory::take(&[&lab.near, &lab.far])?;
    let difference = before.difference(&after).context("nothing was seen")?.to_string();
    for expected in [
        "+ qdisc clsact ffff0000 at fffffff1 on to-far of namespace 0",
        "- interface to-near of namespace 1: up, gso_max_segs 1",
        "+ interface to-near of namespace 1: up, gso_max_segs 9",
        "fl_inventory",
    ] {
        ensure!(difference.contains(expected), "no {expected:?} in\n{difference}");
    }
    let still = before.wait_until_equal(&[&lab.near, &lab.far], Duration::from_millis(20));
    ensure!(still.is_err(), "it was taken for equal");
    drop(program);
    lab.near.netlink()?.delete_clsact(index)?;
    lab.far.netlink()?.set_gso_max_segs(lab.far.index(FAR_DEVICE)?, 1)?;
    before.wait_until_equal(&[&lab.near, &lab.far], Duration::from_secs(5))
}

fn load_named(name: &str) -> Result<OwnedFd> {
    Ok(load(&Program {
        name,
        kind: bpf_prog_type::BPF_PROG_TYPE_XDP,
        attach: None,
        attach_btf_id: 0,
        functions: None,
        flags: 0,
        instructions: &returning(2),
    })?)
}

/// From start to end as every test of a fault goes: before, armed, during, ended, after.
fn faultline_is_driven() -> Result {
    let lab = lab()?;
    let mut flow = Udp::open(lab.outward(Family::V4), 4000, 5000)?;
    let namespaces = [&lab.near, &lab.far];
    let before = Inventory::take(&namespaces)?;
    check_whole("before", 1000, 1000, &flow.burst(1000, PATIENCE)?.received[0])?;

    let arguments = ["net", "loss", "100%", "--dev", NEAR_DEVICE, "--port", "5000", "--and", "loss", "1%"];
    let faultline = Faultline::start_in(&lab.near, &arguments)?;
    let armed = faultline.wait_event("armed", PATIENCE)?;
    ensure!(armed.number("/at_ns")? <= armed.read_at, "armed later than it was said: {armed:?}");
    ensure!(
        before.difference(&Inventory::take(&namespaces)?).is_some(),
        "the inventory does not show the fault"
    );
    let during = flow.burst(1000, PATIENCE)?;
    let exit = faultline.interrupt()?;
    let after = flow.burst(1000, PATIENCE)?;

    let got: Vec<_> = during.received[0].seen.iter().zip(0..).filter(|(seen, _)| **seen).collect();
    ensure!(got.is_empty(), "{} of 1000 got through, from {:?} to {:?}", got.len(), got.first(), got.last());
    ensure!(exit.code == Some(130), "{exit:?}");
    let rules = exit.event("summary")?.rules()?;
    ensure!(rules.len() == 2 && rules[0].fired.packets == 1000, "{rules:?}");
    check_whole("after", 1000, 1000, &after.received[0])?;
    before.wait_until_equal(&namespaces, Duration::from_secs(5))
}
