//! Faults that are aimed at one process: its sockets are hit, and those of whoever shares its cgroup, its interface and
//! its peer are not.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    cgroup::{Cgroup, Inhabitant},
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{Need, Test, numbered, program},
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE},
    traffic::connection::Connection,
};

const PID: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::CgroupSock];
const REDIS: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::CgroupV2,
    Need::CgroupSock,
    Need::CgroupConnect,
    Need::Program("sh"),
    Need::Program("redis-cli"),
];

const NUMBERS: &[Need] =
    &[REDIS[0], REDIS[1], REDIS[2], REDIS[3], REDIS[4], REDIS[5], REDIS[6], Need::Numbers];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("by_process::sockets_it_has", sockets_it_has).needs(PID).timeout(90).waits(),
    Test::new("by_process::whom_it_begins", whom_it_begins).needs(REDIS),
    Test::new("by_process::a_number_that_is_given_again", given_again).needs(NUMBERS),
    Test::new("by_process::what_is_none", refused).needs(PID),
];

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 7000;

/// A process that has a connection to the other host, and waits for one from there.
struct Service {
    process: Inhabitant,
    connection: Connection,
    waits: TcpListener,
}

impl Service {
    fn new(lab: &Lab, cgroup: &Cgroup, family: Family, port: u16) -> Result<Self> {
        let listen = |at| TcpListener::bind((at, port)).context("listen");
        let waits = lab.near.run(|| listen(lab.inward(family).target))?;
        let server = lab.far.run(|| listen(lab.outward(family).target))?;
        let connection = Connection::open(&server, |at| lab.near.run(|| Connection::connect(at)))?;
        let [out, error]: [OwnedFd; 2] =
            [connection.client.try_clone().context("dup")?.into(), waits.try_clone().context("dup")?.into()];
        let process = cgroup.inhabit_in(&lab.near, |command| {
            command.stdout(Stdio::from(out)).stderr(Stdio::from(error));
        })?;
        Ok(Self { process, connection, waits })
    }

    /// Whether the connection works, and one is made that the process waits for, and works.
    fn works(&mut self, lab: &Lab) -> Result<[bool; 2]> {
        let connect = |at: SocketAddr| {
            lab.far.run(|| TcpStream::connect_timeout(&at, Duration::from_millis(300)).context("connect"))
        };
        let accepted = Connection::open(&self.waits, connect).and_then(|mut accepted| accepted.works());
        Ok([self.connection.works()?, accepted.unwrap_or(false)])
    }
}

/// What a process has when the fault begins, and what is accepted of it: both ways, and by either family.
fn sockets_it_has() -> Result {
    let before = Inventory::settled(&[])?;
    for family in Family::BOTH {
        let (lab, cgroup) = (Lab::new()?, Cgroup::new()?);
        let mut target = Service::new(&lab, &cgroup, family, PORT)?;
        let mut bystander = Service::new(&lab, &cgroup, family, PORT + 1)?;
        ensure!(target.works(&lab)? == [true; 2] && bystander.works(&lab)? == [true; 2], "{family}: before");
        for direction in ["both", "in", "out"] {
            let pid = target.process.pid().to_string();
            let words = ["net", "blackhole", "--direction", direction, "--dev", NEAR_DEVICE, "--pid", &pid];
            let fault = Faultline::start_in(&lab.near, &words)?;
            fault.wait_event("armed", PATIENCE)?;
            let (hit, beside) = (target.works(&lab)?, bystander.works(&lab)?);
            let exit = fault.interrupt()?;
            // What is sent is heard where only what comes back is lost; a connection is not made by half.
            ensure!(hit == [direction == "in", false], "{family} {direction}: {hit:?}");
            ensure!(beside == [true; 2], "{family} {direction}: the bystander {beside:?}");
            ensure!(exit.code == Some(130), "{family} {direction}: {:?} {}", exit.code, exit.stderr);
            // It comes after all, sent again by TCP.
            if direction != "in" {
                let heard = Connection::hears(&target.connection.server, PATIENCE)?;
                ensure!(matches!(heard, Ok(1)), "{family} {direction}: after it {heard:?}");
            }
            ensure!(target.works(&lab)? == [true; 2], "{family} {direction}: not after it");
        }
        let pid = target.process.pid().to_string();
        let words = ["net", "loss", "1%", "--dev", NEAR_DEVICE, "--pid", &pid];
        let fault = Faultline::start_in(&lab.near, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        drop(target);
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(4), "{family}: its end: {:?} {}", exit.code, exit.stderr);
    }
    before.wait_until_equal(&[], Duration::from_secs(5))
}

/// A shell that goes to another cgroup and begins a client there when it is told to.
struct Shell(Child);

impl Shell {
    fn new(lab: &Lab, [cgroup, other]: [&Cgroup; 2], server: SocketAddr) -> Result<Self> {
        let mut shell = Command::new(program("sh").context("no program sh")?);
        let client = program("redis-cli").context("no program redis-cli")?;
        let (client, at, port) = (client.display(), server.ip(), server.port());
        let moves = format!("echo 0 > {}/cgroup.procs", other.path().display());
        shell.args(["-c", &format!("read go; {moves}; {client} -h {at} -p {port} ping 2>&1; true")]);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        lab.near.home_of(&mut shell);
        cgroup.run(|| Ok(Self(shell.spawn().context("sh")?)))
    }

