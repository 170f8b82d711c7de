//! Where it cannot begin: without rights, without BTF, without a place for its record.

use std::{
    fs,
    os::unix::{self, process::CommandExt},
    path::Path,
    process::Command,
};

use nix::mount::{MsFlags, mount, umount};

use super::scene::{Scene, at_once, records};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline, as_nobody, binary},
    harness::{Need, RECORDS, Test, own_run},
    inventory::Inventory,
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("input::not_root", not_root),
    Test::new("input::no_btf", no_btf),
    Test::new("input::read_only_run", read_only_run).needs(NEEDS),
    Test::new("input::full_run", full_run).needs(NEEDS),
    Test::new("input::missing_run", missing_run).needs(NEEDS),
];

const LOSS: [&str; 7] = ["net", "loss", "1%", "--dev", "lo", "--for", "100ms"];

/// The nothing that `mount` takes.
const NONE: Option<&str> = None;

/// One sentence on standard error, with all of this in it, and nothing on standard output.
pub(crate) fn one_sentence(exit: &Exit, code: i32, says: &[&str]) -> Result {
    let stderr = &exit.stderr;
    ensure!(exit.code == Some(code) && exit.signal.is_none(), "not exit {code}: {exit:?}");
    ensure!(exit.stdout.is_empty() && exit.events.is_empty(), "it printed {} {:?}", exit.stdout, exit.events);
    ensure!(stderr.starts_with("faultline: ") && stderr.lines().count() == 1, "not one line: {stderr}");
    for expected in says {
        ensure!(stderr.contains(expected), "no {expected:?} in {stderr}");
    }
    ensure!(stderr.len() < 400, "a long sentence: {stderr}");
    Ok(())
}

fn not_root() -> Result {
    let before = Inventory::take(&[])?;
    let binary = binary()?;
    let commands: [&[&str]; 6] =
        [&LOSS, &["ps"], &["ps", "--json"], &["stop", "--all"], &["stop", "x"], &["sweep"]];
    for command in commands {
        let exit = Faultline::run_binary(&binary, command, as_nobody)?;
        one_sentence(&exit, 3, &["only root", "sudo"]).context(format_args!("{command:?}"))?;
    }
    // What cannot be right is said first.
    let exit = Faultline::run_binary(&binary, &["net", "loss", "x", "--dev", "lo"], as_nobody)?;
    one_sentence(&exit, 2, &["PERCENT", "30%"])?;
    before.wait_until_equal(&[], at_once())
}

/// Missing, or there and empty.
fn no_btf() -> Result {
    let before = Inventory::take(&[])?;
    fs::create_dir("/run/btf").context("mkdir")?;
    bind("/run/btf", "/sys/kernel/btf")?;
    let says = ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"];
    one_sentence(&Faultline::run(&LOSS)?, 3, &says)?;
    fs::write("/run/btf/vmlinux", b"").context("write")?;
    one_sentence(&Faultline::run(&LOSS)?, 3, &says)?;
    let doctor = Faultline::run(&["doctor"])?;
    ensure!(doctor.code == Some(3) && doctor.stdout.contains(says[1]), "{doctor:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    umount("/sys/kernel/btf").context("umount")?;
    fs::remove_dir_all("/run/btf").context("rm")?;
    before.wait_until_equal(&[], at_once())
}

fn bind(from: &str, to: &str) -> Result {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .context(format_args!("bind {from} on {to}"))
}

/// With a folder for records and without.
fn read_only_run() -> Result {
    let mut scene = Scene::set()?;
    let switch = |flags| mount(NONE, "/run", NONE, MsFlags::MS_REMOUNT | flags, NONE).context("remount /run");
    for folder in [true, false] {
        if !folder {
            fs::remove_dir(RECORDS).context("rmdir")?;
        }
        switch(MsFlags::MS_RDONLY)?;
        let exit = loss(&scene)?;
        one_sentence(&exit, 3, &["/run/faultline", "Read-only", "make /run a writable tmpfs"])?;
        for command in ["ps", "sweep"] {
            let exit = Faultline::run(&[command])?;
            ensure!(exit.code == Some(0), "{command}: {exit:?}");
        }
        switch(MsFlags::empty())?;
    }
    fs::create_dir(RECORDS).context("mkdir")?;
    scene.over("afterwards")
}

fn loss(scene: &Scene) -> Result<Exit> {
    let arguments = scene.loss(&["1%", "--for", "100ms"]);
    Faultline::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// No file can be made; or one, but nothing written.
fn full_run() -> Result {
    let mut scene = Scene::set()?;
    for (options, fill) in [("mode=0700,nr_inodes=1", 0), ("mode=0700,size=4k", 4096)] {
        mount(Some("tmpfs"), RECORDS, Some("tmpfs"), MsFlags::empty(), Some(options)).context(options)?;
        if fill > 0 {
            fs::write(format!("{RECORDS}/filler"), vec![0; fill]).context("fill")?;
        }
        let exit = loss(&scene)?;
        one_sentence(&exit, 3, &["record in /run/faultline", "No space left", "make /run a writable tmpfs"])?;
        let left: Vec<_> = records()?.into_iter().filter(|name| name != "filler").collect();
        ensure!(left.is_empty(), "{options}: left {left:?}");
        umount(RECORDS).context("umount")?;
    }
    scene.over("afterwards")
}

/// A root without `/run`, which is not made: it would lie on the disk.
fn missing_run() -> Result {
    let before = Inventory::take(&[])?;
    let root = Path::new("/run/root");
    fs::create_dir(root).context("mkdir")?;
    fill_root(root, &["run"])?;
    let exit = Faultline::run_with(&LOSS, |command| chroot(command, root))?;
    one_sentence(&exit, 3, &["/run/faultline", "No such file", "make /run a writable tmpfs"])?;
    for command in ["ps", "sweep"] {
        let exit = Faultline::run_with(&[command], |command| chroot(command, root))?;
        ensure!(exit.code == Some(0), "{command}: {exit:?}");
    }
    ensure!(!root.join("run").exists(), "it made a /run");
    fresh_run()?;
    before.wait_until_equal(&[], at_once())
}

/// Makes a folder look like the root, but for these of its folders.
pub(crate) fn fill_root(root: &Path, without: &[&str]) -> Result {
    for entry in fs::read_dir("/").context("ls /")? {
        let entry = entry.context("ls /")?;
        let place = root.join(entry.file_name());
        let kind = entry.file_type().context("stat")?;
        if kind.is_symlink() {
            let target = fs::read_link(entry.path()).context("readlink")?;
            unix::fs::symlink(target, &place).context("symlink")?;
        } else if kind.is_dir() && !without.iter().any(|name| entry.file_name() == *name) {
            fs::create_dir(&place).context("mkdir")?;
            bind(&entry.path().to_string_lossy(), &place.to_string_lossy())?;
        }
    }
    Ok(())
}

/// Gives this process a new `/run`, without what was mounted beneath the old one.
pub(crate) fn fresh_run() -> Result {
    nix::mount::umount2("/run", nix::mount::MntFlags::MNT_DETACH).context("umount")?;
    own_run()
}

fn chroot(command: &mut Command, root: &'static Path) {
    let enter = move || {
        nix::unistd::chroot(root)?;
        Ok(nix::unistd::chdir("/")?)
    };
    // SAFETY: two system calls, no allocation for so short a path.
    unsafe { command.pre_exec(enter) };
}
