//! redis with a file that it appends every change to, on a disk that is full.

use std::{path::PathBuf, time::Instant};

use nix::sys::signal::Signal;

use super::{
    super::{
        HERE, PATIENCE, exchange,
        server::{Server, World},
    },
    LSM, arm, cgroups, end, log,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::{Need, patience},
};

pub(super) const NEEDS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, LSM, Need::Program("redis-server")];

const FAULT: &str = "io full";
/// What it says of it.
const NO_SPACE: &str = "No space left on device";

/// One, with what it has acknowledged.
struct Redis<'a> {
    world: &'a World,
    cgroup: &'a Cgroup,
    name: &'static str,
    folder: PathBuf,
    port: u16,
    fsync: &'static str,
    server: Option<Server>,
    next: u32,
    acknowledged: Vec<u32>,
}

impl<'a> Redis<'a> {
    fn start(
        world: &'a World,
        cgroup: &'a Cgroup,
        (name, port): (&'static str, u16),
        fsync: &'static str,
    ) -> Result<Self> {
        let folder = world.folder(name, "nobody")?;
        let (server, acknowledged) = (None, Vec::new());
        let mut redis = Self { world, cgroup, name, folder, port, fsync, server, next: 0, acknowledged };
        redis.begin()?;
        Ok(redis)
    }

    fn begin(&mut self) -> Result {
        let log = self.world.path().join(format!("{}.log", self.name));
        let mut redis = self.world.command("redis-server", "nobody")?;
        redis.args(["--port", &self.port.to_string(), "--bind", &HERE.to_string(), "--save", ""]);
        redis.args(["--appendonly", "yes", "--appendfsync", self.fsync, "--maxclients", "64"]);
        redis.arg("--dir").arg(&self.folder).arg("--logfile").arg(log);
        let server = self.cgroup.run(|| Server::start(redis, Signal::SIGTERM))?;
        server.until(PATIENCE, || {
            let answer = self.ask("PING")?;
            // It may still be loading what it has kept.
            ensure!(answer == "+PONG", "{}: PING gives {answer:?}", self.name);
            Ok(())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// What it answers to one command.
    fn ask(&self, command: &str) -> Result<String> {
        let answer = exchange(HERE, self.port, &format!("{command}\r\nQUIT\r\n"))?;
        Ok(answer.strip_suffix("+OK\r\n").unwrap_or(&answer).trim_end().to_owned())
    }

    /// Has it keep something more; what it answers.
    fn keep(&mut self) -> Result<String> {
        let number = self.next;
        self.next += 1;
        let answer = self.ask(&format!("SET {number} {number}"))?;
        if answer == "+OK" {
            self.acknowledged.push(number);
        }
        Ok(answer)
    }

    /// Fails unless it keeps some more.
    fn keeps(&mut self, when: &str) -> Result {
        for _ in 0..10 {
            let answer = self.keep().context(when)?;
            ensure!(answer == "+OK", "{when}, {}: {answer}", self.name);
        }
        Ok(())
    }

    /// Whether it has all that it acknowledged.
    fn has_all(&self) -> Result {
        for number in &self.acknowledged {
            let answer = self.ask(&format!("GET {number}"))?;
            ensure!(answer.ends_with(&format!("\r\n{number}")), "{}, {number}: {answer:?}", self.name);
        }
        Ok(())
    }

    fn take_server(&mut self) -> Result<Server> {
        self.server.take().context("it does not run")
    }
}

/// Written down every second: it refuses changes meanwhile, goes on answering, and recovers by itself.
pub(super) fn disk_full() -> Result {
    let world = World::enter()?;
    let (cgroups, _inhabitant) = cgroups()?;
    let mut target = Redis::start(&world, &cgroups[0], ("target", 6379), "everysec")?;
    let mut bystander = Redis::start(&world, &cgroups[1], ("bystander", 6380), "everysec")?;
    target.keeps("before")?;
    bystander.keeps("before")?;

    let fault = arm(FAULT, &target.folder, &cgroups[0])?;
    let deadline = Instant::now() + patience(PATIENCE);
    let refused = loop {
        let answer = target.keep()?;
        if answer != "+OK" {
            break answer;
        }
        ensure!(Instant::now() < deadline, "it does not notice");
    };
    ensure!(refused.starts_with("-MISCONF") && refused.contains(NO_SPACE), "{refused}");
    target.has_all().context("during")?;
    bystander.keeps("during")?;
    let fired = end(&fault)?;

    let solved = Instant::now();
    while target.keep()? != "+OK" {
        ensure!(solved.elapsed() < PATIENCE, "it does not recover");
    }
    println!("{fired} calls failed: {refused}; recovered after {:?}", solved.elapsed());
    target.keeps("after")?;
    restarted(&mut target)?;
    restarted(&mut bystander)?;
    said(&world, &["Error writing to the AOF file: ", "AOF write error looks solved"])
}

/// Written down before it is acknowledged: it ends, and has all when it is started again.
pub(super) fn disk_full_always() -> Result {
    let world = World::enter()?;
    let (cgroups, _inhabitant) = cgroups()?;
    let mut target = Redis::start(&world, &cgroups[0], ("target", 6379), "always")?;
    let mut bystander = Redis::start(&world, &cgroups[1], ("bystander", 6380), "always")?;
    target.keeps("before")?;
    bystander.keeps("before")?;

    let fault = arm(FAULT, &target.folder, &cgroups[0])?;
    target.has_all().context("during")?;
    // It cannot take back what it has said to itself, so it says nothing to anybody.
    let answer = target.keep();
    ensure!(answer.as_ref().map_or(true, String::is_empty), "{answer:?}");
    let status = target.take_server()?.wait(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}");
    bystander.keeps("during")?;
    end(&fault)?;

    target.begin()?;
    target.has_all().context("started again")?;
    target.keeps("after")?;
    restarted(&mut target)?;
    restarted(&mut bystander)?;
    said(&world, &["Error writing to the AOF file: ", "Can't recover from AOF write error"])
}

/// It ends in order, and has all when it is started again.
fn restarted(redis: &mut Redis<'_>) -> Result {
    redis.take_server()?.stop()?;
    redis.begin()?;
    redis.has_all().context("restarted")?;
    redis.take_server()?.stop()
}

/// The target has said all of this, and nothing is wrong with it but what was asked for; with the bystander nothing.
fn said(world: &World, words: &[&str]) -> Result {
    let target = log(world, "target")?;
    for words in words {
        ensure!(target.contains(words), "no {words:?} in {target}");
    }
    let follows = |line: &str| line.contains(NO_SPACE) || line.contains("AOF write error");
    let foreign: Vec<&str> = target.lines().filter(|line| line.contains("rror") && !follows(line)).collect();
    ensure!(foreign.is_empty(), "not of our making: {}", foreign.join("\n"));
    let bystander = log(world, "bystander")?;
    let trouble: Vec<&str> = bystander.lines().filter(|line| line.contains("rror")).collect();
    ensure!(trouble.is_empty(), "the bystander: {}", trouble.join("\n"));
    Ok(())
}
