//! The tests, or a shell, in guests.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    cargo::{build, is_root, target, workspace},
    cells::Cells,
    matrix::Matrix,
    setup,
    vm::{ERROR_INJECTION, Ending, Found, Kernel, Run, Tier},
};

/// A guest that takes longer than all tests together is stuck.
const DEADLINE: Duration = Duration::from_secs(2700);

/// In how many boots a kernel runs all its tests, and in how many the kernel that has it all runs those of the gate. These
/// are short, so that no CPU is left without work for long.
const HANDS: usize = 6;

/// The programs that tests need.
pub(crate) const PROGRAMS: [&str; 4] = ["faultline", "fl-tests", "fl-clock", "fl-hostile"];

/// What a run of tests in guests is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    /// Only tests whose names contain one of these.
    pub(crate) filter: &'a [String],
    /// Those of the gate alone, on kernels with a column in the list.
    pub(crate) gate: Option<&'a Cells>,
    /// How often each, if not once.
    pub(crate) repeat: Option<u32>,
}

/// `cargo xtask vm`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kernel to boot: 6.1, 6.12, newest (Debian's), or a folder's name; all there are unless given
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Only tests whose names contain one of these
    #[arg(long = "test", value_name = "FILTER")]
    tests: Vec<String>,
    /// Run each test so often
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
    /// A shell in the guest instead, with faultline, ip and tc there
    #[arg(long, conflicts_with_all = ["tests", "repeat"])]
    shell: bool,
}

/// `cargo xtask vm`.
///
/// # Errors
///
/// If something does not build, no guest can be had, or a test failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::build_tools()?;
    setup::test_programs()?;
    let guests = Guests::new(&options.kernels)?;
    if options.shell {
        return guests.shell();
    }
    ensure!(!guests.kernels.is_empty(), "there is no kernel to boot");
    let matrix = Mutex::default();
    guests.note_missing(&mut locked(&matrix));
    guests.test(Scope { filter: &options.tests, gate: None, repeat: options.repeat }, &matrix);
    let matrix = locked(&matrix);
    matrix.print();
    matrix.verdict(&[])?;
    ensure!(matrix.counts().passed > 0, "no test has passed");
    Ok(())
}

/// Kernels that guests can boot.
pub(crate) struct Kernels {
    tier: Tier,
    ready: Vec<Kernel>,
    /// The names of those that cannot be had, and why.
    missing: Vec<(String, String)>,
}

impl Kernels {
    /// Fetches those wanted, or all. What cannot be had is named.
    ///
    /// # Errors
    ///
    /// If they cannot be kept.
    pub(crate) fn find(wanted: &[String]) -> Result<Self> {
        let mut kernels =
            Self { tier: Tier::new(workspace(), target()?), ready: Vec::new(), missing: Vec::new() };
        for found in kernels.tier.kernels(wanted)? {
            match found {
                Found::Ready(kernel) => kernels.ready.push(kernel),
                Found::Missing { name, reason } => {
                    println!("kernel {name} cannot be had: {reason}");
                    kernels.missing.push((name, reason));
                }
            }
        }
        Ok(kernels)
    }
}

/// The guests there are, and what runs in them.
pub(crate) struct Guests {
    tier: Tier,
    kernels: Vec<Kernel>,
    /// The names of those that cannot be had, and why.
    missing: Vec<(String, String)>,
    binaries: Vec<PathBuf>,
}

impl Guests {
    /// Fetches the kernels wanted, or all, and builds what tests run on them.
    ///
    /// # Errors
    ///
    /// If something does not build.
    pub(crate) fn new(wanted: &[String]) -> Result<Self> {
        Self::with(wanted, &PROGRAMS)
    }

