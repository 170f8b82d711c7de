//! What a system call costs where a fault could hit it, and where one does; beside strace's. To be run in a guest whose
//! kernel lets a call fail.

mod bare;
mod caller;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{self, Command, ExitCode, Stdio},
    time::Duration,
};

use faultline_tests::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::heed_signals,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::caller::{Call, Caller, Took};

/// Each case is measured once in each round, right after calls with nothing there, so that what else the machine does
/// hits all alike.
const ROUNDS: usize = 7;
/// Calls of one measurement, and of how many of those the fastest counts: whatever else happens can only make one
/// slower.
const CALLS: u32 = 5_000;
const MEASUREMENTS: usize = 10;
/// strace's are a hundred times slower.
const CALLS_OF_STRACE: u32 = 200;
/// Left out of each: code that the emulator has not translated yet.
const WARM_UP: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

const MECHANISMS: [&str; 2] = ["lsm", "fmod_ret_security"];

/// What is there while the calls are made, and what it may cost at most: times what a bare call does.
const CASES: [(&str, Aim, Option<f64>); 5] = [
    ("a program that returns at once", Aim::Nobody, None),
    ("another cgroup is the target", Aim::AnotherCgroup, Some(1.15)),
    ("the target, but not the folder", Aim::AnotherFolder, Some(1.6)),
    ("matched, not fired", Aim::NotYet, Some(1.6)),
    ("fired: EIO", Aim::Fired, None),
];

/// So many times less than strace a fault is to add.
const STRACE_GOAL: f64 = 40.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    Nobody,
    AnotherCgroup,
    AnotherFolder,
    NotYet,
    Fired,
}

/// Nanoseconds a call of each kind.
type Times = [f64; Call::ALL.len()];

/// Of each round: nanoseconds a call with nothing there, and then with something.
#[derive(Default)]
struct Rounds(Vec<[f64; 2]>);

/// One kind of call, by mechanism and case, and under strace.
#[derive(Default)]
struct Table {
    ours: [[Rounds; CASES.len()]; MECHANISMS.len()],
    strace: Rounds,
}

/// Where it all happens: nothing of it stays.
struct Place {
    target: Cgroup,
    other: Cgroup,
    folder: PathBuf,
}

fn main() -> ExitCode {
    heed_signals();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error stays in the guest.
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result {
    let place = Place::new()?;
    // Before any thread is started.
    let caller = Caller::start(&place.target, &place.folder.join("hit/file"))?;
    let _inhabitant = place.other.inhabit(|_| {})?;
    let mut tables = Call::ALL.map(|_| Table::default());
    let strace = find("strace");
    for round in 1..=ROUNDS {
        for (mechanism, name) in MECHANISMS.into_iter().enumerate() {
            for (case, (_, aim, _)) in CASES.into_iter().enumerate() {
                let bare = measure(&caller, CALLS, false)?;
                let took = place.faulty(&caller, name, aim).context(name)?;
                add(&mut tables, |table| &mut table.ours[mechanism][case], bare, took);
            }
        }
        if let Some(strace) = &strace {
            let bare = measure(&caller, CALLS, false)?;
            let took = traced(&caller, strace)?;
            add(&mut tables, |table| &mut table.strace, bare, took);
        }
        // Emulators crash; how far it came is not lost.
        println!("round {round} of {ROUNDS}");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    println!(
        "Linux {}, {ROUNDS} rounds, each the fastest of {MEASUREMENTS} times {CALLS} calls; page-cached, on tmpfs",
        release.trim()
    );
    if strace.is_none() {
        println!("without strace, which is not here");
    }
    Call::ALL.iter().zip(&tables).for_each(|(call, table)| table.print(*call));
    Ok(())
}

/// One more round of a case.
fn add(tables: &mut [Table], case: impl Fn(&mut Table) -> &mut Rounds, bare: Times, took: Times) {
    for ((table, bare), took) in tables.iter_mut().zip(bare).zip(took) {
        case(table).0.push([bare, took]);
    }
}

impl Place {
    fn new() -> Result<Self> {
        let folder = env::temp_dir().join(format!("fl-calls-bench-{}", process::id()));
        for (name, size) in [("hit/file", caller::SIZE), ("spared/file", 1)] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&folder)).context(path.display())?;
            fs::write(&path, vec![b'x'; size]).context(path.display())?;
        }
        Ok(Self { target: Cgroup::new()?, other: Cgroup::new()?, folder })
    }

    /// Nanoseconds a call of each kind, with a fault there, or a program that does nothing.
    fn faulty(&self, caller: &Caller, mechanism: &str, aim: Aim) -> Result<Times> {
        if aim == Aim::Nobody {
            let _attached = bare::attach(mechanism)?;
            return measure(caller, CALLS, false);
        }
        let cgroup = if aim == Aim::AnotherCgroup { &self.other } else { &self.target };
        let folder = self.folder.join(if aim == Aim::AnotherFolder { "spared" } else { "hit" });
        let (cgroup, folder) = (cgroup.path().to_string_lossy(), folder.to_string_lossy());
        let fixed = ["io", "error", "EIO", "--ops", "read", "--by", mechanism];
        let skip: &[&str] = if aim == Aim::NotYet { &["--skip", "1000000000000"] } else { &[] };
        let fault =
            Faultline::start(&[&fixed, &["--cgroup", &cgroup, "--path", &folder][..], skip].concat())?;
        fault.wait_event("armed", PATIENCE)?;
        let took = measure(caller, CALLS, aim == Aim::Fired)?;
        fault.end()?;
        Ok(took)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left is in the guest, and goes with it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The same under strace, which attaches to the caller as it is.
fn traced(caller: &Caller, strace: &Path) -> Result<Times> {
    let pid = caller.pid().to_string();
    let mut command = Command::new(strace);
    command.args(["-f", "-o", "/dev/null", "-e", "trace=read,pread64"]);
    command.args(["-e", "inject=read,pread64:error=EIO", "-p", &pid]).stderr(Stdio::piped());
    let mut child = command.spawn().context("strace")?;
    let mut said = BufReader::new(child.stderr.take().context("its standard error")?).lines();
    let attached = said.any(|line| line.is_ok_and(|line| line.contains("attached")));
    ensure!(attached, "strace does not attach");
    let took = measure(caller, CALLS_OF_STRACE, true);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).context("kill strace")?;
    child.wait().context("strace")?;
    took
}

