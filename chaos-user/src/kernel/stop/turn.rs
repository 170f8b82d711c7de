//! One thread of this process at a time sees to another process.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use super::StopError;

/// Those to whom one does.
#[derive(Debug)]
pub(super) struct Turns {
    taken: Mutex<BTreeSet<u32>>,
    ended: Condvar,
}

/// That of a process, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(&'static Turns, u32);

impl Turns {
    pub(super) const fn new() -> Self {
        Self { taken: Mutex::new(BTreeSet::new()), ended: Condvar::new() }
    }

    /// Waits for that of a process.
    ///
    /// # Errors
    ///
    /// [`StopError::Stuck`] if another has it for longer than this.
    pub(super) fn take(&'static self, process: u32, patience: Duration) -> Result<Turn, StopError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(taken, patience, |taken| !taken.insert(process));
        let (_taken, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() {
            Err(StopError::Stuck(process.cast_signed()))
        } else {
            Ok(Turn(self, process))
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Self(turns, process) = self;
        turns.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(process);
        turns.ended.notify_all();
    }
}
