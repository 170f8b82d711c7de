//! The faults of all owners, as anyone can see them.

use std::time::Duration;

use chaos_ebpf::abi::Control;
use serde::Serialize;

use super::{Begun, HookRecord, Record};
use crate::kernel::{
    change::Change,
    clock::{self, Ticks},
    counters::Counters,
    throttle,
};

/// Where in its life a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its owner is attaching it.
    Preparing,
    /// Attached, and does nothing yet, or no longer.
    Disarmed,
    /// It acts.
    Armed,
    /// Its owner does not renew the lease; it does nothing.
    Lapsed,
    /// Its time is over; it does nothing.
    Elapsed,
}

/// A fault whose owner lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    /// Its id.
    pub id: String,
    /// Where in its life it is.
    pub state: State,
    /// Its owner's number here; nothing if it is not seen from this pid namespace.
    pub pid: Option<i32>,
    /// Whose, where and what.
    pub begun: Begun,
    /// The hooks in use.
    pub hooks: Vec<HookRecord>,
    /// What has been counted, if it is attached.
    pub counters: Option<Counters>,
    /// Time left, if its end is known.
    pub remaining: Option<Duration>,
}

impl Live {
    /// Looks at what a record speaks of; nothing if its owner is gone.
    #[must_use]
    pub fn look(record: &Record) -> Option<Self> {
        if !record.alive {
            return None;
        }
        let begun = record.begun().clone();
        let now = clock::monotonic();
        let remaining = record.until().map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let (hooks, maps) = record.prepared().unzip();
        let (state, counters) = match maps {
            None => (State::Preparing, None),
            Some(None) => limited(record),
            // The maps go with their owner: one that ends just now has nothing to be counted any more.
            Some(Some(maps)) => {
                let (control, counters) = maps.read(begun.rules.len() as u32).ok().unzip();
                let tick = Ticks::read().map_or(0, |ticks| ticks.at(now));
                let state = control.map_or(State::Preparing, |control| state(control, tick, remaining));
                (state, counters)
            }
        };
        let hooks = hooks.unwrap_or_default().to_vec();
        Some(Self { id: record.id.clone(), state, pid: record.owner(), begun, hooks, counters, remaining })
    }
}

/// Of a run that has only changed what others have made: it acts as long as that is changed.
fn limited(record: &Record) -> (State, Option<Counters>) {
    let changes = record.changes();
    let throttles: Vec<_> = changes.iter().filter_map(Change::throttle).cloned().collect();
    let is_set = throttles.iter().any(|throttle| throttle.is_set().is_ok_and(|set| set));
    let before = record.counted();
    let now: Option<Vec<_>> = throttles.iter().map(|throttle| throttle.tally().ok().flatten()).collect();
    let counters = now.filter(|_| before.len() == throttles.len());
    let counters = counters.map(|now| throttle::counters(&throttles, before, &now));
    (if is_set { State::Armed } else { State::Disarmed }, counters)
}

/// By the control block at this tick.
fn state(control: Control, tick: u64, remaining: Option<Duration>) -> State {
    match control.lease_until {
        0 => State::Disarmed,
        _ if remaining.is_some_and(|remaining| remaining.is_zero()) => State::Elapsed,
        until if until <= tick => State::Lapsed,
        _ => State::Armed,
    }
}

/// All faults whose owners live.
///
/// # Errors
///
/// If the journal cannot be read.
pub fn live() -> Result<Vec<Live>, super::JournalError> {
    Ok(Record::all()?.understood.iter().filter_map(Live::look).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let until = |lease_until| Control { epoch: 1, not_before: 0, lease_until };
        assert_eq!(state(until(0), 5, None), State::Disarmed);
        assert_eq!(state(until(9), 5, None), State::Armed);
        assert_eq!(state(until(5), 5, None), State::Lapsed);
        assert_eq!(state(until(9), 5, Some(Duration::ZERO)), State::Elapsed);
    }
}
