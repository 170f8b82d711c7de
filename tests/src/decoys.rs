//! Tests that fail in every way there is, for the one test that shows that the runner notices.

use std::{env, fs::File, io::Write, process::Command, thread, time::Duration};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    sys::signal::{SigSet, Signal, kill, raise},
    unistd::{Pid, getppid},
};

use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::{Need, Outcome, Report, Runner, Test},
};

/// The test of the runner.
pub(crate) const TESTS: &[Test] = &[Test::new("runner::judges", judges).needs(&[])];

/// Found by name only, never run on their own.
pub(crate) const DECOYS: &[Test] =
    &[PASSES, FAILS, PANICS, DIES, LACKS, HANGS, HANGS_TOO, STOPS, STOPS_ONCE, WRITES_LATE];

const PASSES: Test = Test::new("decoy::passes", || Ok(())).needs(&[]);
const FAILS: Test = Test::new("decoy::fails", fails).needs(&[]);
const PANICS: Test = Test::new("decoy::panics", || panic!("on purpose")).needs(&[]);
const DIES: Test = Test::new("decoy::dies", dies).needs(&[]);
const LACKS: Test = Test::new("decoy::lacks", fails).needs(&[Need::Program("no-such-program")]);
const HANGS: Test = Test::new("decoy::hangs", hangs).needs(&[]).timeout(1);
/// What the child of [`HANGS`] does.
const HANGS_TOO: Test = Test::new("decoy::hangs-too", sleep_forever).needs(&[]);
/// One that fails while nothing runs, as far as its runner can see.
const STOPS: Test = Test::new("decoy::stops", stops).needs(&[]);
const STOPS_ONCE: Test = Test::new("decoy::stops-once", stops).needs(&[]).once();

/// An owner that writes a line down when it is asked to end, and then ends.
pub(crate) const WRITES_LATE: Test = Test::new("decoy::writes-late", writes_late).needs(&[]);
/// The record that this is the owner of, and the line.
pub(crate) const LATE_RECORD: &str = "FL_TEST_RECORD";
pub(crate) const LATE_LINE: &str = "FL_TEST_LINE";

fn fails() -> Result {
    println!("what it printed");
    Err(Failure::new("2 of 3"))
}

fn dies() -> Result {
    raise(Signal::SIGKILL).context("raise")
}

fn writes_late() -> Result {
    let told = |name| env::var(name).context(name);
    let mut record = File::options().read(true).append(true).open(told(LATE_RECORD)?).context("open")?;
    own(&record)?;
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().context("sigprocmask")?;
    println!("ready");
    term.wait().context("sigwait")?;
    writeln!(record, "{}", told(LATE_LINE)?).context("write")
}

/// Takes the locks of a record's owner, until the process ends.
fn own(record: &File) -> Result {
    live(record)?;
    let held = record.try_clone().context("dup")?;
    let held =
        Flock::lock(held, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).context("flock")?;
    // Not let go of by being dropped.
    std::mem::forget(held);
    Ok(())
}

/// Takes that one of them by which an owner is seen to live, as long as the file is open.
pub(crate) fn live(record: &File) -> Result {
    let life = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(record, FcntlArg::F_OFD_SETLK(&life)).context("lock").map(drop)
}

/// With a child that would outlive it.
fn hangs() -> Result {
    let child = Command::new("/proc/self/exe").args(["--run-one", "decoy::hangs-too"]).spawn();
    println!("child {}", child.context("start a child")?.id());
    sleep_forever()
}

fn sleep_forever() -> Result {
    loop {
        thread::park();
    }
}

fn stops() -> Result {
    let runner = getppid();
    kill(runner, Signal::SIGSTOP).context("stop the runner")?;
    thread::sleep(Duration::from_millis(200));
    kill(runner, Signal::SIGCONT).context("let the runner go on")?;
    fails()
}

fn judges() -> Result {
    let runner = Runner::default();
    let hung = format!("hung: killed after {} s", HANGS.limit().as_secs());
    for (test, outcome, reason, output) in [
        (PASSES, Outcome::Pass, "", ""),
        (FAILS, Outcome::Fail, "2 of 3", "what it printed\nfailure: 2 of 3\n"),
        (PANICS, Outcome::Fail, "it panicked", "on purpose"),
        (DIES, Outcome::Fail, "killed by SIGKILL", ""),
        (LACKS, Outcome::Skip, "program:no-such-program: not installed", ""),
        (HANGS, Outcome::Fail, &hung, "child "),
    ] {
        let report = runner.run(&test, |_| ());
        ensure!(report.outcome == outcome && report.reason == reason, "{report:?}");
        ensure!(report.output.contains(output), "no {output:?} in {report:?}");
        if test.name == HANGS.name {
            let limit = HANGS.limit().as_secs_f64();
            ensure!((limit..3.0 * limit).contains(&report.seconds), "a hung test took {} s", report.seconds);
            is_gone(&report.output)?;
        }
    }
    for (test, runs) in [(STOPS, 2), (STOPS_ONCE, 0)] {
        let mut again = Vec::new();
        let report = runner.run(&test, |report| again.push(report.clone()));
        ensure!(report.outcome == Outcome::Fail && report.reason == "2 of 3", "{report:?}");
        let disturbed = |report: &Report| {
            report.outcome == Outcome::Again && report.reason.starts_with("the machine stood still for ")
        };
        ensure!(again.len() == runs && again.iter().all(disturbed), "{again:?}");
    }
    Ok(())
}

/// The runner has reaped whatever the test had started when it reports.
fn is_gone(output: &str) -> Result {
    let number = output.lines().find_map(|line| line.strip_prefix("child "));
    let pid: i32 =
        number.context("it did not say its child's number")?.parse().context("its child's number")?;
    ensure!(kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH), "its child {pid} is still there");
    Ok(())
}
