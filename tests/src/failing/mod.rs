//! Faults in the injector itself: each system call that a run makes fails once, as strace has it fail. Whatever that is,
//! the run says so in one sentence, with the right exit code, and nothing is left.
//!
//! Which calls those are, strace says: a run is listed, and made again for each call of the list with that call failing.

mod errno;
mod judge;
mod lasting;
mod room;
mod scene;
mod trace;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use chaos_user::kernel::mechanism::Mechanism;
use nix::errno::Errno;
use serde_json::Value;

use self::{
    judge::{Usual, Verdict, judge},
    scene::{Scene, Work},
    trace::Call,
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, Test, is_emulated, is_every_call, program},
    life::{killed::fraction, scene::records},
};

const STRACE: Need = Need::Program("strace");
const PACKETS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE];
const TCX: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::Tcx];
const QUEUE: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::SchFq];
const CONNECT: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::CgroupConnect];
const SOCKETS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::CgroupSock];
const CALLS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::Mechanism(Mechanism::RawTracepoint)];
const ERRORS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::Mechanism(Mechanism::Lsm)];
const CLOCKS: &[Need] =
    &[Need::Root, Need::Btf, Need::CgroupV2, STRACE, Need::Mechanism(Mechanism::VdsoPatch)];
const SLOW: &[Need] = &[Need::Root, Need::IoMax, Need::Disks, STRACE];

/// Long enough for all calls of a family.
const LONG: u64 = 1800;

/// The tests of these files.
pub(crate) const TESTS: &[&[Test]] = &[FAMILIES, room::TESTS, lasting::TESTS];

const FAMILIES: &[Test] = &[
    Test::new("failing::loss", loss).needs(PACKETS).timeout(LONG).once().waits().slow(),
    Test::new("failing::clsact", clsact).needs(TCX).timeout(LONG).once().waits().slow(),
    Test::new("failing::detour", detour).needs(PACKETS).timeout(LONG).once().waits().slow(),
    Test::new("failing::delay", delay).needs(QUEUE).timeout(LONG).once().waits(),
    Test::new("failing::exact", exact).needs(PACKETS).timeout(LONG).once().waits().slow(),
    Test::new("failing::refuse", refuse).needs(CONNECT).timeout(LONG).once().waits().slow(),
    Test::new("failing::reset", reset).needs(PACKETS).timeout(LONG).once().waits().slow(),
    Test::new("failing::of_a_process", of_a_process).needs(SOCKETS).timeout(LONG).once().waits().slow(),
    Test::new("failing::clocks", clocks).needs(CLOCKS).timeout(LONG).once().waits().slow(),
    Test::new("failing::calls_that_wait", calls_that_wait).needs(CALLS).timeout(LONG).once().waits().slow(),
    Test::new("failing::calls_that_fail", calls_that_fail).needs(ERRORS).timeout(LONG).once().waits(),
    Test::new("failing::slow_disk", slow_disk).needs(SLOW).timeout(LONG).once().waits(),
    Test::new("failing::sweep", sweep).needs(PACKETS).timeout(LONG).once().waits().slow(),
];

/// A run that takes longer hangs: looking whether all is gone may take 5 s, and waiting for another owner as long.
const DEADLINE: Duration = Duration::from_secs(30);

/// When the kernel has freed what a run had: it takes its time over that on a busy machine.
const FREED: Duration = Duration::from_secs(10);

/// How many of a family's calls fail, unless each is asked for, beside those that attach.
const SAMPLE: usize = 10;
/// And how many of either under emulation.
const FEW: usize = 4;
const SEED: u64 = 18;
/// How often a run is made again in which nothing met its conditions: its target may not have had a CPU meanwhile.
const RETRIES: u32 = 4;

/// One kind of run.
struct Family {
    work: Work,
    /// What is run, words parted by single spaces; `DEVICE`, `NETNS`, `CGROUP` and `PID` stand for what is there.
    command: &'static str,
    /// Whether it is a run and not another command.
    is_run: bool,
    /// Whether a guard beside it may have swept before anybody else could.
    is_guarded: bool,
    /// Done before each time.
    before: fn(&Scene) -> Result,
}

impl Family {
    const fn run(work: Work, command: &'static str) -> Self {
        Self { work, command, is_run: true, is_guarded: false, before: |_| Ok(()) }
    }
}

