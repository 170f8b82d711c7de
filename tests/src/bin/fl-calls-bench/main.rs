//! What a system call costs where a fault could hit it, and where one does; beside strace's. To be run in a guest whose
//! kernel lets a call fail.

mod caller;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    time::Duration,
};

use faultline_tests::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::caller::{Call, Caller, Took};

/// Each case is measured once in each round, so that what else the machine does hits all alike.
const ROUNDS: usize = 9;
/// Calls of one measurement, and how many of those make a round's, which is their median.
const CALLS: u32 = 10_000;
const MEASUREMENTS: usize = 7;
/// strace's are a hundred times slower.
const CALLS_OF_STRACE: u32 = 200;
/// Left out of each: code that the emulator has not translated yet.
const WARM_UP: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

const MECHANISMS: [&str; 2] = ["lsm", "fmod_ret_security"];

/// What is there while the calls are made, and what it may cost at most: times what a bare call does.
const CASES: [(&str, Aim, Option<f64>); 4] = [
    ("another cgroup is the target", Aim::AnotherCgroup, Some(1.15)),
    ("the target, but not the folder", Aim::AnotherFolder, Some(1.6)),
    ("matched, not fired", Aim::NotYet, Some(1.6)),
    ("fired: EIO", Aim::Fired, None),
];

/// So many times less than strace a fault is to add.
const STRACE_GOAL: f64 = 40.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    AnotherCgroup,
    AnotherFolder,
    NotYet,
    Fired,
}

/// Nanoseconds a call, of each round.
#[derive(Default)]
struct Rounds(Vec<f64>);

/// One kind of call: what it takes with nothing there, by mechanism and case, and under strace.
#[derive(Default)]
struct Table {
    bare: Rounds,
    ours: [[Rounds; CASES.len()]; MECHANISMS.len()],
    strace: Rounds,
}

/// Where it all happens: nothing of it stays.
struct Place {
    target: Cgroup,
    other: Cgroup,
    folder: PathBuf,
}

