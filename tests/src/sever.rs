//! Connections that are refused, reset or go silent, for one service; whoever else talks to the same peer goes on.

use std::{
    env, fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        resource::Resource,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::{Faultline, limit_to},
    harness::{Need, Test, die_with_parent, patience, program},
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE, Netns},
    loss::Way,
    traffic::connection::Connection,
};

const BPF: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2];
const CONNECT: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::CgroupConnect];

const PID: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::CgroupSock];
const TRACED: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::CgroupSock, Need::Program("strace")];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("sever::refuse_one_cgroup", refuse).needs(CONNECT),
    Test::new("sever::refuse_spares", refuse_spares).needs(CONNECT),
    Test::new("sever::refuse_of_several", refuse_of_several).needs(CONNECT),
    Test::new("sever::reset_both_ends", reset).needs(BPF).timeout(60).waits(),
    Test::new("sever::reset_on_loopback", reset_on_loopback).needs(BPF),
    Test::new("sever::reset_looks_at_no_process", looks_at_no_process).needs(TRACED).timeout(90).waits(),
    Test::new("sever::reset_with_few_descriptors", few_descriptors).needs(PID).timeout(90).waits(),
    Test::new("sever::timeout_once_it_stands", timeout).needs(BPF).timeout(60).waits(),
    Test::new("sever::killed", killed).needs(CONNECT).once(),
    Test::new("sever::what_cannot_be", refused).needs(&[Need::Root, Need::Btf]),
];

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 7000;

/// A service: its cgroup with a process in it, the hosts, and a server that it talks to or is.
struct Service {
    lab: Lab,
    cgroup: Cgroup,
    listener: TcpListener,
    way: Way,
}

impl Service {
    /// In `near`, as a client of a server in `far`, or the other way round as that server.
    fn new(way: Way, family: Family) -> Result<Self> {
        let (lab, cgroup) = (Lab::new()?, Cgroup::new()?);
        let at = SocketAddr::new(way.route(&lab, family).target, PORT);
        let listen = || TcpListener::bind(at).context("listen");
        let listener = match way {
            Way::Out => lab.far.run(listen)?,
            Way::In => lab.near.run(|| cgroup.run(listen))?,
        };
        Ok(Self { lab, cgroup, listener, way })
    }

    fn client(&self) -> &Netns {
        match self.way {
            Way::Out => &self.lab.near,
            Way::In => &self.lab.far,
        }
    }

    /// Asks for a connection of the service.
    fn connect(&self, at: SocketAddr) -> Result<TcpStream> {
        self.client().run(|| match self.way {
            Way::Out => self.cgroup.run(|| Connection::connect(at)),
            Way::In => Connection::connect(at),
        })
    }

    fn connection(&self) -> Result<Connection> {
        Connection::open(&self.listener, |at| self.connect(at))
    }

    /// One between the same hosts that is not the service's.
    fn bystander(&self) -> Result<Connection> {
        let at = SocketAddr::new(self.listener.local_addr().context("getsockname")?.ip(), PORT + 1);
        let server = if self.way == Way::Out { &self.lab.far } else { &self.lab.near };
        let listener = server.run(|| TcpListener::bind(at).context("listen"))?;
        Connection::open(&listener, |at| self.client().run(|| Connection::connect(at)))
    }

    /// A process of the service that has this end of a connection open, and does nothing with it.
    fn holds(&self, end: &TcpStream) -> Result<crate::cgroup::Inhabitant> {
        let end: OwnedFd = end.try_clone().context("dup")?.into();
        // Its network is where the service is looked for.
        self.cgroup.inhabit_in(&self.lab.near, |command| {
            command.stdout(Stdio::from(end));
        })
    }

