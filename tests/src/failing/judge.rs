//! What a run may say, one of whose calls has failed.

use nix::{errno::Errno, sys::signal::Signal};
use serde_json::Value;

use super::{errno, trace::Call};
use crate::faultline::Exit;

/// What became of a run that is all right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It ended as if nothing had been: the call did not matter, or was made again.
    Ordinary,
    /// Exit 3, nothing was begun.
    Refused,
    /// Exit 4, it had begun and was ended.
    Aborted,
    /// Exit 5: what it did could not be counted, and is reverted.
    Uncounted,
    /// Exit 6, and what may be left is named; a sweep clears it.
    Named,
    /// There was no memory, and Rust's allocator ended it by SIGABRT.
    OutOfMemory,
}

impl Verdict {
    pub(super) const ALL: [Self; 6] =
        [Self::Ordinary, Self::Refused, Self::Aborted, Self::Uncounted, Self::Named, Self::OutOfMemory];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "as usual",
            Self::Refused => "exit 3",
            Self::Aborted => "exit 4",
            Self::Uncounted => "exit 5",
            Self::Named => "exit 6",
            Self::OutOfMemory => "no memory",
        }
    }

    /// Whether a record may be there afterwards.
    pub(super) const fn may_leave_a_record(self) -> bool {
        matches!(self, Self::Named | Self::OutOfMemory)
    }
}

/// What a family's commands do where nothing fails.
#[derive(Clone, Debug)]
pub(super) struct Usual {
    /// Its exit code: 0, or 5 where nothing meets its conditions, not in most times at least.
    pub(super) code: i32,
    /// Whether it is a run, which is armed and says at its end what it did.
    pub(super) is_run: bool,
    /// What it said before it was armed.
    pub(super) prepared: Value,
}

impl Usual {
    /// Whether a run that ended as usual was what was asked for; if not, what it was.
    fn was_meant(&self, exit: &Exit) -> Result<(), String> {
        let prepared = exit.events.iter().find(|event| event.kind == "prepared");
        let Some(now) = prepared.map(|event| &event.json) else { return Ok(()) };
        for fact in ["protected", "rules", "device"] {
            if now[fact] != self.prepared[fact] {
                return Err(format!("it went on, and {fact} was {}, not {}", now[fact], self.prepared[fact]));
            }
        }
        let hooks = |facts: &Value| facts["hooks"].as_array().cloned().unwrap_or_default();
        let (now, usual) = (hooks(now), hooks(&self.prepared));
        if now.len() != usual.len() {
            return Err(format!("it went on with {} hooks, not {}", now.len(), usual.len()));
        }
        // By another mechanism it may be, if it says why.
        let silently = now
            .iter()
            .zip(&usual)
            .find(|(now, usual)| now["hook"] != usual["hook"] && now["why"] == usual["why"]);
        silently.map_or(Ok(()), |(now, usual)| Err(format!("it went on by {now}, not {usual}")))
    }
}

/// Whether the way it ended fits what has failed; if not, why not.
pub(super) fn judge(exit: &Exit, usual: &Usual, call: &Call, failed: Errno) -> Result<Verdict, String> {
    let Exit { code, signal, stderr, .. } = exit;
    let has = |kind: &str| exit.events.iter().any(|event| event.kind == kind);
    let (armed, summed_up) = (has("armed"), has("summary"));
    // Which of these calls is the C library's, or Rust's before `main`, is not seen by its number alone.
    let before_main = ["while loading shared libraries", "alternative stack"];
    if call.is_of_memory() && before_main.iter().any(|part| stderr.contains(part)) {
        return Ok(Verdict::OutOfMemory);
    }
    if stderr.contains("panicked") || *code == Some(101) {
        return Err(format!("it panicked: {stderr}"));
    }
    if let Some(signal) = signal {
        let no_memory = stderr.contains("memory allocation of") || stderr.contains("out of memory");
        return match *signal == Signal::SIGABRT as i32 && no_memory && call.is_of_memory() {
            true => Ok(Verdict::OutOfMemory),
            false => Err(format!("killed by signal {signal}: {stderr}")),
        };
    }
    let code = code.unwrap_or_default();
    let is_usual = code == usual.code || code == 0;
    // Each task has writes of its own, and the one that prints may be another.
    let is_of_output = call.is_of_output() || call.name == "write" && stderr.contains("standard output");
    if is_of_output && (is_usual || code == 4) {
        // What could not be printed is not there to be read.
        return Ok(if code == 4 { Verdict::Aborted } else { Verdict::Ordinary });
    }
    if usual.is_run && armed && !summed_up {
        return Err(format!("exit {code} without a summary, though it was armed: {stderr}"));
    }
    match code {
        _ if is_usual && (armed || !usual.is_run) => usual.was_meant(exit).map(|()| Verdict::Ordinary),
        // What could not be counted is said in the summary.
        5 if summed_up && said_in_summary(exit, failed) => Ok(Verdict::Uncounted),
        3 if armed => Err(format!("exit 3, not started, though it was armed: {stderr}")),
        3 => clear(stderr, call, failed).map(|()| Verdict::Refused),
        4 if !armed => Err(format!("exit 4, aborted, though it was never armed: {stderr}")),
        // The summary says it as well.
        4 => clear(stderr, call, failed).map(|()| Verdict::Aborted),
        6 if !stderr.contains('`') => Err(format!("exit 6, and no command that removes it: {stderr}")),
        6 => clear(stderr, call, failed).map(|()| Verdict::Named),
        _ => Err(format!("exit {code}: {}{stderr} {}", exit.stdout, reason(exit))),
    }
}

