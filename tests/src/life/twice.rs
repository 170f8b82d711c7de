//! The same fault twice on one interface.

use super::scene::{Scene, id, ps};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Event, Exit, Faultline},
    harness::{Need, Test},
    traffic::Pin,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("life::twice_on_one_interface_received", received).needs(&[
        Need::Root,
        Need::Btf,
        Need::XdpNative,
        Need::Tcx,
    ]),
    Test::new("life::twice_on_one_interface_sent", sent).needs(&[Need::Root, Need::Btf]),
];

fn received() -> Result {
    let (first, second) = twice("in", [50, 25], |lost| (0, lost))?;
    let hooks = [first.get("/hooks/0/hook")?, second.get("/hooks/0/hook")?];
    ensure!(hooks == ["xdp_native", "tcx"], "{hooks:?}");
    let why = second.get("/hooks/0/why")?.as_str().unwrap_or_default().to_owned();
    ensure!(why.contains("another XDP program"), "{why}");
    Ok(())
}

fn sent() -> Result {
    let (first, second) = twice("out", [25, 50], |lost| (lost, 0))?;
    ensure!(first.get("/hooks/0/hook")? == second.get("/hooks/0/hook")?, "{first:?} {second:?}");
    Ok(())
}

/// Each loses every second packet that comes to it, `counts` of 100: what the two were prepared with. A program
/// that is attached later is run before those that were there, but XDP is before tc.
fn twice(way: &str, counts: [u64; 2], lost: impl Fn(u64) -> (u64, u64)) -> Result<(Event, Event)> {
    let mut scene = Scene::set()?;
    // Every second packet is counted by CPU.
    let _pin = Pin::here()?;
    let arguments = ["100%", "--every", "2", "--proto", "udp", "--direction", way];
    let (first, _) = scene.armed(&arguments)?;
    let (second, _) = scene.armed(&arguments)?;
    let prepared = [prepared(&first)?, prepared(&second)?];
    scene.loses(lost(75), "both armed")?;

    let listed = ps()?;
    ensure!(listed.len() == 2, "{listed:?}");
    for (event, fired) in prepared.iter().zip(counts) {
        let fault = listed.iter().find(|fault| fault["id"] == event.json["id"]);
        let counted = fault.map(|fault| (&fault["state"], &fault["rules"][0]["fired"]["packets"]));
        ensure!(
            counted.is_some_and(|(state, count)| state == "armed" && count == fired),
            "{}: {listed:?}",
            id(event)?
        );
    }

    let exit = first.interrupt()?;
    fired(&exit, counts[0])?;
    scene.loses(lost(50), "the first ended")?;
    ensure!(ps()?.len() == 1, "{:?}", ps());
    let exit = second.interrupt()?;
    fired(&exit, counts[1] + 50)?;
    scene.over("both ended")?;
    let [first, second] = prepared;
    Ok((first, second))
}

fn prepared(fault: &Faultline) -> Result<Event> {
    let found = fault.events().into_iter().find(|event| event.kind == "prepared");
    found.context("no prepared event")
}

fn fired(exit: &Exit, expected: u64) -> Result {
    let rules = exit.event("summary")?.rules()?;
    ensure!(exit.code == Some(130), "{exit:?}");
    ensure!(rules.len() == 1 && rules[0].fired.packets == expected, "fired {rules:?}, not {expected}");
    Ok(())
}