const LOSS: &str = "net loss 50% --direction both --dev DEVICE --netns NETNS --for 30ms --seed 1 --json";
const DETOUR: &str = "net corrupt 50% --direction both --dev DEVICE --netns NETNS --for 30ms --seed 1 --json";
const DELAY: &str = "net delay 5ms --dev DEVICE --netns NETNS --for 50ms --seed 1 --json";
const TC: &str = "net duplicate 50% --direction both --dev DEVICE --netns NETNS --for 30ms --seed 1 --json";
const EXACT: &str = "net duplicate 50% --exact --dev DEVICE --netns NETNS --for 30ms --seed 1 --json";
const REFUSE: &str = "net refuse --cgroup CGROUP --for 30ms --json";
const RESET: &str = "net reset --port 7000 --dev DEVICE --netns NETNS --for 100ms --seed 1 --json";
const PROCESS: &str = "net loss 50% --pid PID --dev DEVICE --netns NETNS --for 30ms --seed 1 --json";
const SKEW: &str = "time skew --offset +1h --pid PID --for 50ms --json";
const WAIT: &str = "io delay 100us --ops read --cgroup CGROUP --for 100ms --json";
/// Where the target opens nothing.
const FAIL: &str = "io error EIO --ops open --path /run --cgroup CGROUP --for 30ms --json";
const LIMIT: &str = "io slow 1mb/s --dev-block /dev/nullb0 --cgroup CGROUP --for 30ms --json";

fn loss() -> Result {
    Family::run(Work::Packets, LOSS).fail_all("loss", &mut Scene::set(Work::Packets)?)
}

/// Without a link, as on a kernel without tcx: here its hooks are full.
fn clsact() -> Result {
    let mut scene = Scene::set(Work::Packets)?;
    scene.fill_tcx()?;
    Family::run(Work::Packets, TC).fail_all("clsact", &mut scene)
}

fn detour() -> Result {
    Family::run(Work::Packets, DETOUR).go("detour")
}

fn delay() -> Result {
    Family::run(Work::Packets, DELAY).go("delay")
}

fn exact() -> Result {
    Family::run(Work::Packets, EXACT).go("exact")
}

fn refuse() -> Result {
    Family::run(Work::Packets, REFUSE).go("refuse")
}

fn reset() -> Result {
    Family::run(Work::Connections, RESET).go("reset")
}

fn of_a_process() -> Result {
    Family::run(Work::Packets, PROCESS).go("of a process")
}

fn clocks() -> Result {
    Family { is_guarded: true, ..Family::run(Work::Clocks, SKEW) }.go("clocks")
}

fn calls_that_wait() -> Result {
    Family::run(Work::Files, WAIT).go("calls that wait")
}

fn calls_that_fail() -> Result {
    Family::run(Work::Files, FAIL).go("calls that fail")
}

fn slow_disk() -> Result {
    Family::run(Work::Files, LIMIT).go("slow disk")
}

/// Of what an owner has left that was killed.
fn sweep() -> Result {
    let before = |scene: &Scene| {
        let words = scene.words("net duplicate 50% --exact --dev DEVICE --netns NETNS");
        let fault = Faultline::start(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        fault.wait_event("armed", DEADLINE)?;
        fault.kill(nix::sys::signal::Signal::SIGKILL)?;
        fault.wait(DEADLINE).map(drop)
    };
    Family { is_run: false, before, ..Family::run(Work::Packets, "sweep") }.go("sweep")
}

impl Family {
    fn go(&self, name: &str) -> Result {
        self.fail_all(name, &mut Scene::set(self.work)?)
    }

    /// Lists a run, and has each of its calls fail once with each errno, or some of them.
    fn fail_all(&self, name: &str, scene: &mut Scene) -> Result {
        let bench = Bench::new(self, scene)?;
        let (listing, usual) = bench.list()?;
        let all: Vec<(&Call, Errno)> = listing
            .calls
            .iter()
            .flat_map(|call| errno::of(call).iter().map(move |failed| (call, *failed)))
            .collect();
        let cases = if is_every_call() { all } else { sample(&all) };
        let mut tally = Tally::default();
        for (call, failed) in cases {
            let mut attempt = bench.fail(call, failed, &usual)?;
            for _ in 0..RETRIES {
                match &attempt {
                    Attempt::Wrong(why) if why.starts_with("exit 5: ") => {
                        attempt = bench.fail(call, failed, &usual)?;
                    }
                    _ => break,
                }
            }
            tally.add(call, failed, attempt);
        }
        println!(
            "calls of {name}: {} listed, {} of the runtime before and after main, {} that cannot fail, {} like others; {tally}",
            listing.total, listing.runtime, listing.infallible, listing.alike
        );
        tally.problems.iter().for_each(|problem| println!("{problem}"));
        ensure!(
            tally.problems.is_empty(),
            "{name}: {} calls not handled: {}",
            tally.problems.len(),
            tally.problems[0]
        );
        ensure!(tally.failed > 0, "{name}: no call failed");
        Ok(())
    }
}

/// What attaches, each with one errno; and so many of all others, always the same of the same list, and not all from one end
/// of it.
fn sample<'a>(all: &[(&'a Call, Errno)]) -> Vec<(&'a Call, Errno)> {
    let (mut some, mut others) = (Vec::new(), Vec::new());
    for (place, (call, failed)) in all.iter().enumerate() {
        let is_first = place == 0 || all[place - 1].0 != *call;
        match call.attaches() {
            true if is_first => some.push((*call, *failed)),
            true => {}
            false => others.push((*call, *failed)),
        }
    }
    let (attaching, beside) = if is_emulated() { (FEW, FEW) } else { (some.len(), SAMPLE) };
    let mut state = SEED;
    let mut chosen = spread(&some, attaching, &mut state);
    chosen.extend(spread(&others, beside, &mut state));
    chosen
}