/// What the summary gives for its reason.
fn reason(exit: &Exit) -> String {
    let summary = exit.events.iter().find(|event| event.kind == "summary");
    summary.map_or_else(String::new, |event| event.json["reason"].to_string())
}

fn said_in_summary(exit: &Exit, failed: Errno) -> bool {
    let summary = exit.events.iter().find(|event| event.kind == "summary");
    summary.is_some_and(|event| event.json.to_string().contains(&errno::text(failed)))
}

/// One sentence that says what failed, and why.
fn clear(stderr: &str, call: &Call, failed: Errno) -> Result<(), String> {
    let line = stderr.strip_prefix("faultline: ").filter(|line| line.trim().lines().count() == 1);
    let Some(line) = line.filter(|line| line.len() < 600) else {
        return Err(format!("not one sentence: {stderr:?}"));
    };
    // What aya has asked the kernel is not known any more when it gives up; and where there is no memory, it is said what it was
    // wanted for.
    if call.is_question() || call.is_of_memory() {
        return Ok(());
    }
    let said = line.to_lowercase();
    // The procfs crate has one sentence for both.
    let is_denied = matches!(failed, Errno::EPERM | Errno::EACCES) && said.contains("permission denied");
    let is_said = said.contains(&errno::text(failed).to_lowercase()) || line.contains(&format!("{failed:?}"));
    // What the kernel means by these: nothing is there any more.
    let is_of_process =
        call.name == "ptrace" || call.what.starts_with("/proc/") && call.what.ends_with("/mem");
    let is_gone = is_of_process && matches!(failed, Errno::ESRCH | Errno::EIO);
    if is_gone && (line.contains("has ended") || line.contains("can be held") || line.contains("has no vDSO"))
    {
        return Ok(());
    }
    if !is_said && !is_denied {
        return Err(format!("it does not say {failed:?}: {line}"));
    }
    match names(line, call) {
        true => Ok(()),
        false => Err(format!("it names neither the call nor its object: {line}")),
    }
}

