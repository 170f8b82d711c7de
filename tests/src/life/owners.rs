//! `faultline ps` and `faultline stop`.

use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::scene::{PATIENCE, Scene, at_once, id, ps};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
    harness::{Need, Test, patience},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::ps_lists_all_owners", lists).needs(NEEDS),
    Test::new("life::stop_by_id", by_id).needs(NEEDS),
    Test::new("life::stop_all", all).needs(NEEDS),
    Test::new("life::stop_a_stopped_owner", stopped_owner).needs(NEEDS),
    Test::new("life::stop_an_owner_that_is_starting", starting_owner).needs(NEEDS),
];

const OUT: [&str; 3] = ["100%", "--proto", "udp"];

fn lists() -> Result {
    let mut scene = Scene::set()?;
    ensure!(ps()?.is_empty(), "{:?}", ps());
    let (second, _) = scene.armed(&["1%", "--direction", "both", "--proto", "udp", "--for", "30s"])?;
    // Armed later, it sees the packets first.
    let (first, armed) = scene.armed(&OUT)?;
    let before = fired(&ps()?, id(&armed)?)?;
    scene.lost()?;
    let faults = ps()?;
    let after = fired(&faults, id(&armed)?)?;
    ensure!((before, after) == (0, 100), "fired {before}, and {after} after 100 packets");

    ensure!(faults.len() == 2, "{faults:?}");
    let place = faults.iter().position(|fault| fault["id"] == armed.json["id"]).context("not listed")?;
    let (one, two) = (&faults[place], &faults[1 - place]);
    ensure!(one["pid"] == first.pid().as_raw() && two["pid"] == second.pid().as_raw(), "{faults:?}");
    for fault in [one, two] {
        ensure!(fault["state"] == "armed" && fault["device"] == "to-far" && fault["seed"] == 1, "{fault}");
    }
    ensure!(one["remaining_s"].is_null() && one["rules"][0]["asked"] == 1.0, "{one}");
    ensure!(two["remaining_s"].as_f64().is_some_and(|left| (15.0..30.0).contains(&left)), "{two}");
    let directions = [&two["rules"][0]["direction"], &two["rules"][1]["direction"]];
    ensure!(
        directions == ["in", "out"] && two["hooks"].as_array().is_some_and(|all| all.len() == 2),
        "{two}"
    );

    // The same in text: a line for each rule.
    let text = Faultline::run(&["ps"])?;
    let lines: Vec<&str> = text.stdout.lines().collect();
    ensure!(lines.len() == 4 && lines[0].starts_with("ID"), "{}", text.stdout);
    for (fault, count) in [(one, 1), (two, 2)] {
        let id = fault["id"].as_str().context("no id")?;
        let rows = lines.iter().filter(|line| line.starts_with(id) && line.contains("armed")).count();
        ensure!(rows == count, "{id} has {rows} rows, not {count}:\n{}", text.stdout);
    }
    let row = lines.iter().find(|line| line.contains("loss 100%")).context("no row of the first")?;
    ensure!(row.split_whitespace().filter(|word| *word == "100").count() == 2, "matched, fired: {row}");
    first.interrupt()?;
    second.interrupt()?;
    scene.over("afterwards")
}

fn fired(faults: &[Value], id: &str) -> Result<u64> {
    let fault = faults.iter().find(|fault| fault["id"] == id).context(format_args!("{id} is not listed"))?;
    fault["rules"][0]["fired"]["packets"].as_u64().context(format_args!("no count in {fault}"))
}

/// One, then two at once; an unknown id among them ends none.
fn by_id() -> Result {
    let mut scene = Scene::set()?;
    let unknown = Faultline::run(&["stop", "nobody"])?;
    refused(&unknown)?;
    let faults = [scene.armed(&OUT)?, scene.armed(&OUT)?, scene.armed(&OUT)?];
    let [one, two, three] = [id(&faults[0].1)?, id(&faults[1].1)?, id(&faults[2].1)?];
    refused(&Faultline::run(&["stop", one, "nobody"])?)?;
    ensure!(ps()?.len() == 3, "stopped in spite of an unknown id: {:?}", ps());

    stops(&scene, &["stop", one], &[one], 2)?;
    scene.loses((100, 0), "two are left")?;
    stops(&scene, &["stop", two, three], &[two, three], 0)?;
    scene.over("all are stopped")?;
    for (fault, _) in &faults {
        let exit = fault.wait(at_once())?;
        ensure!(exit.code == Some(130), "{exit:?}");
        ensure!(exit.event("summary")?.get("/reason")? == "SIGTERM", "{exit:?}");
    }
    let again = Faultline::run(&["stop", one])?;
    refused(&again)
}

fn refused(exit: &Exit) -> Result {
    let told = exit.stderr.contains("there is no fault") && exit.stderr.contains("faultline ps");
    ensure!(exit.code == Some(2) && told && exit.stdout.is_empty(), "{exit:?}");
    Ok(())
}

/// Runs a stop and looks what is left the moment it has ended.
fn stops(scene: &Scene, arguments: &[&str], ids: &[&str], left: usize) -> Result {
    let exit = Faultline::run(arguments)?;
    let programs = scene.more()?.iter().filter(|line| line.starts_with("program ")).count();
    let links = scene.more()?.iter().filter(|line| line.starts_with("link ")).count();
    let files = scene.more()?.iter().filter(|line| line.starts_with("file ")).count();
    ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{exit:?}");
    ensure!([programs, files] == [left; 2] && links <= left, "left: {:?}", scene.more());
    for id in ids {
        let line = format!("stopped {id}; nothing of it is left");
        ensure!(exit.stdout.lines().any(|told| told == line), "no {line:?} in {}", exit.stdout);
    }
    ensure!(exit.stdout.lines().count() == ids.len(), "{}", exit.stdout);
    Ok(())
}

fn all() -> Result {
    let mut scene = Scene::set()?;
    stops(&scene, &["stop", "--all"], &[], 0)?;
    let (first, armed) = scene.armed(&OUT)?;
    let (second, other) = scene.armed(&OUT)?;
    stops(&scene, &["stop", "--all"], &[id(&armed)?, id(&other)?], 0)?;
    scene.over("all are stopped")?;
    for fault in [first, second] {
        let exit = fault.wait(at_once())?;
        ensure!(exit.code == Some(130), "{exit:?}");
    }
    Ok(())
}

/// It does not hear the signal before it goes on.
fn stopped_owner() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&OUT)?;
    fault.kill(Signal::SIGSTOP)?;
    let start = Instant::now();
    stops(&scene, &["stop", id(&armed)?], &[id(&armed)?], 0)?;
    ensure!(start.elapsed() < at_once() * 2, "it took {:?}", start.elapsed());
    scene.over("afterwards")?;
    let exit = fault.wait(at_once())?;
    ensure!(exit.code == Some(130), "{exit:?}");
    Ok(())
}

/// Whatever it has come to when it is asked.
fn starting_owner() -> Result {
    let mut scene = Scene::set()?;
    for _ in 0..4 {
        let fault = scene.start(&OUT)?;
        let deadline = Instant::now() + patience(PATIENCE);
        while super::scene::records()?.is_empty() {
            ensure!(Instant::now() < deadline, "no record");
            std::thread::yield_now();
        }
        let exit = Faultline::run(&["stop", "--all"])?;
        ensure!(exit.code == Some(0) && exit.stdout.starts_with("stopped "), "{exit:?}");
        let ended = fault.wait(at_once())?;
        ensure!(ended.code == Some(130), "{ended:?}");
        scene.over("afterwards")?;
    }
    Ok(())
}
