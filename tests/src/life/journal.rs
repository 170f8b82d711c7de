//! The records that owners leave for others: whose they are, what is not understood, and who is asked to end.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::unix::{self, fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use chaos_user::{
    kernel::ethtool::{Ethtool, Feature, SEGMENTATION},
    session::FORMAT,
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::mkfifo,
};

use super::scene::{PATIENCE, Scene, id, ps, records};
use crate::{
    decoys::{LATE_LINE, LATE_RECORD, WRITES_LATE},
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline, binary},
    harness::{Need, RECORDS, Test, die_with_parent},
    lab::{NEAR_DEVICE, Netns},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("journal::nobody_elses_whatever_the_umask", modes).needs(NEEDS).waits(),
    Test::new("journal::what_is_not_roots_is_refused", foreign_files).needs(NEEDS).waits(),
    Test::new("journal::what_is_not_understood_is_kept", not_understood).needs(NEEDS).waits(),
    Test::new("journal::a_torn_last_line_is_forgiven", torn).needs(NEEDS).waits(),
    Test::new("journal::what_is_written_last_counts", written_last).needs(NEEDS).waits(),
    Test::new("journal::readers_are_in_nobodys_way", readers).needs(NEEDS).waits(),
];

/// A fault that changes what does not go back with its owner.
pub(super) const EXACT: [&str; 4] = ["1%", "--proto", "udp", "--exact"];

/// The segmentation that an interface is asked for.
pub(super) fn features(netns: &Netns, device: &str) -> Result<Vec<Feature>> {
    let index = netns.index(device)?;
    netns.run(|| Ok(Ethtool::open(index)?.features(SEGMENTATION)?))
}

/// A dead owner's record, by its path, and the segmentation there was before.
pub(super) fn dead(scene: &Scene) -> Result<(PathBuf, Vec<Feature>)> {
    let before = features(&scene.lab.near, NEAR_DEVICE)?;
    let (fault, armed) = scene.armed(&EXACT)?;
    fault.kill(Signal::SIGKILL)?;
    ensure!(fault.wait(PATIENCE)?.code.is_none(), "it was not killed");
    let off = features(&scene.lab.near, NEAR_DEVICE)?;
    ensure!(before != off && off.iter().all(|feature| !feature.asked), "not switched off: {off:?}");
    Ok((Path::new(RECORDS).join(format!("{}.json", id(&armed)?)), before))
}

/// The command ends with 6, and names what it has not looked at.
pub(crate) fn dirty(command: &[&str], exit: &Exit, says: &[&str]) -> Result {
    ensure!(exit.code == Some(6), "{command:?}: {exit:?}");
    for says in says {
        ensure!(exit.stderr.contains(says), "{command:?}: no {says:?} in {exit:?}");
    }
    let clean = ["nothing to sweep", "nothing of it is", "removed"];
    ensure!(!clean.iter().any(|clean| exit.stdout.contains(clean)), "{command:?}: {exit:?}");
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).context(path.display())?.permissions().mode() & 0o7777)
}

