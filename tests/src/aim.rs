//! Faults that are aimed at one service: it is hit, and whoever else uses the same interface and peer is not.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Stdio,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{
    cgroup::{Cgroup, Inhabitant},
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, is_emulated, program, rounds},
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE, Netns, Options},
    loss::Way,
    stats::acceptance,
    traffic::probe::{Pace, Probe},
};

const BPF: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2];
const CONTAINER: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::CgroupV2,
    Need::UnifiedCgroups,
    Need::Program("runc"),
    Need::Program("busybox"),
];
const FQ: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::SchFq];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("aim::loss_hits_one_cgroup", loss).needs(BPF).timeout(90).waits(),
    Test::new("aim::delay_hits_one_cgroup", delay).needs(FQ).timeout(90),
    Test::new("aim::rate_hits_one_cgroup", rate).needs(FQ).timeout(60),
    Test::new("aim::everything_at_once", everything).needs(FQ).timeout(60),
    Test::new("aim::tcp_of_one_cgroup", tcp).needs(BPF).waits(),
    Test::new("aim::cgroups_below_and_processes_that_join", below).needs(BPF),
    Test::new("aim::partition_of_one_cgroup", partition).needs(BPF).waits(),
    Test::new("aim::a_container_of_runc", container).needs(CONTAINER).timeout(60),
    Test::new("aim::the_targets_own_network", own_network).needs(BPF).waits(),
    Test::new("aim::a_plan_touches_nothing", plan).needs(BPF),
    Test::new("aim::a_target_that_vanishes", vanishes).needs(BPF),
    Test::new("aim::what_is_no_target", refused).needs(BPF),
];

const PATIENCE: Duration = Duration::from_secs(30);
/// The same peer for the target and the bystander.
const PORT: u16 = 5000;
/// What a fault aimed at somebody else may add to a packet's way.
const UNTOUCHED_NS: i64 = 100_000;

/// A lab with a cgroup that somebody is in.
struct Scene {
    lab: Lab,
    cgroup: Cgroup,
    _inhabitant: Inhabitant,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::with(Options { wire_packets: true, side: false })?;
        let cgroup = Cgroup::new()?;
        let inhabitant = cgroup.inhabit(|_| {})?;
        Ok(Self { lab, cgroup, _inhabitant: inhabitant })
    }

    /// Arms a fault on `near`'s interface, aimed at the cgroup.
    fn arm(&self, fault: &str) -> Result<Faultline> {
        let words = format!("net {fault} --dev {NEAR_DEVICE} --seed 1 --cgroup");
        let path = self.cgroup.path().to_string_lossy();
        let words: Vec<&str> = words.split(' ').chain([&*path]).collect();
        let fault = Faultline::start_in(&self.lab.near, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        Ok(fault)
    }

    /// Two flows between the same hosts, over the same wire: that of the cgroup and that of somebody else.
    fn flows(&self, way: Way, family: Family) -> Result<Flows> {
        let bystander = Probe::open(way.route(&self.lab, family), 4001, PORT + 1)?;
        Ok(Flows { target: self.target(way, family)?, bystander })
    }

    /// That of the cgroup alone.
    fn target(&self, way: Way, family: Family) -> Result<Probe> {
        self.cgroup.run(|| Probe::open(way.route(&self.lab, family), 4000, PORT))
    }
}

struct Flows {
    target: Probe,
    bystander: Probe,
}

/// Ways and families; under emulation each once.
fn combinations() -> impl Iterator<Item = (Way, Family)> {
    let all = Way::BOTH.into_iter().flat_map(|way| Family::BOTH.map(|family| (way, family)));
    all.step_by(if is_emulated() { 3 } else { 1 })
}

fn pace(count: u32) -> Pace {
    Pace { count, interval: Duration::from_millis(1), size: 64, linger: Duration::from_millis(300) }
}

/// How many came.
fn came(probe: &Probe, count: u32) -> Result<u64> {
    Ok(probe.run(pace(count))?.0.len() as u64)
}

/// The median delay in nanoseconds, of packets that all came.
fn median(what: &str, probe: &Probe, count: u32) -> Result<i64> {
    let (arrivals, sent) = probe.run(pace(count))?;
    ensure!(arrivals.len() as u32 == sent, "{what}: {} of {sent} came", arrivals.len());
    let mut delays: Vec<i64> = arrivals.iter().map(|arrival| arrival.delay).collect();
    delays.sort_unstable();
    Ok(delays.get(delays.len() / 2).copied().unwrap_or(i64::MAX))
}

