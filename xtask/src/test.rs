//! Runs all tests and closes with one line that counts them.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{as_root, build, cargo, shown},
    setup,
};

/// How many tests came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// `cargo xtask test`: unit and property tests on the host, then the integration tests.
///
/// # Errors
///
/// If something does not build, or a test failed.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    setup::run_setup()?;
    let folder = build(&["faultline", "fl-tests"])?;
    let mut total = Counts::default();
    let mut broken = Vec::new();
    if filter.is_empty() {
        let mut units = cargo();
        // The same profile as above: what both need is compiled once.
        units.args(["test", "--release", "--workspace", "--no-fail-fast"]);
        count(&mut units, unit_line, &mut total, &mut broken)?;
    }
    let mut integration = as_root(&folder.join("fl-tests"));
    integration.args(filter);
    count(&mut integration, integration_line, &mut total, &mut broken)?;

    for command in &broken {
        println!("failed: {command}");
    }
    let Counts { passed, failed, skipped } = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ensure!(failed == 0 && broken.is_empty(), "not all tests passed");
    ensure!(passed > 0, "no test ran");
    Ok(())
}

/// Runs a test program, shows what it prints, and adds up the lines that count.
fn count(
    command: &mut Command,
    counts: impl Fn(&str) -> Option<Counts>,
    total: &mut Counts,
    broken: &mut Vec<String>,
) -> Result<()> {
    let shown = shown(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{shown}`"))?;
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).lines() {
        let line = line.with_context(|| format!("read from `{shown}`"))?;
        let Some(found) = counts(&line) else {
            println!("{line}");
            continue;
        };
        total.passed += found.passed;
        total.failed += found.failed;
        total.skipped += found.skipped;
    }
    let status = child.wait()?;
    if !status.success() {
        broken.push(format!("{shown}: {status}"));
    }
    Ok(())
}

/// The closing line of cargo's own test programs.
fn unit_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| rest.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Counts { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

/// The closing line of the integration tests.
fn integration_line(line: &str) -> Option<Counts> {
    let mut parts = line.split(", ");
    let mut number = |what: &str| parts.next()?.strip_suffix(what)?.parse().ok();
    Some(Counts { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" skipped")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines() {
        let counts = Some(Counts { passed: 12, failed: 1, skipped: 2 });
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(unit_line(line), counts);
        assert_eq!(integration_line("12 passed, 1 failed, 2 skipped"), counts);
        assert_eq!(unit_line("test decide::tests::windows ... ok"), None);
        assert_eq!(integration_line("ok loss::udp_in (0.1 s)"), None);
    }
}
