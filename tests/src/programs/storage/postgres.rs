//! PostgreSQL, which does not trust a disk of which a write has failed: it ends in panic, and recovers from its log.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    super::{
        PATIENCE,
        server::{Server, World},
    },
    FENTRY, LSM, SYSCALL, arm, cgroups, end, log,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::{Need, program},
};

const INITDB: Need = Need::Program("initdb");
const POSTGRES: Need = Need::Program("postgres");
const PSQL: Need = Need::Program("psql");
pub(super) const ERRORS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, LSM, SYSCALL, INITDB, POSTGRES, PSQL];
pub(super) const DELAYS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, LSM, FENTRY, INITDB, POSTGRES, PSQL];

const USER: &str = "postgres";
/// Rows that one client writes, each in a transaction of its own.
const ROWS: u32 = 50;
/// So many rows that are acknowledged while calls fail show that it goes on.
const ENOUGH: usize = 100;
/// Until then it has ended in panic as well.
const LONGEST: Duration = Duration::from_secs(180);
const DELAY: Duration = Duration::from_millis(1);
/// What it says of the fault, always.
const OURS: &str = "Input/output error";
/// What it begins a line of its log with that is of trouble.
const TROUBLE: [&str; 3] = ["ERROR:  ", "FATAL:  ", "PANIC:  "];
/// And what it says before it can be asked anything.
const STARTING: &str = "the database system is starting up";

/// Each file by itself would be flushed when it recovers, of which a hundredth part fails: with a thousand files it
/// never would.
const SETTINGS: [&str; 5] = [
    "listen_addresses=",
    "fsync=on",
    "recovery_init_sync_method=syncfs",
    "max_connections=10",
    "max_wal_size=16MB",
];

/// A server with its data, and what it has acknowledged.
struct Postgres<'a> {
    world: &'a World,
    cgroup: &'a Cgroup,
    name: &'static str,
    data: PathBuf,
    port: u16,
    server: Option<Server>,
    next: u32,
    acknowledged: BTreeSet<u32>,
}