fn loss() -> Result {
    let scene = Scene::new()?;
    let count = rounds(500);
    for (way, family) in combinations() {
        let what = format!("{} {family}", way.name());
        // A socket from before, and one that is made while the fault is there.
        let early = scene.flows(way, family)?;
        ensure!(came(&early.target, count)? == u64::from(count), "{what}: lost before");
        let fault = scene.arm(&format!("loss 30% --direction {}", way.name()))?;
        let expected = acceptance(count.into(), 0.7);
        let hit = came(&early.target, count)?;
        ensure!(expected.contains(&hit), "{what}: {hit} of {count} came");
        drop(early.target);
        let late = scene.target(way, family)?;
        let hit = came(&late, count)?;
        ensure!(expected.contains(&hit), "{what}, a later socket: {hit} of {count} came");
        ensure!(came(&early.bystander, count)? == u64::from(count), "{what}: the bystander lost");
        let exit = fault.end()?;
        let rules = exit.event("summary")?.rules()?;
        let rule = rules.first().context("no rule")?;
        ensure!(rule.matched.packets == u64::from(2 * count), "{what}: matched {}", rule.matched.packets);
        ensure!(rule.seen.packets >= u64::from(3 * count), "{what}: seen {}", rule.seen.packets);
        ensure!(came(&late, count)? == u64::from(count), "{what}: lost after");
    }
    Ok(())
}

fn delay() -> Result {
    const ASKED: i64 = 40_000_000;
    let scene = Scene::new()?;
    let count = rounds(250);
    for (way, family) in combinations() {
        let what = |when: &str| format!("{when}, {} {family}", way.name());
        let flows = scene.flows(way, family)?;
        let before = median(&what("before"), &flows.bystander, count)?;
        let fault = scene.arm(&format!("delay 40ms --direction {}", way.name()))?;
        let hit = median(&what("target"), &flows.target, count)?;
        let beside = median(&what("bystander"), &flows.bystander, count)?;
        fault.end()?;
        ensure!((ASKED - 1_000_000..ASKED + 25_000_000).contains(&hit), "{}: {hit} ns", what("target"));
        ensure!(beside - before < UNTOUCHED_NS, "{}: {before} ns before, {beside} now", what("bystander"));
        ensure!(median(&what("after"), &flows.target, count)? < ASKED / 2, "slow after");
    }
    Ok(())
}

/// Twice as much as the wire takes is offered by each.
fn rate() -> Result {
    let scene = Scene::new()?;
    // 1000 bytes each 2 ms and a frame's header are 4.2 mbit/s.
    let pace = Pace {
        count: 250,
        interval: Duration::from_millis(2),
        size: 1000,
        linger: Duration::from_millis(500),
    };
    for way in Way::BOTH {
        let flows = scene.flows(way, Family::V4)?;
        let fault = scene.arm(&format!("rate 2mbit limit 10 --direction {}", way.name()))?;
        let (slow, sent) = flows.target.run(pace)?;
        let (free, _) = flows.bystander.run(pace)?;
        fault.end()?;
        let (slow, free) = (slow.len() as u32, free.len() as u32);
        ensure!(free == sent, "{}: {free} of {sent} of the bystander came", way.name());
        // Of 0.5 s at 2 mbit/s 120 packets come, those in the queue, and some more if the machine is late.
        ensure!((110..180).contains(&slow), "{}: {slow} of {sent} came", way.name());
    }
    Ok(())
}

/// All faults of one cgroup, both ways: the largest programs there are. They load, and nobody else notices.
fn everything() -> Result {
    let scene = Scene::new()?;
    let flows = scene.flows(Way::Out, Family::V6)?;
    let count = rounds(250);
    let before = median("before", &flows.bystander, count)?;
    let fault = scene.arm(
        "loss 5% 25% duplicate 5% corrupt 5% reorder 5% delay 20ms 2ms distribution normal rate 100mbit --direction both",
    )?;
    let hit = flows.target.run(pace(count))?.0;
    let beside = median("bystander", &flows.bystander, count)?;
    fault.end()?;
    let late = hit.iter().filter(|arrival| arrival.delay > 15_000_000).count();
    ensure!(late * 3 > count as usize, "{late} of {count} came late");
    ensure!(beside - before < UNTOUCHED_NS, "bystander: {before} ns before, {beside} now");
    Ok(())
}

