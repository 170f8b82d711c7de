//! `faultline doctor`: it tries everything and leaves nothing.

use serde_json::Value;

use super::scene::at_once;
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Faultline, as_nobody, binary},
    harness::{Need, Test},
    inventory::Inventory,
    lab::{Lab, Options},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("life::doctor_leaves_nothing", leaves_nothing).needs(&[Need::Root, Need::Btf]).once(),
    Test::new("life::doctor_of_nobody", of_nobody),
];

fn leaves_nothing() -> Result {
    let lab = Lab::with(Options::default())?;
    let namespaces = [&lab.near, &lab.far];
    let before = Inventory::take(&namespaces)?;
    let exit = Faultline::run(&["doctor", "--json"])?;
    ensure!(exit.code == Some(0) && exit.stderr.is_empty(), "{exit:?}");
    ensure!(exit.stdout.lines().count() == 1, "not one line: {}", exit.stdout);
    let report: Value = serde_json::from_str(&exit.stdout).context("not JSON")?;
    ensure!(report["ready"] == true && report["unprivileged"].is_null(), "{report}");
    let mechanisms = report["mechanisms"].as_array().context("no mechanisms")?;
    let unknown: Vec<_> = mechanisms.iter().filter(|finding| finding["state"] == "unknown").collect();
    ensure!(mechanisms.len() > 10 && unknown.is_empty(), "unknown: {unknown:?}");
    for finding in mechanisms.iter().filter(|finding| finding["state"] == "missing") {
        let told = |what: &str| finding[what].as_str().is_some_and(|text| !text.is_empty());
        ensure!(told("cause") && told("remedy"), "{finding}");
    }
    let text = Faultline::run(&["doctor"])?;
    ensure!(text.code == Some(0) && text.stdout.contains("Ready: packet loss works"), "{text:?}");
    before.wait_until_equal(&namespaces, at_once())
}

fn of_nobody() -> Result {
    let before = Inventory::take(&[])?;
    let binary = binary()?;
    let exit = Faultline::run_binary(&binary, &["doctor", "--json"], as_nobody)?;
    ensure!(exit.code == Some(3), "{exit:?}");
    let report: Value = serde_json::from_str(&exit.stdout).context("not JSON")?;
    ensure!(report["ready"] == false && report["unprivileged"].is_string(), "{report}");
    let text = Faultline::run_binary(&binary, &["doctor"], as_nobody)?;
    ensure!(text.code == Some(3) && text.stdout.contains("Not ready: needs root."), "{text:?}");
    before.wait_until_equal(&[], at_once())
}