impl<'a> Postgres<'a> {
    /// Two with the same data.
    fn pair(world: &'a World, cgroups: &'a [Cgroup; 2]) -> Result<[Self; 2]> {
        let new = |number: usize, name, port| -> Result<Self> {
            let data = world.folder(name, USER)?;
            let (server, acknowledged) = (None, BTreeSet::new());
            Ok(Self { world, cgroup: &cgroups[number], name, data, port, server, next: 0, acknowledged })
        };
        let mut both = [new(0, "target", 5432)?, new(1, "bystander", 5433)?];
        let first = both[0].data.to_string_lossy().into_owned();
        let mut initdb = world.command("initdb", USER)?;
        initdb.args(["-D", &first, "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]);
        world.run(initdb.args(["--no-instructions", "--data-checksums", "--wal-segsize=1"]))?;
        let mut copy = world.command("cp", USER)?;
        world.run(copy.args(["-a", &format!("{first}/.")]).arg(&both[1].data))?;
        for one in &mut both {
            one.begin()?;
            one.wait_until_ready()?;
            one.ask("create table kept (n integer primary key, filler text)")?;
        }
        Ok(both)
    }

    /// Starts it in its cgroup.
    fn begin(&mut self) -> Result {
        let mut postgres = self.world.command("postgres", USER)?;
        postgres.arg("-D").arg(&self.data).args(["-p", &self.port.to_string(), "-k"]).arg(self.world.path());
        for setting in SETTINGS {
            postgres.args(["-c", setting]);
        }
        let path = self.world.path().join(format!("{}.log", self.name));
        let log = File::options().create(true).append(true).open(&path).context(path.display())?;
        postgres.stderr(log);
        self.server = Some(self.cgroup.run(|| Server::start(postgres, Signal::SIGINT))?);
        Ok(())
    }

    fn wait_until_ready(&self) -> Result {
        let server = self.server.as_ref().context("it does not run")?;
        server.until(PATIENCE, || self.ask("select 1")).map(drop)
    }

    fn psql(&self) -> Result<Command> {
        let mut psql = self.world.command("psql", USER)?;
        psql.arg("-h").arg(self.world.path()).args(["-p", &self.port.to_string(), "-d", "postgres", "-qtAX"]);
        Ok(psql)
    }

    fn ask(&self, query: &str) -> Result<String> {
        self.world.run(self.psql()?.args(["-c", query]))
    }

    /// Has a client write rows until it is disconnected or done: what it was told instead of a row's number.
    fn load(&mut self) -> Result<String> {
        let script = self.world.path().join(format!("{}.sql", self.name));
        let rows = self.next..self.next + ROWS;
        let insert = |row| format!("insert into kept values ({row}, repeat('x', 500)) returning n;\n");
        let statements = rows.map(insert).collect::<String>() + "checkpoint;\n";
        fs::write(&script, statements).context(script.display())?;
        self.next += ROWS;
        let output = self.psql()?.arg("-f").arg(&script).output().context("psql")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let rows = said.lines().map(|line| line.parse::<u32>().context(line));
        self.acknowledged.extend(rows.collect::<Result<Vec<u32>>>()?);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Fails unless all rows are acknowledged; how long that took.
    fn loads(&mut self, when: &str) -> Result<Duration> {
        let (start, before) = (Instant::now(), self.acknowledged.len());
        let complaint = self.load().context(when)?;
        let (took, written) = (start.elapsed(), self.acknowledged.len() - before);
        let right = written == ROWS as usize && complaint.is_empty();
        ensure!(right, "{when}, {}: {written} of {ROWS} rows: {complaint}", self.name);
        Ok(took)
    }

    /// Stops it in order, if it runs, and starts it again: it has all it acknowledged, and nothing is corrupt.
    fn check(&mut self) -> Result {
        if let Some(mut server) = self.server.take()
            && server.is_running()?
        {
            server.stop()?;
        }
        self.begin()?;
        self.wait_until_ready()?;
        let rows = self.ask("select n from kept order by n")?;
        let rows: BTreeSet<u32> = rows.lines().filter_map(|line| line.parse().ok()).collect();
        let lost: Vec<_> = self.acknowledged.difference(&rows).collect();
        ensure!(lost.is_empty(), "{}: {} acknowledged rows are not there: {lost:?}", self.name, lost.len());
        if program("pg_amcheck").is_some() {
            let mut check = self.world.command("pg_amcheck", USER)?;
            check.arg("-h").arg(self.world.path()).args(["-p", &self.port.to_string()]);
            self.world.run(check.args(["--install-missing", "--heapallindexed", "-d", "postgres"]))?;
        }
        self.loads("started again")?;
        self.server.take().context("it does not run")?.stop()?;
        let mut checksums = self.world.command("pg_checksums", USER)?;
        self.world.run(checksums.args(["--check", "-D"]).arg(&self.data)).map(drop)
    }
}

/// Writes fail, and so do `fsync` and its like: it panics on them, and goes on.
pub(super) fn errors() -> Result {
    let world = World::enter()?;
    let (cgroups, _inhabitant) = cgroups()?;
    let [mut target, mut bystander] = Postgres::pair(&world, &cgroups)?;
    target.loads("before")?;
    bystander.loads("before")?;
    let acknowledged = target.acknowledged.len();

    let fault = arm("io error EIO --ops fsync,write --percent 1", &target.data, &cgroups[0])?;
    let (deadline, mut started) = (Instant::now() + LONGEST, 0);
    loop {
        let written = target.acknowledged.len() - acknowledged;
        let panicked = log(&world, "target")?.lines().any(is_panic_on_fsync);
        if written >= ENOUGH && panicked {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{written} rows in {LONGEST:?}, panicked: {panicked}: {}",
            troubles(&world, "target")?
        );
        let server = target.server.as_mut().context("it does not run")?;
        // It ends for good if it meets one more while it recovers.
        if !server.is_running()? {
            target.begin()?;
            started += 1;
        }
        let complaint = target.load()?;
        bystander.loads("during")?;
        let foreign = complaint.lines().find(|line| line.contains("ERROR:  ") && !line.contains(OURS));
        ensure!(foreign.is_none(), "not of our making: {foreign:?}");
        if complaint.contains("connection to server") {
            // It is recovering, and says nothing of when it will have.
            thread::sleep(Duration::from_millis(100));
        }
    }
    let fired = end(&fault)?;
    target.check().context("after")?;
    bystander.check().context("after")?;

    let log_of_target = log(&world, "target")?;
    let panics = log_of_target.lines().filter(|line| line.contains("PANIC:  ")).count();
    let written = target.acknowledged.len() - acknowledged;
    println!("{fired} calls failed; {panics} panics, {started} starts by hand, {written} rows acknowledged");
    let foreign: Vec<&str> = log_of_target.lines().filter(|line| !is_expected(line)).collect();
    ensure!(foreign.is_empty(), "not of our making: {}", foreign.join("\n"));
    undisturbed(&world)
}

/// What it says of trouble.
fn troubles(world: &World, name: &str) -> Result<String> {
    let log = log(world, name)?;
    // Who asks too early is told so.
    let trouble = |line: &str| TROUBLE.iter().any(|word| line.contains(word)) && !line.contains(STARTING);
    let lines = log.lines().filter(|line| trouble(line));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn is_panic_on_fsync(line: &str) -> bool {
    line.contains("PANIC:  ") && line.contains("sync") && line.ends_with(OURS)
}

/// Whether a line of the log tells of no trouble, of the trouble that was asked for, or of what follows from that.
fn is_expected(line: &str) -> bool {
    let trouble = TROUBLE.iter().chain(&["could not "]).any(|word| line.contains(word));
    // Of its cache of tables it does not say why it could not be written.
    let follows = [
        "the database system is ",
        "data from client",
        "data to client",
        "connection to client lost",
        "could not write init file",
    ];
    !trouble || line.contains(OURS) || follows.iter().any(|words| line.contains(words))
}

/// The bystander has not said a word of trouble.
fn undisturbed(world: &World) -> Result {
    let troubles = troubles(world, "bystander")?;
    ensure!(troubles.is_empty(), "the bystander: {troubles}");
    Ok(())
}

/// Everything takes longer, and nothing fails.
pub(super) fn delays() -> Result {
    let world = World::enter()?;
    let (cgroups, _inhabitant) = cgroups()?;
    let [mut target, mut bystander] = Postgres::pair(&world, &cgroups)?;
    let before = [target.loads("before")?, target.loads("before")?].into_iter().min().unwrap_or_default();
    bystander.loads("before")?;
    let fault = arm("io delay 1ms --ops read,write,fsync", &target.data, &cgroups[0])?;
    let during = target.loads("during")?;
    let beside = bystander.loads("during")?;
    let fired = end(&fault)?;
    let after = target.loads("after")?;
    println!(
        "{ROWS} rows: {before:?}, {during:?}, {after:?}; beside it {beside:?}; {fired} calls took longer"
    );
    // A write and an fsync for each row.
    ensure!(fired >= u64::from(2 * ROWS), "{fired} calls for {ROWS} rows");
    ensure!(during >= DELAY * 2 * ROWS, "{during:?} for {ROWS} rows");
    target.check().context("after")?;
    bystander.check().context("after")?;
    let log_of_target = log(&world, "target")?;
    let trouble: Vec<&str> =
        log_of_target.lines().filter(|line| !is_expected(line) || line.contains(OURS)).collect();
    ensure!(trouble.is_empty(), "{}", trouble.join("\n"));
    undisturbed(&world)
}