/// Both ends of connections: who connects, and who is connected to by a socket that nobody has accepted yet.
fn tcp() -> Result {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    for family in Family::BOTH {
        let route = lab.inward(family);
        let listen = |port| lab.near.run(|| TcpListener::bind((route.target, port)).context("listen"));
        let (target, bystander) = (scene.cgroup.run(|| listen(6000))?, listen(6001)?);
        let connect = |port| {
            let address = (route.target, port).into();
            let wait = Duration::from_millis(if is_emulated() { 900 } else { 400 });
            lab.far.run(|| Ok(TcpStream::connect_timeout(&address, wait).is_ok()))
        };
        ensure!(connect(6000)? && connect(6001)?, "{family}: no connection before");
        for direction in ["in", "out"] {
            let fault = scene.arm(&format!("loss 100% --direction {direction}"))?;
            let [hit, beside] = [connect(6000)?, connect(6001)?];
            fault.end()?;
            ensure!(!hit && beside, "{family} {direction}: connected {hit}, the bystander {beside}");
        }
        ensure!(connect(6000)?, "{family}: no connection after");
        drop((target, bystander));
    }
    Ok(())
}

/// A target covers what is below it, and not what is beside it; whoever joins is hit from its next socket on.
fn below() -> Result {
    let scene = Scene::new()?;
    let child = scene.cgroup.child("below")?;
    let sibling = Cgroup::new()?;
    let fault = scene.arm("loss 100%")?;
    let route = scene.lab.outward(Family::V4);
    let open = |port| Probe::open(route, port, port + 1000);
    let (inside, beside, outside) = (child.run(|| open(4000))?, sibling.run(|| open(4001))?, open(4002)?);
    let joined = scene.cgroup.run(|| open(4003))?;
    let counts = [came(&inside, 20)?, came(&joined, 20)?, came(&beside, 20)?, came(&outside, 20)?];
    fault.end()?;
    ensure!(counts == [0, 0, 20, 20], "below, joined, beside, outside: {counts:?} of 20 came");
    ensure!(came(&inside, 20)? == 20, "lost after");
    Ok(())
}

/// Both ways, and the peer is reached by everybody else.
fn partition() -> Result {
    let scene = Scene::new()?;
    for (way, family) in combinations() {
        let flows = scene.flows(way, family)?;
        let fault = scene.arm(&format!("partition --peer {}", scene.lab.outward(family).target))?;
        let counts = [came(&flows.target, 20)?, came(&flows.bystander, 20)?];
        fault.end()?;
        ensure!(counts == [0, 20], "{} {family}: {counts:?} of 20 came", way.name());
        ensure!(came(&flows.target, 20)? == 20, "{} {family}: cut off after", way.name());
    }
    Ok(())
}

/// Two containers in one network, as of a pod: the one aimed at is hit.
fn container() -> Result {
    let lab = Lab::new()?;
    let names = ["target", "bystander"].map(|name| format!("fl-test-{name}-{}", std::process::id()));
    let containers: Vec<_> =
        names.iter().map(|name| Container::start(name, &lab.near)).collect::<Result<_>>()?;
    let sends = |container: &Container| container.pings(lab.outward(Family::V4).target);
    ensure!(sends(&containers[0])? && sends(&containers[1])?, "no answer before");
    let fault = Faultline::start(&["net", "loss", "100%", "--container", &names[0]])?;
    fault.wait_event("armed", PATIENCE)?;
    let answered = [sends(&containers[0])?, sends(&containers[1])?];
    fault.end()?;
    ensure!(answered == [false, true], "answered: {answered:?}");
    ensure!(sends(&containers[0])?, "no answer after");
    Ok(())
}

/// A container with nothing in it but busybox.
struct Container {
    name: String,
    bundle: std::path::PathBuf,
}

