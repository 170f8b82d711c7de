//! What the newest kernel that can be had breaks, in one line.

use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::{
    cargo::build,
    cells::Cells,
    guests::{Guests, Kernels, PROGRAMS, Scope, locked},
    kernels::{self, Column},
    matrix::Matrix,
    setup,
    vm::NEWEST,
};

/// The kernel that it is held against: the last one before it that is known.
const KNOWN: &str = "6.12";

/// `cargo xtask kernels --newest`.
///
/// # Errors
///
/// If something does not build, it cannot be had, or breaks anything.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    setup::test_programs()?;
    let folder = build(&PROGRAMS)?;
    let cells = Cells::ask(&folder)?;
    let guests = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok::<_, anyhow::Error>(Guests::of(Kernels::find(&names)?, &folder, &PROGRAMS))
    };
    let reports = kernels::ask(&guests(&[KNOWN, NEWEST])?)?;
    let matrix = Mutex::default();
    let newest = guests(&[NEWEST])?;
    newest.test(Scope { filter: &[], gate: Some(&cells), repeat: None }, &matrix);
    locked(&matrix).hold_against(&cells, NEWEST, false);
    let loads = LOADS.map(str::to_owned);
    newest.test(Scope { filter: &loads, gate: None, repeat: None }, &matrix);
    let matrix = locked(&matrix);
    let lost = lost(&reports)?;
    println!("{}", line(&reports, &matrix, &lost)?);
    matrix.verdict(&lost)
}

/// What is there for every kernel, and in the gate for others: that every program loads.
const LOADS: [&str; 3] =
    ["load::each_feature_and_all", "load::pairs_of_features", "calls_load::each_program"];

/// What the doctor finds on the last kernel that is known, and not on the newest.
fn lost(reports: &[Column]) -> Result<Vec<String>> {
    let lost = report(reports, NEWEST)?.lacks(report(reports, KNOWN)?);
    Ok(if lost.is_empty() {
        Vec::new()
    } else {
        vec![format!("the doctor's {}, which {KNOWN} has", lost.join(", "))]
    })
}

fn report<'a>(reports: &'a [Column], wanted: &str) -> Result<&'a kernels::Report> {
    let found = reports.iter().find(|(name, _)| name == wanted);
    found.map(|(_, report)| report).with_context(|| format!("the doctor in guest {wanted}"))
}

fn line(reports: &[Column], matrix: &Matrix, lost: &[String]) -> Result<String> {
    let newest = report(reports, NEWEST)?;
    let broken: Vec<String> = matrix.wrong().into_iter().chain(lost.iter().cloned()).collect();
    let passed = matrix.counts().passed;
    Ok(if broken.is_empty() {
        format!(
            "{} breaks nothing: {passed} tests pass, and it has every mechanism of {KNOWN}",
            newest.kernel
        )
    } else {
        format!("{} breaks {} ({passed} tests pass)", newest.kernel, broken.join("; "))
    })
}
