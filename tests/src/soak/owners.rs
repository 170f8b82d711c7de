//! The owners of a step: started, looked at, ended, and judged by how they ended.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::{Mode, umask},
    },
    unistd::Pid,
};

use super::{
    faults::Fault,
    plan::{Event, Moment, Namespace, Step},
    scene::Scene,
};
use crate::{
    cgroup::entering,
    error::{Context, Result},
    faultline::{Exit, Faultline, sibling, with_json},
    harness::{RECORDS, patience},
};

/// Longer than any takes to load and attach.
const ARMING: Duration = Duration::from_secs(40);
/// Longer than any takes to end in order once it is asked to, with what waits in its queues and clocks that settle.
const ENDING: Duration = Duration::from_secs(12);
/// When it is asked again.
const AGAIN: Duration = Duration::from_secs(4);

/// One that was started.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) fault: Fault,
    process: Faultline,
    is_elsewhere: bool,
    /// Whether it was told to end, by a signal or by `faultline stop`.
    pub(super) is_asked: bool,
    pub(super) is_killed: bool,
    pub(super) exit: Option<Exit>,
}

impl Owner {
    /// Starts the fault of a step at this place.
    pub(super) fn start(step: &Step, place: usize, scene: &Scene<'_>) -> Result<Self> {
        let fault = step.faults[place].clone();
        let is_elsewhere = step.is_elsewhere && place + 1 == step.faults.len();
        let words: Vec<String> =
            fault.words.iter().map(|word| scene.word(word, is_elsewhere)).collect::<Result<_>>()?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let members = (step.event == Event::OutOfMemory).then(|| scene.memory().members());
        let enter = members.map(|file| entering(&file)).transpose()?;
        let is_careless = step.is_careless;
        let prepare = |command: &mut Command| {
            let change = move || {
                if is_careless {
                    umask(Mode::empty());
                }
                enter.as_ref().map_or(Ok(()), |enter| enter())
            };
            // SAFETY: system calls alone, on what exists already.
            unsafe { command.pre_exec(change) };
        };
        let process = if is_elsewhere {
            let role = ["--role", "within", Namespace::Pid.name()];
            Faultline::start_by(&sibling("fl-soak")?, &role, &with_json(&words), prepare)?
        } else {
            Faultline::start_with(&words, prepare)?
        };
        Ok(Self { fault, process, is_elsewhere, is_asked: false, is_killed: false, exit: None })
    }

    /// Waits until it is armed or has ended.
    ///
    /// # Errors
    ///
    /// If neither comes.
    pub(super) fn wait_armed(&mut self) -> Result {
        if self.process.wait_event("armed", ARMING).is_ok() {
            return Ok(());
        }
        self.exit = Some(self.process.wait(Duration::ZERO).context(self.fault.line())?);
        Ok(())
    }

    /// Whether it has said that it is, or was.
    pub(super) fn is_armed(&self) -> bool {
        self.process.events().iter().any(|event| event.kind == "armed")
    }

    /// Its own process, wherever that is. Nothing if it has none yet, or has ended.
    pub(super) fn pid(&self) -> Option<i32> {
        let pid = self.process.pid().as_raw();
        if self.is_elsewhere { children(pid).first().copied() } else { Some(pid) }
    }

    /// The processes that it has started: its guard, and the program that its fault is of.
    fn children(&self, wanted: impl Fn(&str) -> bool) -> Vec<i32> {
        let all = self.pid().map(children).unwrap_or_default();
        let words = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        all.into_iter().filter(|pid| wanted(&words(*pid))).collect()
    }

