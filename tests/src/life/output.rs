//! What a run says, in JSON and in text, and by its exit code.

use std::io::{BufRead, BufReader, Read};

use super::scene::{PATIENCE, Scene, id, start_text};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Event, Faultline, RuleCounters},
    harness::{Need, Test},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::says_what_it_did_in_json", json).needs(NEEDS),
    Test::new("life::says_what_it_did_in_text", text).needs(NEEDS),
    Test::new("life::never_fired_is_inconclusive", inconclusive).needs(NEEDS).waits(),
];

/// Half of the packets out on the first rule; the second never fires.
const LOSS: [&str; 15] = [
    "50%",
    "--proto",
    "udp",
    "--port",
    "5000",
    "--for",
    "1600ms",
    "--and",
    "loss",
    "100%",
    "--port",
    "9",
    "--direction",
    "in",
    "--and",
];
const LAST: [&str; 4] = ["loss", "0%", "--proto", "udp"];

fn loss() -> Vec<&'static str> {
    LOSS.into_iter().chain(LAST).collect()
}

fn json() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(&loss())?;
    ensure!(armed.get("/remaining_s")?.as_f64().is_some_and(|left| (1.0..=1.6).contains(&left)), "{armed:?}");
    let record = scene.outward.burst(1000, PATIENCE)?;
    scene.inward.burst(10, PATIENCE)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(0), "{exit:?}");
    ensure!(exit.stdout.is_empty() && exit.stderr.is_empty(), "not only JSON: {exit:?}");
    let kinds: Vec<_> = exit.events.iter().map(|event| event.kind.as_str()).collect();
    ensure!(kinds == ["prepared", "armed", "progress", "summary"], "{kinds:?}");
    for event in &exit.events {
        ensure!(id(event)? == id(&armed)?, "{event:?}");
    }
    let progress = exit.event("progress")?;
    let left = progress.get("/remaining_s")?.as_f64().context("no time left")?;
    let elapsed = progress.get("/elapsed_s")?.as_f64().context("no time")?;
    ensure!((left + elapsed - 1.6).abs() < 0.01 && elapsed >= 0.99, "{elapsed} s and {left} s left of 1.6");

    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == "observed" && summary.get("/exit_code")? == 0, "{summary:?}");
    let rules = summary.rules()?;
    ensure!(rules.len() == 3, "{rules:?}");
    let lost = record.received[0].lost();
    counted(&rules[0], [1000, 1000, lost])?;
    counted(&rules[1], [10, 0, 0])?;
    counted(&rules[2], [1000, 1000 - lost, 0])?;
    rates(&rules[0], lost)?;
    ensure!(rules[1].observed.is_none() && rules[1].interval_95.is_none(), "{:?}", rules[1]);
    for (early, late) in progress.rules()?.iter().zip(&rules) {
        let grown = early.fired.packets <= late.fired.packets && early.seen.packets <= late.seen.packets;
        ensure!(grown, "{early:?} became {late:?}");
    }
    scene.over("afterwards")
}

/// Seen, matched and fired. The first is of the whole hook, where the kernel sends a packet of its own now and then.
fn counted(rule: &RuleCounters, [seen, matched, fired]: [u64; 3]) -> Result {
    ensure!((seen..seen + 20).contains(&rule.seen.packets), "{rule:?}, not {seen} seen");
    for (count, expected) in [(rule.matched, matched), (rule.fired, fired)] {
        // Wire packets: 64 bytes of payload, and 8 + 20 + 14 of UDP, IPv4 and Ethernet before it.
        let same = [count.packets, count.segments, count.bytes] == [expected, expected, 106 * expected];
        ensure!(same, "{rule:?}, not {matched} matched and {fired} fired");
    }
    Ok(())
}

fn rates(rule: &RuleCounters, lost: u64) -> Result {
    let observed = rule.observed.context("no observed rate")?;
    let (low, high) = rule.interval_95.context("no interval")?;
    ensure!(rule.asked == Some(0.5) && (observed - lost as f64 / 1000.0).abs() < 1e-9, "{rule:?}");
    ensure!(low < observed && observed < high && low > 0.4 && high < 0.6, "{rule:?}");
    Ok(())
}

fn text() -> Result {
    let mut scene = Scene::set()?;
    let mut fault = start_text(&scene.loss(&loss()))?;
    let mut stdout = BufReader::new(fault.stdout.take().context("its output")?);
    let mut text = String::new();
    while !text.contains("armed") {
        ensure!(stdout.read_line(&mut text).context("read")? > 0, "it ended before it was armed: {text}");
    }
    let record = scene.outward.burst(1000, PATIENCE)?;
    let lost = record.received[0].lost().to_string();
    stdout.read_to_string(&mut text).context("read")?;
    let mut stderr = String::new();
    fault.stderr.take().context("its errors")?.read_to_string(&mut stderr).context("read")?;
    let status = fault.wait().context("wait")?;
    ensure!(status.code() == Some(0), "{status}: {text}{stderr}");
    for expected in [
        "on to-far, seed 1\n",
        "  out  loss 50% --port 5000 --proto udp\n",
        "  in   loss 100% --port 9\n",
        "armed for 1s 600ms; ^C ends it\n",
        "observed: its time is over and it has fired; disarmed, detached, verified\n",
    ] {
        ensure!(text.contains(expected), "no {expected:?} in {text}");
    }
    let row = text.lines().find(|line| line.trim_start().starts_with("0 ")).context("no row of rule 0")?;
    let words: Vec<&str> = row.split_whitespace().collect();
    ensure!(words.windows(2).any(|words| words == ["1000", &lost]), "not {lost} lost: {row}");
    ensure!(row.contains("50%") && row.ends_with("loss 50% --port 5000 --proto udp"), "{row}");
    let progress: Vec<&str> = stderr.lines().collect();
    let [line] = progress[..] else {
        return Err(crate::error::Failure::new(format!("not one line of progress: {stderr}")));
    };
    let told = line.contains("ms left, seen 10")
        && line.contains(", matched ")
        && line.ends_with(&format!("fired {lost}"));
    ensure!(told, "{line}");
    scene.over("afterwards")
}

fn inconclusive() -> Result {
    let mut scene = Scene::set()?;
    for (loss, packets) in [("100%", 0), ("0%", 100)] {
        let (fault, _) = scene.armed(&[loss, "--proto", "udp", "--for", "300ms"])?;
        scene.outward.burst(packets, PATIENCE)?;
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(5), "{exit:?}");
        let summary: &Event = exit.event("summary")?;
        ensure!(summary.get("/verdict")? == "inconclusive" && summary.get("/exit_code")? == 5, "{summary:?}");
        let rules = summary.rules()?;
        let matched = u64::from(packets);
        ensure!(rules[0].matched.packets == matched && rules[0].fired.packets == 0, "{rules:?}");
    }
    let arguments = scene.loss(&["100%", "--for", "10ms"]);
    let exit = Faultline::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(exit.code == Some(5) && exit.stdout.contains("inconclusive: its time is over"), "{exit:?}");
    ensure!(exit.stdout.contains("no packet"), "{}", exit.stdout);
    scene.over("afterwards")
}
