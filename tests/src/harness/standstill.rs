//! Whether the machine stood still during a test, so that what the test measured says nothing.
//!
//! An emulated machine does whenever its host runs something else, and one of its CPUs does for up to 100 ms whenever
//! QEMU, which has one thread for all of them, emulates another.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often it is looked at.
const TICK: Duration = Duration::from_millis(10);

/// What measures microseconds and milliseconds can fail for it.
pub(super) const LONG: Duration = Duration::from_millis(5);

/// Looks at the clock until it is told to end.
#[derive(Debug)]
pub(super) struct Watch {
    end: Sender<()>,
    thread: JoinHandle<Duration>,
}

impl Watch {
    /// Begins to look.
    pub(super) fn begin() -> Self {
        let (end, ended) = mpsc::channel();
        // From here on, and without a gap: a thread that begins late, or is told to end once all go on, has seen it too.
        let mut before = Instant::now();
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            loop {
                let end = ended.recv_timeout(TICK);
                let now = Instant::now();
                longest = longest.max((now - before).saturating_sub(TICK));
                before = now;
                if end != Err(RecvTimeoutError::Timeout) {
                    return longest;
                }
            }
        });
        Self { end, thread }
    }

    /// For how long the machine did nothing, at the longest.
    pub(super) fn end(self) -> Duration {
        // It is gone only if it panicked.
        let _ = self.end.send(());
        self.thread.join().unwrap_or_default()
    }
}
