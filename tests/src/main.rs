//! Runs the integration tests on the kernel it finds itself on.

use std::{
    env,
    fs::File,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use faultline_tests::{
    calls, faultline, find,
    harness::{Outcome, Report, Runner, Share, Test, run_one, set_emulated},
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
    /// Only one of so many shares of the tests that no kernel decides the outcome of, such as 1/2, or all others, 0/2
    #[arg(long)]
    share: Option<Share>,
    /// Run this test here, in this process
    #[arg(long, value_name = "NAME", hide = true)]
    run_one: Option<String>,
    /// Make the system calls that a test asks for, over memory at standard input
    #[arg(long, hide = true)]
    obey: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.obey {
        return calls::serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if let Some(path) = &cli.faultline {
        faultline::set_binary(path.clone());
    }
    if cli.emulated {
        set_emulated();
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
    let chosen: Vec<&Test> = tests().into_iter().filter(|test| is_chosen(test, cli)).collect();
    if chosen.is_empty() {
        return Err(io::Error::other(format!("no test's name contains {}", cli.filter.join(" or "))));
    }
    if cli.list {
        return list(&chosen);
    }
    let _alone = alone()?;
    let mut runner = Runner::default();
    if let Some(path) = &cli.faultline {
        runner.arguments = vec!["--faultline".into(), path.display().to_string()];
    }
    runner.arguments.extend(cli.emulated.then(|| "--emulated".into()));
    let mut counts = [0; 4];
    for test in chosen {
        if cli.json {
            // Should this kernel not survive the test, that is the last word on it.
            announce(test)?;
        }
        // Should its last word not be told, that one must be.
        let mut told = Ok(());
        let report = runner.run(test, |again| {
            counts[again.outcome as usize] += 1;
            told = print(again, cli.json).and_then(|()| if cli.json { announce(test) } else { Ok(()) });
        });
        told?;
        counts[report.outcome as usize] += 1;
        print(&report, cli.json)?;
    }
    let [passed, failed, skipped, again] = counts;
    if !cli.json {
        if again > 0 {
            writeln!(io::stdout(), "{again} runs were disturbed, and made again")?;
        }
        writeln!(io::stdout(), "{passed} passed, {failed} failed, {skipped} skipped")?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

fn is_chosen(test: &Test, cli: &Cli) -> bool {
    let named = cli.filter.is_empty() || cli.filter.iter().any(|filter| test.name.contains(filter.as_str()));
    named && !(cli.emulated && test.slow) && cli.share.is_none_or(|share| share.has(test))
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

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return out.flush();
    }
    let Report { test, outcome, reason, seconds, output } = report;
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
