//! One guest: QEMU started, watched and, when its time is up, killed.
//!
//! Emulated throughout (`/dev/kvm` of the development machines crashes ordinary guests), both virtual CPUs by one
//! thread: with one each, QEMU may run an instruction that the other CPU has just replaced, which is how a kernel
//! turns its tracepoints on, and the kernel panics. It also leaves the other host CPU to another guest.
//!
//! The first serial port is the console, the second one carries the tests' results, where no kernel message can tear
//! a line apart. A panicking kernel reboots and QEMU ends instead, so every way a guest can end is seen at once, a
//! hang excepted.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host_root::{HostRoot, SOCKET};
use super::initramfs::{self, INIT, Run, find_program};
use super::process::Owned;
use super::results::{Follower, Results};
use super::workdir::Workdir;

const QEMU: &str = "qemu-system-x86_64";

/// Files in the run's folder. QEMU is started there: its options are comma-separated and paths may hold commas.
const INITRD: &str = "initrd.cpio";
const CONSOLE: &str = "console.log";
const RESULTS: &str = "results.jsonl";
const ERRORS: &str = "qemu.log";

/// Boot quietly, end at the first panic or oops instead of rebooting for ever.
/// The kernel's self-tests of its ciphers are left out: one boot under emulation was seen to lock up in them. What guards
/// against side channels of processors is left out as well: there is none, and it takes a tenth of the time.
const KERNEL_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic cryptomgr.notests mitigations=off";

const MEMORY_MIB: u32 = 1024;

/// PostgreSQL, its files' page cache and a tmpfs to write to want room.
const MEMORY_WITH_HOST_ROOT_MIB: u32 = 2048;

const CPUS: u32 = 2;

/// All that can be emulated, but for what tells a kernel that bytes are moved quickly one by one: the emulator moves them one by one.
/// Without, eight tests of faults take a tenth less.
const CPU: &str = "max,-erms,-fsrm";

/// A guest that takes longer to reach its command will not reach it: on a busy machine it takes 15 s.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// How often the guest is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The end of a log shown for a guest that ended badly.
const TAIL_LINES: usize = 80;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The command ended with this status and the guest powered off.
    Exited(i32),
    /// The guest did not get as far as the command; how it ended instead. No test has seen it, so it may be retried.
    Unbooted(String),
    /// The kernel panicked; its own words.
    Panicked(String),
    /// The guest ended without a word about the command.
    Vanished(String),
    /// Killed at its deadline.
    Hung(Duration),
}

/// What is known of a guest that has ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) ending: Ending,
    pub(crate) results: Results,
    pub(crate) console: String,
    pub(crate) took: Duration,
}

impl Report {
    /// Whether the command ran to its end and was content.
    pub(crate) fn is_success(&self) -> bool {
        self.ending == Ending::Exited(0)
    }

