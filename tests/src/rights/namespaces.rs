//! From a pid namespace, or a cgroup namespace, of its own: what cannot be seen from there is said to be so, and what can be is hit.

use super::{
    FAMILIES,
    confined::{in_cgroup_namespace, in_pid_namespace},
    run_line,
};
use crate::{
    cgroup::{self, Cgroup},
    ensure,
    error::{Context, Result},
    faultline::Exit,
    harness::Test,
    inventory::Inventory,
    lab::Lab,
    life::scene::{at_once, records},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("rights::from_a_pid_namespace", of_pids).needs(FAMILIES).timeout(60).waits(),
    Test::new("rights::from_a_cgroup_namespace", of_cgroups).needs(FAMILIES).timeout(60).waits(),
];

/// One of each family, of what is in the cgroup `@`.
const ALL: [&str; 6] = [
    "net loss 1% --dev lo --cgroup @",
    "net refuse --cgroup @",
    "io delay 1ms --cgroup @",
    "io delay 1ms --path /etc --cgroup @",
    "time skew --offset 1h --cgroup @",
    "io slow 1mb/s --dev-block 1:0 --cgroup @",
];

fn refused(line: &str, exit: &Exit, says: &[&str]) -> Result {
    let is_said = says.iter().all(|part| exit.stderr.contains(part)) && exit.stderr.len() < 400;
    ensure!(exit.code == Some(3) && is_said && exit.stderr.lines().count() == 1, "{line}: {exit:?}");
    Ok(())
}

fn of_pids() -> Result {
    let lab = Lab::new()?;
    let cgroup = Cgroup::new()?;
    let folder = cgroup.path().display().to_string();
    let outside = cgroup.inhabit_in(&lab.near, |_| {})?;
    let before = Inventory::settled(&[])?;
    for line in ALL {
        let line = format!("{} --for 20ms", line.replace('@', &folder));
        let mut made = Ok(());
        let exit = run_line(&line, |command| made = in_pid_namespace(command, None))?;
        made?;
        refused(&line, &exit, &["another pid namespace", "hostPID: true"])?;
    }
    let line = format!("io delay 1ms --pid {} --for 20ms", outside.pid());
    let exit = run_line(&line, |command| _ = in_pid_namespace(command, None))?;
    refused(&line, &exit, &["pid namespace", "hostPID"])?;
    drop(outside);
    // Nobody at all is another thing.
    let line = format!("time skew --offset 1h --cgroup {folder} --for 20ms");
    let exit = run_line(&line, |command| _ = in_pid_namespace(command, None))?;
    refused(&line, &exit, &["an empty target"])?;
    // Itself is somebody who can be seen: what is of its own namespaces is hit from there.
    for line in
        ["net loss 1% --dev lo --cgroup @", "io delay 1ms --cgroup @", "io delay 1ms --path /etc --cgroup @"]
    {
        let line = format!("{} --for 20ms", line.replace('@', &folder));
        let mut made = Ok(());
        let exit = run_line(&line, |command| {
            // Who waits for it is elsewhere, or would be one of those who cannot be seen.
            made = in_pid_namespace(command, None).and_then(|()| cgroup.admit(command));
            command.env("FAULTLINE_RUN", "own");
        })?;
        made?;
        ensure!(exit.code == Some(5) && exit.stderr.is_empty(), "{line}: {exit:?}");
    }
    ensure!(records()?.is_empty(), "left {:?}", records());
    before.wait_until_equal(&[], at_once())
}

/// The cgroups that it sees are its own and those below.
fn of_cgroups() -> Result {
    let point = cgroup::root()?;
    let (own, other) = (Cgroup::new()?, Cgroup::new()?);
    let outside = other.inhabit(|_| {})?;
    let name = other.path().file_name().context("a cgroup without a name")?.to_string_lossy().into_owned();
    let before = Inventory::settled(&[])?;
    let inside = |line: &str| {
        let mut made = Ok(());
        let exit = run_line(&format!("{line} --for 20ms"), |command| {
            made = own.admit(command).and_then(|()| in_cgroup_namespace(command, &point));
        })?;
        made?;
        Ok::<_, crate::error::Failure>(exit)
    };
    for line in ALL {
        let line = line.replace('@', &name);
        refused(&line, &inside(&line)?, &["cgroup namespace", "--cgroupns host"])?;
        let line = line.replace("--cgroup", "--container");
        refused(&line, &inside(&line)?, &["no such container", "cgroup namespace"])?;
    }
    // The root that it sees is its own, and not everybody.
    let exit = inside("io delay 1ms --cgroup /")?;
    ensure!(exit.code == Some(5), "of its own: {exit:?}");
    let everybody = "time skew --offset 1h --everything";
    refused(everybody, &inside(everybody)?, &["every process", "cgroup namespace"])?;
    drop(outside);
    ensure!(records()?.is_empty(), "left {:?}", records());
    before.wait_until_equal(&[], at_once())
}