/// The fastest; all calls must fail, or none.
fn measure(caller: &Caller, calls: u32, failing: bool) -> Result<Times> {
    let mut all = [f64::INFINITY; Call::ALL.len()];
    for (fastest, call) in all.iter_mut().zip(Call::ALL) {
        caller.make(call, WARM_UP.min(calls))?;
        for _ in 0..MEASUREMENTS {
            let Took { nanoseconds, failed } = caller.make(call, calls)?;
            ensure!(failed == if failing { calls } else { 0 }, "{failed} of {calls} calls failed");
            *fastest = fastest.min(nanoseconds as f64 / f64::from(calls));
        }
    }
    Ok(all)
}

fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
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

impl Rounds {
    /// The median and the quartiles of something of each round.
    fn spread(&self, of: impl Fn([f64; 2]) -> f64) -> [f64; 3] {
        let numbers: Vec<f64> = self.0.iter().copied().map(of).collect();
        [0.5, 0.25, 0.75].map(|part| quantile(&numbers, part))
    }

    /// What a call takes more than with nothing there.
    fn added(&self) -> f64 {
        self.spread(|[bare, took]| took - bare)[0]
    }
}

impl Table {
    fn rows(&self) -> impl Iterator<Item = (usize, usize, &Rounds)> {
        let cases = (0..CASES.len()).flat_map(|case| (0..MECHANISMS.len()).map(move |by| (case, by)));
        cases.map(|(case, by)| (case, by, &self.ours[by][case]))
    }

    fn print(&self, call: Call) {
        println!("\n{:<38} {:<18} {:>24} {:>20}  GOAL", call.name(), "BY", "NS A CALL", "TIMES BARE");
        let bare = Rounds(self.rows().flat_map(|(_, _, rounds)| rounds.0.clone()).collect());
        let [median, low, high] = bare.spread(|[bare, _]| bare);
        println!("{:<57} {:>24}", "nothing there", format!("{median:.0} ({low:.0}..{high:.0})"));
        for (case, by, rounds) in self.rows() {
            let (what, _, goal) = CASES[case];
            row(what, MECHANISMS[by], rounds, goal);
        }
        if self.strace.0.is_empty() {
            return;
        }
        row("fired: EIO", "strace", &self.strace, None);
        let strace = self.strace.added();
        println!("{:<38} {:<18} {:>24}", "adds", "strace", format!("{strace:.0} ns"));
        // A call that fails is not made, and takes less than one that is.
        let added = self.rows().map(|(case, by, rounds)| (case, by, rounds.added()));
        for (case, by, added) in added.filter(|(_, _, added)| *added > 0.0) {
            let times = strace / added;
            let goal = if times >= STRACE_GOAL { "at least" } else { "NOT" };
            println!(
                "{:<38} {:<18} {:>24} {:>20}  {goal} {STRACE_GOAL}",
                format!("{}: adds", CASES[case].0),
                MECHANISMS[by],
                format!("{added:.0} ns"),
                format!("{times:.0} times less"),
            );
        }
    }
}

fn row(what: &str, by: &str, rounds: &Rounds, goal: Option<f64>) {
    let [took, low, high] = rounds.spread(|[_, took]| took);
    let took = format!("{took:.0} ({low:.0}..{high:.0})");
    let [ratio, low, high] = rounds.spread(|[bare, took]| took / bare);
    let goal = goal.map(|goal| format!("{} {goal}", if ratio <= goal { "at most" } else { "NOT" }));
    let ratio = format!("{ratio:.2} ({low:.2}..{high:.2})");
    println!("{what:<38} {by:<18} {took:>24} {ratio:>20}  {}", goal.unwrap_or_default());
}