    /// The last lines of the console, the kernel's log among them.
    pub(crate) fn console_tail(&self) -> String {
        let lines: Vec<&str> = self.console.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Runs a command in a guest. `on_line` sees each result line as it arrives.
pub(crate) fn run(
    run: &Run<'_>,
    base: &Path,
    folders: &Path,
    on_line: &mut dyn FnMut(&str),
) -> Result<Report> {
    let dir = Workdir::create(folders, &run.kernel.name)?;
    let began = Instant::now();
    let mut host_root = prepare(run, base, &dir)?;
    let mut follower = Follower::create(&dir.join(RESULTS))?;
    let mut qemu = qemu(run, &dir)?;
    qemu.args(["-chardev", &format!("file,id=console,path={CONSOLE}")]);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(create(&dir, ERRORS)?);
    let mut guest = Owned::spawn(&mut qemu)?;
    let status = loop {
        follower.follow(on_line)?;
        if let Some(status) = guest.try_wait()? {
            break Some(status);
        }
        let late = !follower.results.up && began.elapsed() >= BOOT_DEADLINE;
        if late || began.elapsed() >= run.deadline {
            guest.kill()?;
            break None;
        }
        thread::sleep(POLL);
    };
    follower.follow(on_line)?;
    let took = began.elapsed();
    let console = clean(&fs::read(dir.join(CONSOLE)).unwrap_or_default());
    let results = follower.results;
    let words = || last_words(&dir, host_root.as_mut());
    let ending = ending(&results, &console, status, took, words);
    Ok(Report { ending, results, console, took })
}

/// Gives the caller's terminal to a shell in a guest; the status is the shell's.
pub(crate) fn shell(run: &Run<'_>, base: &Path, folders: &Path) -> Result<i32> {
    let dir = Workdir::create(folders, &run.kernel.name)?;
    let _host_root = prepare(run, base, &dir)?;
    let mut follower = Follower::create(&dir.join(RESULTS))?;
    let mut qemu = qemu(run, &dir)?;
    // Ctrl-C belongs to the guest.
    qemu.args(["-chardev", "stdio,id=console,signal=off"]);
    let status = Owned::spawn(&mut qemu)?.wait()?;
    follower.follow(&mut |_| ())?;
    match follower.results.exit {
        Some(exit) => Ok(exit),
        None => bail!("the guest ended before its shell did ({QEMU}: {status})"),
    }
}

/// Everything a guest needs before QEMU starts.
fn prepare(run: &Run<'_>, base: &Path, dir: &Workdir) -> Result<Option<HostRoot>> {
    initramfs::assemble(base, run, &dir.join(INITRD))?;
    run.host_root.then(|| HostRoot::serve(dir.path())).transpose()
}

/// QEMU with all but the console's far end.
fn qemu(run: &Run<'_>, dir: &Workdir) -> Result<Command> {
    let memory = if run.host_root { MEMORY_WITH_HOST_ROOT_MIB } else { MEMORY_MIB };
    let program = find_program(QEMU).context("install the package qemu-system-x86")?;
    let image = run.kernel.image.canonicalize();
    let image = image.with_context(|| format!("looking for {}", run.kernel.image.display()))?;
    let mut qemu = Command::new(program);
    qemu.current_dir(dir.path());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-M", "pc", "-accel", "tcg,thread=single", "-cpu", CPU]);
    qemu.args(["-smp", &CPUS.to_string(), "-m", &format!("{memory}M")]);
    qemu.arg("-kernel").arg(image).args(["-initrd", INITRD]);
    let parameters = initramfs::builtin_parameters();
    qemu.args(["-append", &format!("{KERNEL_LINE} rdinit={INIT} {parameters}")]);
    qemu.args(["-serial", "chardev:console", "-serial", "chardev:results"]);
    qemu.args(["-chardev", &format!("file,id=results,path={RESULTS}")]);
    if run.host_root {
        // The server reads and writes the guest's memory, hence the shared mapping.
        qemu.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
        qemu.args(["-numa", "node,memdev=memory"]);
        qemu.args(["-chardev", &format!("socket,id=host,path={SOCKET}")]);
        qemu.args(["-device", "vhost-user-fs-pci,chardev=host,tag=host"]);
    }
    Ok(qemu)
}

fn create(dir: &Workdir, name: &str) -> Result<fs::File> {
    let path = dir.join(name);
    fs::File::create(&path).with_context(|| format!("creating {}", path.display()))
}

/// `status` is QEMU's, or nothing if it had to be killed.
fn ending(
    results: &Results,
    console: &str,
    status: Option<ExitStatus>,
    took: Duration,
    last_words: impl FnOnce() -> String,
) -> Ending {
    // The command's own word counts, even if the guest then failed to power off.
    if let Some(exit) = results.exit {
        return Ending::Exited(exit);
    }
    if let Some(panic) = console.lines().find(|line| line.contains("Kernel panic")) {
        let panic = panic.trim().to_owned();
        return if results.up { Ending::Panicked(panic) } else { Ending::Unbooted(panic) };
    }
    let words = match status {
        None if results.up => return Ending::Hung(took),
        None => format!("killed after {:.0} s", took.as_secs_f64()),
        Some(status) => format!("{QEMU}: {status} {}", last_words()).trim().to_owned(),
    };
    if results.up { Ending::Vanished(words) } else { Ending::Unbooted(words) }
}

/// What QEMU and the file server had to say.
fn last_words(dir: &Workdir, host_root: Option<&mut HostRoot>) -> String {
    let errors = fs::read_to_string(dir.join(ERRORS)).unwrap_or_default();
    let complaint = host_root.and_then(HostRoot::complaint).unwrap_or_default();
    format!("{} {complaint}", errors.trim()).trim().to_owned()
}

/// The console as text: no carriage returns, nothing that would act on a terminal.
fn clean(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn end(console: &str, exit: Option<i32>, status: Option<ExitStatus>) -> Ending {
        end_of(Results { exit, up: true, ..Results::default() }, console, status)
    }

    fn end_of(results: Results, console: &str, status: Option<ExitStatus>) -> Ending {
        ending(&results, console, status, Duration::from_secs(9), String::new)
    }

    #[test]
    fn every_way_to_end_is_told_apart() {
        let off = Some(ExitStatus::from_raw(0));
        let panic = "[ 1.0] Kernel panic - not syncing: x\n";
        assert_eq!(end("", Some(3), off), Ending::Exited(3));
        assert_eq!(end("", Some(0), None), Ending::Exited(0));
        assert_eq!(end(panic, None, off), Ending::Panicked(panic.trim().to_owned()));
        assert_eq!(end("", None, None), Ending::Hung(Duration::from_secs(9)));
        assert!(matches!(end("", None, off), Ending::Vanished(_)));
        for (console, status) in [("", off), ("", None), (panic, off)] {
            let ending = end_of(Results::default(), console, status);
            assert!(matches!(ending, Ending::Unbooted(_)), "{ending:?}");
        }
    }

    #[test]
    fn a_console_is_plain_text() {
        assert_eq!(clean(b"a\r\n\x1b[1mb\x07\n"), "a\n[1mb\n");
    }
}
