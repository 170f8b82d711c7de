//! Real servers and the load that comes with them, over a link that loses and delays: what users would try first.

use std::net::IpAddr;

use super::{
    NGINX, POSTGRES, REDIS,
    server::{Server, World},
    start_nginx, start_postgres, start_redis,
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, is_gate},
    lab::{Family, Lab, NEAR_DEVICE},
    stats::acceptance,
};

pub(super) const NEEDS: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::SchFq,
    Need::Program("postgres"),
    Need::Program("pgbench"),
    Need::Program("redis-server"),
    Need::Program("redis-benchmark"),
    Need::Program("nginx"),
    Need::Program("ab"),
];

const FAULT: &str = "loss 10% delay 100ms";
/// What each request waits for at least, in milliseconds. Without the fault an emulated PostgreSQL, on a machine at half its
/// speed, answers in 25.
const DELAY: f64 = 100.0;
/// The share that is lost.
const LOSS: f64 = 0.1;
/// What the machine may add to the delay, and what is lost to the mean: 1 in 10 comes 0.3 s late.
const NOISE: f64 = 100.0;
/// So few clients at a time that an emulated server answers faster than the fault lets it.
const CLIENTS: &str = "3";
/// So many that the chance of none lost is below 1 in a million.
const REQUESTS: u32 = 150;

/// A server with its load generator.
struct Service {
    name: &'static str,
    port: u16,
    load: fn(&World, IpAddr) -> Result<Load>,
}

const SERVICES: [Service; 3] = [
    Service { name: "nginx", port: NGINX, load: ab },
    Service { name: "redis", port: REDIS, load: redis_benchmark },
    Service { name: "PostgreSQL", port: POSTGRES, load: pgbench },
];

/// What a load generator says: all its requests were answered, and how long one took.
struct Load {
    milliseconds: f64,
}

/// Before, during and after, for each; another one, on the same wire, is not touched.
pub(super) fn compared() -> Result {
    let lab = Lab::new()?;
    let world = World::enter_at(&lab.far)?;
    let at = lab.outward(Family::V4).target;
    let mut servers = vec![start_nginx(&world, at)?, start_redis(&world, at)?];
    // The third takes longer to begin than all else here.
    let services = if is_gate() { &SERVICES[..2] } else { &SERVICES };
    if services.len() > servers.len() {
        servers.push(start_postgres(&world, at)?);
        let mut pgbench = world.command("pgbench", "postgres")?;
        pgbench.args(["-i", "-q", "-s", "1", "-h", &at.to_string(), "-p", &POSTGRES.to_string(), "postgres"]);
        world.run(&mut pgbench)?;
    }
    let load = |service: &Service| lab.near.run(|| (service.load)(&world, at)).context(service.name);
    for (number, service) in services.iter().enumerate() {
        let bystander = &services[(number + 1) % services.len()];
        let before = load(service)?;
        let command = format!("net {FAULT} --dev {NEAR_DEVICE} --seed 1 --port {}", service.port);
        let fault = Faultline::start_in(&lab.near, &command.split(' ').collect::<Vec<_>>())?;
        fault.wait_event("armed", super::PATIENCE)?;
        let during = load(service)?;
        let beside = load(bystander)?;
        let exit = fault.interrupt()?;
        let after = load(service)?;
        let [before, during, beside, after] = [before, during, beside, after].map(|load| load.milliseconds);
        println!(
            "{}: {before:.2} ms a request, {during:.2} with {FAULT}, {after:.2} after; {} meanwhile {beside:.2}",
            service.name, bystander.name
        );
        ensure!((DELAY..DELAY + NOISE).contains(&during), "{}: {during} ms", service.name);
        for (when, calm) in [("before", before), ("after", after), ("of the bystander", beside)] {
            ensure!(calm < DELAY, "{}: {calm} ms {when}", service.name);
        }
        let summary = &exit.event("summary")?.json;
        let count = |path| summary.pointer(path).and_then(serde_json::Value::as_u64).context(path);
        let (matched, lost) = (count("/rules/0/matched/packets")?, count("/rules/0/effects/lost")?);
        ensure!(matched >= u64::from(REQUESTS), "{}: {matched} packets: {summary}", service.name);
        let expected = acceptance(matched, LOSS);
        ensure!(lost > 0 && expected.contains(&lost), "{}: {lost} of {matched} lost", service.name);
    }
    servers.into_iter().try_for_each(Server::stop)
}

/// Median of kept-alive requests.
fn ab(world: &World, at: IpAddr) -> Result<Load> {
    let mut ab = world.command("ab", "nobody")?;
    ab.args(["-q", "-k", "-c", CLIENTS, "-n", &REQUESTS.to_string(), &format!("http://{at}:{NGINX}/page")]);
    let said = world.run(&mut ab)?;
    let all = format!("{REQUESTS}");
    let number = |name| word_after(&said, name);
    ensure!(number("Complete requests:")? == all && number("Failed requests:")? == "0", "{said}");
    milliseconds(word_after(&said, "50%")?)
}

/// Median of a request.
fn redis_benchmark(world: &World, at: IpAddr) -> Result<Load> {
    let mut benchmark = world.command("redis-benchmark", "nobody")?;
    let (at, port, requests) = (at.to_string(), REDIS.to_string(), REQUESTS.to_string());
    benchmark.args(["-h", &at, "-p", &port, "-c", CLIENTS, "-n", &requests, "-t", "get", "--csv"]);
    let said = world.run(&mut benchmark)?;
    let mut lines = said.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
    let median = lines.next().context("no heading")?.position(|name| name == "p50_latency_ms");
    let field = lines.next().context(&said)?.nth(median.context(&said)?);
    milliseconds(field.context(&said)?)
}

/// Mean of a transaction, which is one SELECT.
fn pgbench(world: &World, at: IpAddr) -> Result<Load> {
    let mut pgbench = world.command("pgbench", "postgres")?;
    let (at, port) = (at.to_string(), POSTGRES.to_string());
    let (clients, each) = (CLIENTS.parse::<u32>().context(CLIENTS)?, REQUESTS);
    let each = each.div_ceil(clients);
    pgbench.args(["-n", "-S", "-c", CLIENTS, "-t", &each.to_string(), "-h", &at, "-p", &port, "postgres"]);
    let said = world.run(&mut pgbench)?;
    let all = format!("{0}/{0}", each * clients);
    ensure!(word_after(&said, "number of transactions actually processed:")? == all, "{said}");
    ensure!(word_after(&said, "number of failed transactions:")? == "0", "{said}");
    milliseconds(word_after(&said, "latency average =")?)
}

/// The word that follows a name in what a program says.
fn word_after<'a>(said: &'a str, name: &str) -> Result<&'a str> {
    let rest = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()).context(format_args!("no {name:?} in {said}"))
}

fn milliseconds(word: &str) -> Result<Load> {
    Ok(Load { milliseconds: word.parse().context(word)? })
}
