//! Runs all tests and closes with one line that counts them.

use std::{
    fs,
    io::{BufRead, BufReader},
    num::NonZero,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use crate::{
    cargo::{as_root, build, is_root, shown, statically},
    cells::Cells,
    guests::{Guests, Kernels, PROGRAMS, Scope, locked},
    lint,
    matrix::Matrix,
    setup, soak,
    stages::{Part, Stages},
    vm::ERROR_INJECTION,
};

/// This machine's kernel, by its column in the list.
const HOST: &str = "host";

/// What the releases of the kernels have in their names that this column is of: the development machines'.
const LISTED: &str = "-fc-";

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

/// `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only integration tests whose names contain one of these
    filter: Vec<String>,
    /// Only on this machine's kernel
    #[arg(long)]
    no_guests: bool,
    /// Run every test on every kernel, not only where its kernel decides the outcome
    #[arg(long, conflicts_with = "no_guests")]
    every_kernel: bool,
    /// Run each test that is named so often
    #[arg(long, value_name = "N", requires = "filter")]
    repeat: Option<u32>,
    /// Check formatting and lints first
    #[arg(long)]
    lint: bool,
}

/// `cargo xtask test`: unit and property tests, then the integration tests on three tiers: the host's kernel, the guest that
/// has it all, the other kernels. `tests/cells.txt` says which run where.
///
/// # Errors
///
/// If something does not build, a test failed, or did not run where it was to.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { filter, no_guests, every_kernel, repeat: _, lint } = options;
    ensure!(
        *no_guests || !filter.is_empty() || is_root(),
        "guests see this machine's files, which root alone may show them; run it as root, or with --no-guests"
    );
    let mut stages = Stages::begin();
    stages.time("tools", Part::Build, setup::everything)?;
    // Fetched while the compiler is at work.
    let kernels = (!no_guests).then(|| thread::spawn(|| Kernels::find(&[])));
    if *lint {
        stages.time("lints", Part::Build, lint::run_all)?;
    }
    let mut wrong = Vec::new();
    let mut total = Counts::default();
    let programs = [&PROGRAMS[..], &["fl-soak"]].concat();
    let folder = stages.time("programs", Part::Build, || build(&programs))?;
    if filter.is_empty() {
        total += stages.time("unit tests", Part::Build, || units(&mut wrong))?;
    }
    let cells = Cells::ask(&folder)?;
    let matrix = Mutex::new(Matrix::default());
    println!("\nthis machine's kernel");
    let whole = filter.is_empty() && !no_guests;
    let first = if whole { Some("measure") } else { None };
    stages.time("host", Part::Host, || host(options, first, &folder, &mut wrong, &matrix))?;
    let kernels = kernels.map(|kernels| stages.time("kernels", Part::Build, || kernels.join()));
    let kernels = kernels.map(|found| found.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    let kernels = kernels.transpose()?;
    thread::scope(|scope| {
        // What waits for most of its time does so beside the guests.
        let beside = filter.is_empty().then(|| scope.spawn(|| beside(options, whole, &folder, &matrix)));
        if let Some(kernels) = kernels {
            in_guests(options, Guests::of(kernels, &folder, &PROGRAMS), &cells, &matrix, &mut stages);
        }
        for (name, part, took, said) in beside
            .into_iter()
            .flat_map(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        {
            stages.add(name, part, took);
            wrong.extend(said);
        }
    });
    let mut matrix = matrix.into_inner().unwrap_or_else(PoisonError::into_inner);
    if filter.is_empty() && is_listed()? {
        matrix.hold_against(&cells, HOST, *every_kernel);
    }
    matrix.print();
    print!("\n{}", stages.table(filter.is_empty() && !every_kernel));
    total += matrix.counts();
    let verdict = matrix.verdict(&wrong);
    if let Err(error) = &verdict {
        println!("{error}");
    }
    let Counts { passed, failed, skipped } = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    verdict.map_err(|_| anyhow!("not all tests passed"))?;
    ensure!(failed == 0 && passed > 0, "not all tests passed");
    Ok(())
}

/// The integration tests in guests.
fn in_guests(options: &Options, guests: Guests, cells: &Cells, matrix: &Mutex<Matrix>, stages: &mut Stages) {
    let Options { filter, every_kernel, repeat, .. } = options;
    let gate = (filter.is_empty() && !every_kernel).then_some(cells);
    for (kernel, took) in guests.test(Scope { filter, gate, repeat: *repeat }, matrix) {
        let part = if kernel == ERROR_INJECTION { Part::Guest } else { Part::Others };
        stages.add(&format!("guest {kernel}"), part, took);
    }
    let mut matrix = locked(matrix);
    guests.note_missing(&mut matrix);
    if filter.is_empty() {
        guests.names().for_each(|kernel| matrix.hold_against(cells, kernel, *every_kernel));
    }
}

/// A stage that others ran beside, how long it took, and what was wrong in it.
type Beside = (&'static str, Part, Duration, Vec<String>);

/// What on this machine's kernel only waits: tests, if they have not been run yet, and then the soak, which looks at what the whole
/// machine has.
fn beside(options: &Options, with_tests: bool, folder: &Path, matrix: &Mutex<Matrix>) -> Vec<Beside> {
    let mut stages = Vec::new();
    let mut time = |name, part, action: &mut dyn FnMut(&mut Vec<String>) -> Result<()>| {
        let (began, mut wrong) = (Instant::now(), Vec::new());
        let done = action(&mut wrong);
        wrong.extend(done.err().map(|error| format!("{error:#}")));
        stages.push((name, part, began.elapsed(), wrong));
    };
    if with_tests {
        time("host, beside guests", Part::Beside, &mut |wrong| {
            host(options, Some("wait"), folder, wrong, matrix)
        });
    }
    time("soak", Part::Soak, &mut |_| soak::gate(folder));
    stages
}

/// The integration tests on this machine's kernel: all, or those that measure, or those that wait.
fn host(
    options: &Options,
    only: Option<&str>,
    folder: &Path,
    wrong: &mut Vec<String>,
    matrix: &Mutex<Matrix>,
) -> Result<()> {
    let mut command = as_root(&folder.join("fl-tests"));
    // One again and again, not beside itself.
    let jobs = if options.repeat.is_some() { 1 } else { host_jobs() };
    command.arg("--json").args(["--jobs", &jobs.to_string()]);
    if options.filter.is_empty() && !options.every_kernel {
        command.args(["--gate", HOST]);
    }
    if let Some(times) = options.repeat {
        command.args(["--repeat", &times.to_string()]);
    }
    command.args(only.map(|only| format!("--only={only}")));
    for_each_line(command.args(&options.filter), wrong, |line| locked(matrix).accept(HOST, line))
}

/// Whether this machine's kernel is the one that the list's column is of, and says so if it is not.
fn is_listed() -> Result<bool> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(RELEASE).context(RELEASE)?;
    let listed = release.contains(LISTED);
    if !listed {
        println!(
            "tests/cells.txt has no column for Linux {}: what was skipped is not held against it",
            release.trim()
        );
    }
    Ok(listed)
}

/// How many tests wait side by side: they need a CPU now and then.
fn host_jobs() -> usize {
    2 * thread::available_parallelism().map_or(1, NonZero::get)
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
