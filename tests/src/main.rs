//! Runs the integration tests on the kernel it finds itself on.

use std::{
    env,
    fs::File,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use faultline_tests::{
    calls, faultline, find,
    harness::{
        Cell, Cells, Effort, Hand, Outcome, Report, Runner, Test, Word, heed_signals, run_one, set_emulated,
        set_every_call,
    },
    tests,
};

/// Integration tests of Faultline, on this machine's kernel.
#[derive(Debug, Parser)]
#[command(name = "fl-tests", version)]
struct Cli {
    /// Only tests whose name contains one of these
    filter: Vec<String>,
    /// Print the names and needs of the tests and run none
    #[arg(long)]
    list: bool,
    /// Print one JSON object per test and nothing else
    #[arg(long)]
    json: bool,
    /// The faultline binary; the one beside this program if not given
    #[arg(long, value_name = "PATH")]
    faultline: Option<PathBuf>,
    /// This machine is emulated in software: leave out tests that would take minutes, repeat less, wait longer
    #[arg(long)]
    emulated: bool,
    /// Have `failing::*` try all system calls of a run and not some
    #[arg(long)]
    every_call: bool,
    /// Leave out what `--every-kernel` alone runs on this kernel, by its column of tests/cells.txt
    #[arg(long, value_name = "KERNEL")]
    gate: Option<String>,
    /// Only one of so many hands that the tests are dealt to, such as 1/2
    #[arg(long)]
    hand: Option<Hand>,
    /// How many of those tests run side by side that wait rather than measure
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Only those that measure, or that wait
    #[arg(long, value_name = "WHICH")]
    only: Option<Only>,
    /// Run each test so often
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
    /// How much a test tries that could try for hours
    #[arg(long, value_enum, hide = true)]
    effort: Option<Effort>,
    /// Run this test here, in this process
    #[arg(long, value_name = "NAME", hide = true)]
    run_one: Option<String>,
    /// Make the system calls that a test asks for, over memory at standard input
    #[arg(long, hide = true)]
    obey: bool,
}

impl Cli {
    fn effort(&self) -> Effort {
        self.effort.unwrap_or(match (&self.gate, self.filter.is_empty()) {
            (Some(_), _) => Effort::Gate,
            (None, true) => Effort::Full,
            (None, false) => Effort::Whole,
        })
    }
}

/// What a test does that takes its time.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Only {
    Measure,
    Wait,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    heed_signals();
    if cli.obey {
        return calls::serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if let Some(path) = &cli.faultline {
        faultline::set_binary(path.clone());
    }
    if cli.emulated {
        set_emulated();
    }
    cli.effort().set();
    if cli.every_call {
        set_every_call();
    }
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fl-tests: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> io::Result<ExitCode> {
    if let Some(name) = &cli.run_one {
        return match find(name) {
            Some(test) => Ok(run_one(test)),
            None => Err(io::Error::other(format!("no test is called {name}"))),
        };
    }
    let cells = Cells::read().map_err(|error| io::Error::other(format!("tests/cells.txt: {error}")))?;
    let chosen = chosen(cli, &cells)?;
    if cli.list {
        return if cli.json { list_json(&chosen, &cells) } else { list(&chosen) };
    }
    let _alone = alone()?;
    let mut runner = Runner::default();
    if let Some(path) = &cli.faultline {
        runner.arguments = vec!["--faultline".into(), path.display().to_string()];
    }
    runner.arguments.extend(cli.emulated.then(|| "--emulated".into()));
    runner.arguments.extend(cli.every_call.then(|| "--every-call".into()));
    let effort = cli.effort().to_possible_value().map(|value| format!("--effort={}", value.get_name()));
    runner.arguments.extend(effort);
    let mut counts = [0; 4];
    let mut tell = |word: Word<'static>| match word {
        // Should this kernel not survive the test, that is the last word on it.
        Word::Begins(test) => {
            if cli.json {
                announce(test)
            } else {
                Ok(())
            }
        }
        Word::Ended(report) => {
            counts[report.outcome as usize] += 1;
            print(&report, cli.json)
        }
    };
    let (mut waiting, mut measuring): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|test| test.waits);
    match cli.only {
        Some(Only::Measure) => waiting.clear(),
        Some(Only::Wait) => measuring.clear(),
        None => {}
    }
    runner.run_all(&measuring, 1, &mut tell)?;
    runner.run_all(&waiting, cli.jobs, &mut tell)?;
    let [passed, failed, skipped, again] = counts;
    if !cli.json {
        if again > 0 {
            writeln!(io::stdout(), "{again} runs were disturbed, and made again")?;
        }
        writeln!(io::stdout(), "{passed} passed, {failed} failed, {skipped} skipped")?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tests that are asked for.
fn chosen(cli: &Cli, cells: &Cells) -> io::Result<Vec<&'static Test>> {
    if let Some(kernel) = &cli.gate
        && !cells.kernels().contains(&kernel.as_str())
    {
        let known = cells.kernels().join(", ");
        return Err(io::Error::other(format!("tests/cells.txt has no column {kernel}; it has {known}")));
    }
    let is_chosen = |test: &&Test| {
        let named =
            cli.filter.is_empty() || cli.filter.iter().any(|filter| test.name.contains(filter.as_str()));
        let left_out = cli.gate.as_ref().is_some_and(|kernel| cells.cell(test, kernel) == Some(Cell::Full));
        // Asked for by name, it is said to be left out.
        named && !left_out && !(cli.emulated && test.slow && cli.filter.is_empty())
    };
    let mut chosen: Vec<&Test> = tests().into_iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        return Err(io::Error::other(format!("no test's name contains {}", cli.filter.join(" or "))));
    }
    if let Some(hand) = cli.hand {
        chosen = hand.of(&chosen);
    }
    if let Some(times) = cli.repeat {
        // There are as many as are asked for, and they last as long as this process. Each run's first word counts.
        let numbered =
            |test: &Test, number| Test { name: format!("{}#{number}", test.name).leak(), ..*test }.once();
        chosen = chosen
            .into_iter()
            .flat_map(|test| (1..=times).map(move |number| &*Box::leak(Box::new(numbered(test, number)))))
            .collect();
    }
    Ok(chosen)
}