    /// What the client says.
    fn go(mut self) -> Result<String> {
        self.0.stdin.take().context("stdin")?.write_all(b"go\n").context("write")?;
        let mut said = String::new();
        self.0.stdout.take().context("stdout")?.read_to_string(&mut said).context("read")?;
        Ok(said)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What becomes of a client's connection, and what the client then says.
const FAULTS: &[(&[&str], &str)] =
    &[(&["refuse"], "Connection refused"), (&["reset", "--dev", NEAR_DEVICE], "reset by peer")];

/// One on the other host, and where it is.
fn server(lab: &Lab) -> Result<(TcpListener, SocketAddr)> {
    let at = lab.outward(Family::V4).target;
    let server = lab.far.run(|| TcpListener::bind((at, PORT)).context("listen"))?;
    let at = server.local_addr().context("getsockname")?;
    Ok((server, at))
}

/// What one says whom a server answers.
fn answered(server: &TcpListener, shell: Shell) -> Result<String> {
    let answers = std::thread::spawn({
        let server = server.try_clone().context("dup")?;
        // Those of the target, if they ever stood, end before they say anything.
        move || loop {
            let (mut client, _) = server.accept()?;
            if client.read(&mut [0; 64]).is_ok_and(|length| length > 0) {
                return client.write_all(b"+PONG\r\n");
            }
        }
    });
    let answer = shell.go()?;
    answers.join().map_err(|_| Failure::new("the server panicked"))?.context("serve")?;
    Ok(answer)
}

/// A child that comes to be later, in another cgroup, makes its socket then and is hit; that of another shell is not.
fn whom_it_begins() -> Result {
    let (lab, cgroups) = (Lab::new()?, [Cgroup::new()?, Cgroup::new()?]);
    let cgroups = cgroups.each_ref();
    let (server, at) = server(&lab)?;
    for (words, said) in FAULTS {
        let (target, bystander) = (Shell::new(&lab, cgroups, at)?, Shell::new(&lab, cgroups, at)?);
        let pid = target.0.id().to_string();
        let words = [&["net"], *words, &["--pid", &pid]].concat();
        let fault = Faultline::start_in(&lab.near, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        let answer = target.go()?;
        ensure!(answer.contains(said), "{words:?}: {answer:?}");
        let answer = answered(&server, bystander)?;
        ensure!(answer.trim() == "PONG", "{words:?}: beside it {answer:?}");
        // The target is gone, which ends the fault by itself.
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(4), "{words:?}: {:?} {}", exit.code, exit.stderr);
        ensure!(exit.fired()? >= 1, "{words:?}: it never fired");
    }
    Ok(())
}

/// Of two targets one ends. Whoever gets its number then is a bystander, and the other is still hit.
fn given_again() -> Result {
    let (lab, cgroups) = (Lab::new()?, [Cgroup::new()?, Cgroup::new()?]);
    let cgroups = cgroups.each_ref();
    let (server, at) = server(&lab)?;
    for (words, said) in FAULTS {
        let (ends, stays) = (Shell::new(&lab, cgroups, at)?, Shell::new(&lab, cgroups, at)?);
        let number = ends.0.id();
        let pids = [number, stays.0.id()].map(|pid| pid.to_string());
        let words = [&["net"], *words, &["--pid", &pids[0], "--pid", &pids[1]]].concat();
        let fault = Faultline::start_in(&lab.near, &words)?;
        fault.wait_event("armed", PATIENCE)?;
        drop(ends);
        // It is looked for several times before each.
        for _ in 0..2 {
            fault.wait_event("progress", PATIENCE)?;
        }
        let other = numbered(number, || Shell::new(&lab, cgroups, at), |shell| shell.0.id())?;
        let answer = answered(&server, other)?;
        ensure!(answer.trim() == "PONG", "{words:?}: whoever has its number: {answer:?}");
        let answer = stays.go()?;
        ensure!(answer.contains(said), "{words:?}: the other target: {answer:?}");
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(4), "{words:?}: {:?} {}", exit.code, exit.stderr);
        ensure!(exit.fired()? >= 1, "{words:?}: it never fired");
    }
    Ok(())
}

fn refused() -> Result {
    let none = "2147483647";
    let rows: &[(&[&str], i32, &[&str])] = &[
        (&["--pid", none], 3, &["--pid 2147483647", "no such process"]),
        (&["--pid", "0"], 2, &["--pid", "1 or more"]),
        (&["--pid", "-1"], 2, &["--pid", "1 or more"]),
        (&["--pid", "init"], 2, &["--pid", "process's number"]),
        (&["--peer", "pid:2147483647"], 3, &["--peer", "no such process"]),
    ];
    for (words, code, said) in rows {
        let words = [&["net", "loss", "1%", "--dev", "lo"], *words].concat();
        Faultline::check_refused(&words, *code, said)?;
    }
    Ok(())
}
