//! A fault that hits everybody, and with them whoever wants to end it, can be ended all the same. Only where nobody
//! else lives.

use std::{
    fs::File,
    io::Write,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::scene::{PATIENCE, ended};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, Test, die_with_parent, program},
    inventory::Inventory,
    life::scene::{at_once, records},
};
use chaos_user::kernel::mechanism::Mechanism;

const NEEDS: &[Need] = &[Need::Guest, Need::Root, Need::Btf, Need::Mechanism(Mechanism::Lsm)];

pub(super) const TESTS: &[Test] = &[
    Test::new("calls_life::everybodys_files", files).needs(NEEDS).timeout(120),
    Test::new("calls_life::everybodys_forks", forks).needs(NEEDS).timeout(90),
    Test::new("calls_life::everybodys_file_descriptors", descriptors).needs(NEEDS).timeout(90),
];

const FILES: &str = "io error EIO --everything --ops open,read,exec,mmap,stat --path /";
/// Each ends by itself should nothing else end it.
const NET: &str = "20s";
const SOON: Duration = Duration::from_secs(10);

/// What a fault does to this very process.
type Hit = fn() -> Result<Option<i32>>;

fn files() -> Result {
    ends_by(FILES, open, libc::EIO)
}

fn forks() -> Result {
    ends_by("fork error --everything", spawn, libc::EAGAIN)
}

fn descriptors() -> Result {
    ends_by("fd error --everything", open, libc::EMFILE)
}

/// The errno of opening a file on the root file system.
fn open() -> Result<Option<i32>> {
    Ok(File::open("/etc/passwd").err().and_then(|error| error.raw_os_error()))
}

/// The errno of starting a process.
fn spawn() -> Result<Option<i32>> {
    // Its files are ours, so that none is opened for it.
    match Command::new(program("true").context("no program true")?).spawn() {
        Ok(mut child) => child.wait().map(|_| None).context("wait"),
        Err(error) => Ok(error.raw_os_error()),
    }
}

/// By a signal to its owner, by `faultline stop`, and by its time being over.
fn ends_by(fault: &str, hit: Hit, errno: i32) -> Result {
    let before = Inventory::take(&[])?;
    ensure!(hit()?.is_none(), "before: errno {:?}", hit()?);
    let over = |when: &str| {
        let after = hit()?;
        ensure!(after.is_none(), "{when}: errno {after:?}");
        before.wait_until_equal(&[], at_once()).context(when)?;
        ensure!(records()?.is_empty(), "{when}: left {:?}", records());
        Ok(())
    };
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let owner = arm(fault, NET)?;
        let during = hit()?;
        owner.kill(signal)?;
        let exit = owner.wait(SOON)?;
        ensure!(during == Some(errno), "{fault}: errno {during:?}, not {errno}");
        ended(&exit, 130, "interrupted").context(signal)?;
        over(signal.as_str())?;
    }

    let shell = Shell::new()?;
    let owner = arm(fault, NET)?;
    let during = hit()?;
    let stopped = shell.stops()?;
    let exit = owner.wait(SOON)?;
    ensure!(during == Some(errno), "{fault}: errno {during:?}, not {errno}");
    ensure!(stopped.starts_with("stopped ") && stopped.ends_with("; nothing of it is left\n"), "{stopped}");
    ended(&exit, 130, "interrupted").context("faultline stop")?;
    over("faultline stop")?;

    let owner = arm(fault, "2s")?;
    let (armed, during) = (Instant::now(), hit()?);
    let exit = owner.wait(SOON)?;
    let took = armed.elapsed();
    ensure!(during == Some(errno), "{fault}: errno {during:?}, not {errno}");
    ensure!(took < Duration::from_secs(2) + at_once(), "--for 2s took {took:?}");
    ended(&exit, 0, "observed").context("--for")?;
    over("--for")
}

fn arm(fault: &str, time: &str) -> Result<Faultline> {
    let words: Vec<&str> = fault.split(' ').chain(["--for", time]).collect();
    let owner = Faultline::start(&words)?;
    owner.wait_event("armed", PATIENCE).context(fault)?;
    Ok(owner)
}

/// A shell that is there before the fault, and becomes `faultline stop --all` when it is told to.
struct Shell(Child);

impl Shell {
    fn new() -> Result<Self> {
        let mut shell = Command::new(program("sh").context("no program sh")?);
        shell.args(["-c", r#"read -r go; exec "$0" stop --all"#]).arg(binary()?);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_parent(&mut shell);
        Ok(Self(shell.spawn().context("sh")?))
    }

    /// What `stop` says when it has ended well.
    fn stops(mut self) -> Result<String> {
        self.0.stdin.take().context("stdin")?.write_all(b"go\n").context("write")?;
        let output = self.0.wait_with_output().context("wait")?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success() && complained.is_empty(), "{}: {said}{complained}", output.status);
        Ok(said)
    }
}
