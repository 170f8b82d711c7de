//! The `faultline` binary, driven as a user drives it.

mod events;

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        signal::Signal,
    },
    unistd::Pid,
};

pub use self::events::{Counted, Event, RuleCounters};
use self::events::{Shared, parse};
use crate::{
    ensure,
    error::{Context, Result, check},
    harness::{die_with_parent, patience, pidfd, programs_folder},
    lab::Netns,
    traffic::monotonic_ns,
};

static BINARY: OnceLock<PathBuf> = OnceLock::new();
static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// Says which binary to drive, once; else it is the one beside this program.
pub fn set_binary(path: PathBuf) {
    // A second call could only come from the same command line.
    let _ = BINARY.set(path);
}

/// Says in which folder the programs of the tests are, once; else it is this program's own.
pub(crate) fn set_programs(folder: PathBuf) {
    // A second call could only come from a test within a test.
    let _ = PROGRAMS.set(folder);
}

/// A program of the tests.
///
/// # Errors
///
/// If this program's own path cannot be found out.
pub fn sibling(name: &str) -> Result<PathBuf> {
    Ok(match PROGRAMS.get() {
        Some(folder) => folder.join(name),
        None => programs_folder()?.join(name),
    })
}

/// The binary that is driven.
///
/// # Errors
///
/// As [`sibling`].
pub fn binary() -> Result<PathBuf> {
    BINARY.get().map_or_else(|| sibling("faultline"), |path| Ok(path.clone()))
}

/// A command that has been started and has not been seen to end.
///
/// Killed when dropped.
#[derive(Debug)]
pub struct Faultline {
    pid: Pid,
    pidfd: OwnedFd,
    shared: Arc<Shared>,
    is_unread: Arc<AtomicBool>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The JSON objects of its standard output, in order.
    pub events: Vec<Event>,
    /// The lines of its standard output that were none.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Exit {
    /// The last event of this kind.
    ///
    /// # Errors
    ///
    /// If there was none.
    pub fn event(&self, kind: &str) -> Result<&Event> {
        let last = self.events.iter().rev().find(|event| event.kind == kind);
        last.context(format_args!("no {kind} event; exit {:?}, stderr: {}", self.code, self.stderr))
    }

    /// How many packets all rules together acted on.
    ///
    /// # Errors
    ///
    /// If there was no summary.
    pub fn fired(&self) -> Result<u64> {
        Ok(self.event("summary")?.rules()?.iter().map(|rule| rule.fired.packets).sum())
    }
}

/// Limits what a command may have, before its program begins; what it may ask for beyond that, too, if that is said.
pub(crate) fn limit_to(command: &mut Command, resource: Resource, limit: rlim_t, most: Option<rlim_t>) {
    let set = move || {
        let most = most.map_or_else(|| getrlimit(resource).map(|(_, most)| most), Ok)?;
        Ok(setrlimit(resource, limit, most)?)
    };
    // SAFETY: two system calls.
    unsafe { command.pre_exec(set) };
}

/// The arguments with `--json`, which belongs before the first `--and`, and before the words of a command to run.
pub(crate) fn with_json(arguments: &[&str]) -> Vec<OsString> {
    let first = arguments.iter().position(|argument| matches!(*argument, "--and" | "--"));
    let first = first.unwrap_or(arguments.len());
    let (before, after) = arguments.split_at(first);
    before.iter().chain(&["--json"]).chain(after).map(OsString::from).collect()
}