impl Container {
    fn start(name: &str, netns: &Netns) -> Result<Self> {
        let bundle = std::env::temp_dir().join(name);
        let bin = bundle.join("rootfs/bin");
        std::fs::create_dir_all(&bin).context(bin.display())?;
        let busybox = program("busybox").context("no program busybox")?;
        std::fs::copy(&busybox, bin.join("busybox")).context(busybox.display())?;
        let container = Self { name: name.into(), bundle };
        let capabilities = ["CAP_NET_RAW"];
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/",
                "args": ["/bin/busybox", "sleep", "1000"],
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            },
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                { "type": "network", "path": netns.path() },
            ] },
        });
        let file = container.bundle.join("config.json");
        std::fs::create_dir_all(container.bundle.join("rootfs/proc")).context("rootfs/proc")?;
        std::fs::write(&file, config.to_string()).context(file.display())?;
        let bundle = container.bundle.to_string_lossy().into_owned();
        container.runc(&["run", "--detach", "--bundle", &bundle, name])?;
        Ok(container)
    }

    fn runc(&self, arguments: &[&str]) -> Result<bool> {
        let mut runc = std::process::Command::new(program("runc").context("no program runc")?);
        let null = Stdio::null;
        // Its container keeps what it is given: nothing that anybody waits for the end of.
        let log = self.bundle.join("log").to_string_lossy().into_owned();
        runc.args(["--log", &log]).args(arguments).stdin(null()).stdout(null()).stderr(null());
        let status = runc.status().context("runc")?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success() || arguments[0] == "exec", "runc {arguments:?}: {status}: {said}");
        Ok(status.success())
    }

    /// Whether an echo request of the container's is answered.
    fn pings(&self, to: std::net::IpAddr) -> Result<bool> {
        let to = to.to_string();
        self.runc(&["exec", &self.name, "/bin/busybox", "ping", "-c", "1", "-W", "1", &to])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.name]);
        let _ = std::fs::remove_dir_all(&self.bundle);
    }
}

/// Neither `--netns` nor `--dev`: they are the target's. Then a container by the name of its cgroup.
fn own_network() -> Result {
    let lab = Lab::new()?;
    let id = format!("{:064x}", 0xfa17_0000_0000_u64 | u64::from(std::process::id()));
    let cgroup = Cgroup::named(&format!("docker-{id}.scope"))?;
    let inhabitant = cgroup.inhabit(|command| lab.near.home_of(command))?;
    let route = lab.outward(Family::V4);
    let open = |port| Probe::open(route, port, port + 1000);
    let (target, bystander) = (cgroup.run(|| open(4000))?, open(4001)?);
    let path = cgroup.path().to_string_lossy().into_owned();
    for aim in [["--cgroup", &path], ["--container", &id], ["--container", &id[..63]]] {
        let fault = Faultline::start(&[&["net", "loss", "100%"][..], &aim].concat())?;
        fault.wait_event("armed", PATIENCE)?;
        let counts = [came(&target, 20)?, came(&bystander, 20)?];
        fault.end()?;
        ensure!(counts == [0, 20], "{aim:?}: {counts:?} of 20 came");
    }
    ensure!(came(&target, 20)? == 20, "lost after");
    drop(inhabitant);
    Ok(())
}

/// It says who would be hit, of what they have open, and by what; nothing of the kernel's or of ours changes.
fn plan() -> Result {
    let scene = Scene::new()?;
    let route = scene.lab.outward(Family::V4);
    let connected = |port: u16| {
        let socket = UdpSocket::bind((route.source, port)).context("bind")?;
        socket.connect((route.target, PORT)).context("connect")?;
        Ok(socket)
    };
    let [target, _bystander] = [4000, 4001].map(|port| scene.lab.near.run(|| connected(port)));
    // Somebody in the cgroup who reads from it, and nothing comes.
    let reader = scene.cgroup.inhabit(|command| {
        command.stdin(target.map_or_else(|_| Stdio::null(), |socket| OwnedFd::from(socket).into()));
    })?;
    let before = Inventory::settled(&[&scene.lab.near])?;
    let (path, netns) = (scene.cgroup.path().to_string_lossy(), scene.lab.near.path());
    let netns = netns.to_string_lossy();
    let words = [
        "net",
        "loss",
        "30%",
        "--plan",
        "--exact",
        "--dev",
        NEAR_DEVICE,
        "--netns",
        &netns,
        "--cgroup",
        &path,
    ];
    for (more, flows, spared) in [
        (&["--port", "5000"][..], 1, false),
        (&["--port", "5001"], 0, false),
        (&["--peer", "10.77.0.0/24", "--except", "port:4000"], 1, true),
    ] {
        let exit = Faultline::run(&[&words[..], &["--json"], more].concat())?;
        ensure!(exit.code == Some(0), "{more:?}: {:?} {}", exit.code, exit.stderr);
        let plan = &exit.event("plan")?.json;
        let found = plan["flows"].as_array().context("flows")?;
        ensure!(found.len() == flows, "{more:?}: {plan}");
        for flow in found {
            ensure!(
                flow["remote"] == format!("{}:{PORT}", route.target) && flow["spared"] == spared,
                "{plan}"
            );
            ensure!(flow["process"]["name"] == "cat" && flow["rules"][0] == 0, "{plan}");
        }
        let processes = plan["targets"][0]["processes"].as_array().context("processes")?;
        ensure!(processes.len() == 2 && plan["hooks"][0]["mechanisms"][0].is_string(), "{plan}");
        ensure!(plan["journalled"].to_string().contains("offloads"), "{plan}");
    }
    let said = Faultline::run(&words)?.stdout;
    ensure!(said.contains("nothing is touched") && said.contains("cat ("), "{said}");
    drop(reader);
    before.wait_until_equal(&[&scene.lab.near], Duration::from_secs(5))
}

