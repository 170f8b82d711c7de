//! The lease: the programs act only as long as their owner keeps saying so.

use std::time::Duration;

use chaos_ebpf::abi::Control;

use super::Run;
use crate::kernel::{
    self,
    clock::{self, Ticks},
};

/// How long the programs go on after the owner's last word.
pub const LEASE: Duration = Duration::from_secs(3);

/// How often the owner renews it.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// The owner was not there in time: it was stopped, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lapsed {
    /// How long the owner was away.
    pub away: Duration,
}

/// The owner's hold on the lease.
#[derive(Debug)]
pub(super) struct Lease {
    control: Control,
    renewed: Renewed,
    ticks: Ticks,
}

/// When the lease was last renewed, by both clocks.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    monotonic: u64,
    /// Goes on while the machine sleeps; `CLOCK_MONOTONIC`, which the programs know, does not.
    boottime: u64,
}

impl Renewed {
    /// When the lease lapses, `CLOCK_MONOTONIC` nanoseconds.
    fn until(self) -> u64 {
        self.monotonic.saturating_add(LEASE.as_nanos() as u64)
    }

    fn away(self, monotonic: u64, boottime: u64) -> Duration {
        let awake = monotonic.saturating_sub(self.monotonic);
        Duration::from_nanos(awake.max(boottime.saturating_sub(self.boottime)))
    }
}

impl Lease {
    /// Arms the programs.
    pub(super) fn begin(run: &mut dyn Run, ticks: Ticks, now: u64) -> kernel::Result<Self> {
        let renewed = Renewed { monotonic: now, boottime: clock::boottime() };
        let control = Control { epoch: 1, not_before: ticks.at(now), lease_until: ticks.at(renewed.until()) };
        run.set_control(control)?;
        Ok(Self { control, renewed, ticks })
    }

    /// Whether the owner was away for too long.
    pub(super) fn lapsed(&self) -> Result<(), Lapsed> {
        self.check().map(|_| ())
    }

    fn check(&self) -> Result<Renewed, Lapsed> {
        let now = Renewed { monotonic: clock::monotonic(), boottime: clock::boottime() };
        let away = self.renewed.away(now.monotonic, now.boottime);
        if away >= LEASE { Err(Lapsed { away }) } else { Ok(now) }
    }

    /// Renews it, unless it has lapsed: what has ended does not begin again.
    ///
    /// The new end is counted from before the check, so an owner that is stopped right here writes an end
    /// that has passed when it goes on.
    pub(super) fn renew(&mut self, run: &mut dyn Run) -> kernel::Result<Result<(), Lapsed>> {
        match self.check() {
            Err(lapsed) => return Ok(Err(lapsed)),
            Ok(now) => self.renewed = now,
        }
        self.control.epoch += 1;
        self.control.lease_until = self.ticks.at(self.renewed.until());
        run.set_control(self.control)?;
        Ok(Ok(()))
    }

    /// Disarms the programs.
    pub(super) fn end(self, run: &mut dyn Run) -> kernel::Result<()> {
        run.set_control(Control { epoch: self.control.epoch + 1, not_before: 0, lease_until: 0 })
    }

    /// When the programs stop unless it is renewed, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn until(&self) -> u64 {
        self.renewed.until()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_counts_as_away() {
        let renewed = Renewed { monotonic: 5_000_000_000, boottime: 9_000_000_000 };
        assert_eq!(renewed.away(6_000_000_000, 10_000_000_000), Duration::from_secs(1));
        assert_eq!(renewed.away(6_000_000_000, 70_000_000_000), Duration::from_secs(61));
        assert_eq!(renewed.away(9_000_000_000, 9_000_000_000), Duration::from_secs(4));
    }
}
