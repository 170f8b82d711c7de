//! The processes of a scene: this program, told to be somebody else.

mod bystander;
mod janitor;
mod server;
mod target;
mod within;

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Failure, Result},
    faultline::sibling,
    harness::{die_with_parent, patience},
    lab::Netns,
};

/// This program.
const PROGRAM: &str = "fl-soak";

/// Is what it is told to be, until it is killed or done.
///
/// # Errors
///
/// If it cannot.
pub fn play(role: &str, words: &[String]) -> Result {
    let word =
        |place: usize| words.get(place).map(String::as_str).context(format_args!("{role}: word {place}"));
    match role {
        "server" => server::run(),
        "target" => target::run(word(0)?, false),
        "command" => target::run("/nowhere", true),
        "bystander" => bystander::run(word(0)?),
        "hog" => hog(),
        "within" => within::run(word(0)?, &words[1..]),
        "janitor" => janitor::run(words),
        _ => Err(Failure::new(format!("there is no role {role}"))),
    }
}

/// Uses memory, more and more of it, until there is none.
fn hog() -> Result {
    const STEP: usize = 256 << 10;
    const MOST: usize = 512 << 20;
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() * STEP < MOST {
        held.push(vec![1; STEP]);
        thread::sleep(Duration::from_micros(500));
    }
    Err(Failure::new(format!("{} bytes, and nobody was killed", held.len() * STEP)))
}

/// Says something to whoever started this.
fn say(words: std::fmt::Arguments<'_>) -> Result {
    let mut out = io::stdout().lock();
    writeln!(out, "{words}").and_then(|()| out.flush()).context("say")
}

/// What a process has said so far.
#[derive(Debug, Default)]
struct Heard {
    lines: u64,
    last: String,
    errors: Vec<String>,
    /// Lines that begin a beat, by who beats.
    beats: Vec<(String, u64)>,
}

/// One that runs. Killed when dropped, and by the kernel when the thread that started it ends.
#[derive(Debug)]
pub(super) struct Role {
    name: String,
    child: Child,
    heard: Arc<Mutex<Heard>>,
}

impl Role {
    /// Starts it, in a cgroup and a network namespace, and waits for its first word.
    pub(super) fn start(
        role: &str,
        words: &[&str],
        cgroup: Option<&Cgroup>,
        netns: Option<&Netns>,
    ) -> Result<Self> {
        let path = sibling(PROGRAM)?;
        let mut command = Command::new(&path);
        command.args(["--role", role]).args(words).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(cgroup) = cgroup {
            cgroup.admit(&mut command)?;
        }
        if let Some(netns) = netns {
            netns.home_of(&mut command);
        }
        die_with_parent(&mut command);
        let mut child = command.spawn().context(format_args!("start {} as {role}", path.display()))?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (stdout, to) = (child.stdout.take().context("its output")?, Arc::clone(&heard));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
                hear(&mut lock(&to), &line);
            }
        });
        let started = Self { name: role.into(), child, heard };
        started.wait_until("its first word", |heard| heard.lines > 0)?;
        Ok(started)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What went wrong since this was asked last.
    pub(super) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.heard).errors)
    }

    /// How often each of its threads has done its work.
    pub(super) fn beats(&self) -> Vec<(String, u64)> {
        lock(&self.heard).beats.clone()
    }

    /// The numbers of its last word.
    pub(super) fn last_numbers(&self) -> Vec<u64> {
        lock(&self.heard).last.split(' ').filter_map(|word| word.parse().ok()).collect()
    }

    /// Waits until it has said enough.
    fn wait_until(&self, what: &str, enough: impl Fn(&Heard) -> bool) -> Result {
        let deadline = Instant::now() + patience(Duration::from_secs(15));
        while !enough(&lock(&self.heard)) {
            ensure!(
                Instant::now() < deadline,
                "{}: {what} does not come: {:?}",
                self.name,
                lock(&self.heard).errors
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until each of its threads has done its work once more than it had.
    pub(super) fn wait_for_beats(&self, before: &[(String, u64)]) -> Result {
        self.wait_until("a beat", |heard| {
            before.iter().all(|(who, count)| heard.beats.iter().any(|(name, now)| name == who && now > count))
        })
    }

    /// Waits until its last word's numbers are enough.
    pub(super) fn wait_for_numbers(&self, what: &str, enough: impl Fn(&[u64]) -> bool) -> Result {
        self.wait_until(what, |heard| {
            let numbers: Vec<u64> = heard.last.split(' ').filter_map(|word| word.parse().ok()).collect();
            enough(&numbers)
        })
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hear(heard: &mut Heard, line: &str) {
    heard.lines += 1;
    if let Some(error) = line.strip_prefix("error ") {
        heard.errors.push(error.into());
    } else if let Some(who) = line.strip_prefix("beat ") {
        match heard.beats.iter_mut().find(|(name, _)| name == who) {
            Some((_, count)) => *count += 1,
            None => heard.beats.push((who.into(), 1)),
        }
    } else {
        heard.last = line.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        let mut heard = Heard::default();
        for line in ["ready", "beat files", "error clocks: back by 3 ns", "beat files", "beat traffic", "7 3"]
        {
            hear(&mut heard, line);
        }
        assert_eq!(heard.beats, [("files".to_owned(), 2), ("traffic".to_owned(), 1)]);
        assert_eq!((heard.lines, heard.last.as_str()), (6, "7 3"));
        assert_eq!(heard.errors, ["clocks: back by 3 ns"]);
    }
}