    /// Sends it a signal. One that has ended has its number still, as nobody has waited for it in the meantime or it is
    /// known by its exit.
    pub(super) fn signal(&mut self, signal: Signal) {
        if self.look().is_some() {
            return;
        }
        match signal {
            Signal::SIGKILL => self.is_killed = true,
            Signal::SIGSTOP | Signal::SIGCONT => {}
            _ => self.is_asked = true,
        }
        if !self.is_elsewhere {
            let _ = self.process.kill(signal);
        } else if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Kills its guard first, and then it.
    pub(super) fn kill_with_guard(&mut self) {
        for guard in self.children(|words| words.contains("guard")) {
            let _ = kill(Pid::from_raw(guard), Signal::SIGKILL);
        }
        self.signal(Signal::SIGKILL);
    }

    /// Reads no more of what it prints, and has there be no room for more.
    pub(super) fn fill_output(&self) -> Result {
        self.process.stop_reading();
        self.pid().map_or(Ok(()), super::scene::fill_output)
    }

    /// How it has ended, if it has.
    pub(super) fn look(&mut self) -> Option<&Exit> {
        if self.exit.is_none() {
            self.exit = self.process.wait(Duration::ZERO).ok();
        }
        self.exit.as_ref()
    }

    /// Waits for its end for so long.
    pub(super) fn ends_within(&mut self, time: Duration) -> bool {
        if self.exit.is_none() {
            self.exit = self.process.wait(time).ok();
        }
        self.exit.is_some()
    }

    /// Asks it to end, and waits for that; false if it does not.
    pub(super) fn end(&mut self) -> bool {
        let deadline = Instant::now() + patience(ENDING);
        while self.look().is_none() && Instant::now() < deadline {
            // A number of a process that is about to become another, or clocks that settle: it is asked again.
            self.signal(Signal::SIGTERM);
            let left = deadline.saturating_duration_since(Instant::now());
            self.ends_within(left.min(AGAIN));
        }
        self.exit.is_some()
    }

    /// What is wrong with how it has ended.
    pub(super) fn judge(&self, step: &Step, place: usize) -> Option<String> {
        let exit = self.exit.as_ref()?;
        let said = exit.stderr.trim();
        let wrong = |why: &str| {
            let (code, signal) = (exit.code, exit.signal);
            Some(format!("{why}: exit {code:?}, signal {signal:?}, {said:?} of {}", self.fault.line()))
        };
        if said.contains("panicked") {
            return wrong("it panicked");
        }
        let Some(code) = exit.code else {
            let signal = exit.signal.unwrap_or_default();
            let may_be_killed = self.is_killed || step.event == Event::OutOfMemory;
            // One that is not armed may not have taken signals over for its own yet.
            let is_ours = if signal == Signal::SIGKILL as i32 {
                may_be_killed
            } else {
                self.is_asked && !self.is_armed()
            };
            return if is_ours { None } else { wrong("it was killed by nobody here") };
        };
        let lives_by_target = step.event.takes_target() || step.event == Event::TargetMoved;
        let is_right = match code {
            130 => self.is_asked,
            0 | 5 => step.event == Event::Duration || self.fault.has_command(),
            // It has not begun, and says why in a sentence.
            3 => !self.is_armed() && said.lines().filter(|line| !is_of_others(line)).count() == 1,
            4 => {
                let lost = step.event.takes_interface() || lives_by_target || step.event == Event::OutputFull;
                let lapsed = step.event == Event::Pause && step.hits(place);
                lost || lapsed
            }
            // Something is left, and it says what; that it is so is judged elsewhere.
            6 => step.event.takes_interface() && !said.is_empty(),
            // The command's own word, which was told of the signal.
            129 | 131 | 143 => self.fault.has_command() && self.is_asked,
            _ => false,
        };
        if is_right { None } else { wrong("unexpected") }
    }

    /// Whether it was refused.
    pub(super) fn is_refused(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| exit.code == Some(3))
    }

    /// Whether it said itself that something is left.
    pub(super) fn is_dirty(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| exit.code == Some(6))
    }

    /// In a word, for the log.
    pub(super) fn word(&self) -> String {
        match &self.exit {
            None => "alive".into(),
            Some(Exit { code: Some(code @ (2 | 3 | 6)), stderr, .. }) => {
                format!("exit {code}, {}", stderr.trim())
            }
            Some(Exit { code: Some(code), .. }) => format!("exit {code}"),
            Some(exit) => format!("signal {}", exit.signal.unwrap_or_default()),
        }
    }
}

/// What a command says of those that died before.
fn is_of_others(line: &str) -> bool {
    line.contains(", whose owner is gone, ")
}

/// The children of a process.
fn children(parent: i32) -> Vec<i32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        fields.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    };
    numbers.filter(is_child).collect()
}

/// Waits until the moment of a step has come; which of them do not get there in time is told.
pub(super) fn wait_for_moment(step: &Step, owners: &mut [Owner]) -> Result {
    match step.moment {
        Moment::Started(time) => thread::sleep(patience(time)),
        Moment::Armed(time) => {
            for owner in owners.iter_mut() {
                owner.wait_armed()?;
            }
            thread::sleep(time);
        }
    }
    Ok(())
}

/// The files of records, with the names of the runs.
pub(super) fn records() -> Vec<(String, std::path::PathBuf)> {
    let files = fs::read_dir(RECORDS).into_iter().flatten().flatten().map(|file| file.path());
    let named = files.filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
        Some((name, path))
    });
    named.collect()
}

/// What of the records others may look into, or write.
pub(super) fn open_to_others() -> Vec<String> {
    let folder = Path::new(RECORDS);
    let paths = std::iter::once(folder.to_path_buf()).chain(records().into_iter().map(|(_, path)| path));
    let mode = |path: &Path| fs::symlink_metadata(path).map(|file| file.mode() & 0o7777).ok();
    let open = paths.filter_map(|path| {
        let mode = mode(&path).filter(|mode| mode & 0o077 != 0)?;
        let kind = if path == folder { "the folder of records" } else { "a record" };
        Some(format!("{kind} has mode {mode:o}"))
    });
    open.collect()
}
