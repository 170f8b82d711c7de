//! What an owner does while its fault is armed: renew the lease, report, and notice what ends it.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use super::{Armed, Entry, Lapsed, RENEWAL, RunReport, SessionError};
use crate::{
    kernel::{
        self, clock,
        signals::{Asked, News, Signals},
    },
    target::{Names, Target},
};

/// How soon a vanished interface is noticed.
const LOOK: Duration = Duration::from_millis(200);

/// How often what changes is written.
const STEP: Duration = Duration::from_millis(20);

/// Why a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its time was over.
    Elapsed,
    /// Somebody asked for it.
    Signal(Asked),
    /// The owner was away for longer than the lease.
    Lapsed(Lapsed),
    /// The interface is gone.
    DeviceGone,
    /// The interface is in another network namespace.
    DeviceMoved,
    /// The block device is gone.
    DiskGone,
    /// Somebody else has changed what it had set.
    Overruled,
    /// All that was aimed at is gone.
    TargetGone,
    /// The program that was started under it has ended.
    CommandEnded,
    /// Nobody reads what it prints.
    Unheard,
}

impl From<News> for Ending {
    fn from(news: News) -> Self {
        match news {
            News::Signal(asked) => Self::Signal(asked),
            News::Gone => Self::Unheard,
        }
    }
}

/// Told of what happens. Whoever is told must not wait: the lease is renewed by the same thread.
pub trait Observer {
    /// The counts, every second.
    fn progress(&mut self, armed: &Armed, report: &RunReport);

    /// Somebody asks it to end, once more perhaps.
    fn asked(&mut self, asked: Asked);

    /// It has ended but for what has to become right by and by, which takes about this long.
    fn settling(&mut self, time: Duration);

    /// Where it tells; the fault ends when nobody reads there any more.
    fn output(&self) -> BorrowedFd<'_>;

    /// Whether nobody does, as far as was found by writing there.
    fn is_unheard(&self) -> bool;
}

/// Keeps a fault alive until something ends it.
///
/// # Errors
///
/// [`SessionError`] if the lease cannot be renewed.
pub fn watch(
    armed: &mut Armed,
    signals: &Signals,
    names: Option<&Names>,
    observer: &mut dyn Observer,
) -> Result<Ending, SessionError> {
    let mut renewal = Instant::now() + RENEWAL;
    armed.prepared.run.prod()?;
    let mut heard = true;
    // What has ended it, while all becomes right.
    let mut settling = None;
    loop {
        let wait =
            armed.until_next(settling.is_some()).min(renewal.saturating_duration_since(Instant::now()));
        let output = heard.then(|| observer.output());
        let ending = match signals.wait(output, wait)?.map(Ending::from) {
            Some(ending) => Some(ending),
            None if heard && observer.is_unheard() => Some(Ending::Unheard),
            None if settling.is_some() => armed.lost()?,
            None => armed.ending()?,
        };
        if let Some(Ending::Signal(asked)) = ending {
            observer.asked(asked);
        }
        heard &= ending != Some(Ending::Unheard);
        match (ending, settling) {
            (Some(ending @ (Ending::Elapsed | Ending::Signal(_) | Ending::Unheard)), None) => {
                let Some(time) = armed.settle() else { return Ok(ending) };
                observer.settling(time);
                settling = Some(ending);
            }
            // Whoever asks twice does not want to wait, and there may be nobody left.
            (Some(Ending::Signal(_) | Ending::TargetGone), Some(ending)) => return Ok(ending),
            (Some(ending), _) if ending != Ending::Unheard => return Ok(ending),
            (_, Some(ending)) if armed.prepared.run.is_settled() => return Ok(ending),
            _ => {}
        }
        armed.prepared.run.forget_the_dead()?;
        if armed.prepared.run.is_ramped() {
            armed.ramp()?;
        }
        for (name, addresses) in names.into_iter().flat_map(Names::news) {
            armed.prepared.run.learn(&name, &addresses)?;
        }
        if Instant::now() >= renewal {
            renewal = Instant::now() + RENEWAL;
            if let Err(lapsed) = armed.lease.renew(&mut *armed.prepared.run)? {
                return Ok(Ending::Lapsed(lapsed));
            }
            armed.prepared.run.prod()?;
            // What cannot be read now is only not shown now.
            if let Ok(report) = armed.counts() {
                observer.progress(armed, &report);
            }
        }
    }
}

impl Armed {
    /// How long there is nothing to be looked for.
    fn until_next(&self, is_settling: bool) -> Duration {
        let look = if self.prepared.run.is_ramped() { STEP } else { LOOK };
        let left = self.time().1.filter(|_| !is_settling);
        left.map_or(look, |left| left.min(look))
    }

    /// Begins to become right, and says how long that takes at about; nothing if it is at once.
    fn settle(&mut self) -> Option<Duration> {
        let time = self.prepared.run.settle()?;
        // Should it not be written, whoever asks this run to end has less patience with it.
        let _ = self.prepared.journal.append(&Entry::Settling { for_ns: time.as_nanos() as u64 });
        Some(time)
    }

    /// What has ended the fault, if anything has.
    fn ending(&self) -> kernel::Result<Option<Ending>> {
        // A fault whose time was over before its lease was has run as asked, though its owner was away.
        let until = self.until.filter(|until| *until <= self.lease.until());
        if until.is_some_and(|until| until <= clock::monotonic()) {
            return Ok(Some(Ending::Elapsed));
        }
        self.lost()
    }

    /// What has ended it other than its time, if anything has.
    fn lost(&self) -> kernel::Result<Option<Ending>> {
        if let Err(lapsed) = self.lease.lapsed() {
            return Ok(Some(Ending::Lapsed(lapsed)));
        }
        let targets = self.prepared.run.targets();
        if !targets.is_empty() && !targets.iter().any(Target::exists) {
            return Ok(Some(Ending::TargetGone));
        }
        self.prepared.run.ending()
    }
}
