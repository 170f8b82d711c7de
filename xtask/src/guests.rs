//! The tests, or a shell, in guests.

use std::{
    num::NonZero,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    cargo::{build, is_root, workspace},
    matrix::Matrix,
    setup,
    vm::{Ending, Found, Kernel, Run, Tier},
};

/// A guest that takes longer than all tests together is stuck.
const DEADLINE: Duration = Duration::from_secs(2700);

/// In how many boots a kernel runs what it is dealt.
const SHARES: usize = 4;

/// `cargo xtask vm`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kernel to boot: 6.1, 6.12 (Debian's own), or a folder's name; all there are unless given
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Only tests whose names contain one of these
    #[arg(long = "test", value_name = "FILTER")]
    tests: Vec<String>,
    /// A shell in the guest instead, with faultline, ip and tc there
    #[arg(long, conflicts_with = "tests")]
    shell: bool,
}

/// `cargo xtask vm`.
///
/// # Errors
///
/// If something does not build, no guest can be had, or a test failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::build_tools()?;
    setup::guest_tools()?;
    let guests = Guests::new(&options.kernels)?;
    if options.shell {
        return guests.shell();
    }
    ensure!(!guests.kernels.is_empty(), "there is no kernel to boot");
    let mut matrix = Matrix::default();
    guests.test(&options.tests, false, &mut matrix)?;
    matrix.print();
    matrix.verdict(&[])
}

/// The guests there are, and what runs in them.
pub(crate) struct Guests {
    tier: Tier,
    kernels: Vec<Kernel>,
    /// The names of those that cannot be had.
    missing: Vec<String>,
    binaries: Vec<PathBuf>,
}

impl Guests {
    /// Fetches the kernels wanted, or all, and builds what runs on them. Those that cannot be had are named.
    ///
    /// # Errors
    ///
    /// If something does not build.
    pub(crate) fn new(wanted: &[String]) -> Result<Self> {
        Self::with(wanted, &["faultline", "fl-tests", "fl-clock"])
    }

    /// The same with these programs of ours in them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(crate) fn with(wanted: &[String], names: &[&str]) -> Result<Self> {
        let tier = Tier::new(workspace());
        let (mut kernels, mut missing) = (Vec::new(), Vec::new());
        for found in tier.kernels(wanted)? {
            match found {
                Found::Ready(kernel) => kernels.push(kernel),
                Found::Missing { name, reason } => {
                    println!("kernel {name} cannot be had: {reason}");
                    missing.push(name);
                }
            }
        }
        let folder = build(names)?;
        Ok(Self { tier, kernels, missing, binaries: names.iter().map(|name| folder.join(name)).collect() })
    }

    /// Whether every kernel wanted is there.
    pub(crate) fn are_all(&self) -> bool {
        self.missing.is_empty()
    }

    /// Runs the tests in every guest, in as many at a time as there are CPUs: a test keeps one of them busy. Tests whose
    /// outcome no kernel decides may be dealt out, so that each is run by one guest.
    ///
    /// # Errors
    ///
    /// If QEMU cannot be run at all.
    pub(crate) fn test(&self, filter: &[String], dealt: bool, matrix: &mut Matrix) -> Result<()> {
        let words = filter.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let turns = if dealt { self.deal() } else { self.kernels.iter().map(|it| (it, "".into())).collect() };
        let at_once = thread::available_parallelism().map_or(1, NonZero::get);
        let waiting = Mutex::new(turns.into_iter());
        let matrix = Mutex::new(matrix);
        thread::scope(|scope| {
            let work = || -> Result<()> {
                while let Some((kernel, share)) = next(&waiting) {
                    let command = format!("fl-tests --json --emulated {share} {words} >$FAULTLINE_RESULTS");
                    self.test_in(kernel, &command, &matrix)?;
                }
                Ok(())
            };
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Which kernel boots for what, in this order: each for what all are to run, then each that is no other's twin for its
    /// shares of the rest. These are short, so that no CPU is left without work for long.
    fn deal(&self) -> Vec<(&Kernel, String)> {
        let players: Vec<_> = self.kernels.iter().filter(|kernel| !self.has_twin(kernel)).collect();
        let shares = players.len() * SHARES;
        let everywhere = self.kernels.iter().map(|kernel| (kernel, 0));
        let rest = players.iter().copied().cycle().zip(1..=shares);
        everywhere.chain(rest).map(|(kernel, share)| (kernel, format!("--share {share}/{shares}"))).collect()
    }

    /// Whether another kernel is the same but for its configuration: `6.12` of `6.12-error-injection`.
    fn has_twin(&self, kernel: &Kernel) -> bool {
        let twin = kernel.name.split_once('-').map(|(version, _)| version);
        self.kernels.iter().any(|other| Some(other.name.as_str()) == twin)
    }

    fn test_in(&self, kernel: &Kernel, command: &str, matrix: &Mutex<&mut Matrix>) -> Result<()> {
        println!("guest {} ({}) boots", kernel.name, kernel.origin);
        let run = self.plan(kernel, Some(command));
        let report = self.tier.run(&run, &mut |line| locked(matrix).accept(&kernel.name, line))?;
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
        Ok(())
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
        ensure!(self.missing.is_empty(), "cannot be had: {}", self.missing.join(", "));
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
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A word as the guest's shell must be given it.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