/// So many of all, one from each part of them.
fn spread<T: Copy>(all: &[T], count: usize, random: &mut u64) -> Vec<T> {
    if all.len() <= count {
        return all.to_vec();
    }
    let width = all.len() as f64 / count as f64;
    let place = |part: usize, random: &mut u64| ((part as f64 + fraction(random)) * width) as usize;
    (0..count).map(|part| all[place(part, random).min(all.len() - 1)]).collect()
}

/// What became of the runs of a family.
#[derive(Debug, Default)]
struct Tally {
    failed: usize,
    unreached: usize,
    verdicts: BTreeMap<Verdict, usize>,
    problems: Vec<String>,
}

/// One run of them.
enum Attempt {
    /// It did not come so far this time.
    Unreached,
    Fine(Verdict),
    Wrong(String),
}

impl Tally {
    fn add(&mut self, call: &Call, failed: Errno, attempt: Attempt) {
        self.failed += usize::from(!matches!(attempt, Attempt::Unreached));
        match attempt {
            Attempt::Unreached => self.unreached += 1,
            Attempt::Fine(verdict) => *self.verdicts.entry(verdict).or_default() += 1,
            Attempt::Wrong(why) => {
                let Call { name, nth, what } = call;
                self.problems.push(format!("{name} {nth} ({what}), {failed:?}: {}", why.trim()));
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { failed, unreached, verdicts, problems } = self;
        write!(formatter, "{failed} failed, {unreached} not reached:")?;
        for verdict in Verdict::ALL {
            write!(formatter, " {} {},", verdicts.get(&verdict).unwrap_or(&0), verdict.name())?;
        }
        write!(formatter, " {} wrong", problems.len())
    }
}

/// Where one family's runs are made.
struct Bench<'a> {
    family: &'a Family,
    scene: &'a Scene,
    words: Vec<String>,
    strace: PathBuf,
    log: PathBuf,
}

impl<'a> Bench<'a> {
    fn new(family: &'a Family, scene: &'a Scene) -> Result<Self> {
        let strace = program("strace").context("no program strace")?;
        // On this test's own /run, beside the records' folder.
        let log = Path::new("/run/strace").to_path_buf();
        Ok(Self { family, scene, words: scene.words(family.command), strace, log })
    }

    fn start(&self, options: &[&str]) -> Result<Faultline> {
        let mut command = Command::new(&self.strace);
        command.args(["-f", "-qq", "-y", "-o"]).arg(&self.log).args(options);
        // As one who is here by SSH, whose session no fault hits.
        command.env("SSH_CONNECTION", "10.77.0.9 50000 10.77.0.1 22");
        Faultline::start_command({
            command.arg(binary()?).args(&self.words);
            command
        })
    }

    fn log(&self) -> Result<String> {
        // Names of files and what is read may be any bytes.
        Ok(String::from_utf8_lossy(&fs::read(&self.log).context(self.log.display())?).into_owned())
    }

    /// The calls of a run in which none fails, if that can be one in which something meets its conditions.
    fn list(&self) -> Result<(trace::Listing, Usual)> {
        let mut listed = self.list_once()?;
        for _ in 0..RETRIES {
            if listed.1.code == 0 {
                break;
            }
            listed = self.list_once()?;
        }
        ensure!(listed.1.code != 6, "nothing failed, and it is never known to be clean");
        Ok(listed)
    }

