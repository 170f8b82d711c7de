//! DNS queries that fail as asked: for the names, types and processes that were named, and for no others.

mod server;

use std::{
    fs,
    net::IpAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use self::server::{A, AAAA, ADDRESS, Client, Outcome, Server};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, is_emulated, program},
    inventory::Inventory,
    lab::{FAR_DEVICE, Family, Lab, NEAR_DEVICE, Netns},
};

const BPF: &[Need] = &[Need::Root, Need::Btf];
const FQ: &[Need] = &[Need::Root, Need::Btf, Need::SchFq];
const AIMED: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2];
const PROGRAMS: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::CgroupV2,
    Need::Program("dig"),
    Need::Program("getent"),
    Need::Program("python3"),
];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("dns::answers", answers).needs(BPF).timeout(60).waits(),
    Test::new("dns::answers_to_what_is_received", received).needs(BPF).waits(),
    Test::new("dns::answers_over_tcp", answers_over_tcp).needs(BPF),
    Test::new("dns::answers_on_lo", loopback).needs(BPF),
    Test::new("dns::drops_over_udp_and_tcp", drops).needs(BPF).timeout(60).waits(),
    Test::new("dns::delays", delays).needs(FQ),
    Test::new("dns::names", names).needs(BPF).timeout(60),
    Test::new("dns::what_is_no_query_passes", garbage).needs(BPF),
    Test::new("dns::one_cgroup", one_cgroup).needs(AIMED).waits(),
    Test::new("dns::programs", programs).needs(PROGRAMS).timeout(120),
    Test::new("dns::bad_words", refused).needs(BPF),
];

const PATIENCE: Duration = Duration::from_secs(30);
const KINDS: [(&str, u8); 4] = [("nxdomain", 3), ("servfail", 2), ("refused", 5), ("empty", 0)];

/// How long an answer is waited for.
fn soon() -> Duration {
    Duration::from_millis(if is_emulated() { 2000 } else { 1000 })
}

fn arm(netns: &Netns, device: &str, fault: &str) -> Result<Faultline> {
    let words = format!("net dns {fault} --dev {device}");
    let fault = Faultline::start_in(netns, &words.split(' ').collect::<Vec<_>>())?;
    fault.wait_event("armed", PATIENCE)?;
    Ok(fault)
}

/// A lab whose `far` has a name server.
fn lab() -> Result<(Lab, Server)> {
    let lab = Lab::new()?;
    let server = Server::start(&lab.far, &Family::BOTH.map(|family| lab.outward(family).target))?;
    Ok((lab, server))
}

/// Every kind of answer, by both families; the server hears of none of these queries, and of all others.
fn answers() -> Result {
    let (lab, server) = lab()?;
    let before = Inventory::take(&[&lab.near, &lab.far])?;
    for family in Family::BOTH {
        let client = Client::new(&lab.near, lab.outward(family).target, soon())?;
        ensure!(client.ask("www.example.com", A)? == Outcome::Records, "{family}: no answer before");
        for (kind, rcode) in KINDS {
            let what = format!("{family} {kind}");
            let fault = arm(&lab.near, NEAR_DEVICE, &format!("{kind} --name *.example.com --type A,TYPE65"))?;
            let asked = server.asked();
            for (name, record) in [("www.example.com", A), ("a.b.EXAMPLE.Com", A), ("www.example.com", 65)] {
                let got = client.ask(name, record)?;
                ensure!(got == Outcome::Without(rcode), "{what}: {name} {record}: {got:?}");
            }
            ensure!(server.asked() == asked, "{what}: the server was asked");
            for (name, record) in [("www.example.org", A), ("example.com", A), ("www.example.com", AAAA)] {
                let got = client.ask(name, record)?;
                ensure!(got == Outcome::Records, "{what}: {name} {record}: {got:?}");
            }
            let fired = fault.end()?.fired()?;
            ensure!(fired == 3, "{what}: {fired} fired");
            ensure!(client.ask("www.example.com", A)? == Outcome::Records, "{what}: no answer after");
        }
    }
    before.wait_until_equal(&[&lab.near, &lab.far], Duration::from_secs(5))
}

/// At the server's own interface, and past a rule that would lose the answer on its way out.
fn received() -> Result {
    let (lab, server) = lab()?;
    for family in Family::BOTH {
        let client = Client::new(&lab.near, lab.outward(family).target, soon())?;
        let words = format!(
            "net dns servfail --direction in --name bad.* --dev {FAR_DEVICE} --and loss 100% --sport 53"
        );
        let fault = Faultline::start_in(&lab.far, &words.split(' ').collect::<Vec<_>>())?;
        fault.wait_event("armed", PATIENCE)?;
        let asked = server.asked();
        let got = client.ask("bad.example", AAAA)?;
        ensure!(got == Outcome::Without(2), "{family}: {got:?}");
        ensure!(server.asked() == asked, "{family}: the server was asked");
        let other = client.ask("good.example", AAAA)?;
        fault.end()?;
        ensure!(other == Outcome::Nothing && server.asked() == asked + 1, "{family}: {other:?}");
        ensure!(client.ask("bad.example", AAAA)? == Outcome::Records, "{family}: no answer after");
    }
    Ok(())
}