fn main() -> Result {
    let place = Place::new()?;
    // Before any thread is started.
    let caller = Caller::start(&place.target, &place.folder.join("hit/file"))?;
    let _inhabitant = place.other.inhabit(|_| {})?;
    let mut tables = Call::ALL.map(|_| Table::default());
    let strace = find("strace");
    for round in 1..=ROUNDS {
        for (table, took) in tables.iter_mut().zip(measure(&caller, CALLS, 0.0)?) {
            table.bare.0.push(took);
        }
        for (mechanism, name) in MECHANISMS.into_iter().enumerate() {
            for (case, (_, aim, _)) in CASES.into_iter().enumerate() {
                let took = place.faulty(&caller, name, aim).context(name)?;
                for (table, took) in tables.iter_mut().zip(took) {
                    table.ours[mechanism][case].0.push(took);
                }
            }
        }
        if let Some(strace) = &strace {
            for (table, took) in tables.iter_mut().zip(traced(&caller, strace)?) {
                table.strace.0.push(took);
            }
        }
        // Emulators crash; what is known by then is not lost.
        eprintln!("round {round} of {ROUNDS}");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    println!(
        "Linux {}, {ROUNDS} rounds, each the median of {MEASUREMENTS} times {CALLS} calls; page-cached, on tmpfs",
        release.trim()
    );
    if strace.is_none() {
        println!("without strace, which is not here");
    }
    Call::ALL.iter().zip(&tables).for_each(|(call, table)| table.print(*call));
    Ok(())
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

    /// Nanoseconds a call of each kind, with a fault there.
    fn faulty(&self, caller: &Caller, mechanism: &str, aim: Aim) -> Result<[f64; Call::ALL.len()]> {
        let cgroup = if aim == Aim::AnotherCgroup { &self.other } else { &self.target };
        let folder = self.folder.join(if aim == Aim::AnotherFolder { "spared" } else { "hit" });
        let (cgroup, folder) = (cgroup.path().to_string_lossy(), folder.to_string_lossy());
        let fixed = ["io", "error", "EIO", "--ops", "read", "--by", mechanism];
        let skip: &[&str] = if aim == Aim::NotYet { &["--skip", "1000000000000"] } else { &[] };
        let fault =
            Faultline::start(&[&fixed, &["--cgroup", &cgroup, "--path", &folder][..], skip].concat())?;
        fault.wait_event("armed", PATIENCE)?;
        let took = measure(caller, CALLS, if aim == Aim::Fired { 1.0 } else { 0.0 })?;
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
fn traced(caller: &Caller, strace: &Path) -> Result<[f64; Call::ALL.len()]> {
    let pid = caller.pid().to_string();
    let mut command = Command::new(strace);
    command.args(["-f", "-o", "/dev/null", "-e", "trace=read,pread64"]);
    command.args(["-e", "inject=read,pread64:error=EIO", "-p", &pid]).stderr(Stdio::piped());
    let mut child = command.spawn().context("strace")?;
    let mut said = BufReader::new(child.stderr.take().context("its standard error")?).lines();
    let attached = said.any(|line| line.is_ok_and(|line| line.contains("attached")));
    ensure!(attached, "strace does not attach");
    let took = measure(caller, CALLS_OF_STRACE, 1.0);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).context("kill strace")?;
    child.wait().context("strace")?;
    took
}

/// Nanoseconds a call of each kind; so many of them must fail.
fn measure(caller: &Caller, calls: u32, failing: f64) -> Result<[f64; Call::ALL.len()]> {
    let mut all = [0.0; Call::ALL.len()];
    for (place, call) in Call::ALL.into_iter().enumerate() {
        caller.make(call, WARM_UP.min(calls))?;
        let mut times = Vec::new();
        for _ in 0..MEASUREMENTS {
            let Took { nanoseconds, failed } = caller.make(call, calls)?;
            let wanted = (f64::from(calls) * failing) as u32;
            ensure!(failed == wanted, "{failed} of {calls} calls failed, not {wanted}");
            times.push(nanoseconds as f64 / f64::from(calls));
        }
        all[place] = quantile(&times, 0.5);
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
    fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }

    fn shown(&self) -> String {
        let [low, high] = [0.25, 0.75].map(|part| quantile(&self.0, part));
        format!("{:.0} ({low:.0}..{high:.0})", self.median())
    }

    /// The ratio of each round to that of another.
    fn beside(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, other)| ours / other).collect())
    }

    /// What it takes more, by the medians; not nothing, so that it can be divided by.
    fn added(&self, bare: &Self) -> f64 {
        (self.median() - bare.median()).max(1.0)
    }
}

impl Table {
    fn print(&self, call: Call) {
        println!("\n{:<34} {:<18} {:>24} {:>22}  GOAL", call.name(), "BY", "NS A CALL", "TIMES BARE");
        self.row("nothing there", "", &self.bare, None);
        for (case, (what, _, goal)) in CASES.into_iter().enumerate() {
            for (mechanism, name) in MECHANISMS.into_iter().enumerate() {
                self.row(what, name, &self.ours[mechanism][case], goal);
            }
        }
        if self.strace.0.is_empty() {
            return;
        }
        self.row("fired: EIO", "strace", &self.strace, None);
        let strace = self.strace.added(&self.bare);
        for (mechanism, name) in MECHANISMS.into_iter().enumerate() {
            for (case, (what, _, _)) in CASES.into_iter().enumerate().skip(1) {
                let ours = self.ours[mechanism][case].added(&self.bare);
                let times = strace / ours;
                println!(
                    "{name}, {what}: {ours:.0} ns added, {times:.0} times less than strace's {strace:.0} ({} {STRACE_GOAL})",
                    if times >= STRACE_GOAL { "at least" } else { "NOT" }
                );
            }
        }
    }

    fn row(&self, what: &str, by: &str, rounds: &Rounds, goal: Option<f64>) {
        let ratios = rounds.beside(&self.bare);
        let [low, high] = [0.25, 0.75].map(|part| quantile(&ratios.0, part));
        let ratio = format!("{:.2} ({low:.2}..{high:.2})", ratios.median());
        let goal = goal.map_or_else(String::new, |goal| {
            format!("{} {goal}", if ratios.median() <= goal { "at most" } else { "NOT" })
        });
        println!("{what:<34} {by:<18} {:>24} {ratio:>22}  {goal}", rounds.shown());
    }
}
