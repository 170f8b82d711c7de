//! Tests as data, and what runs them: each in a process of its own, with a deadline, where its needs are met.

mod cells;
mod child;
mod kernel_log;
mod need;
mod numbered;
mod place;
mod standstill;

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde::Serialize;

pub use self::{
    cells::{Cell, Cells, Hand},
    child::run_one,
    need::Need,
};
pub(crate) use self::{
    child::{die_with_parent, pidfd, wait_for_exit},
    kernel_log::KernelLog,
    need::program,
    numbered::numbered,
    place::{RECORDS, enter, own_run, programs_folder},
};
use self::{need::Machine, standstill::Watch};
use crate::error::Result;

/// Has what is started from here on heed the signals by which it is ended, whatever this process was started to ignore: a shell
/// has what it puts into the background ignore `^C`, and Faultline goes on ignoring that.
pub fn heed_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: the default does not run any code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

static EMULATED: AtomicBool = AtomicBool::new(false);
static EFFORT: AtomicU8 = AtomicU8::new(Effort::Full as u8);
static EVERY_CALL: AtomicBool = AtomicBool::new(false);

/// Says that this machine is emulated in software: all takes several times as long.
pub fn set_emulated() {
    EMULATED.store(true, Ordering::Relaxed);
}

/// Whether [`set_emulated`] was said.
pub(crate) fn is_emulated() -> bool {
    EMULATED.load(Ordering::Relaxed)
}

/// How long something may take that takes so long at most: it is there to end what hangs, and how fast a machine emulates
/// another says nothing of that.
pub(crate) fn patience(usually: Duration) -> Duration {
    usually * if is_emulated() { 3 } else { 1 }
}

/// How often something is done that is done `usually` as often: two fifths of it under emulation.
pub(crate) fn rounds(usually: u32) -> u32 {
    if is_emulated() { usually * 2 / 5 } else { usually }
}

/// How much a test tries that could try for hours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Effort {
    /// For the gate, which has minutes.
    Gate,
    /// For `--every-kernel`, where guests try less than the machine's own kernel.
    Full,
    /// For a test that is asked for by name: as much anywhere as on the machine's own kernel.
    Whole,
}

impl Effort {
    /// Says that this run is to take so much.
    pub fn set(self) {
        EFFORT.store(self as u8, Ordering::Relaxed);
    }

    /// That of this run; [`Effort::Full`] unless said.
    pub(crate) fn asked() -> Self {
        const ALL: [Effort; 3] = [Effort::Gate, Effort::Full, Effort::Whole];
        ALL[usize::from(EFFORT.load(Ordering::Relaxed))]
    }
}

/// Whether this run is one of the gate.
pub(crate) fn is_gate() -> bool {
    Effort::asked() == Effort::Gate
}

/// Whether this run is to try less here than on the machine's own kernel, as all takes several times as long here.
pub(crate) fn is_spared() -> bool {
    is_emulated() && Effort::asked() != Effort::Whole
}

/// Says that tests which try some of many calls are to try each.
pub fn set_every_call() {
    EVERY_CALL.store(true, Ordering::Relaxed);
}

/// Whether [`set_every_call`] was said.
pub(crate) fn is_every_call() -> bool {
    EVERY_CALL.load(Ordering::Relaxed)
}

/// How many random moments of a life are tried where the whole is `usually`: a third of them in the gate and in guests, and six in
/// the gate's guests. Each run has the same seed, so these are the first of the others.
pub(crate) fn moments(usually: u32) -> u32 {
    const LEAST: u32 = 8;
    const IN_THE_GATES_GUESTS: u32 = 6;
    match (is_gate(), is_spared()) {
        (true, true) => usually.min(IN_THE_GATES_GUESTS),
        (false, false) => usually,
        _ => usually.min(LEAST.max(usually / 3)),
    }
}

/// One integration test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// `file::what_it_shows`.
    pub name: &'static str,
    /// Without one of these it is skipped.
    pub needs: &'static [Need],
    /// A test that takes longer is killed, with all it has started, and has failed; three times as long under emulation.
    pub timeout: Duration,
    /// Left out under emulation.
    pub slow: bool,
    /// Its first word counts, whatever the machine did meanwhile.
    pub once: bool,
    /// It waits rather than measures, and runs beside others.
    pub waits: bool,
    /// The test itself.
    pub run: fn() -> Result,
}

impl Test {
    /// A test that needs root, may take 30 seconds, and usually takes a few.
    #[must_use]
    pub const fn new(name: &'static str, run: fn() -> Result) -> Self {
        Self {
            name,
            needs: &[Need::Root],
            timeout: Duration::from_secs(30),
            slow: false,
            once: false,
            waits: false,
            run,
        }
    }

    /// The same with these needs.
    #[must_use]
    pub const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    /// The same with this timeout in seconds.
    #[must_use]
    pub const fn timeout(self, seconds: u64) -> Self {
        Self { timeout: Duration::from_secs(seconds), ..self }
    }