/// Over TCP, where there can be no answer, the connection of a query that matches is reset at once, and no other.
fn answers_over_tcp() -> Result {
    let (lab, server) = lab()?;
    for family in Family::BOTH {
        let client = Client::new(&lab.near, lab.outward(family).target, PATIENCE)?;
        let ask = |name| client.ask_by_tcp(&lab.near, name);
        ensure!(ask("bad.test")? == Outcome::Records, "{family}: no answer before");
        let fault = arm(&lab.near, NEAR_DEVICE, "nxdomain --name bad.*")?;
        let asked = server.asked();
        let start = Instant::now();
        let hit = ask("bad.test")?;
        let took = start.elapsed();
        let beside = ask("good.test")?;
        let asked = server.asked() - asked;
        let fired = fault.end()?.fired()?;
        ensure!(hit == Outcome::Reset && beside == Outcome::Records, "{family}: {hit:?} {beside:?}");
        ensure!(took < PATIENCE / 2 && asked == 1 && fired == 1, "{family}: {took:?}, {asked}, {fired}");
        ensure!(ask("bad.test")? == Outcome::Records, "{family}: no answer after");
    }
    Ok(())
}

/// As of a resolver on the same host, such as systemd-resolved's at 127.0.0.53.
fn loopback() -> Result {
    let lab = Lab::new()?;
    for address in ["127.0.0.53", "::1"] {
        let address: IpAddr = address.parse().context(address)?;
        let server = Server::start(&lab.near, &[address])?;
        let client = Client::new(&lab.near, address, soon())?;
        for direction in ["out", "in"] {
            ensure!(client.ask("a.test", A)? == Outcome::Records, "{address}: no answer before");
            let fault = arm(&lab.near, "lo", &format!("nxdomain --name a.test --direction {direction}"))?;
            let asked = server.asked();
            let got = [client.ask("a.test", A)?, client.ask("b.test", A)?];
            let fired = fault.end()?.fired()?;
            ensure!(got == [Outcome::Without(3), Outcome::Records], "{address} {direction}: {got:?}");
            ensure!(server.asked() == asked + 1 && fired == 1, "{address} {direction}: {fired} fired");
        }
        ensure!(client.ask("a.test", A)? == Outcome::Records, "{address}: no answer after");
    }
    Ok(())
}

fn drops() -> Result {
    let (lab, server) = lab()?;
    for family in Family::BOTH {
        let client = Client::new(&lab.near, lab.outward(family).target, soon())?;
        let both = |name| -> Result<_> { Ok([client.ask(name, A)?, client.ask_by_tcp(&lab.near, name)?]) };
        ensure!(both("bad.test")? == [Outcome::Records; 2], "{family}: no answer before");
        let fault = arm(&lab.near, NEAR_DEVICE, "drop --name bad.*")?;
        let asked = server.asked();
        let [hit, beside] = [both("bad.test")?, both("good.test")?];
        let asked = server.asked() - asked;
        fault.end()?;
        ensure!(
            hit == [Outcome::Nothing; 2] && beside == [Outcome::Records; 2],
            "{family}: {hit:?} {beside:?}"
        );
        ensure!(asked == 2, "{family}: the server was asked {asked} times, not twice");
        let after = both("bad.test")?;
        ensure!(after == [Outcome::Records; 2], "{family}: after: {after:?}");
    }
    Ok(())
}

fn delays() -> Result {
    const ASKED: Duration = Duration::from_millis(400);
    let (lab, _server) = lab()?;
    let client = Client::new(&lab.near, lab.outward(Family::V4).target, Duration::from_secs(5))?;
    let fault = arm(&lab.near, NEAR_DEVICE, "delay 400ms --name slow.test")?;
    let time = |ask: &dyn Fn() -> Result<Outcome>| {
        let start = Instant::now();
        ensure!(ask()? == Outcome::Records, "no answer");
        Ok(start.elapsed())
    };
    let slow = time(&|| client.ask("slow.test", A))?;
    let slow_tcp = time(&|| client.ask_by_tcp(&lab.near, "slow.test"))?;
    let fast = time(&|| client.ask("fast.test", A))?;
    fault.end()?;
    ensure!(slow >= ASKED && slow_tcp >= ASKED, "after {slow:?} and, over TCP, {slow_tcp:?}");
    ensure!(fast < ASKED, "the other name: after {fast:?}");
    Ok(())
}

