//! Real programs, each in a world of its own, answering once: what faults will be tried on.

mod openssl;
mod server;
mod severed;
mod shaped;
pub(crate) mod storage;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    time::Duration,
};

use nix::sys::signal::Signal;

use self::server::{Server, World};
use crate::{
    ensure,
    error::{Context, Result},
    harness::{Need, Test},
};

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("programs::postgres_answers", postgres)
        .needs(&[Need::Root, Need::Program("initdb"), Need::Program("postgres"), Need::Program("psql")])
        .timeout(120),
    Test::new("programs::redis_answers", redis)
        .needs(&[Need::Root, Need::Program("redis-server")])
        .timeout(60),
    Test::new("programs::nginx_answers", nginx).needs(&[Need::Root, Need::Program("nginx")]).timeout(60),
    Test::new("programs::openssl_verifies", openssl::verifies).needs(&[Need::Root, Need::Program("openssl")]),
    Test::new("programs::redis_cut_off", severed::redis).needs(severed::NEEDS).timeout(60),
    Test::new("programs::on_a_bad_link", shaped::compared).needs(shaped::NEEDS).timeout(180),
];

/// Under emulation, on a busy machine, PostgreSQL takes 5 s to come up.
const PATIENCE: Duration = Duration::from_secs(40);

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const POSTGRES: u16 = 5432;
const REDIS: u16 = 6379;
const NGINX: u16 = 80;

fn postgres() -> Result {
    let world = World::enter()?;
    let server = start_postgres(&world, HERE)?;
    let answer = ask_postgres(
        &world,
        HERE,
        "create table kept as select generate_series(1, 100) as n; select sum(n) from kept",
    )?;
    ensure!(answer.trim().ends_with("5050"), "the sum of 1 to 100 is {answer:?}");
    server.stop()
}

/// One that answers, with a data folder of its own.
fn start_postgres(world: &World, at: IpAddr) -> Result<Server> {
    let data = world.folder("data", "postgres")?;
    let data = data.to_string_lossy();
    let initdb = ["--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--no-instructions"];
    world.run(world.command("initdb", "postgres")?.args(["-D", &data]).args(initdb))?;
    let trusted = format!("host all all {at}/24 trust\n");
    fs::write(format!("{data}/pg_hba.conf"), trusted).context("write pg_hba.conf")?;
    let mut postgres = world.command("postgres", "postgres")?;
    postgres.args(["-D", &data, "-p", &POSTGRES.to_string(), "-k", &world.path().to_string_lossy()]);
    postgres.args(["-c", &format!("listen_addresses={at}"), "-c", "fsync=off", "-c", "max_connections=10"]);
    // Clients are served to their end; SIGINT does not wait for them.
    let server = Server::start(postgres, Signal::SIGINT)?;
    let answer = server.until(PATIENCE, || ask_postgres(world, at, "select 1"))?;
    ensure!(answer.trim() == "1", "select 1 gives {answer:?}");
    Ok(server)
}

fn ask_postgres(world: &World, at: IpAddr, query: &str) -> Result<String> {
    let mut psql = world.command("psql", "postgres")?;
    psql.args(["-h", &at.to_string(), "-p", &POSTGRES.to_string(), "-d", "postgres", "-tAc", query]);
    world.run(&mut psql)
}

fn redis() -> Result {
    let world = World::enter()?;
    let server = start_redis(&world, HERE)?;
    let answer = exchange(HERE, REDIS, "SET key value\r\nGET key\r\nQUIT\r\n")?;
    ensure!(answer == "+OK\r\n$5\r\nvalue\r\n+OK\r\n", "SET and GET give {answer:?}");
    server.stop()
}

/// One that answers.
fn start_redis(world: &World, at: IpAddr) -> Result<Server> {
    let mut redis = world.command("redis-server", "nobody")?;
    redis.args(["--port", &REDIS.to_string(), "--bind", &at.to_string(), "--save", "", "--appendonly", "no"]);
    redis.args(["--protected-mode", "no"]);
    let server = Server::start(redis, Signal::SIGTERM)?;
    let answer = server.until(PATIENCE, || exchange(at, REDIS, "PING\r\nQUIT\r\n"))?;
    ensure!(answer.starts_with("+PONG\r\n"), "PING gives {answer:?}");
    Ok(server)
}

fn nginx() -> Result {
    let world = World::enter()?;
    let server = start_nginx(&world, HERE)?;
    let answer = exchange(HERE, NGINX, "GET /none HTTP/1.0\r\n\r\n")?;
    ensure!(answer.starts_with("HTTP/1.1 404"), "{answer:?}");
    server.stop()
}

/// One that serves `/page`.
fn start_nginx(world: &World, at: IpAddr) -> Result<Server> {
    let folder = world.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {folder}/{kind}; "))
        .collect();
    let configuration = format!(
        "daemon off; user nobody nogroup; worker_processes 1; pid {folder}/pid; error_log stderr; events {{}} \
         http {{ access_log off; {temporary} server {{ listen {at}:{NGINX}; root {folder}; }} }}"
    );
    let file = world.path().join("nginx.conf");
    fs::write(&file, configuration).context(file.display())?;
    fs::write(world.path().join("page"), "from a file\n").context("write a page")?;
    let mut nginx = world.command("nginx", "root")?;
    nginx.args(["-e", "stderr", "-c"]).arg(&file);
    let server = Server::start(nginx, Signal::SIGTERM)?;
    let answer = server.until(PATIENCE, || exchange(at, NGINX, "GET /page HTTP/1.0\r\n\r\n"))?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nfrom a file\n"), "{answer:?}");
    Ok(server)
}

/// Says something to a server and returns all that it answers until it closes the connection.
fn exchange(at: IpAddr, port: u16, words: &str) -> Result<String> {
    let mut stream = TcpStream::connect((at, port)).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    stream.write_all(words.as_bytes()).context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    Ok(answer)
}
