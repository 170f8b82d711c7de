//! Runs all tests and closes with one line that counts them.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    cargo::{as_root, build, shown, statically},
    guests::Guests,
    matrix::Matrix,
    setup,
};

/// How many tests came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// `cargo xtask test`: unit and property tests, then the integration tests on the host's kernel and in guests,
/// counted once for each kernel. Tests that no kernel decides the outcome of are run here and in one guest, unless they are
/// asked for by name or for every kernel. A kernel that cannot be had is named and is not missed.
///
/// # Errors
///
/// If something does not build, a test failed, or was skipped everywhere though all kernels were there.
pub(crate) fn run(filter: &[String], guests: bool, every_kernel: bool) -> Result<()> {
    setup::build_tools()?;
    let mut wrong = Vec::new();
    let mut total = Counts::default();
    let folder = build(&["faultline", "fl-tests", "fl-clock"])?;
    if filter.is_empty() {
        total += units(&mut wrong)?;
    }
    let mut matrix = Matrix::default();
    println!("\nthis machine's kernel");
    let mut host = as_root(&folder.join("fl-tests"));
    host.arg("--json").args(filter);
    for_each_line(&mut host, &mut wrong, |line| matrix.accept("host", line))?;
    let mut all = guests && filter.is_empty();
    if guests {
        setup::guest_tools()?;
        let guests = Guests::new(&[])?;
        guests.test(filter, filter.is_empty() && !every_kernel, &mut matrix)?;
        all &= guests.are_all();
    }

    matrix.print();
    total += matrix.counts();
    let verdict = if all { matrix.complete_verdict(&wrong) } else { matrix.verdict(&wrong) };
    if let Err(error) = &verdict {
        println!("{error}");
    }
    let Counts { passed, failed, skipped } = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    verdict.map_err(|_| anyhow!("not all tests passed"))?;
    ensure!(failed == 0 && passed > 0, "not all tests passed");
    Ok(())
}

fn units(wrong: &mut Vec<String>) -> Result<Counts> {
    let mut units = statically("test");
    units.arg("--no-fail-fast");
    let mut counts = Counts::default();
    for_each_line(&mut units, wrong, |line| match unit_line(line) {
        Some(found) => counts += found,
        None => println!("{line}"),
    })?;
    Ok(counts)
}

/// Runs a test program and hands over what it prints.
fn for_each_line(
    command: &mut Command,
    wrong: &mut Vec<String>,
    mut on_line: impl FnMut(&str),
) -> Result<()> {
    let shown = shown(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{shown}`"))?;
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).lines() {
        on_line(&line.with_context(|| format!("read from `{shown}`"))?);
    }
    let status = child.wait()?;
    if !status.success() {
        wrong.push(format!("`{shown}`: {status}"));
    }
    Ok(())
}

/// The closing line of cargo's own test programs.
fn unit_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| rest.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Counts { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines() {
        let counts = Some(Counts { passed: 12, failed: 1, skipped: 2 });
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(unit_line(line), counts);
        assert_eq!(unit_line("test decide::tests::windows ... ok"), None);
    }
}