/// The longest name there can be, that of the root, and a thousand at once.
fn names() -> Result {
    let (lab, _server) = lab()?;
    let client = Client::new(&lab.near, lab.outward(Family::V4).target, soon())?;
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let fault = arm(&lab.near, NEAR_DEVICE, &format!("refused --name {longest} --name ."))?;
    let shorter = &longest[1..];
    let got = [client.ask(&longest, A)?, client.ask("", A)?, client.ask(shorter, A)?];
    fault.end()?;
    ensure!(got == [Outcome::Without(5), Outcome::Without(5), Outcome::Records], "{got:?}");

    let many: String = (0..1000).map(|host| format!(" --name host{host}.*.net")).collect();
    let fault = arm(&lab.near, NEAR_DEVICE, &format!("nxdomain{many}"))?;
    let got = [client.ask("host999.a.b.net", A)?, client.ask("host1000.a.net", A)?];
    fault.end()?;
    ensure!(got == [Outcome::Without(3), Outcome::Records], "of a thousand: {got:?}");
    Ok(())
}

/// Whatever else goes to port 53 comes there, and comes back as it was.
fn garbage() -> Result {
    let (lab, _server) = lab()?;
    let client = Client::new(&lab.near, lab.outward(Family::V4).target, soon())?;
    let whole = server::query(0x1234, "www.example.com", A);
    let changed = |at: usize, byte: u8| {
        let mut message = whole.clone();
        message[at] = byte;
        message
    };
    let messages = [
        b"12".to_vec(),
        vec![0xff; 600],
        vec![0; 12],
        // Cut off in the header, the name and the type.
        whole[..11].to_vec(),
        whole[..20].to_vec(),
        whole[..whole.len() - 3].to_vec(),
        // An answer, an update, two questions, and a name that points elsewhere.
        changed(2, 0x81),
        changed(2, 0x28),
        changed(5, 2),
        changed(12, 0xc0),
    ];
    let fault = arm(&lab.near, NEAR_DEVICE, "nxdomain")?;
    for message in &messages {
        let back = client.exchange(message)?.context(format_args!("{message:?} did not come back"))?;
        let is_answered = back.len() > 3 && back[2] == 0x81 && back[3] == 0x83;
        ensure!(!is_answered, "{message:?} was answered: {back:?}");
    }
    let fired = fault.end()?.fired()?;
    ensure!(fired == 0, "{fired} fired");
    Ok(())
}

/// Who shares the interface and the server, and is somewhere else, gets answers.
fn one_cgroup() -> Result {
    let (lab, _server) = lab()?;
    let cgroup = Cgroup::new()?;
    let _inhabitant = cgroup.inhabit(|_| {})?;
    for family in Family::BOTH {
        let open = || Client::new(&lab.near, lab.outward(family).target, soon());
        let (target, bystander) = (cgroup.run(open)?, open()?);
        let path = cgroup.path().to_string_lossy().into_owned();
        for (kind, expected) in [("nxdomain", Outcome::Without(3)), ("drop", Outcome::Nothing)] {
            let fault = arm(&lab.near, NEAR_DEVICE, &format!("{kind} --cgroup {path}"))?;
            let got = [target.ask("a.test", A)?, bystander.ask("a.test", A)?];
            fault.end()?;
            ensure!(got == [expected, Outcome::Records], "{family} {kind}: {got:?}");
            ensure!(target.ask("a.test", A)? == Outcome::Records, "{family} {kind}: no answer after");
        }
    }
    Ok(())
}

/// Runs programs in `near` with a `resolv.conf` of their own, that leads to the server in `far`.
struct Programs<'a> {
    lab: &'a Lab,
    file: PathBuf,
}

