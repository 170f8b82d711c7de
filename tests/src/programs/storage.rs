//! Programs that keep what they were given: whatever happens to their files, what they have acknowledged is there
//! afterwards, and nothing is corrupt. Each beside another that has the same load, in another cgroup, and does not
//! notice.

mod postgres;
mod redis;
mod sqlite;

use std::path::Path;

use chaos_user::kernel::mechanism::Mechanism;

use super::server::World;
use crate::{
    cgroup::{Cgroup, Inhabitant},
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Need, Test},
};

/// Reads and writes are hit by this, or by `fmod_ret` on the same; who has the one has the other.
const LSM: Need = Need::Mechanism(Mechanism::Lsm);
/// `fsync` fails by this.
const SYSCALL: Need = Need::Mechanism(Mechanism::FmodRetSyscall);
/// And takes longer by this.
const FENTRY: Need = Need::Mechanism(Mechanism::Fentry);

/// The tests of these files.
pub(crate) const TESTS: &[Test] = &[
    Test::new("storage::sqlite_errors", sqlite::errors).needs(sqlite::ERRORS).timeout(180).once(),
    Test::new("storage::sqlite_delays", sqlite::delays).needs(sqlite::DELAYS).timeout(180).once(),
    Test::new("storage::postgres_errors", postgres::errors).needs(postgres::ERRORS).timeout(400).once(),
    Test::new("storage::postgres_delays", postgres::delays).needs(postgres::DELAYS).timeout(300).once(),
    Test::new("storage::redis_disk_full", redis::disk_full).needs(redis::NEEDS).timeout(120).once(),
    Test::new("storage::redis_disk_full_always", redis::disk_full_always)
        .needs(redis::NEEDS)
        .timeout(120)
        .once(),
];

/// The target's cgroup and the bystander's. Somebody is in the first whatever its programs do: one without processes
/// is no target.
fn cgroups() -> Result<([Cgroup; 2], Inhabitant)> {
    let cgroups = [Cgroup::new()?, Cgroup::new()?];
    let inhabitant = cgroups[0].inhabit(|_| {})?;
    Ok((cgroups, inhabitant))
}

/// What the folder's programs in the cgroup meet from now on.
fn arm(fault: &str, folder: &Path, cgroup: &Cgroup) -> Result<Faultline> {
    let (folder, cgroup) = (folder.to_string_lossy(), cgroup.path().to_string_lossy());
    let aim = ["--path", &folder, "--cgroup", &cgroup, "--seed", "1"];
    let words: Vec<&str> = fault.split(' ').chain(aim).collect();
    let faultline = Faultline::start(&words)?;
    faultline.wait_event("armed", super::PATIENCE).context(fault)?;
    Ok(faultline)
}

/// Ends it; how often it has fired.
fn end(fault: &Faultline) -> Result<u64> {
    let exit = fault.end()?;
    let fired = fired(&exit)?;
    ensure!(fired > 0, "it has not fired: {exit:?}");
    Ok(fired)
}

fn fired(exit: &Exit) -> Result<u64> {
    let summary = exit.event("summary")?;
    let rules = summary.get("/rules")?.as_array().context("no rules")?;
    Ok(rules.iter().filter_map(|rule| rule["fired"].as_u64()).sum())
}

/// What a program has written to a file of its world.
fn log(world: &World, name: &str) -> Result<String> {
    let path = world.path().join(format!("{name}.log"));
    let log = std::fs::read(&path).context(path.display())?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}