/// Waits until no other run is under way: the tests list what the whole machine has attached. The kernel lets go of
/// the lock when this process ends.
fn alone() -> io::Result<File> {
    let path = env::temp_dir().join("fl-tests.lock");
    let file = File::create(path)?;
    file.lock()?;
    Ok(file)
}

fn announce(test: &Test) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "test": test.name, "outcome": "running" }))?;
    out.flush()
}

fn list(tests: &[&Test]) -> io::Result<ExitCode> {
    for test in tests {
        let needs: Vec<String> = test.needs.iter().map(ToString::to_string).collect();
        let slow = if test.slow { "  slow" } else { "" };
        writeln!(
            io::stdout(),
            "{}  needs {}{slow}",
            test.name,
            if needs.is_empty() { "nothing".into() } else { needs.join(", ") }
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a test: its name, and its cells by kernel.
fn list_json(tests: &[&Test], cells: &Cells) -> io::Result<ExitCode> {
    for test in tests {
        writeln!(io::stdout(), "{}", serde_json::json!({ "test": test.name, "cells": cells.row(test) }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return out.flush();
    }
    let Report { test, outcome, reason, seconds, cpu_seconds: _, output } = report;
    match outcome {
        Outcome::Pass => writeln!(out, "ok   {test} ({seconds:.1} s)")?,
        Outcome::Skip => writeln!(out, "skip {test} {reason}")?,
        Outcome::Fail | Outcome::Again => {
            let word = if *outcome == Outcome::Fail { "FAIL" } else { "again" };
            writeln!(out, "{word} {test} ({seconds:.1} s) {reason}")?;
            for line in output.lines() {
                writeln!(out, "     | {line}")?;
            }
        }
    }
    out.flush()
}
