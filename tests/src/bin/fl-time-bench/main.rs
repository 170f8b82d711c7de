//! What it costs to read a clock that is skewed, beside one that is not, libfaketime, and a system call; and what else
//! a fault of time takes. On this machine's kernel; `fl-time-bench rewritten` is for another's.

mod caller;
mod moments;
mod rewritten;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use faultline_tests::{
    cgroup::Cgroup,
    clocks::Clock,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::heed_signals,
};

use self::caller::{Call, Caller};

/// Each case is measured once in each round, so that what else the machine does hits all alike.
const ROUNDS: usize = 9;
/// Calls of one measurement, and of how many of those the fastest counts: whatever else happens can only make one
/// slower.
const CALLS: u32 = 200_000;
const MEASUREMENTS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

const OFFSET: &str = "--offset 1h";
const OFFSET_AND_RATE: &str = "--offset 1h --rate 1.5";
/// The same in nanoseconds, and as libfaketime is told.
const SKEW: i64 = 3_600_000_000_000;
const FAKETIME: &str = "+3600s";

/// What is there while clocks are read.
const CASES: [&str; 5] =
    ["nothing: the vDSO as it is", OFFSET, OFFSET_AND_RATE, "libfaketime, +3600s", "nothing: a system call"];
const FAKED: usize = 3;
const SYSTEM_CALL: usize = 4;

/// Where Debian, Fedora and Arch keep it.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// Where it all happens: nothing of it stays.
struct Place {
    target: Cgroup,
    beside: Cgroup,
    /// Somebody is in the target whatever else is.
    _inhabitant: Clock,
}

/// Nanoseconds a call, of each round, by call and case.
type Table = [[Vec<f64>; CASES.len()]; Call::ALL.len()];

fn main() -> ExitCode {
    heed_signals();
    let done = match env::args().nth(1).as_deref() {
        Some("call") => caller::obey(),
        Some("rewritten") => Place::new().and_then(|place| rewritten::run(&place)),
        _ => run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result {
    let place = Place::new()?;
    say_how(ROUNDS, MEASUREMENTS, CALLS)?;
    let mut table = Table::default();
    let library = LIBRARIES.into_iter().map(Path::new).find(|path| path.is_file()).map(PathBuf::from);
    calls(&place, library.as_deref(), &mut table)?;
    if library.is_none() {
        println!("without libfaketime, which is not here (Debian: faketime)");
    }
    for (call, cases) in Call::ALL.iter().zip(&table) {
        print(call.name(), "TIMES THE VDSO", &CASES, cases);
    }
    moments::programs(&place)?;
    moments::stops(&place)?;
    moments::kills(&place)
}

/// Where it is measured, and how.
fn say_how(rounds: usize, measurements: usize, calls: u32) -> Result {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let release = release.trim();
    println!("Linux {release}, {rounds} rounds, each the fastest of {measurements} times {calls} calls");
    Ok(())
}

impl Place {
    fn new() -> Result<Self> {
        let target = Cgroup::new()?;
        let inhabitant = Clock::start(Some(&target))?;
        Ok(Self { target, beside: Cgroup::new()?, _inhabitant: inhabitant })
    }

    /// A fault of the target's clocks, armed.
    fn fault(&self, words: &str) -> Result<Faultline> {
        let folder = self.target.path().to_string_lossy();
        let words: Vec<&str> =
            ["time", "skew", "--cgroup", &folder].into_iter().chain(words.split(' ')).collect();
        let fault = Faultline::start(&words)?;
        fault.wait_event("armed", PATIENCE)?;
        Ok(fault)
    }
}

fn calls(place: &Place, library: Option<&Path>, table: &mut Table) -> Result {
    let mut caller = Caller::start(&place.target, None)?;
    let mut faked = library.map(|library| Caller::start(&place.beside, Some(library))).transpose()?;
    for round in 1..=ROUNDS {
        for (case, name) in CASES.into_iter().enumerate() {
            let skewed = !name.starts_with("nothing");
            match (case, &mut faked) {
                (FAKED, Some(faked)) => measure(faked, table, case, skewed)?,
                (FAKED, None) => {}
                _ if skewed => {
                    let fault = place.fault(name)?;
                    measure(&mut caller, table, case, skewed)?;
                    fault.end()?;
                }
                _ => measure(&mut caller, table, case, skewed)?,
            }
        }
        println!("round {round} of {ROUNDS}");
    }
    Ok(())
}

/// The fastest of each call, which must tell what it is to tell.
fn measure(caller: &mut Caller, table: &mut Table, case: usize, skewed: bool) -> Result {
    for (call, cases) in Call::ALL.into_iter().zip(table) {
        // A system call is one and the same for all.
        let made = if case == SYSTEM_CALL { Call::Raw } else { call };
        let mut fastest = f64::INFINITY;
        caller.make(made, CALLS / 10)?;
        for _ in 0..MEASUREMENTS {
            let (nanoseconds, told) = caller.make(made, CALLS)?;
            let ahead = told - now()?;
            ensure!((ahead > 3_500) == skewed, "{}: {}: {ahead} s ahead", CASES[case], call.name());
            fastest = fastest.min(nanoseconds);
        }
        cases[case].push(fastest);
    }
    Ok(())
}

/// In seconds.
fn now() -> Result<i64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("before 1970")?;
    Ok(since.as_secs() as i64)
}

/// All cases of one call, by how many times the first of them they take.
fn print(call: &str, times: &str, names: &[impl AsRef<str>], cases: &[Vec<f64>]) {
    println!("\n{call:<40} {:>10} {:>10} {times:>22}", "BEST NS", "MEDIAN NS");
    let bare = &cases[0];
    for (name, numbers) in names.iter().zip(cases).filter(|(_, numbers)| !numbers.is_empty()) {
        let name = name.as_ref();
        // Each beside the one of its round.
        let ratios: Vec<f64> = numbers.iter().zip(bare).map(|(took, bare)| took / bare).collect();
        let [low, ratio, high] = [0.25, 0.5, 0.75].map(|part| quantile(&ratios, part));
        let (best, median) = (quantile(numbers, 0.0), quantile(numbers, 0.5));
        println!("{name:<40} {best:>10.1} {median:>10.1} {ratio:>8.2} ({low:.2} to {high:.2})");
    }
}

/// Between the two nearest.
fn quantile(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}
