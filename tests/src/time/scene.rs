//! What these tests share: a process whose clocks are skewed and one whose clocks are right, in a cgroup each.

use std::time::Duration;

use super::clock::{Clock, REFERENCE, expect};
use crate::{
    cgroup::Cgroup,
    clocks::{From, Image, Reading, Source, Way},
    ensure,
    error::{Context, Result},
    faultline::{Event, Exit, Faultline},
};

/// Longer than it takes to load and attach on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// All of it.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) target: Clock,
    pub(crate) bystander: Clock,
    pub(crate) cgroup: Cgroup,
    pub(crate) beside: Cgroup,
}

/// A run's rule: processes of the target that it has met, and those whose clocks are skewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) matched: u64,
    pub(crate) fired: u64,
}

impl Scene {
    /// Everybody's clocks are right.
    pub(crate) fn set() -> Result<Self> {
        let (cgroup, beside) = (Cgroup::new()?, Cgroup::new()?);
        let (target, bystander) = (Clock::start(Some(&cgroup))?, Clock::start(Some(&beside))?);
        let mut scene = Self { target, bystander, cgroup, beside };
        scene.right("before")?;
        Ok(scene)
    }

    pub(crate) fn folder(&self) -> String {
        self.cgroup.path().display().to_string()
    }

    /// Starts what is written here, words parted by single spaces, with the target's cgroup.
    pub(crate) fn start(&self, words: &str) -> Result<Faultline> {
        let folder = self.folder();
        let words = words.split(' ').filter(|word| !word.is_empty());
        let words: Vec<&str> = ["time", "skew", "--cgroup", &folder].into_iter().chain(words).collect();
        Faultline::start(&words)
    }

    /// The same, armed.
    pub(crate) fn armed(&self, words: &str) -> Result<(Faultline, Event)> {
        let fault = self.start(words)?;
        let armed = fault.wait_event("armed", PATIENCE).context(words)?;
        Ok((fault, armed))
    }

    /// Fails unless the bystander's clocks are right, all of them in every way.
    pub(crate) fn spared(&mut self, when: &str) -> Result {
        let readings = self.bystander.read(From::Itself, REFERENCE)?;
        are_right(&readings, REFERENCE).context(format_args!("{when}: the bystander"))
    }

    /// Fails unless everybody's clocks are.
    pub(crate) fn right(&mut self, when: &str) -> Result {
        let readings = self.target.read(From::Itself, REFERENCE)?;
        are_right(&readings, REFERENCE).context(format_args!("{when}: the target"))?;
        self.spared(when)
    }

    /// Fails unless the target's clocks are those that `--clock` has by default and no others, by all that is said to be
    /// skewed everywhere.
    pub(crate) fn skewed(&mut self, skew: i64, when: &str) -> Result {
        let readings = self.target.read(From::Itself, REFERENCE)?;
        are_skewed(&readings, skew).context(format_args!("{when}: the target"))?;
        self.spared(when)
    }

    /// Fails unless everybody's clocks are right, and their vDSO's bytes the kernel's.
    pub(crate) fn over(&mut self, when: &str) -> Result {
        self.right(when)?;
        for clock in [&self.target, &self.bystander] {
            Image::check_own(clock.pid()).context(when)?;
        }
        Ok(())
    }
}

/// Whether `--clock` has it unless told otherwise.
pub(crate) fn is_default(source: Source) -> bool {
    matches!(source.shows(), Source::Realtime | Source::Tai)
}

/// Whether the C library asks the vDSO. A static one asks the kernel for these two.
pub(crate) fn asks_vdso(reading: &Reading) -> bool {
    let statically = cfg!(target_feature = "crt-static");
    match reading.way {
        Way::Vdso => true,
        Way::Libc => !(statically && matches!(reading.source, Source::Gettimeofday | Source::Time)),
        Way::Raw => false,
    }
}

pub(crate) fn are_right(readings: &[Reading], reference: Source) -> Result {
    readings.iter().try_for_each(|reading| expect(reading, reference, 0))
}

/// Of what the vDSO says; system calls differ from kernel to kernel.
pub(crate) fn are_skewed(readings: &[Reading], skew: i64) -> Result {
    readings.iter().filter(|reading| asks_vdso(reading)).try_for_each(|reading| {
        let skew = if is_default(reading.source) { skew } else { 0 };
        expect(reading, REFERENCE, skew)
    })
}

pub(crate) fn counts(event: &Event) -> Result<Counts> {
    Ok(Counts { matched: event.number("/rules/0/matched")?, fired: event.number("/rules/0/fired")? })
}

/// Ends it as a user would; what it has counted.
pub(crate) fn end(fault: &Faultline) -> Result<Counts> {
    let exit = fault.end()?;
    let counts = summed_up(&exit)?;
    ensure!(counts.fired > 0, "it has skewed nobody's clock: {exit:?}");
    Ok(counts)
}

pub(crate) fn summed_up(exit: &Exit) -> Result<Counts> {
    let counts = counts(exit.event("summary")?)?;
    ensure!(counts.fired <= counts.matched, "{counts:?}");
    Ok(counts)
}
