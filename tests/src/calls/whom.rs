//! At whom a fault is aimed: a process with its threads and children, a cgroup with those in it and below.

use std::fs;

use super::{
    LSM,
    fault::Fault,
    folder::Folder,
    operator::{Operator, Pair, errno},
    path::FAULT,
    servant::Who,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::threads_and_children", family).needs(LSM).timeout(60),
    Test::new("calls::cgroups_below_and_who_joins", joins).needs(LSM).timeout(60),
];

const EVERYBODY: [Who; 4] = [Who::Itself, Who::Thread, Who::Child, Who::Grandchild];

/// What each of a process's threads and descendants gets when it reads.
fn all(operator: &Operator, fd: u64) -> Result<[i32; 4]> {
    let arguments = [fd, operator.buffer(0), 16, 0];
    let mut said = [0; 4];
    for (said, who) in said.iter_mut().zip(EVERYBODY) {
        *said = errno(operator.call_by(who, libc::SYS_pread64, &arguments)?);
    }
    Ok(said)
}

fn family() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let neighbour = Operator::new(&pair.cgroup)?;
    let open = |operator: &Operator| operator.open(&path, libc::O_RDONLY);
    let [target, beside, other] = [open(&pair.target)?, open(&neighbour)?, open(&pair.bystander)?];
    let look = || -> Result<[[i32; 4]; 3]> {
        Ok([all(&pair.target, target)?, all(&neighbour, beside)?, all(&pair.bystander, other)?])
    };
    let (spared, hit) = ([0; 4], [libc::EIO; 4]);
    let pid = pair.target.pid();
    let rows = [
        (format!("--pid {pid}"), [hit, spared, spared]),
        (pair.option(), [hit, hit, spared]),
        (format!("--pid {pid} --pid {}", pair.bystander.pid()), [hit, spared, hit]),
        // Whoever is named by either.
        (format!("{} --pid {}", pair.option(), pair.bystander.pid()), [hit, hit, hit]),
    ];
    for (rule, expected) in rows {
        ensure!(look()? == [spared; 3], "before {rule}");
        let fault = Fault::arm(&format!("{FAULT} --path {} {rule}", path.display()))?;
        let got = look()?;
        let counts = fault.end()?;
        println!("{rule}: {got:?} {counts:?}");
        ensure!(
            got == expected,
            "{rule}: the target, its neighbour, the bystander: {got:?}, not {expected:?}"
        );
        let fired = got.iter().flatten().filter(|errno| **errno != 0).count() as u64;
        ensure!(counts.fired == fired, "{rule}: {counts:?}, and {fired} reads failed");
        ensure!(look()? == [spared; 3], "after {rule}");
    }
    Ok(())
}

fn joins() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let child = pair.cgroup.child("below")?;
    let below = Operator::new(&child)?;
    let guest = Operator::new(&pair.other)?;
    let look = || -> Result<[i32; 4]> {
        let of = |operator: &Operator| operator.reads(&path);
        Ok([of(&pair.target)?, of(&below)?, of(&guest)?, of(&pair.bystander)?])
    };
    ensure!(look()? == [0; 4], "before");
    let fault = Fault::arm(&format!("{FAULT} --path {} {}", path.display(), pair.option()))?;
    let move_to = |cgroup: &Cgroup| {
        let procs = cgroup.path().join("cgroup.procs");
        fs::write(&procs, guest.pid().to_string()).context(procs.display())
    };
    let mut got = vec![look()?];
    for cgroup in [&pair.cgroup, &pair.other] {
        move_to(cgroup)?;
        got.push(look()?);
    }
    // One that is made while it runs.
    let late = pair.cgroup.child("late")?;
    move_to(&late)?;
    got.push(look()?);
    let eio = libc::EIO;
    fault.end()?;
    let expected = [[eio, eio, 0, 0], [eio, eio, eio, 0], [eio, eio, 0, 0], [eio, eio, eio, 0]];
    ensure!(got == expected, "the target, below it, who comes and goes, the bystander: {got:?}");
    ensure!(look()? == [0; 4], "after");
    move_to(&pair.other)?;
    drop(below);
    Ok(())
}