fn modes() -> Result {
    let mut scene = Scene::set()?;
    for (mask, before) in [(0, None), (0o777, None), (0, Some(0o755)), (0o022, Some(0o500))] {
        fs::remove_dir(RECORDS).context("rmdir")?;
        if let Some(before) = before {
            // As an earlier version made it.
            fs::create_dir(RECORDS).context("mkdir")?;
            fs::set_permissions(RECORDS, Permissions::from_mode(before)).context("chmod")?;
        }
        let arguments = scene.loss(&["100%", "--proto", "udp"]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let masked = move || {
            umask(Mode::from_bits_truncate(mask));
            Ok(())
        };
        // SAFETY: one system call.
        let fault = Faultline::start_with(&arguments, |command| unsafe {
            command.pre_exec(masked);
        })?;
        let armed = fault.wait_event("armed", PATIENCE)?;
        let record = Path::new(RECORDS).join(format!("{}.json", id(&armed)?));
        let modes = (mode(Path::new(RECORDS))?, mode(&record)?);
        ensure!(modes == (0o700, 0o600), "umask {mask:o}: {:o} {:o}", modes.0, modes.1);
        scene.loses((100, 0), "while it is armed")?;
        ensure!(fault.interrupt()?.code == Some(130), "it did not end");
        scene.whole("afterwards")?;
    }
    scene.over("at last")
}

/// Neither read nor removed, and told by name; nothing begins beside it.
fn foreign_files() -> Result {
    const NOBODY: u32 = 65_534;
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&["100%", "--proto", "udp"])?;
    let live = Path::new(RECORDS).join(format!("{}.json", id(&armed)?));
    // What it says would be carried out if it were believed: a record of somebody who is gone.
    let text = fs::read_to_string(&live).context("read")?;
    ensure!(fault.interrupt()?.code == Some(130), "it did not end");
    scene.over("before")?;
    let planted = Path::new(RECORDS).join("plant.json");
    let aside = Path::new("/run/aside.json");
    fs::write(aside, &text).context("write")?;
    let file = |mode| {
        fs::write(&planted, &text).context("write")?;
        fs::set_permissions(&planted, Permissions::from_mode(mode)).context("chmod")
    };
    type Plant<'a> = &'a dyn Fn() -> Result;
    let cases: [(&str, Plant<'_>); 6] = [
        ("is not root's own", &|| {
            file(0o600)?;
            unix::fs::chown(&planted, Some(NOBODY), None).context("chown")
        }),
        ("may be written by others", &|| file(0o666)),
        ("may be written by others", &|| file(0o620)),
        ("is not a file", &|| unix::fs::symlink(aside, &planted).context("symlink")),
        ("is not a file", &|| mkfifo(&planted, Mode::S_IRUSR).context("mkfifo")),
        ("is not a file", &|| fs::create_dir(&planted).context("mkdir")),
    ];
    let loss = scene.loss(&["1%", "--for", "1ms"]);
    let loss: Vec<&str> = loss.iter().map(String::as_str).collect();
    for (says, plant) in cases {
        plant()?;
        for command in [&["sweep"][..], &["ps"], &["stop", "--all"], &["stop", "plant"], &loss] {
            dirty(command, &Faultline::run(command)?, &["plant.json", says, "rm /run/faultline/plant.json"])?;
        }
        ensure!(records()? == ["plant.json"], "{says}: {:?}", records());
        let is_folder = planted.symlink_metadata().context("lstat")?.is_dir();
        let removed = if is_folder { fs::remove_dir(&planted) } else { fs::remove_file(&planted) };
        removed.context("remove")?;
    }
    // The folder itself.
    let chmod = |mode| fs::set_permissions(RECORDS, Permissions::from_mode(mode)).context("chmod");
    let chown = |user| unix::fs::chown(RECORDS, Some(user), None).context("chown");
    for (says, (mode, owner)) in
        [("may be written by others", (0o777, 0)), ("is not root's own", (0o700, NOBODY))]
    {
        chmod(mode)?;
        chown(owner)?;
        for command in [&["sweep"][..], &["ps"], &["stop", "--all"], &loss] {
            dirty(command, &Faultline::run(command)?, &["/run/faultline ", says])?;
        }
        chown(0)?;
        chmod(0o700)?;
    }
    fs::rename(RECORDS, "/run/elsewhere").context("rename")?;
    unix::fs::symlink("/run/elsewhere", RECORDS).context("symlink")?;
    dirty(&["sweep"], &Faultline::run(&["sweep"])?, &["/run/faultline is not a folder"])?;
    fs::remove_file(RECORDS).context("rm")?;
    fs::rename("/run/elsewhere", RECORDS).context("rename")?;
    scene.over("afterwards")
}

/// Whatever is not understood of a record, it stays as it is, and so does what it speaks of, until somebody comes who does.
fn not_understood() -> Result {
    let mut scene = Scene::set()?;
    let (record, before) = dead(&scene)?;
    let name = record.display().to_string();
    let whole = fs::read_to_string(&record).context("read")?;
    let lines: Vec<&str> = whole.lines().collect();
    let put = |number: usize, line: &str| {
        let mut lines = lines.clone();
        lines[number] = line;
        lines.join("\n") + "\n"
    };
    let change = lines.iter().position(|line| line.contains("\"change\"")).context("no change")?;
    let format = |number: u32| format!("\"format\":{number}");
    let newer = lines[0].replacen(&format(FORMAT), &format(FORMAT + 1), 1);
    let changed = lines[change].replacen("\"version\":1", "\"version\":2", 1);
    let family = lines[change].replacen("\"family\":\"net\"", "\"family\":\"memory\"", 1);
    let cases = [
        (&*format!("format {}", FORMAT + 1), put(0, &newer)),
        ("line 1 is damaged", put(0, &lines[0][..20])),
        ("version 2", put(change, &changed)),
        ("\"memory\"", put(change, &family)),
        ("\"paused\"", format!("{whole}{{\"entry\":\"paused\"}}\n")),
        ("is damaged", put(change, "\0\0\0\0")),
        ("no first line", String::new()),
        ("no first line", whole[..lines[0].len()].to_owned()),
    ];
    let loss = scene.loss(&["1%", "--for", "1ms"]);
    let loss: Vec<&str> = loss.iter().map(String::as_str).collect();
    for (says, text) in cases {
        fs::write(&record, &text).context("write")?;
        for command in [&["sweep"][..], &["ps"], &["stop", "--all"], &loss] {
            dirty(command, &Faultline::run(command)?, &[&name, says])?;
        }
        ensure!(fs::read_to_string(&record).context("read")? == text, "{says}: it was changed");
        let off = features(&scene.lab.near, NEAR_DEVICE)?;
        ensure!(off.iter().all(|feature| !feature.asked), "{says}: half taken back: {off:?}");
    }
    fs::write(&record, &whole).context("write")?;
    swept(&record)?;
    ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    scene.over("afterwards")
}

/// A sweep removes this record, and says so.
pub(super) fn swept(record: &Path) -> Result {
    let id = record.file_stem().and_then(|id| id.to_str()).context("no id")?;
    let exit = Faultline::run(&["sweep"])?;
    let said = format!("removed the record of {id}, whose owner is gone; nothing of it is attached\n");
    ensure!(exit.code == Some(0) && exit.stdout == said && exit.stderr.is_empty(), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    Ok(())
}

/// The owner died while it wrote it: before it did what it speaks of.
fn torn() -> Result {
    let mut scene = Scene::set()?;
    let (record, before) = dead(&scene)?;
    let whole = fs::read_to_string(&record).context("read")?;
    fs::write(&record, &whole[..whole.len() - 3]).context("write")?;
    swept(&record)?;
    ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    scene.over("afterwards")
}

/// What its owner wrote down after it had been asked to end is taken back as well.
fn written_last() -> Result {
    let mut scene = Scene::set()?;
    let (record, before) = dead(&scene)?;
    let whole = fs::read_to_string(&record).context("read")?;
    let (changes, others): (Vec<&str>, Vec<&str>) =
        whole.lines().partition(|line| line.contains("\"kind\":\"features\""));
    ensure!(changes.len() == 1, "{whole}");
    fs::write(&record, others.join("\n") + "\n").context("write")?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["--run-one", WRITES_LATE.name]).env(LATE_RECORD, &record).env(LATE_LINE, changes[0]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    die_with_parent(&mut command);
    let mut owner = command.spawn().context("start an owner")?;
    let mut said = String::new();
    BufReader::new(owner.stdout.take().context("no output")?).read_line(&mut said).context("read")?;
    ensure!(said == "ready\n", "it said {said:?}");
    let id = record.file_stem().and_then(|id| id.to_str()).context("no id")?;
    let exit = Faultline::run(&["stop", id])?;
    owner.wait().context("wait")?;
    ensure!(
        exit.code == Some(0) && exit.stdout == format!("stopped {id}; nothing of it is left\n"),
        "{exit:?}"
    );
    ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    scene.over("afterwards")
}

/// Whoever reads a record does not keep another from removing it, nor does who removes it look like an owner.
fn readers() -> Result {
    let mut scene = Scene::set()?;
    for lock in [FlockArg::LockShared, FlockArg::LockExclusive] {
        let (record, before) = dead(&scene)?;
        let file = File::open(&record).context("open")?;
        let held = Flock::lock(file, lock).map_err(|(_, errno)| errno).context("flock")?;
        ensure!(ps()?.is_empty(), "a dead owner is listed");
        drop(held);
        ensure!(records()?.is_empty(), "left {:?}", records());
        ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    }
    // Many at once: each is told of no more than it has done, and all is done.
    let (record, before) = dead(&scene)?;
    let id = record.file_stem().and_then(|id| id.to_str()).context("no id")?.to_owned();
    let program = binary()?;
    let sweeps: Vec<_> =
        (0..6).map(|_| Faultline::start_binary(&program, &["sweep"])).collect::<Result<_>>()?;
    let mut removed = 0;
    for sweep in sweeps {
        let exit = sweep.wait(PATIENCE)?;
        ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{exit:?}");
        removed += usize::from(exit.stdout.contains(&format!("removed the record of {id}")));
    }
    ensure!(removed == 1, "{removed} say that they removed it");
    ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    scene.over("afterwards")
}
