//! Has each system call of the injector fail once, on this machine's kernel, and sums up what came of it.
//!
//! The tests do it; the gate has them try some of the calls, and this all.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::{
    cargo::{as_root, build, shown},
    guests::PROGRAMS,
    setup,
};

/// `cargo xtask failing`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only families whose names contain one of these: loss, clsact, detour, exact, refuse, reset, clocks, ...
    filter: Vec<String>,
    /// Another faultline than this one's, to see what the tests find in it
    #[arg(long, value_name = "PATH")]
    faultline: Option<PathBuf>,
}

/// One line of `fl-tests --json`.
#[derive(Deserialize)]
struct Line {
    test: String,
    outcome: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    output: String,
}

/// `cargo xtask failing`: what the tests `failing::*` say, and how many calls failed in all.
///
/// # Errors
///
/// If something does not build, or a call that failed was not handled.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::test_programs()?;
    let folder = build(&PROGRAMS)?;
    let mut command = as_root(&folder.join("fl-tests"));
    command.args(["--json", "--every-call", "--jobs", "4"]);
    if let Some(faultline) = &options.faultline {
        command.arg("--faultline").arg(faultline);
    }
    match options.filter.is_empty() {
        true => drop(command.arg("failing::")),
        false => drop(command.args(options.filter.iter().map(|name| format!("failing::{name}")))),
    }
    let shown = shown(&command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{shown}`"))?;
    let mut sums = Sums::default();
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).lines() {
        let line = line.with_context(|| format!("read from `{shown}`"))?;
        let Line { test, outcome, reason, output } =
            serde_json::from_str(&line).with_context(|| format!("no result: {line}"))?;
        if outcome == "running" {
            continue;
        }
        println!("{outcome:<4} {test} {reason}");
        for line in output.lines().filter(|line| !line.starts_with("failure: ")) {
            println!("     {line}");
            sums.add(line);
        }
    }
    let status = child.wait()?;
    println!("{}", sums.told());
    ensure!(status.success(), "`{shown}`: {status}");
    Ok(())
}

/// The numbers of all families, by their words.
#[derive(Debug, Default)]
struct Sums {
    families: u32,
    words: Vec<String>,
    numbers: BTreeMap<String, u64>,
}

impl Sums {
    /// Takes in `calls of loss: 3135 listed, 44 of the runtime, ...; 289 failed, 0 not reached: 12 as usual, ..., 0 wrong`.
    fn add(&mut self, line: &str) {
        let Some((_, rest)) = line.strip_prefix("calls of ").and_then(|line| line.split_once(": ")) else {
            return;
        };
        self.families += 1;
        for part in rest.split([',', ';', ':']).map(str::trim) {
            let Some((number, words)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            if !self.words.iter().any(|known| known == words) {
                self.words.push(words.into());
            }
            *self.numbers.entry(words.into()).or_default() += number;
        }
    }

    fn told(&self) -> String {
        let parts = self.words.iter().map(|words| format!("{} {words}", self.numbers[words]));
        format!("{} families: {}", self.families, parts.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_summed_up() {
        let mut sums = Sums::default();
        for line in [
            "calls of loss: 3135 listed, 44 of the runtime before and after main; 289 failed, 0 not reached: 12 as usual, 1 wrong",
            "calls of a process: 10 listed, 1 of the runtime before and after main; 9 failed, 0 not reached: 9 as usual, 0 wrong",
            "something else",
        ] {
            sums.add(line);
        }
        let expected = "2 families: 3145 listed, 45 of the runtime before and after main, 298 failed, 0 not reached, \
                        21 as usual, 1 wrong";
        assert_eq!(sums.told(), expected);
    }
}
