//! One that somebody has stopped: nothing of it runs, whatever is done to its clocks.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::program::{Hostile, LIMIT, ended, names_one, swept};
use crate::{
    clocks::vdso_range,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Test, patience, rounds},
    time::{NEEDS, scene::Scene},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("hostile::stopped_stays_stopped", stopped_stays_stopped).needs(NEEDS).timeout(180)];

const ROUNDS: u32 = 20;
/// How often one is stopped, to be within the vDSO in the end.
const TRIES: u32 = 200;
/// What it takes a process to be seen to stop, or to go on.
const SOON: Duration = Duration::from_secs(10);

/// It counts in a file that it has mapped.
struct Counter {
    hostile: Hostile,
    file: PathBuf,
}

impl Counter {
    fn start(scene: &Scene, more: &[&str]) -> Result<Self> {
        // In this test's own `/run`.
        let file = PathBuf::from(format!("/run/fl-counter-{}", more.join("-")));
        fs::write(&file, [0; 8]).context(file.display())?;
        let path = file.to_string_lossy();
        let hostile = Hostile::start(&scene.cgroup, &[&["counts", &path], more].concat())?;
        Ok(Self { hostile, file })
    }

    fn number(&self) -> String {
        self.hostile.pid().to_string()
    }

    /// What it has counted.
    fn count(&self) -> Result<u64> {
        let bytes = fs::read(&self.file).context(self.file.display())?;
        Ok(u64::from_ne_bytes(bytes.try_into().ok().context("eight bytes")?))
    }

    fn signal(&self, signal: Signal) -> Result {
        kill(Pid::from_raw(self.hostile.pid().cast_signed()), signal).context(signal)
    }

    fn is_stopped(&self) -> Result<bool> {
        let path = format!("/proc/{}/stat", self.hostile.pid());
        Ok(fs::read_to_string(&path).context(&path)?.contains(") T "))
    }

    fn stop(&self) -> Result {
        self.signal(Signal::SIGSTOP)?;
        // It may be on its way there.
        until("it does not stop", || Ok(self.is_stopped()? && self.place().is_ok()))
    }

    fn go_on(&self) -> Result {
        let before = self.count()?;
        self.signal(Signal::SIGCONT)?;
        until("it does not go on", || Ok(self.count()? > before))
    }

    /// Where it goes on once it may.
    fn place(&self) -> Result<u64> {
        let path = format!("/proc/{}/syscall", self.hostile.pid());
        let text = fs::read_to_string(&path).context(&path)?;
        let word = text.split_whitespace().last().and_then(|word| word.strip_prefix("0x")).context(&text)?;
        u64::from_str_radix(word, 16).context(&text)
    }

    fn is_in_vdso(&self) -> Result<bool> {
        let (start, end) = vdso_range(self.hostile.pid())?;
        Ok((start..end).contains(&self.place()?))
    }

    /// Begins and ends a run on it. By how much it has counted on meanwhile; nothing if it was refused, as it is while it is stopped
    /// in the middle of what is to be changed.
    fn skew(&self) -> Result<Option<u64>> {
        let before = self.count()?;
        let number = self.number();
        let fault = Faultline::start(&["time", "skew", "--offset", "1h", "--pid", &number])?;
        if fault.wait_event("armed", LIMIT).is_err() {
            let exit = fault.wait(LIMIT)?;
            ensure!(exit.code == Some(3) && names_one(&exit.stderr, &[self.hostile.pid()]), "{exit:?}");
            ensure!(self.is_stopped()?, "it was let go on, and refused");
            return Ok(None);
        }
        until("it was let go on", || self.is_stopped())?;
        let exit = ended(&fault, Signal::SIGINT)?;
        ensure!(exit.code == Some(130), "{exit:?}");
        until("it was let go on at the end", || Ok(self.is_stopped()? && self.place().is_ok()))?;
        Ok(Some(self.count()? - before))
    }
}

fn until(otherwise: &str, mut done: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + patience(SOON);
    while !done()? {
        ensure!(Instant::now() < end, "{otherwise}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn stopped_stays_stopped() -> Result {
    let mut scene = Scene::set()?;
    let counter = Counter::start(&scene, &[])?;
    counter.stop()?;
    let place = counter.place()?;
    for round in 0..rounds(ROUNDS) {
        let more = counter.skew().context(format_args!("round {round}"))?;
        ensure!(more == Some(0), "round {round}: it has counted {more:?} times");
        ensure!(counter.place()? == place, "round {round}: it has gone on a little");
    }
    counter.go_on()?;
    drop(counter);
    within_vdso(&scene).context("within the vDSO")?;
    swept()?;
    scene.over("afterwards")
}

/// It stays where it is, whatever that is to others.
fn within_vdso(scene: &Scene) -> Result {
    let counter = Counter::start(scene, &["clocks"])?;
    let (mut within, mut refused) = (0, 0);
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        let mut is_within = false;
        for _ in 0..TRIES {
            counter.stop()?;
            is_within = counter.is_in_vdso()?;
            if is_within {
                break;
            }
            counter.go_on()?;
        }
        if !is_within {
            counter.stop()?;
        }
        within += u32::from(is_within);
        let place = counter.place()?;
        let more = counter.skew().context(format_args!("round {round}"))?;
        refused += u32::from(more.is_none());
        ensure!(more.is_none_or(|more| more == 0), "round {round}: it has counted {more:?} times");
        ensure!(counter.place()? == place, "round {round}: it has gone on a little");
        counter.go_on()?;
    }
    println!("{within} of {rounds} times within the vDSO; refused {refused} times");
    ensure!(within > 0, "it was never within the vDSO");
    Ok(())
}
