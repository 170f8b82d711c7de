//! At whom a fault is aimed: a process with its threads and children, a cgroup with those in it and below.

use std::{fs, os::unix::process::CommandExt, path::Path};

use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};

use super::{
    LSM,
    fault::Fault,
    folder::Folder,
    operator::{Operator, Pair, errno},
    path::FAULT,
    servant::Who,
};
use crate::{
    cgroup::{Cgroup, entering},
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, RECORDS, Test, numbered},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::threads_and_children", family).needs(LSM).timeout(60),
    Test::new("calls::cgroups_below_and_who_joins", joins).needs(LSM).timeout(60),
    Test::new("calls::a_number_that_is_given_again", given_again).needs(NUMBERS).timeout(60),
    Test::new("calls::the_own_program_by_any_path", own_program).needs(LSM).timeout(60),
];

const NUMBERS: &[Need] = &[LSM[0], LSM[1], LSM[2], Need::Numbers];

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

/// Of two targets one ends. Whoever gets its number then is a bystander, and the other is still hit.
fn given_again() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let ends = Operator::new(&pair.cgroup)?;
    let (number, stays) = (ends.pid(), pair.target.pid());
    let words = format!("{FAULT} --path {} --pid {number} --pid {stays}", path.display());
    let fault = Fault::arm(&words)?;
    ensure!(ends.reads(&path)? == libc::EIO, "it is not hit");
    drop(ends);
    let other = numbered(number, || Operator::new(&pair.cgroup), Operator::pid)?;
    let found = [other.reads(&path)?, pair.target.reads(&path)?, pair.bystander.reads(&path)?];
    fault.end()?;
    let expected = [0, libc::EIO, 0];
    ensure!(found == expected, "whoever has its number, the other target, the bystander: {found:?}");
    Ok(())
}

/// Its own program is spared in the midst of the target, whichever path it is begun by; a copy is another program, and so is what
/// has its path in another mount namespace.
fn own_program() -> Result {
    const NONE: Option<&str> = None;
    let pair = Pair::new()?;
    let own = binary()?;
    let [elsewhere, copy] = ["/run/elsewhere", "/run/copy"].map(Path::new);
    fs::write(elsewhere, "").context(elsewhere.display())?;
    mount(Some(&own), elsewhere, NONE, MsFlags::MS_BIND, NONE).context("bind")?;
    fs::copy(&own, copy).context(copy.display())?;
    let words = format!("io error EIO --ops open --path {RECORDS} {}", pair.option());
    let fault = Fault::arm(&words)?;
    let rows = [
        ("by its path", &*own, false, true),
        ("bound elsewhere", elsewhere, false, true),
        ("a copy", copy, false, false),
        ("a copy in its place", &*own, true, false),
    ];
    for (what, path, is_covered, works) in rows {
        let enter = entering(&pair.cgroup.path().join("cgroup.procs"))?;
        let exit = Faultline::run_binary(path, &["ps"], |command| {
            if is_covered {
                let own = own.clone();
                let cover = move || {
                    unshare(CloneFlags::CLONE_NEWNS)?;
                    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
                    Ok(mount(Some(copy), &own, NONE, MsFlags::MS_BIND, NONE)?)
                };
                // SAFETY: system calls.
                unsafe { command.pre_exec(cover) };
            }
            // SAFETY: as above.
            unsafe { command.pre_exec(enter) };
        })?;
        let listed = exit.code == Some(0) && exit.stdout.contains("io error EIO");
        let hit = exit.code != Some(0) && exit.stderr.contains("Input/output error");
        ensure!(if works { listed } else { hit }, "{what}: {exit:?}");
    }
    let counts = fault.end()?;
    ensure!(counts.fired >= 2, "{counts:?}");
    umount(elsewhere).context("umount")
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
