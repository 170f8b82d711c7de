//! What the newest kernel that can be had breaks, in one line.

use anyhow::{Context, Result};

use crate::{
    cargo::build,
    cells::Cells,
    guests::{Guests, Kernels, PROGRAMS, Scope},
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
    let mut matrix = Matrix::default();
    guests(&[NEWEST])?.test(Scope { filter: &[], gate: Some(&cells), repeat: None }, &mut matrix);
    matrix.hold_against(&cells, NEWEST, false);
    println!("{}", line(&reports, &matrix)?);
    matrix.verdict(&[])
}

fn line(reports: &[Column], matrix: &Matrix) -> Result<String> {
    let report = |wanted: &str| {
        let found = reports.iter().find(|(name, _)| name == wanted);
        found.map(|(_, report)| report).with_context(|| format!("the doctor in guest {wanted}"))
    };
    let newest = report(NEWEST)?;
    let lost = newest.lacks(report(KNOWN)?);
    let mut broken = matrix.wrong();
    if !lost.is_empty() {
        broken.push(format!("the doctor's {}, which {KNOWN} has", lost.join(", ")));
    }
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
