//! What is not begun.

use std::fs;

use super::{DISKS, Scene, id, numbers, set_limits};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
};

/// What cannot be meant, or cannot be done, is said in one sentence.
pub(super) fn refused() -> Result {
    let scene = Scene::new()?;
    let folder = scene.folder();
    let disk = ["--dev-block", DISKS[0]];
    let check = |rest: &[&str], code, says: &[&str]| {
        let words = [&["io", "slow"], rest].concat();
        Faultline::check_refused(&words, code, says)
    };
    let to = ["--cgroup", &folder];
    for (speed, says) in [
        (&["fast"][..], "1mb/s"),
        (&["100"], "100 iops"),
        (&["0iops"], "from 1 up"),
        (&["1b/s"], "between 1kb/s"),
        (&["1mb/s", "2mb/s"], "another of its kind"),
    ] {
        check(&[speed, &disk, &to].concat(), 2, &[says])?;
    }
    let rate = ["1mb/s"];
    check(&[&rate[..], &disk, &to, &["--ops", "fsync"]].concat(), 2, &["--ops", "read and write"])?;
    check(&[&rate[..], &disk, &["--pid", "1"]].concat(), 2, &["--pid", "--cgroup"])?;
    check(&[&rate[..], &to].concat(), 2, &["--dev-block", "required"])?;
    check(&[&rate[..], &to, &["--path", "/tmp/*.db"]].concat(), 2, &["--path", "whole device"])?;
    check(&[&rate[..], &disk].concat(), 2, &["--cgroup, --unit or --container"])?;
    check(&[&rate[..], &to, &["--dev-block", "4095:7"]].concat(), 3, &["4095:7", "lsblk"])?;
    check(&[&rate[..], &to, &["--dev-block", "/dev/null"]].concat(), 3, &["not a block device"])?;
    check(&[&rate[..], &to, &["--path", "/proc"]].concat(), 3, &["/proc", "--dev-block"])?;
    check(&[&rate[..], &to, &["--path", "/no/such"]].concat(), 3, &["/no/such"])?;
    check(&[&rate[..], &disk, &["--cgroup", "/"]].concat(), 3, &[])?;
    let empty = Cgroup::new()?;
    let nobody = empty.path().display().to_string();
    check(&[&rate[..], &disk, &["--cgroup", &nobody]].concat(), 3, &["empty target"])?;
    // The kernel has limits only where the controller was passed down.
    let below = scene.cgroup.child("below")?;
    let inhabitant = below.inhabit(|_| {})?;
    let inner = below.path().display().to_string();
    let on = format!("echo +io > {folder}/cgroup.subtree_control");
    check(&[&rate[..], &disk, &["--cgroup", &inner]].concat(), 3, &[&on])?;
    drop(inhabitant);
    // Itself.
    let words = [&["io", "slow"], &rate[..], &disk, &to].concat();
    let exit = scene.cgroup.run(|| Faultline::run(&words))?;
    ensure!(exit.code == Some(3) && exit.stderr.contains("Faultline itself"), "{exit:?}");
    let (before, record) = (scene.limits()?, "nobody");
    ensure!(before.is_empty(), "{before:?}");
    // Two owners, and a limit that is lower already.
    let (fault, armed) = scene.armed(&["2mb/s", "--ops", "read"])?;
    let id = id(&armed)?;
    check(&[&rate[..], &disk, &to].concat(), 3, &[id, "faultline stop"])?;
    check(&[&rate[..], &disk, &to, &["--plan"]].concat(), 3, &[id])?;
    fault.end()?;
    set_limits(&scene.cgroup, &format!("{} rbps=900000", numbers(DISKS[0])?))?;
    check(&[&rate[..], &disk, &to].concat(), 3, &["rbps=900000", "ask for less"])?;
    let planned = Faultline::run(&[&words[..], &["--ops", "write", "--plan"]].concat())?;
    ensure!(planned.code == Some(0), "{planned:?}");
    let told = ["wbps=1000000", "before it: rbps=900000", &folder];
    ensure!(told.iter().all(|part| planned.stdout.contains(part)), "{}", planned.stdout);
    let limits = format!("{} rbps=900000 wbps=max riops=max wiops=max\n", numbers(DISKS[0])?);
    scene.over(record, &limits, "nothing was begun")
}

/// Where the controller is cgroup v1's, or there is none.
pub(super) fn not_here() -> Result {
    let cgroup = Cgroup::new()?;
    let inhabitant = cgroup.inhabit(|_| {})?;
    let folder = cgroup.path().display().to_string();
    let devices = fs::read_dir("/sys/dev/block").context("/sys/dev/block")?;
    let device = devices.flatten().next().context("no block device")?.file_name();
    let device = device.to_str().context("its numbers")?.to_owned();
    let words = ["io", "slow", "1mb/s", "--dev-block", &device, "--cgroup", &folder];
    let says = [folder.as_str(), "blkio"];
    Faultline::check_refused(&words, 3, &says)?;
    drop(inhabitant);
    Ok(())
}
