//! What these tests share: a lab with flows to hit and flows to spare.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Event, Faultline, binary},
    harness::{RECORDS, die_with_parent, is_emulated},
    inventory::Inventory,
    lab::{Family, Lab, NEAR_DEVICE, Netns, Options},
    traffic::{Echo, Udp},
};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Within this time nothing is left that could act.
pub(crate) fn at_once() -> Duration {
    Duration::from_secs(if is_emulated() { 3 } else { 1 })
}

/// How many packets a flow sends when it is looked at.
const SOME: u32 = 100;

/// A lab and its flows. UDP on the first wire is what the faults here are aimed at; all else is a bystander.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) lab: Lab,
    /// What the interface sends.
    pub(super) outward: Udp,
    /// What it receives.
    pub(super) inward: Udp,
    /// On the same wire, both ways.
    echo: Echo,
    /// On another.
    aside: Udp,
    before: Inventory,
}

/// What `ps --json` lists, in the order of the ids.
pub(crate) fn ps() -> Result<Vec<Value>> {
    let exit = Faultline::run(&["ps", "--json"])?;
    ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "ps: {exit:?}");
    let lines = exit.stdout.lines().map(|line| serde_json::from_str(line).context(line));
    lines.collect()
}

/// The file names under `/run/faultline`.
pub(crate) fn records() -> Result<Vec<String>> {
    if !Path::new(RECORDS).exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(RECORDS).context(RECORDS)? {
        names.push(entry.context(RECORDS)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Starts a command that prints text, to be read by the caller.
pub(super) fn start_text(arguments: &[String]) -> Result<Child> {
    let mut command = Command::new(binary()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(&mut command);
    command.spawn().context("start faultline")
}

/// The id of the fault that an event speaks of.
pub(crate) fn id(event: &Event) -> Result<&str> {
    event.get("/id")?.as_str().context("an id that is no text")
}

impl Scene {
    /// All of it, carrying packets, with a listing of what there is.
    pub(super) fn set() -> Result<Self> {
        let lab = Lab::with(Options { wire_packets: true, side: true })?;
        let outward = Udp::open(lab.outward(Family::V4), 4000, 5000)?;
        let inward = Udp::open(lab.inward(Family::V4), 4000, 5000)?;
        let echo = Echo::open(lab.outward(Family::V4), 7)?;
        let aside = Udp::open(lab.aside(Family::V4)?, 4001, 5001)?;
        let before = Inventory::take(&[&lab.near, &lab.far])?;
        let mut scene = Self { lab, outward, inward, echo, aside, before };
        scene.whole("before")?;
        Ok(scene)
    }

    pub(super) fn namespaces(&self) -> [&Netns; 2] {
        [&self.lab.near, &self.lab.far]
    }

    /// The arguments of a loss on the first wire's near end.
    pub(super) fn loss(&self, rest: &[&str]) -> Vec<String> {
        let netns = self.lab.near.path();
        let netns = netns.to_string_lossy();
        let first = ["net", "loss", "--dev", NEAR_DEVICE, "--seed", "1", "--netns", &netns];
        first.iter().chain(rest).map(ToString::to_string).collect()
    }

    /// Starts a loss on the first wire's near end.
    pub(super) fn start(&self, rest: &[&str]) -> Result<Faultline> {
        let arguments = self.loss(rest);
        Faultline::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, armed.
    pub(super) fn armed(&self, rest: &[&str]) -> Result<(Faultline, Event)> {
        let fault = self.start(rest)?;
        let armed = fault.wait_event("armed", PATIENCE)?;
        Ok((fault, armed))
    }

    /// Sends 100 packets each way: how many of those out and in were lost. No bystander loses any.
    pub(super) fn lost(&mut self) -> Result<(u64, u64)> {
        let outward = self.outward.burst(SOME, PATIENCE)?;
        let inward = self.inward.burst(SOME, PATIENCE)?;
        let echo = self.echo.burst(SOME, PATIENCE)?;
        let aside = self.aside.burst(SOME, PATIENCE)?;
        let refused = [outward.refused, inward.refused, echo.refused, aside.refused].concat();
        ensure!(refused.is_empty(), "senders were told: {refused:?}");
        let spared = [echo.requests.lost(), echo.replies.lost(), aside.received[0].lost()];
        ensure!(spared == [0; 3], "bystanders lost {spared:?}: requests, replies, on the other wire");
        Ok((outward.received[0].lost(), inward.received[0].lost()))
    }

    /// Fails if any packet is lost.
    pub(super) fn whole(&mut self, when: &str) -> Result {
        let lost = self.lost()?;
        ensure!(lost == (0, 0), "{when}: lost {lost:?} of {SOME}, out and in");
        Ok(())
    }

    /// Fails unless as many packets are lost.
    pub(super) fn loses(&mut self, expected: (u64, u64), when: &str) -> Result {
        let lost = self.lost()?;
        ensure!(lost == expected, "{when}: lost {lost:?} of {SOME} out and in, not {expected:?}");
        Ok(())
    }

    /// Everything is as it was, records included, and packets flow.
    pub(super) fn over(&mut self, when: &str) -> Result {
        self.before.wait_until_equal(&self.namespaces(), at_once()).context(when)?;
        self.whole(when)
    }

    /// Nothing is left that could act, and packets flow.
    pub(super) fn harmless(&mut self, when: &str) -> Result {
        self.before.wait_until_harmless(&self.namespaces(), at_once()).context(when)?;
        self.whole(when)
    }

    /// Packets flow again before this time is over.
    pub(super) fn flows_within(&mut self, time: Duration, when: &str) -> Result {
        let deadline = Instant::now() + time;
        while self.lost()? != (0, 0) {
            ensure!(Instant::now() < deadline, "{when}: packets are lost {time:?} later");
        }
        Ok(())
    }

    /// What there is more than before.
    pub(super) fn more(&self) -> Result<Vec<String>> {
        let now = Inventory::take(&self.namespaces())?;
        Ok(self.before.difference(&now).map_or_else(Vec::new, |difference| difference.new))
    }
}
