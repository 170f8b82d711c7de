//! `fl-hostile`, and commands that must not wait for it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Failure, Result},
    faultline::{Exit, Faultline, binary, sibling},
    harness::{die_with_parent, patience},
    life::scene::records,
    time::{processes::OFFSET, scene::Scene},
};

/// What a command may take, whoever is there.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// What one of these may take to be what it should, and to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of them. Killed when dropped, with all that it has begun.
#[derive(Debug)]
pub(super) struct Hostile {
    child: Child,
    words: String,
    lines: mpsc::Receiver<String>,
    /// What it said until it was ready.
    said: Vec<String>,
}

impl Hostile {
    /// One in a cgroup, ready.
    pub(super) fn start(cgroup: &Cgroup, words: &[&str]) -> Result<Self> {
        let path = sibling("fl-hostile")?;
        let mut command = Command::new(&path);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        cgroup.admit(&mut command)?;
        let mut child = command.spawn().context(path.display())?;
        let stdout = child.stdout.take();
        let (to, lines) = mpsc::channel();
        // Its children have it as well, so that it ends with the last of them.
        thread::spawn(move || {
            let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
            lines.map_while(std::io::Result::ok).try_for_each(|line| to.send(line))
        });
        let mut hostile = Self { child, words: words.join(" "), lines, said: Vec::new() };
        while let Some(line) = hostile.hear()?.filter(|line| line != "ready") {
            hostile.said.push(line);
        }
        println!("{}: {:?}", hostile.words, hostile.said);
        let refused = hostile.said.iter().find(|line| line.starts_with("refused"));
        ensure!(refused.is_none(), "{}: {refused:?}", hostile.words);
        ensure!(hostile.is_running()?, "{} has ended", hostile.words);
        Ok(hostile)
    }

    /// One whose file system dies, on a folder of its own.
    pub(super) fn stuck(cgroup: &Cgroup, kinds: &[&str]) -> Result<Self> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        // In this test's own `/run`.
        let folder = PathBuf::from(format!("/run/fl-stuck-{}", NUMBERS.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&folder).context(folder.display())?;
        let folder = folder.to_string_lossy();
        Self::start(cgroup, &[&["stuck", &folder], kinds].concat())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// That of its child of this kind, as it has said.
    pub(super) fn child(&self, kind: &str) -> Result<u32> {
        let first = self.children(kind).first().copied();
        first.context(format_args!("{} has no child {kind}: {:?}", self.words, self.said))
    }

    /// Those of all of them.
    pub(super) fn children(&self, kind: &str) -> Vec<u32> {
        self.said.iter().filter_map(|line| line.strip_prefix(kind)?.trim().parse().ok()).collect()
    }

    /// Has it go on, and hears the number that it then says.
    pub(super) fn go(&mut self, kind: &str) -> Result<u32> {
        let stdin = self.child.stdin.as_mut().context("its input is closed")?;
        stdin.write_all(b"go\n").context("write")?;
        let line = self.hear()?.context(format_args!("{} has ended", self.words))?;
        let number = line.strip_prefix(kind).and_then(|rest| rest.trim().parse().ok());
        number.context(format_args!("{} said {line:?}", self.words))
    }

    /// The next line; nothing once it and its children have ended.
    fn hear(&self) -> Result<Option<String>> {
        match self.lines.recv_timeout(patience(PATIENCE)) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(format!("{} has not said anything for {PATIENCE:?}", self.words)))
            }
        }
    }

    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("waitpid")?.is_none())
    }

    /// Has it end by itself, as it does when its input ends; what it said since it was ready.
    pub(super) fn end(mut self) -> Result<Vec<String>> {
        drop(self.child.stdin.take());
        let mut said = Vec::new();
        while let Some(line) = self.hear()? {
            said.push(line);
        }
        let status = self.child.wait().context("waitpid")?;
        ensure!(status.success(), "{} ended with {status}: {said:?}", self.words);
        Ok(said)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its children are killed by the kernel, one after the other.
        let end = Instant::now() + patience(PATIENCE);
        while Instant::now() < end && matches!(self.hear(), Ok(Some(_))) {}
    }
}

/// Runs a command to its end, which comes in time.
pub(super) fn run(words: &[&str]) -> Result<Exit> {
    let begun = Instant::now();
    let exit = Faultline::start_binary(&binary()?, words)?.wait(LIMIT).context(format_args!("{words:?}"))?;
    println!("{words:?}: exit {:?} after {:?}", exit.code, begun.elapsed());
    Ok(exit)
}

/// Begins a run on the target, which is armed in time.
pub(super) fn armed(scene: &Scene) -> Result<Faultline> {
    let begun = Instant::now();
    let fault = scene.start(OFFSET)?;
    fault.wait_event("armed", LIMIT).context("its start")?;
    println!("armed after {:?}", begun.elapsed());
    Ok(fault)
}

/// Ends a run by a signal, in time.
pub(super) fn ended(fault: &Faultline, signal: Signal) -> Result<Exit> {
    let begun = Instant::now();
    fault.kill(signal)?;
    let exit = fault.wait(LIMIT).context(format_args!("its end by {signal}"))?;
    println!("{signal}: exit {:?} after {:?}", exit.code, begun.elapsed());
    Ok(exit)
}

/// Sweeps, with something there that may keep it from looking at all: nothing is left then, or somebody who was not looked at is
/// named and the record kept. Whether the latter.
pub(super) fn swept_beside(hostile: &[u32]) -> Result<bool> {
    let exit = run(&["sweep"])?;
    match exit.code {
        Some(0) => {
            ensure!(records()?.is_empty(), "nothing is left, and records are: {:?}", records());
            Ok(false)
        }
        Some(6) => {
            ensure!(names_one(&exit.stderr, hostile), "none of {hostile:?} is named: {exit:?}");
            ensure!(!records()?.is_empty(), "something may be left, and no record is: {exit:?}");
            Ok(true)
        }
        _ => Err(Failure::new(format!("sweep: {exit:?}"))),
    }
}

/// Sweeps where nobody is there who could keep it from that.
pub(super) fn swept() -> Result {
    let exit = run(&["sweep"])?;
    ensure!(exit.code == Some(0), "{exit:?}");
    ensure!(records()?.is_empty(), "{:?} after sweep", records());
    Ok(())
}

/// Whether one of these processes is spoken of.
pub(super) fn names_one(text: &str, processes: &[u32]) -> bool {
    text.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .any(|number: u32| processes.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::names_one;

    #[test]
    fn numbers_are_whole() {
        let text = "thread 1234 does not come; process 56's, 78:";
        assert!([1234, 56, 78].iter().all(|process| names_one(text, &[9, *process])));
        assert!(!names_one(text, &[1, 123, 234, 5, 8]) && !names_one("", &[0]));
    }
}