/// Whether a sentence names a call, as a user would look it up, or what it was about.
fn names(line: &str, call: &Call) -> bool {
    let by_others: &[&str] = match &*call.name {
        // `std::fs` and `std::process` by what they do.
        "openat" => &["open", "read", "list", "create", "stat", "enter"],
        "getdents64" => &["list", "read"],
        "mkdir" | "mkdirat" => &["create", "mkdir"],
        "unlink" | "unlinkat" => &["remove", "unlink"],
        "statx" | "newfstatat" | "fstat" => &["stat", "look", "open", "read", "list"],
        "fchmod" => &["chmod"],
        // By whoever is started: these are its first calls.
        "setpgid" | "dup2" | "close_range" => &["start"],
        "prlimit64" => &["getrlimit", "setrlimit"],
        "ptrace" => &["held"],
        "fdatasync" => &["fsync", "sync"],
        "flock" | "fcntl" => &["lock", "dup"],
        "linkat" => &["link", "create", "name"],
        "clone" | "clone3" | "fork" | "vfork" => &["fork", "start", "thread"],
        "execve" => &["start"],
        "pipe2" => &["start", "pipe"],
        "write" => &["copy"],
        "sendto" | "recvfrom" => &["netlink"],
        // Asked for by who binds.
        "getsockname" => &["bind"],
        "ppoll" => &["poll"],
        "signalfd4" => &["signalfd"],
        "pwrite64" => &["write"],
        "pread64" => &["read"],
        // aya says the function of its own; which map is the n-th is another one each time.
        "bpf" => &["bpf", "FL_", "create map"],
        // By its command.
        "ioctl" => &["ETHTOOL_"],
        _ => &[],
    };
    // A map's name, a file's.
    let what = call.what.rsplit([' ', '/']).next().unwrap_or_default();
    // That is a copy of the kernel's types.
    let is_copy = what == "memfd:btf" || call.what.starts_with("/proc/self/fd/");
    let what = if is_copy { "vmlinux" } else { what };
    let is_about = what.len() > 2 && line.contains(what);
    is_about || line.contains(&call.name) || by_others.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::faultline::Event;

    const USUAL: Usual = Usual { code: 0, is_run: true, prepared: Value::Null };

    fn event(kind: &str) -> Event {
        Event { kind: kind.into(), read_at: 0, json: Value::Null }
    }

    fn exit(code: i32, events: &[&str], stderr: &str) -> Exit {
        let events = events.iter().map(|kind| event(kind)).collect();
        Exit { code: Some(code), signal: None, events, stdout: String::new(), stderr: stderr.into() }
    }

    fn judged(exit: &Exit) -> Result<Verdict, String> {
        let call = Call { name: "bpf".into(), nth: 1, what: "BPF_MAP_CREATE".into() };
        judge(exit, &USUAL, &call, Errno::ENOMEM)
    }

    #[test]
    fn right_ways_to_end() {
        let said = "faultline: bpf(BPF_MAP_CREATE) on x: Cannot allocate memory (os error 12)";
        assert_eq!(judged(&exit(0, &["armed", "summary"], "")), Ok(Verdict::Ordinary));
        assert_eq!(judged(&exit(3, &[], said)), Ok(Verdict::Refused));
        assert_eq!(judged(&exit(4, &["armed", "summary"], said)), Ok(Verdict::Aborted));
        let named = format!("{said}; `faultline sweep` removes it");
        assert_eq!(judged(&exit(6, &["armed", "summary"], &named)), Ok(Verdict::Named));
        let memory = Call { name: "mmap".into(), nth: 1, what: String::new() };
        let aborted = Exit {
            code: None,
            signal: Some(libc::SIGABRT),
            stderr: "memory allocation of 7 bytes failed".into(),
            ..exit(0, &[], "")
        };
        assert_eq!(judge(&aborted, &USUAL, &memory, Errno::ENOMEM), Ok(Verdict::OutOfMemory));
        assert!(judged(&aborted).is_err());
    }

    #[test]
    fn a_run_is_what_was_meant() {
        let facts = |protected: &str, hook: &str, why: &str| json!({ "protected": protected, "hooks": [{ "hook": hook, "why": why }] });
        let usual = Usual { prepared: facts("a session", "tcx", "it works"), ..USUAL };
        let judged = |facts: Value| {
            let prepared = Event { json: facts, ..event("prepared") };
            usual.was_meant(&Exit { events: vec![prepared], ..exit(0, &[], "") })
        };
        assert_eq!(judged(facts("a session", "tcx", "it works")), Ok(()));
        assert_eq!(judged(facts("a session", "clsact", "no tcx: ENOMEM")), Ok(()));
        assert!(judged(facts("a session", "clsact", "it works")).is_err());
        assert!(judged(facts("nobody", "tcx", "it works")).is_err());
        assert!(judged(json!({ "protected": "a session" })).is_err());
    }

    #[test]
    fn wrong_ways_to_end() {
        let said = "faultline: bpf(BPF_MAP_CREATE) on x: Cannot allocate memory (os error 12)";
        for (wrong, why) in [
            (exit(0, &["armed"], ""), "without a summary"),
            (exit(0, &[], ""), "exit 0"),
            (exit(3, &["armed", "summary"], said), "though it was armed"),
            (exit(4, &[], said), "never armed"),
            (exit(6, &["armed"], said), "without a summary"),
            (exit(6, &[], said), "no command"),
            (exit(3, &[], "faultline: it did not work"), "does not say"),
            (exit(3, &[], "faultline: this: Cannot allocate memory"), "names neither"),
            (exit(3, &[], "thread 'main' panicked at x"), "panicked"),
            (exit(3, &[], "faultline: bpf: ENOMEM\nand more"), "not one sentence"),
            (exit(5, &["armed", "summary"], ""), "exit 5"),
        ] {
            let verdict = judged(&wrong);
            assert!(verdict.as_ref().is_err_and(|said| said.contains(why)), "{wrong:?}: {verdict:?}");
        }
    }
}