    fn arm(&self, fault: &str) -> Result<Faultline> {
        let path = self.cgroup.path().to_string_lossy();
        let words: Vec<&str> = fault.split(' ').chain(["--cgroup", &path]).collect();
        let fault = Faultline::start_in(&self.lab.near, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        Ok(fault)
    }
}

/// The errno of what did not succeed, and how long that took.
fn failure<T>(attempt: impl FnOnce() -> io::Result<T>) -> (Option<i32>, Duration) {
    let start = Instant::now();
    let errno = attempt().err().and_then(|error| error.raw_os_error());
    (errno, start.elapsed())
}

/// By each family, with the errno that is asked for: at once, open connections live, and others may connect.
fn refuse() -> Result {
    let before = Inventory::settled(&[])?;
    for (family, errno, word) in [
        (Family::V4, libc::ECONNREFUSED, "refuse"),
        (Family::V6, libc::ECONNREFUSED, "refuse"),
        (Family::V4, libc::EHOSTUNREACH, "refuse EHOSTUNREACH"),
    ] {
        let service = Service::new(Way::Out, family)?;
        let mut open = service.connection()?;
        let _process = service.holds(&open.client)?;
        let fault = service.arm(&format!("net {word}"))?;
        let at = service.listener.local_addr().context("getsockname")?;
        let near = &service.lab.near;
        let (found, took) = near.run(|| service.cgroup.run(|| Ok(failure(|| TcpStream::connect(at)))))?;
        println!("{family} {word}: errno {found:?} after {took:?}");
        ensure!(found == Some(errno), "{family} {word}: {found:?}");
        // No packet is waited for: a host that is not there would take a second at least.
        ensure!(took < Duration::from_millis(500), "{family} {word}: after {took:?}");
        ensure!(open.works()?, "{family}: the open connection is dead");
        ensure!(service.bystander()?.works()?, "{family}: the bystander's is dead");
        let exit = fault.end()?;
        ensure!(exit.fired()? == 1, "{family}: fired {}", exit.fired()?);
        ensure!(service.connection()?.works()?, "{family}: refused after");
    }
    before.wait_until_equal(&[], Duration::from_secs(5))
}

/// Another port, another host, the host itself, and a window: what is not asked for.
fn refuse_spares() -> Result {
    let service = Service::new(Way::Out, Family::V4)?;
    let open = service.connection()?;
    let _process = service.holds(&open.client)?;
    let near = &service.lab.near;
    let here = near.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen"))?;
    let here = here.local_addr().context("getsockname")?;
    let there = service.listener.local_addr().context("getsockname")?;
    let connects = |at: SocketAddr| {
        near.run(|| {
            service.cgroup.run(|| Ok(failure(|| TcpStream::connect(at)).0 != Some(libc::ECONNREFUSED)))
        })
    };
    for (options, passes, passes_here) in [
        ("", [false, false], true),
        ("--port 7001", [true, true], true),
        ("--peer 10.77.0.9", [true, true], true),
        ("--exclude port:7000", [true, true], true),
        ("--exclude 10.77.0.0/24", [true, true], true),
        ("--proto udp", [true, true], true),
        ("--include-protected", [false, false], false),
        ("--skip 1 --first 1", [true, false], true),
        ("--every 2", [true, false], true),
    ] {
        let fault = service.arm(format!("net refuse {options}").trim_end())?;
        let found = [connects(there)?, connects(there)?];
        let found_here = connects(here)?;
        let exit = fault.end()?;
        ensure!(found == passes && found_here == passes_here, "{options}: {found:?}, here {found_here}");
        let spared = exit.event("summary")?.json["spared"].as_u64().context("spared")?;
        let protected = options.is_empty();
        ensure!(!protected || spared == 1, "{options}: {spared} spared");
    }
    Ok(())
}

/// Of a cgroup, one below it and one that vanishes: each connection is counted once, and the fault goes on.
fn refuse_of_several() -> Result {
    let service = Service::new(Way::Out, Family::V4)?;
    let open = service.connection()?;
    let _process = service.holds(&open.client)?;
    let (below, other) = (service.cgroup.child("below")?, Cgroup::new()?);
    let near = &service.lab.near;
    let _inhabitant = below.inhabit_in(near, |_| {})?;
    let gone = other.inhabit_in(near, |_| {})?;
    let [below_path, other_path] = [&below, &other].map(|cgroup| cgroup.path().display().to_string());
    let fault = service.arm(&format!("net refuse --every 2 --cgroup {below_path} --cgroup {other_path}"))?;
    drop(gone);
    drop(other);
    let there = service.listener.local_addr().context("getsockname")?;
    let connect = |cgroup: &Cgroup| near.run(|| cgroup.run(|| Ok(TcpStream::connect(there).is_ok())));
    // Longer than it takes to notice.
    ensure!(fault.wait(Duration::from_secs(1)).is_err(), "it ended with one of its targets");
    let found = [connect(&below)?, connect(&below)?, connect(&service.cgroup)?, connect(&service.cgroup)?];
    let fired = fault.end()?.fired()?;
    ensure!(found == [true, false, true, false] && fired == 2, "{found:?}, {fired} fired");
    Ok(())
}

/// An end that is told so.
fn is_reset(end: &TcpStream, what: &str) -> Result {
    let heard = Connection::hears(end, PATIENCE)?;
    let errno = heard.as_ref().err().and_then(io::Error::raw_os_error);
    ensure!(errno == Some(libc::ECONNRESET), "{what}: {heard:?}");
    Ok(())
}

/// One on which nothing is said, one that speaks, and a new one; as client and as server.
fn reset() -> Result {
    for (way, family) in
        [(Way::Out, Family::V4), (Way::Out, Family::V6), (Way::In, Family::V4), (Way::In, Family::V6)]
    {
        let what = format!("{way:?} {family}");
        let service = Service::new(way, family)?;
        let mut speaking = service.connection()?;
        let silent = service.connection()?;
        let own = if way == Way::Out { &silent.client } else { &silent.server };
        let _process = service.holds(own)?;
        let mut bystander = service.bystander()?;
        ensure!(speaking.works()? && bystander.works()?, "{what}: before");
        let start = Instant::now();
        let fault = service.arm(&format!("net reset --dev {NEAR_DEVICE}"))?;
        is_reset(&silent.client, &format!("{what}: the silent client"))?;
        is_reset(&silent.server, &format!("{what}: the silent server"))?;
        println!("{what}: silent for good {:?} after it was asked for", start.elapsed());
        // The first word of either side is its last, unless it was found before it spoke.
        match speaking.works() {
            Ok(_) => is_reset(&speaking.client, &format!("{what}: the speaking client"))?,
            Err(told) => {
                ensure!(told.to_string().contains("reset"), "{what}: the speaking client: {told}");
            }
        }
        let at = service.listener.local_addr().context("getsockname")?;
        // The handshake's last packet is the first of a connection that stands, for the client at least.
        if let Ok(client) = service.connect(at) {
            is_reset(&client, &format!("{what}: a new client"))?;
        }
        ensure!(bystander.works()?, "{what}: the bystander is dead");
        let exit = fault.end()?;
        ensure!(exit.fired()? >= 3, "{what}: fired {}", exit.fired()?);
        drop(service.listener.set_nonblocking(true));
        while service.listener.accept().is_ok() {}
        drop(service.listener.set_nonblocking(false));
        ensure!(service.connection()?.works()?, "{what}: after");
    }
    Ok(())
}

/// While it renews its lease, whoever it is aimed at: how many processes the machine has, and files these, is no matter. What
/// was silent is reset all the same, and the bystander is not.
fn looks_at_no_process() -> Result {
    for aim in ["--cgroup", "--pid", ""] {
        let service = Service::new(Way::Out, Family::V4)?;
        let (silent, mut bystander) = (service.connection()?, service.bystander()?);
        let process = service.holds(&silent.client)?;
        let pid = process.pid().to_string();
        let path = service.cgroup.path().display().to_string();
        let whom: &[&str] = match aim {
            "--cgroup" => &["--cgroup", &path],
            "--pid" => &["--pid", &pid],
            _ => &["--port", "7000"],
        };
        let fault = Faultline::start_in(
            &service.lab.near,
            &[&["net", "reset", "--dev", NEAR_DEVICE], whom].concat(),
        )?;
        fault.wait_event("armed", PATIENCE)?;
        let calls = Traced::of(fault.pid())?;
        // Each is a renewal.
        for _ in 0..3 {
            fault.wait_event("progress", PATIENCE)?;
        }
        let calls = calls.end()?;
        let own = fault.pid().to_string();
        let is_another = |number: &str| {
            // That the target is still there is looked at, if it is a process.
            !number.is_empty() && number != own && !(aim == "--pid" && number == pid)
        };
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        let looks = |call: &&str| {
            let lists = call.contains("getdents64(") && call.contains("</proc>");
            lists || call.split("/proc/").skip(1).any(|rest| is_another(&digits(rest)))
        };
        let looked: Vec<_> = calls.lines().filter(looks).take(5).collect();
        ensure!(looked.is_empty(), "{aim}: {looked:?}");
        // strace, in another network namespace, knows no socket's protocol.
        let asks = ["nlmsg_type=SOCK_DIAG_BY_FAMILY", "nlmsg_type=0x14 "].iter().any(|it| calls.contains(it));
        ensure!(asks, "{aim}: it does not ask for connections, by {} calls", calls.lines().count());
        is_reset(&silent.client, &format!("{aim}: the client"))?;
        is_reset(&silent.server, &format!("{aim}: the server"))?;
        ensure!(bystander.works()?, "{aim}: the bystander is dead");
        fault.end()?;
    }
    Ok(())
}

/// More processes than it may have files open have the connection that is silent, the last of them as the first.
fn few_descriptors() -> Result {
    const FEW: u64 = 100;
    const OTHERS: usize = 150;
    for aim in ["--cgroup", "--pid"] {
        let service = Service::new(Way::Out, Family::V4)?;
        let (silent, mut bystander) = (service.connection()?, service.bystander()?);
        let end: OwnedFd = silent.client.try_clone().context("dup")?.into();
        let near = &service.lab.near;
        let crowd = near.run(|| {
            service.cgroup.crowd(OTHERS, |command| {
                command.stdout(Stdio::from(end));
            })
        })?;
        let (pid, path) = (crowd.pid().to_string(), service.cgroup.path().display().to_string());
        let whom = if aim == "--pid" { &pid } else { &path };
        let place = near.path().display().to_string();
        let words = ["net", "reset", "--dev", NEAR_DEVICE, aim, whom, "--netns", &place];
        let fault = Faultline::start_with(&words, |command| {
            limit_to(command, Resource::RLIMIT_NOFILE, FEW, Some(FEW));
        })?;
        fault.wait_event("armed", PATIENCE)?;
        is_reset(&silent.client, &format!("{aim}: the client"))?;
        is_reset(&silent.server, &format!("{aim}: the server"))?;
        ensure!(bystander.works()?, "{aim}: the bystander is dead");
        fault.end()?;
    }
    Ok(())
}

/// The calls of a process's threads by which it looks at others, as strace tells them, from now on.
struct Traced {
    strace: Child,
    lines: PathBuf,
}

impl Traced {
    fn of(pid: Pid) -> Result<Self> {
        let lines = env::temp_dir().join(format!("fl-sever-{pid}"));
        let mut strace = Command::new(program("strace").context("no program strace")?);
        strace.args([
            "-f",
            "-qq",
            "-y",
            "-e",
            "trace=?open,openat,?openat2,getdents64,readlink,?readlinkat,sendto",
        ]);
        strace.arg("-o").arg(&lines).args(["-p", &pid.to_string()]).stderr(Stdio::null());
        die_with_parent(&mut strace);
        let traced = Self { strace: strace.spawn().context("strace")?, lines };
        let deadline = Instant::now() + patience(PATIENCE);
        let tasks = format!("/proc/{pid}/task");
        let is_traced = |task: &Path| {
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        // All of its threads.
        while !fs::read_dir(&tasks).context(&tasks)?.flatten().all(|task| is_traced(&task.path())) {
            ensure!(Instant::now() < deadline, "strace does not trace it");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(traced)
    }

    /// What they were.
    fn end(mut self) -> Result<String> {
        let pid = Pid::from_raw(self.strace.id().cast_signed());
        kill(pid, Signal::SIGINT).context("kill strace")?;
        self.strace.wait().context("wait for strace")?;
        fs::read_to_string(&self.lines).context(self.lines.display())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
        let _ = fs::remove_file(&self.lines);
    }
}

fn reset_on_loopback() -> Result {
    let netns = Netns::new()?;
    for at in [IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)] {
        let listen = |port| netns.run(|| TcpListener::bind((at, port)).context("listen"));
        let (listener, other) = (listen(PORT)?, listen(PORT + 1)?);
        let open = |listener| Connection::open(listener, |at| netns.run(|| Connection::connect(at)));
        let (silent, mut bystander) = (open(&listener)?, open(&other)?);
        let words = ["net", "reset", "--dev", "lo", "--port", "7000"];
        let fault = Faultline::start_in(&netns, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        is_reset(&silent.client, &format!("{at}: the client"))?;
        is_reset(&silent.server, &format!("{at}: the server"))?;
        ensure!(bystander.works()?, "{at}: the bystander is dead");
        fault.end()?;
    }
    Ok(())
}

/// Nothing comes of a connection that stands, a new one stands all the same, and what waited comes afterwards.
fn timeout() -> Result {
    for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6)] {
        let what = format!("{way:?} {family}");
        let service = Service::new(way, family)?;
        let mut old = service.connection()?;
        let own = if way == Way::Out { &old.client } else { &old.server };
        let _process = service.holds(own)?;
        let mut bystander = service.bystander()?;
        let fault = service.arm(&format!("net timeout --dev {NEAR_DEVICE}"))?;
        ensure!(!old.works()?, "{what}: the old one works");
        let mut new = service.connection().context("a new one does not stand")?;
        ensure!(!new.works()?, "{what}: the new one works");
        for end in [&new.client, &old.client] {
            let heard = Connection::hears(end, Duration::from_millis(100))?;
            let silent = heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            ensure!(silent, "{what}: {heard:?}");
        }
        ensure!(bystander.works()?, "{what}: the bystander is dead");
        let exit = fault.end()?;
        ensure!(exit.fired()? >= 2, "{what}: fired {}", exit.fired()?);
        for connection in [&old, &new] {
            let heard = Connection::hears(&connection.server, PATIENCE)?;
            ensure!(matches!(heard, Ok(1)), "{what}: after it {heard:?}");
        }
    }
    Ok(())
}

/// An owner that is killed refuses and resets no more, and leaves nothing.
fn killed() -> Result {
    let before = Inventory::settled(&[])?;
    for (word, option) in [("refuse", ""), ("reset", " --dev near"), ("timeout", " --dev near")] {
        let service = Service::new(Way::Out, Family::V4)?;
        let open = service.connection()?;
        let _process = service.holds(&open.client)?;
        let fault = service.arm(&format!("net {word}{option}").replace("near", NEAR_DEVICE))?;
        fault.kill(Signal::SIGKILL)?;
        let deadline = Instant::now() + patience(PATIENCE);
        // A link goes when the kernel is done with its owner, which is not yet when the signal is sent.
        loop {
            let outcome = service.connection().and_then(|mut new| new.works());
            if matches!(outcome, Ok(true)) {
                break;
            }
            ensure!(Instant::now() < deadline, "{word}: {outcome:?} after SIGKILL");
        }
    }
    Faultline::run(&["sweep"])?;
    before.wait_until_equal(&[], Duration::from_secs(5))
}

fn refused() -> Result {
    let rows: &[(&[&str], i32, &[&str])] = &[
        (&["refuse", "--dev", "lo"], 2, &["refuse", "--cgroup"]),
        (&["refuse", "ENOSUCH", "--cgroup", "x"], 2, &["<ERRNO>", "ENOSUCH"]),
        (&["refuse", "--cgroup", "x", "--dev", "lo"], 2, &["--dev", "connect()"]),
        (&["refuse", "--cgroup", "x", "--direction", "in"], 2, &["--direction"]),
        (&["refuse", "--cgroup", "/no/such"], 3, &["no such cgroup"]),
        (&["reset", "--dev", "lo", "--proto", "udp"], 2, &["--proto", "TCP"]),
        (&["timeout", "loss", "1%", "--dev", "lo"], 2, &["no other fault"]),
    ];
    for (words, code, said) in rows {
        Faultline::check_refused(&[&["net"], *words].concat(), *code, said)?;
    }
    Ok(())
}