impl<'a> Programs<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("fl-test-resolv-{}", std::process::id()));
        let server = lab.outward(Family::V4).target;
        let text = format!("nameserver {server}\noptions timeout:10 attempts:1\n");
        fs::write(&file, text).context(file.display())?;
        Ok(Self { lab, file })
    }

    /// What it says, and how long it took.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<(Output, Duration)> {
        const NOTHING: Option<&str> = None;
        let mut command = Command::new(program(name).context(format_args!("no program {name}"))?);
        command.args(arguments).env("LC_ALL", "C").env_remove("RES_OPTIONS");
        let netns = fs::File::open(self.lab.near.path()).context("near")?;
        let file = self.file.clone();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        // SAFETY: between fork and exec there are system calls only, on what is there already.
        unsafe {
            command.pre_exec(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(NOTHING, "/", NOTHING, private, NOTHING)?;
                Ok(mount(Some(&file), "/etc/resolv.conf", NOTHING, MsFlags::MS_BIND, NOTHING)?)
            });
        }
        let start = Instant::now();
        Ok((command.output().context(name)?, start.elapsed()))
    }

    /// Whether `getent`, `dig` and Python find the name: all of them or none, and at once.
    fn find(&self, name: &str, status: &str) -> Result<bool> {
        let (getent, took) = self.run("getent", &["ahostsv4", name])?;
        let text = String::from_utf8_lossy(&getent.stdout).into_owned();
        let found = getent.status.success() && text.contains(ADDRESS);
        ensure!(took < Duration::from_secs(9), "getent {name} took {took:?}");
        ensure!(found || getent.status.code() == Some(2), "getent {name}: {}: {text}", getent.status);

        let (dig, took) = self.run("dig", &["+tries=1", "+time=10", name, "A"])?;
        let text = String::from_utf8_lossy(&dig.stdout).into_owned();
        ensure!(took < Duration::from_secs(9), "dig {name} took {took:?}");
        let status = if found { "NOERROR" } else { status };
        ensure!(text.contains(&format!("status: {status},")), "dig {name}: not {status}: {text}");
        ensure!(text.contains(ADDRESS) == found && !text.contains("WARNING"), "dig {name}: {text}");

        let script = "import socket, sys\ntry: print(socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET))\n\
                      except socket.gaierror as error: print(error)";
        let (python, took) = self.run("python3", &["-c", script, name])?;
        let text = String::from_utf8_lossy(&python.stdout).into_owned();
        ensure!(took < Duration::from_secs(9), "python {name} took {took:?}");
        ensure!(python.status.success() && text.contains(ADDRESS) == found, "python {name}: {text}");
        Ok(found)
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The programs people have: for the name that was named, in the cgroup that was named.
fn programs() -> Result {
    let (lab, _server) = lab()?;
    let cgroup = Cgroup::new()?;
    let _inhabitant = cgroup.inhabit(|_| {})?;
    let programs = Programs::new(&lab)?;
    ensure!(programs.find("www.example.com", "NXDOMAIN")?, "not found before");
    let path = cgroup.path().to_string_lossy().into_owned();
    let kinds: &[(&str, &str)] = &[("nxdomain", "NXDOMAIN"), ("servfail", "SERVFAIL")];
    for (kind, status) in kinds.iter().take(if is_emulated() { 1 } else { kinds.len() }) {
        let fault = arm(&lab.near, NEAR_DEVICE, &format!("{kind} --name www.* --cgroup {path}"))?;
        let hit = cgroup.run(|| programs.find("www.example.com", status))?;
        let other = cgroup.run(|| programs.find("api.example.com", status))?;
        let beside = programs.find("www.example.com", status)?;
        fault.end()?;
        ensure!([hit, other, beside] == [false, true, true], "{kind}: {hit}, {other}, {beside}");
    }
    ensure!(cgroup.run(|| programs.find("www.example.com", ""))?, "not found after");
    Ok(())
}

fn refused() -> Result {
    let rows: &[(&str, &[&str])] = &[
        ("dns", &["nxdomain, servfail"]),
        ("dns nothing", &["'nothing'", "nxdomain"]),
        ("dns reset", &["dns drop"]),
        ("dns nxdomain drop", &["'drop'"]),
        ("dns nxdomain --name a..b", &["--name", "label"]),
        ("dns nxdomain --name b\u{fc}cher.de", &["--name", "xn--"]),
        ("dns nxdomain --type B", &["--type", "AAAA"]),
        ("dns nxdomain --direction both", &["--direction out"]),
        ("dns drop --proto icmp", &["--proto"]),
        ("loss 1% --name a.test", &["--name", "dns"]),
        ("loss 1% dns drop", &["dns comes first"]),
    ];
    let anywhere: String = (b'a'..=b'p').map(|c| format!(" --name *{0}*{0}*", char::from(c))).collect();
    let too_many = (format!("dns drop{anywhere}"), &["--name", "too many"][..]);
    let rows = rows.iter().map(|(words, said)| ((*words).to_owned(), *said)).chain([too_many]);
    for (words, said) in rows {
        let words: Vec<&str> = ["net"].into_iter().chain(words.split(' ')).chain(["--dev", "lo"]).collect();
        let exit = Faultline::run(&words)?;
        let right = exit.code == Some(2) && said.iter().all(|part| exit.stderr.contains(part));
        ensure!(right, "{words:?}: {:?} {}", exit.code, exit.stderr);
        ensure!(exit.stderr.trim().lines().count() == 1, "{words:?}: {}", exit.stderr);
    }
    Ok(())
}
