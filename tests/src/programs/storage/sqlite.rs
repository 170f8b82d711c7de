//! SQLite, in Python.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{super::server::World, FENTRY, LSM, SYSCALL, arm, cgroups, end};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::Need,
};

pub(super) const ERRORS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, LSM, SYSCALL, Need::Program("python3")];
pub(super) const DELAYS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, LSM, FENTRY, Need::Program("python3")];

/// Writes one row after the other, each in a transaction of its own, and goes on with the next where one fails.
const LOAD: &str = r"
import json, sqlite3, sys
path, journal, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
acknowledged, errors, db = [], [], None
for n in range(first, first + count):
    try:
        if db is None:
            db = sqlite3.connect(path, isolation_level=None)
            db.execute('pragma journal_mode=' + journal)
            db.execute('pragma synchronous=full')
            db.execute('create table if not exists kept (n integer primary key, filler text)')
        db.execute('insert into kept values (?, ?)', (n, 'x' * 1000))
        acknowledged.append(n)
    except sqlite3.Error as error:
        errors.append(str(getattr(error, 'sqlite_errorname', '')) + ': ' + str(error))
        if db is not None:
            db.close()
        db = None
print(json.dumps({'acknowledged': acknowledged, 'errors': errors}))
";

/// What is there, and whether it is whole.
const CHECK: &str = r"
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
verdict = [row[0] for row in db.execute('pragma integrity_check')]
rows = [row[0] for row in db.execute('select n from kept')]
print(json.dumps({'verdict': verdict, 'rows': rows}))
";

const JOURNALS: [&str; 2] = ["delete", "wal"];
/// So many that some of their writes fail; each of them takes five calls at least.
const ROWS: u32 = 200;
const DELAY: Duration = Duration::from_millis(1);

#[derive(Debug, Deserialize)]
struct Load {
    acknowledged: Vec<u32>,
    errors: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Check {
    verdict: Vec<String>,
    rows: BTreeSet<u32>,
}

/// A database, and who writes to it.
struct Database<'a> {
    world: &'a World,
    cgroup: &'a Cgroup,
    folder: PathBuf,
    journal: &'static str,
    next: u32,
    acknowledged: Vec<u32>,
}

impl<'a> Database<'a> {
    fn new(world: &'a World, cgroup: &'a Cgroup, name: &str, journal: &'static str) -> Result<Self> {
        let folder = world.folder(&format!("{name}-{journal}"), "root")?;
        Ok(Self { world, cgroup, folder, journal, next: 0, acknowledged: Vec::new() })
    }

    fn path(&self) -> String {
        self.folder.join("database").to_string_lossy().into_owned()
    }

    /// Begins to write rows, in the cgroup.
    fn begin(&mut self) -> Result<Child> {
        let mut python = self.world.command("python3", "root")?;
        python.args(["-c", LOAD, &self.path(), self.journal, &self.next.to_string(), &ROWS.to_string()]);
        python.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.next += ROWS;
        self.cgroup.run(|| python.spawn().context("python3"))
    }

    /// What errors there were until all were written.
    fn finish(&mut self, load: Child) -> Result<Vec<String>> {
        let output = load.wait_with_output().context("python3")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "python3: {}: {complaint}", output.status);
        let load: Load = serde_json::from_slice(&output.stdout).context("what python3 prints")?;
        ensure!(load.acknowledged.len() + load.errors.len() == ROWS as usize, "{load:?}");
        self.acknowledged.extend(load.acknowledged);
        Ok(load.errors)
    }

    /// Nothing is corrupt, and all that was acknowledged is there.
    fn check(&self) -> Result {
        let mut python = self.world.command("python3", "root")?;
        let said = self.world.run(python.args(["-c", CHECK, &self.path()]))?;
        let check: Check = serde_json::from_str(&said).context("what python3 prints")?;
        ensure!(check.verdict == ["ok"], "integrity_check: {:?}", check.verdict);
        let lost: Vec<u32> =
            self.acknowledged.iter().copied().filter(|row| !check.rows.contains(row)).collect();
        ensure!(lost.is_empty(), "{} acknowledged rows are not there: {lost:?}", lost.len());
        Ok(())
    }
}

/// Both write at the same time: the errors of each, and how long it took.
fn load(both: [&mut Database<'_>; 2]) -> Result<([Vec<String>; 2], Duration)> {
    let start = Instant::now();
    let [target, bystander] = both;
    let loads = (target.begin()?, bystander.begin()?);
    let errors = target.finish(loads.0)?;
    let took = start.elapsed();
    Ok(([errors, bystander.finish(loads.1)?], took))
}

/// Before, during and after, by each kind of journal: the target's errors meanwhile, how long it took, and how often
/// the fault has fired.
fn compare(fault: &str, mut judge: impl FnMut(&str, Vec<String>, [Duration; 2], u64) -> Result) -> Result {
    let world = World::enter()?;
    let (cgroups, _inhabitant) = cgroups()?;
    for journal in JOURNALS {
        let mut target = Database::new(&world, &cgroups[0], "target", journal)?;
        let mut bystander = Database::new(&world, &cgroups[1], "bystander", journal)?;
        let (errors, usually) = load([&mut target, &mut bystander])?;
        ensure!(errors.concat().is_empty(), "{journal}, before: {errors:?}");
        let fault = arm(fault, &target.folder, &cgroups[0])?;
        let ([errors, beside], took) = load([&mut target, &mut bystander])?;
        let fired = end(&fault).context(journal)?;
        ensure!(beside.is_empty(), "{journal}: the bystander met {beside:?}");
        judge(journal, errors, [usually, took], fired).context(journal)?;
        target.check().context(journal)?;
        bystander.check().context(journal)?;
        let (errors, _) = load([&mut target, &mut bystander])?;
        ensure!(errors.concat().is_empty(), "{journal}, after: {errors:?}");
        target.check().context(journal)?;
    }
    Ok(())
}

pub(super) fn errors() -> Result {
    compare("io error EIO --ops fsync,write --percent 1", |journal, errors, _, fired| {
        println!("{journal}: {fired} calls and {} of {ROWS} transactions failed", errors.len());
        let foreign: Vec<_> = errors.iter().filter(|error| !is_ours(error)).collect();
        ensure!(foreign.is_empty(), "not of our making: {foreign:?}");
        ensure!(!errors.is_empty(), "{fired} calls failed, and nobody noticed");
        // Some it need not tell: of what it cleans up, say.
        ensure!(errors.len() as u64 <= fired, "{} errors of {fired} calls that failed", errors.len());
        ensure!(errors.len() < ROWS as usize / 2, "{} of {ROWS} transactions failed", errors.len());
        Ok(())
    })
}

/// All that SQLite says of `EIO`.
fn is_ours(error: &str) -> bool {
    // Names of errors came with Python 3.11.
    (error.starts_with("SQLITE_IOERR") || error.starts_with(": ")) && error.ends_with("disk I/O error")
}

pub(super) fn delays() -> Result {
    compare("io delay 1ms --ops read,write,fsync", |journal, errors, [usually, took], fired| {
        println!("{journal}: {fired} calls took longer; {took:?} instead of {usually:?}");
        ensure!(errors.is_empty(), "{errors:?}");
        // A write and an fsync at least.
        ensure!(fired >= u64::from(2 * ROWS), "{fired} calls of {ROWS} transactions");
        ensure!(took >= DELAY * u32::try_from(fired).context("so many calls")?, "{took:?} for {fired} calls");
        Ok(())
    })
}