    /// How long it may take here.
    pub(crate) fn limit(&self) -> Duration {
        patience(self.timeout)
    }

    /// The same, judged by its first run alone: what it looks for may be there once in many times, such as what a killed
    /// owner leaves behind.
    #[must_use]
    pub const fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// The same, run beside others: it waits for events with a deadline, or for the kernel to load; it compares no times that
    /// another test would change, and looks at nothing that others have.
    #[must_use]
    pub const fn waits(self) -> Self {
        Self { waits: true, ..self }
    }

    /// The same, but not under emulation, where it would take minutes.
    #[must_use]
    pub const fn slow(self) -> Self {
        Self { slow: true, ..self }
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It showed what it is there to show.
    Pass,
    /// It did not, or did not end.
    Fail,
    /// It was not run.
    Skip,
    /// It did not show it, but the machine stood still meanwhile: it is run again.
    Again,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The test's name.
    pub test: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed, was skipped or is run again; empty if it passed.
    pub reason: String,
    /// How long it took.
    pub seconds: f64,
    /// For how long a CPU ran it and those of its children that it waited for.
    pub cpu_seconds: f64,
    /// What it printed.
    pub output: String,
}

impl Report {
    fn skipped(test: &Test, reason: String) -> Self {
        let (test, output) = (test.name, String::new());
        Self { test, outcome: Outcome::Skip, reason, seconds: 0.0, cpu_seconds: 0.0, output }
    }
}

/// How often a test is run at most, if the machine stands still each time.
const ATTEMPTS: u32 = 3;

/// What a run of tests says while it goes on.
#[derive(Debug)]
pub enum Word<'a> {
    /// A test begins, or begins again.
    Begins(&'a Test),
    /// It has ended, or is to be run again.
    Ended(Report),
}

/// Runs tests where their needs are met.
#[derive(Debug, Default)]
pub struct Runner {
    /// Arguments of this program that a test's own process must see as well.
    pub arguments: Vec<String>,
    machine: Machine,
}

impl Runner {
    /// Runs tests, so many at once, and hands over what there is to say, one word at a time.
    ///
    /// # Errors
    ///
    /// What `tell` says; no further test begins then.
    pub fn run_all(
        &self,
        tests: &[&'static Test],
        at_once: usize,
        tell: &mut dyn FnMut(Word<'static>) -> io::Result<()>,
    ) -> io::Result<()> {
        if at_once <= 1 {
            // Should this kernel not survive the test, it has been told which it was.
            return tests.iter().try_for_each(|test| self.tell_run(test, tell));
        }
        let waiting = Mutex::new(tests.iter().copied());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            let (words, told) = mpsc::channel();
            for _ in 0..at_once {
                let words = words.clone();
                scope.spawn(move || {
                    // Nobody listens any more once a word could not be told.
                    let mut say = |word| words.send(word).map_err(|_| io::ErrorKind::BrokenPipe.into());
                    while let Some(test) = next() {
                        if self.tell_run(test, &mut say).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(words);
            told.into_iter().try_for_each(tell)
        })
    }

    /// Runs a test and says so, word by word.
    fn tell_run<'a>(
        &self,
        test: &'a Test,
        tell: &mut dyn FnMut(Word<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        tell(Word::Begins(test))?;
        let mut told = Ok(());
        let report = self.run(test, |again| {
            if told.is_ok() {
                told = tell(Word::Ended(again.clone())).and_then(|()| tell(Word::Begins(test)));
            }
        });
        told.and_then(|()| tell(Word::Ended(report)))
    }

    /// Runs one test, or says what it lacks. One that fails while the machine stands still is run again, unless its first
    /// word counts; `again` is told of each run that does not.
    pub fn run(&self, test: &Test, mut again: impl FnMut(&Report)) -> Report {
        if is_emulated() && test.slow {
            let reason = "slow: left out under emulation".to_owned();
            return Report::skipped(test, reason);
        }
        let missing =
            test.needs.iter().find_map(|need| self.machine.meets(*need).err().map(|why| (need, why)));
        if let Some((need, why)) = missing {
            let reason = format!("{need}: {why}");
            return Report::skipped(test, reason);
        }
        let attempts = if test.once { 1 } else { ATTEMPTS };
        for _ in 1..attempts {
            let (report, still) = self.attempt(test);
            // A moment's standstill is no reason for what hangs for minutes.
            let limit = test.limit();
            let hung = report.seconds >= limit.as_secs_f64() && still < limit / 4;
            if report.outcome != Outcome::Fail || still < standstill::LONG || hung {
                return report;
            }
            let reason = format!("the machine stood still for {} ms: {}", still.as_millis(), report.reason);
            again(&Report { outcome: Outcome::Again, reason, ..report });
        }
        self.attempt(test).0
    }

    /// One run, and for how long the machine stood still in it.
    fn attempt(&self, test: &Test) -> (Report, Duration) {
        let watch = Watch::begin();
        let report = child::run(test, &self.arguments);
        (report, watch.end())
    }
}
