//! What dead owners leave, and what only looks like it.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::scene::{Scene, at_once, id, ps, records};
use crate::{
    decoys::live,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, RECORDS, Test, die_with_parent},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::every_command_sweeps", every_command).needs(NEEDS).waits(),
    Test::new("life::sweep_is_not_confused", not_confused).needs(NEEDS).once(),
    Test::new("life::a_number_given_again_is_not_the_owner", number_given_again).needs(NEEDS).once(),
];

const OUT: [&str; 3] = ["100%", "--proto", "udp"];

/// Leaves the record of a dead owner.
fn dead(scene: &Scene) -> Result<String> {
    let (fault, armed) = scene.armed(&OUT)?;
    fault.kill(Signal::SIGKILL)?;
    let exit = fault.wait(at_once())?;
    ensure!(exit.code.is_none(), "{exit:?}");
    let name = format!("{}.json", id(&armed)?);
    ensure!(records()?.contains(&name), "no {name} in {:?}", records());
    Ok(id(&armed)?.to_owned())
}

fn every_command() -> Result {
    let mut scene = Scene::set()?;
    let short = scene.loss(&["1%", "--for", "1ms"]);
    let short: Vec<&str> = short.iter().map(String::as_str).collect();
    let commands: [(&[&str], i32); 5] =
        [(&["sweep"], 0), (&["ps"], 0), (&["doctor", "--json"], 0), (&short, 5), (&["stop", "--all"], 0)];
    for (command, code) in commands {
        let dead = dead(&scene)?;
        let exit = Faultline::run(command)?;
        ensure!(exit.code == Some(code), "{command:?}: {exit:?}");
        if command == ["sweep"] {
            let expected =
                format!("removed the record of {dead}, whose owner is gone; nothing of it is attached\n");
            ensure!(exit.stdout == expected, "{}", exit.stdout);
        } else {
            ensure!(!exit.stdout.contains(&dead), "{command:?} speaks of {dead}: {}", exit.stdout);
        }
        scene.over(&format!("after {command:?}"))?;
    }
    let exit = Faultline::run(&["sweep"])?;
    ensure!(exit.code == Some(0) && exit.stdout == "nothing to sweep\n", "{exit:?}");
    Ok(())
}

/// With a live fault beside it all, which stays.
fn not_confused() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&OUT)?;
    let live = format!("{}.json", id(&armed)?);
    let record = fs::read_to_string(format!("{RECORDS}/{live}")).context("read the record")?;
    let write = |name: &str, text: &str| {
        let path = format!("{RECORDS}/{name}");
        fs::write(&path, text).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)))
    };
    // A dead owner's, whose number a process has that began later; and what is no record.
    write("reuse.json", &reused(&record, std::process::id())?).context("write")?;
    write("notes.txt", "kept").context("write")?;

    let listed = ps()?;
    ensure!(listed.len() == 1 && listed[0]["id"] == id(&armed)?, "{listed:?}");
    let mut kept = ["notes.txt", &live];
    kept.sort_unstable();
    ensure!(records()? == kept, "{:?}, not {kept:?}", records());
    let sweep = Faultline::run(&["sweep"])?;
    ensure!(sweep.code == Some(0) && sweep.stdout == "nothing to sweep\n", "{sweep:?}");
    scene.loses((100, 0), "the live one is left alone")?;
    ensure!(fault.interrupt()?.code == Some(130), "it did not end");
    ensure!(records()? == ["notes.txt"], "{:?}", records());
    fs::remove_file(format!("{RECORDS}/notes.txt")).context("rm")?;
    scene.over("afterwards")
}

/// The first line of a record, of a process that began at another time.
fn reused(record: &str, pid: u32) -> Result<String> {
    let first = record.lines().next().context("an empty record")?;
    let mut begun: Value = serde_json::from_str(first).context("its first line")?;
    begun["pid"] = pid.into();
    begun["start_time"] = 1.into();
    Ok(format!("{begun}\n"))
}

/// A process that has the number of one that is gone gets no signal meant for that; and what cannot be asked to
/// end is not said to have ended.
fn number_given_again() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&OUT)?;
    let record = fs::read_to_string(format!("{RECORDS}/{}.json", id(&armed)?)).context("the record")?;
    fault.interrupt()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["--run-one", "decoy::hangs-too"]).stdin(Stdio::null());
    die_with_parent(&mut command);
    let mut other = command.spawn().context("start another process")?;

    let path = format!("{RECORDS}/reuse.json");
    fs::write(&path, reused(&record, other.id())?).context("write")?;
    let exit = Faultline::run(&["stop", "reuse"])?;
    ensure!(exit.code == Some(2) && records()?.is_empty(), "a dead owner's: {exit:?}, {:?}", records());

    // One whose owner lives where nobody sees it: it has the lock that says so, and none that says who it is.
    fs::write(&path, reused(&record, other.id())?).context("write")?;
    let held = File::options().read(true).write(true).open(&path).context("open")?;
    live(&held)?;
    let exit = Faultline::run(&["stop", "reuse"])?;
    ensure!(exit.code == Some(6) && exit.stdout.is_empty(), "a live owner's, elsewhere: {exit:?}");
    ensure!(exit.stderr.contains("fault reuse") && exit.stderr.contains(&other.id().to_string()), "{exit:?}");
    drop(held);
    ensure!(other.try_wait().context("wait")?.is_none(), "the other process was ended");
    other.kill().context("kill")?;
    other.wait().context("wait")?;
    Faultline::run(&["sweep"])?;
    scene.over("afterwards")
}