    /// The same with these programs of ours in them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(crate) fn with(wanted: &[String], names: &[&str]) -> Result<Self> {
        Ok(Self::of(Kernels::find(wanted)?, &build(names)?, names))
    }

    /// Guests of these kernels, with programs that have been built into a folder.
    pub(crate) fn of(kernels: Kernels, folder: &Path, names: &[&str]) -> Self {
        let Kernels { tier, ready, missing } = kernels;
        let binaries = names.iter().map(|name| folder.join(name)).collect();
        Self { tier, kernels: ready, missing, binaries }
    }

    /// The names of the kernels that were wanted, had or not.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let ready = self.kernels.iter().map(|kernel| &kernel.name);
        ready.chain(self.missing.iter().map(|(name, _)| name)).map(String::as_str)
    }

    /// Notes the kernels that cannot be had.
    pub(crate) fn note_missing(&self, matrix: &mut Matrix) {
        for (name, reason) in &self.missing {
            matrix.broken(name, format!("cannot be had: {reason}"));
        }
    }

    /// Runs the tests in every guest, in half as many again at a time as there are CPUs: a test keeps one of them busy two
    /// thirds of its time. For how long each kernel would have kept all of them.
    pub(crate) fn test(&self, scope: Scope<'_>, matrix: &Mutex<Matrix>) -> Vec<(String, Duration)> {
        let words = scope.filter.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let repeat = scope.repeat.map(|times| format!("--repeat {times}")).unwrap_or_default();
        let at_once = thread::available_parallelism().map_or(1, NonZero::get) * 3 / 2;
        let waiting = Mutex::new(self.turns(scope).into_iter());
        let mut took: Vec<_> = self.kernels.iter().map(|it| (it.name.clone(), Duration::ZERO)).collect();
        let boots = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some((kernel, options)) = next(&waiting) {
                        let command = format!(
                            "fl-tests --json --emulated {options} {repeat} {words} >$FAULTLINE_RESULTS"
                        );
                        let boot = self.test_in(kernel, &command, matrix);
                        locked(&boots).push((&kernel.name, boot));
                    }
                });
            }
        });
        let at_once = u32::try_from(at_once).unwrap_or(u32::MAX);
        for (kernel, boot) in locked(&boots).drain(..) {
            took.iter_mut().filter(|(name, _)| name == kernel).for_each(|(_, sum)| *sum += boot / at_once);
        }
        took
    }

    /// Which kernel boots for what, in this order. Who boots once comes first, for that takes longest.
    fn turns(&self, scope: Scope<'_>) -> Vec<(&Kernel, String)> {
        let mut turns = Vec::new();
        for kernel in &self.kernels {
            let gate = scope.gate.filter(|cells| cells.has(&kernel.name));
            let gate_option = gate.map(|_| format!("--gate {}", quoted(&kernel.name))).unwrap_or_default();
            let hands = match gate {
                _ if !scope.filter.is_empty() => 1,
                Some(_) if kernel.name != ERROR_INJECTION => 1,
                _ => HANDS,
            };
            for number in 1..=hands {
                turns.push((hands, kernel, format!("{gate_option} --hand {number}/{hands}")));
            }
        }
        turns.sort_by_key(|(hands, ..)| *hands);
        turns.into_iter().map(|(_, kernel, options)| (kernel, options)).collect()
    }

    fn test_in(&self, kernel: &Kernel, command: &str, matrix: &Mutex<Matrix>) -> Duration {
        println!("guest {} ({}) boots", kernel.name, kernel.origin);
        let run = self.plan(kernel, Some(command));
        let report = match self.tier.run(&run, &mut |line| locked(matrix).accept(&kernel.name, line)) {
            Ok(report) => report,
            Err(error) => {
                locked(matrix).broken(&kernel.name, format!("could not be run: {error:#}"));
                return Duration::ZERO;
            }
        };
        let words = match &report.ending {
            Ending::Exited(_) => None,
            Ending::Unbooted(words) => Some(format!("did not boot: {words}")),
            Ending::Panicked(words) => Some(format!("panicked: {words}")),
            Ending::Vanished(words) => Some(format!("vanished: {words}")),
            Ending::Hung(after) => Some(format!("hung; killed after {:.0} s", after.as_secs_f64())),
        };
        let silent = report.results.tests.is_empty().then(|| "said nothing of any test".to_string());
        let stray = report.results.stray.first().map(|line| format!("said what is no result: {line}"));
        for words in [words, silent, stray].into_iter().flatten() {
            locked(matrix).broken(&kernel.name, words);
        }
        if !report.is_success() {
            println!("the end of the console of {}:\n{}", kernel.name, report.console_tail());
        }
        println!("guest {}: {:.1} s", kernel.name, report.took.as_secs_f64());
        report.took
    }

    /// What a command prints in each guest, by the kernel's name.
    ///
    /// # Errors
    ///
    /// If a kernel cannot be had or does not run the command to its end.
    pub(crate) fn say(&self, command: &str) -> Result<Vec<(String, String)>> {
        let mut said: Vec<(String, String)> = Vec::new();
        self.hear(command, DEADLINE, &mut |kernel, line| match said.last_mut() {
            Some((name, lines)) if *name == kernel.name => {
                lines.push('\n');
                lines.push_str(line);
            }
            _ => said.push((kernel.name.clone(), line.to_owned())),
        })?;
        Ok(said)
    }

    /// Runs a command in one guest after the other, and hands over each line that it prints at once. Whether it
    /// succeeded in all.
    ///
    /// # Errors
    ///
    /// If a kernel cannot be had or does not run the command to its end in time.
    pub(crate) fn hear(
        &self,
        command: &str,
        deadline: Duration,
        take: &mut dyn FnMut(&Kernel, &str),
    ) -> Result<bool> {
        if let Some((name, reason)) = self.missing.first() {
            bail!("kernel {name} cannot be had: {reason}");
        }
        let command = format!("{command} >$FAULTLINE_RESULTS");
        let mut success = true;
        for kernel in &self.kernels {
            let plan = Run { deadline, ..self.plan(kernel, Some(&command)) };
            let report = self.tier.run(&plan, &mut |line| take(kernel, line))?;
            let Ending::Exited(status) = report.ending else {
                bail!("guest {}: {:?}\n{}", kernel.name, report.ending, report.console_tail());
            };
            success &= status == 0;
        }
        Ok(success)
    }

    fn shell(&self) -> Result<()> {
        let kernel = self.kernels.first().context("there is no kernel to boot")?;
        println!("guest {} ({}); `exit` powers it off", kernel.name, kernel.origin);
        match self.tier.shell(&self.plan(kernel, None))? {
            0 => Ok(()),
            status => bail!("the shell ended with status {status}"),
        }
    }

    fn plan<'a>(&'a self, kernel: &'a Kernel, command: Option<&'a str>) -> Run<'a> {
        // Only root may show a guest the host's files; without them, tests with real programs are skipped.
        Run { kernel, command, binaries: &self.binaries, host_root: is_root(), deadline: DEADLINE }
    }
}

/// The next of those that wait.
fn next<T>(waiting: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    locked(waiting).next()
}

/// A panic elsewhere does not hide what is known.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A word as the guest's shell must be given it.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
