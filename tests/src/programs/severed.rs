//! redis with its clients cut off: refused at once, and reset while they wait.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use super::{
    PATIENCE, REDIS,
    server::{Server, World},
    start_redis,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::Need,
    lab::{Family, Lab, NEAR_DEVICE},
};

pub(super) const NEEDS: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::CgroupV2,
    Need::CgroupConnect,
    Need::Program("redis-server"),
    Need::Program("redis-cli"),
];

/// A client in the target that is refused, one that has been there before, and one that waits for an answer.
pub(super) fn redis() -> Result {
    let lab = Lab::new()?;
    let world = World::enter_at(&lab.far)?;
    let at = lab.outward(Family::V4).target;
    let server = start_redis(&world, at)?;
    let cgroup = Cgroup::new()?;
    let path = cgroup.path().to_string_lossy().into_owned();
    // As root, who may enter a network.
    let cli = |words: &[&str]| {
        let mut command = world.command("redis-cli", "root")?;
        command.args(["-h", &at.to_string(), "-p", &REDIS.to_string()]).args(words);
        Ok::<_, crate::error::Failure>(command)
    };
    let _inhabitant = cgroup.inhabit_in(&lab.near, |_| {})?;
    let mut open = lab.near.run(|| cgroup.run(|| TcpStream::connect((at, REDIS)).context("connect")))?;
    ensure!(answers(&mut open)?, "before");

    let refuse = Faultline::start_in(&lab.near, &["net", "refuse", "--cgroup", &path])?;
    refuse.wait_event("armed", PATIENCE)?;
    let (error, took) = lab.near.run(|| {
        cgroup.run(|| {
            let start = Instant::now();
            let refused = TcpStream::connect((at, REDIS)).err().and_then(|error| error.raw_os_error());
            Ok((refused, start.elapsed()))
        })
    })?;
    println!("a client is refused after {took:?}");
    ensure!(error == Some(libc::ECONNREFUSED), "connect: errno {error:?}");
    let mut ping = cli(&["ping"])?;
    let said = lab.near.run(|| cgroup.run(|| ping.output().context("redis-cli")))?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.contains("Connection refused"), "redis-cli in the target says {said:?}");
    ensure!(answers(&mut open)?, "the open connection is dead");
    let mut beside = cli(&["ping"])?;
    let said = lab.near.run(|| world.run(&mut beside))?;
    ensure!(said == "PONG\n", "redis-cli beside it says {said:?}");
    refuse.interrupt()?;

    // It waits for what never comes, without a word.
    let mut waiting = cli(&["blpop", "nothing", "0"])?;
    waiting.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    // Not from a thread that has entered it: the client would end with that.
    lab.near.home_of(&mut waiting);
    let waiting = cgroup.run(|| waiting.spawn().context("redis-cli"))?;
    server.until(PATIENCE, || {
        let clients = lab.near.run(|| world.run(&mut cli(&["client", "list"])?))?;
        ensure!(clients.contains("cmd=blpop"), "nobody waits: {clients}");
        Ok(())
    })?;
    let reset = Faultline::start_in(&lab.near, &["net", "reset", "--dev", NEAR_DEVICE, "--cgroup", &path])?;
    reset.wait_event("armed", PATIENCE)?;
    let start = Instant::now();
    let said = waiting.wait_with_output().context("redis-cli")?;
    let said = String::from_utf8_lossy(&[said.stderr, said.stdout].concat()).into_owned();
    println!("the waiting client ends {:?} after arming: {}", start.elapsed(), said.trim());
    ensure!(said.contains("Connection reset by peer"), "{said:?}");
    // The server has seen its end as well: it has no such client any more.
    server.until(PATIENCE, || {
        let clients = lab.near.run(|| world.run(&mut cli(&["client", "list"])?))?;
        ensure!(!clients.contains("cmd=blpop"), "the server still has it: {clients}");
        Ok(())
    })?;
    reset.interrupt()?;
    let said = lab.near.run(|| cgroup.run(|| world.run(&mut cli(&["ping"])?)))?;
    ensure!(said == "PONG\n", "afterwards redis-cli says {said:?}");
    Server::stop(server)
}

fn answers(stream: &mut TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    stream.write_all(b"PING\r\n").context("send")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).context("receive")?;
    Ok(&answer == b"+PONG\r\n")
}