impl Faultline {
    /// Starts a command that prints JSON, in the caller's network namespace.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_with(arguments, |_| {})
    }

    /// Starts a command with `--netns` set to a namespace of the lab.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_in(netns: &Netns, arguments: &[&str]) -> Result<Self> {
        let path = netns.path();
        let path = path.to_string_lossy();
        let first = arguments.iter().position(|argument| *argument == "--and").unwrap_or(arguments.len());
        let (before, after) = arguments.split_at(first);
        Self::start(&[before, &["--netns", &path], after].concat())
    }

    /// Like [`start`](Self::start); `prepare` may change the process before it is started.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_with(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(with_json(arguments));
        prepare(&mut command);
        Self::spawn(command)
    }

    /// Like [`start_with`](Self::start_with), by another program, which is given the command as its last words.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(crate) fn start_by(
        program: &Path,
        words: &[&str],
        arguments: &[OsString],
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(words).arg(binary()?).args(arguments);
        prepare(&mut command);
        Self::spawn(command)
    }

    /// Starts a command that the caller has put together, such as one under strace.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(crate) fn start_command(command: Command) -> Result<Self> {
        Self::spawn(command)
    }

    /// Runs a command to its end, as it is written.
    ///
    /// # Errors
    ///
    /// If it cannot be started or takes more than 20 s.
    pub fn run(arguments: &[&str]) -> Result<Exit> {
        Self::run_with(arguments, |_| {})
    }

    /// Checks that a command does not begin: by its exit code, and by one line that says all of these.
    ///
    /// # Errors
    ///
    /// If it does, or says something else.
    pub fn check_refused(arguments: &[&str], code: i32, said: &[&str]) -> Result {
        let Exit { code: found, stderr, .. } = Self::run(arguments)?;
        let right = found == Some(code) && said.iter().all(|part| stderr.contains(part));
        let one_line = stderr.trim().lines().count() == 1;
        ensure!(right && one_line, "{arguments:?}: exit {found:?}, not {code}, saying {said:?}: {stderr}");
        Ok(())
    }

    /// Like [`run`](Self::run); `prepare` may change the process before it is started.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_with(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<Exit> {
        Self::run_binary(&binary()?, arguments, prepare)
    }

    /// Like [`run_with`](Self::run_with), of a copy of the binary.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_binary(path: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<Exit> {
        let mut command = Command::new(path);
        command.args(arguments);
        prepare(&mut command);
        Self::spawn(command)?.wait(Duration::from_secs(20))
    }

    /// Starts another program that starts `faultline`, as it is written.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_binary(path: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(path);
        command.args(arguments);
        Self::spawn(command)
    }

    /// A child is killed when the *thread* that started it ends, so that thread is the one that waits for it.
    fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_parent(&mut command);
        let shared = Arc::new(Shared::default());
        let (started, start) = mpsc::channel();
        let to = Arc::clone(&shared);
        let is_unread = Arc::new(AtomicBool::new(false));
        let leave = Arc::clone(&is_unread);
        thread::spawn(move || {
            let mut child = match start_child(&mut command) {
                Ok((child, pid, pidfd)) => {
                    let _ = started.send(Ok((pid, pidfd)));
                    child
                }
                Err(failure) => {
                    let _ = started.send(Err(failure));
                    return;
                }
            };
            let (mut stdout, stderr) = (child.stdout.take(), child.stderr.take());
            thread::scope(|scope| {
                scope.spawn(|| read_errors(stderr, &to));
                read_events(stdout.as_mut(), &to, &leave);
            });
            // Until here its other end is open, read or not.
            to.ended(child.wait());
        });
        let (pid, pidfd) = start.recv().context("the starting thread is gone")??;
        Ok(Self { pid, pidfd, shared, is_unread })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the next event of this kind that [`wait_event`](Self::wait_event) has not returned before.
    ///
    /// # Errors
    ///
    /// If it does not come in time, or the command ends without; with what it printed instead.
    pub fn wait_event(&self, kind: &str, time: Duration) -> Result<Event> {
        self.shared.wait_event(kind, Instant::now() + patience(time))
    }

    /// Reads no more of what it prints, after what comes next.
    pub(crate) fn stop_reading(&self) {
        self.is_unread.store(true, Ordering::Relaxed);
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.shared.events()
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it has ended.
    pub fn kill(&self, signal: Signal) -> Result {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo the kernel fills one in.
        let result = unsafe {
            let fd = self.pidfd.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, no_info, 0)
        };
        check(result, format_args!("pidfd_send_signal({signal}) to {}", self.pid)).map(drop)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it does not end in time.
    pub fn wait(&self, time: Duration) -> Result<Exit> {
        self.shared.wait_exit(Instant::now() + patience(time))
    }

    /// Interrupts it, and checks that it says it was and that all is reverted.
    ///
    /// # Errors
    ///
    /// If it ends in another way.
    pub fn end(&self) -> Result<Exit> {
        let exit = self.interrupt()?;
        ensure!(exit.code == Some(130), "exit {:?}, not 130; stderr: {}", exit.code, exit.stderr);
        Ok(exit)
    }

    /// Ends it as a user would, by Ctrl-C, and waits for its end.
    ///
    /// # Errors
    ///
    /// If it does not end within 10 s.
    pub fn interrupt(&self) -> Result<Exit> {
        self.kill(Signal::SIGINT)?;
        self.wait(Duration::from_secs(10))
    }
}

impl Drop for Faultline {
    fn drop(&mut self) {
        // It may have ended long ago; the pidfd then says so and hits nobody else.
        let _ = self.kill(Signal::SIGKILL);
        let _ = self.shared.wait_exit(Instant::now() + Duration::from_secs(5));
    }
}

/// Makes a command run as nobody.
pub fn as_nobody(command: &mut Command) {
    const NOBODY: u32 = 65_534;
    command.uid(NOBODY).gid(NOBODY);
}

fn start_child(command: &mut Command) -> Result<(Child, Pid, OwnedFd)> {
    let child = command.spawn().context(format_args!("start {}", command.get_program().display()))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    // Not reaped yet, so the number is its own.
    let pidfd = pidfd(pid)?;
    Ok((child, pid, pidfd))
}

fn read_events(stdout: Option<impl Read>, shared: &Shared, leave: &AtomicBool) {
    let Some(stdout) = stdout else { return };
    for line in BufReader::new(stdout).lines() {
        let at = monotonic_ns();
        let Ok(line) = line else { return };
        if leave.load(Ordering::Relaxed) {
            return;
        }
        match parse(&line, at) {
            Some(event) => shared.event(event),
            None => shared.text(&line),
        }
    }
}

fn read_errors(stderr: Option<impl Read>, shared: &Shared) {
    let Some(stderr) = stderr else { return };
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { return };
        shared.error(&String::from_utf8_lossy(&line));
    }
}

fn exit_of(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    (status.code(), status.signal())
}