/// Its end is the fault's.
fn vanishes() -> Result {
    let Scene { lab, cgroup, _inhabitant: inhabitant } = Scene::new()?;
    let path = cgroup.path().to_string_lossy().into_owned();
    let fault =
        Faultline::start_in(&lab.near, &["net", "loss", "1%", "--dev", NEAR_DEVICE, "--cgroup", &path])?;
    fault.wait_event("armed", PATIENCE)?;
    drop(inhabitant);
    drop(cgroup);
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(4), "exit {:?}: {}", exit.code, exit.stderr);
    ensure!(exit.event("summary")?.json.to_string().contains("gone"), "{:?}", exit.events);
    Ok(())
}

fn refused() -> Result {
    let before = Inventory::settled(&[])?;
    let empty = Cgroup::new()?;
    let ids = ["aa00", "aa11"].map(|start| format!("{start}{:060x}", std::process::id()));
    let twins = [
        Cgroup::named(&format!("docker-{}.scope", ids[0]))?,
        Cgroup::named(&format!("crio-{}.scope", ids[1]))?,
    ];
    let inhabitants: Vec<_> = twins.iter().map(|twin| twin.inhabit(|_| {})).collect::<Result<_>>()?;
    let path = empty.path().to_string_lossy().into_owned();
    let rows: &[(&[&str], i32, &[&str])] = &[
        (&["--cgroup", "/no/such"], 3, &["--cgroup /no/such", "no such cgroup"]),
        (&["--cgroup", "../../etc"], 3, &["--cgroup", "no such cgroup"]),
        (&["--cgroup", &path], 3, &["--cgroup", "empty target"]),
        (&["--cgroup", ""], 2, &["--cgroup"]),
        (&["--unit", "no-such"], 3, &["--unit no-such", "no such unit"]),
        (&["--container", "deadbeef"], 3, &["--container deadbeef", "no such container"]),
        (&["--container", "aa0"], 3, &["no such container"]),
        (&["--container", &ids[0][..5], "--cgroup", "/no"], 3, &["no such cgroup"]),
    ];
    for (words, code, said) in rows {
        let words = [&["net", "loss", "1%", "--dev", "lo"], *words].concat();
        Faultline::check_refused(&words, *code, said)?;
    }
    // As where there is cgroup v1 alone.
    let root = crate::cgroup::root()?;
    let exit = Faultline::run_with(&["net", "loss", "1%", "--dev", "lo", "--cgroup", "any"], |command| {
        let without = move || {
            const NOTHING: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
            Ok(umount2(&root, MntFlags::MNT_DETACH)?)
        };
        // SAFETY: system calls alone, between fork and exec.
        unsafe { command.pre_exec(without) };
    })?;
    let told = exit.stderr.contains("no cgroup2 file system") && exit.stderr.contains("mount -t cgroup2");
    ensure!(exit.code == Some(3) && told, "{:?} {}", exit.code, exit.stderr);
    // Four digits are enough to be looked for, and here not enough to be found.
    let same = Cgroup::named(&format!("libpod-aa11{:060x}.scope", u64::from(std::process::id()) + 1))?;
    let exit = Faultline::run(&["net", "loss", "1%", "--dev", "lo", "--container", "aa11"])?;
    ensure!(exit.code == Some(3) && exit.stderr.contains("ambiguous"), "{:?} {}", exit.code, exit.stderr);
    drop((same, inhabitants, twins, empty));
    before.wait_until_equal(&[], Duration::from_secs(2))
}