    fn list_once(&self) -> Result<(trace::Listing, Usual)> {
        (self.family.before)(self.scene)?;
        let exit = self.start(&[])?.wait(DEADLINE)?;
        let listing = trace::parse(&self.log()?);
        let is_run = self.family.is_run;
        // Nobody may have met the conditions of one whose target does nothing.
        let code = exit.code.filter(|code| *code == 0 || is_run && matches!(*code, 5 | 6));
        if code == Some(6) {
            // Under strace, beside others, the time that it gives itself to look at all there is may not do.
            let swept = Faultline::run(&["sweep"])?;
            ensure!(swept.code == Some(0), "nothing failed: {exit:?}, {swept:?}");
        }
        let code = code.context(format_args!("nothing failed, and it did not end well: {exit:?}"))?;
        self.scene.is_as_before(FREED).context("nothing failed")?;
        let prepared = if is_run { exit.event("prepared")?.json.clone() } else { Value::Null };
        Ok((listing, Usual { code, is_run, prepared }))
    }

    /// One run in which a call fails.
    fn fail(&self, call: &Call, failed: Errno, usual: &Usual) -> Result<Attempt> {
        let Call { name, nth, .. } = call;
        (self.family.before)(self.scene)?;
        let inject = format!("inject={name}:error={failed:?}:when={nth}");
        // With a filter of its own, strace stops the run at calls of this name alone.
        let fault = self.start(&["--seccomp-bpf", "-e", &format!("trace={name}"), "-e", &inject])?;
        let Ok(exit) = fault.wait(DEADLINE) else {
            self.end_tasks()?;
            drop(fault);
            self.clear()?;
            return Ok(Attempt::Wrong(format!("it hangs: not over after {DEADLINE:?}")));
        };
        let log = self.log()?;
        if trace::injected(&log).is_empty() {
            self.clear()?;
            return Ok(Attempt::Unreached);
        }
        let verdict = judge(&exit, usual, call, failed);
        let left = self.left(verdict.as_ref().ok().copied());
        self.clear()?;
        Ok(match (verdict, left) {
            (Ok(verdict), Ok(())) => Attempt::Fine(verdict),
            (Ok(verdict), Err(left)) => {
                let left = left.to_string();
                let lines: Vec<_> = left.lines().map(str::trim).take(6).collect();
                Attempt::Wrong(format!(
                    "{}, but {} ({})",
                    verdict.name(),
                    lines.join("; "),
                    exit.stderr.trim()
                ))
            }
            (Err(why), _) => Attempt::Wrong(why),
        })
    }

    /// Whether no more is left than was said.
    fn left(&self, verdict: Option<Verdict>) -> Result {
        let is_named = verdict.is_some_and(Verdict::may_leave_a_record) || !self.family.is_run;
        if !is_named {
            return self.scene.is_as_before(FREED);
        }
        if verdict == Some(Verdict::Named) && self.family.is_run && !self.family.is_guarded {
            let nothing = records()?.is_empty() && self.scene.is_as_before(Duration::ZERO).is_ok();
            ensure!(!nothing, "nothing is left, not even a record");
        }
        let exit = Faultline::run(&["sweep"])?;
        ensure!(exit.code == Some(0), "a sweep does not clear it: {exit:?}");
        self.scene.is_as_before(FREED).context("after a sweep")
    }

    /// Whatever it did, the next one begins where this one began.
    fn clear(&self) -> Result {
        Faultline::run(&["sweep"])?;
        self.scene.is_as_before(FREED).context("not even after a sweep of what was wrong")
    }

    /// Ends a run that hangs: strace would leave it behind.
    fn end_tasks(&self) -> Result {
        let log = self.log()?;
        let tasks = log.lines().filter_map(|line| line.split(' ').next()?.parse().ok());
        for task in tasks.collect::<std::collections::BTreeSet<i32>>() {
            // Its threads' numbers are no processes'; it may have ended by itself.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(task), nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_what_attaches_and_is_from_everywhere() {
        let call = |nth, what: &str| Call { name: "bpf".into(), nth, what: what.into() };
        let calls: Vec<_> = (0..100).map(|nth| call(nth, "BPF_MAP_CREATE")).collect();
        let link = call(200, "BPF_LINK_CREATE");
        let mut all: Vec<_> = calls.iter().map(|call| (call, Errno::ENOMEM)).collect();
        all.extend([(&link, Errno::ENOMEM), (&link, Errno::EBUSY)]);
        let some = sample(&all);
        assert_eq!(some[0], (&link, Errno::ENOMEM));
        let others: Vec<_> = some[1..].iter().map(|(call, _)| call.nth / 10).collect();
        assert_eq!(others, (0..10).collect::<Vec<_>>());
        assert_eq!(sample(&all[..7]).len(), 7);
    }
}
