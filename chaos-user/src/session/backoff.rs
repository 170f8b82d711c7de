//! How soon something is tried again that has failed, and may not fail for ever.

use std::time::{Duration, Instant};

/// The first time.
const FIRST: Duration = Duration::from_millis(200);
/// At last.
const MOST: Duration = Duration::from_secs(30);

/// When it is tried again: each time after twice as long, for whoever is tried is kept from its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pause: Duration,
    due: Instant,
}

impl Backoff {
    /// It has failed now, and had before if there is a `last` one.
    pub(super) fn after(last: Option<Self>, now: Instant) -> Self {
        let pause = last.map_or(FIRST, |last| MOST.min(last.pause * 2));
        Self { pause, due: now + pause }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_get_longer_up_to_an_end() {
        let mut now = Instant::now();
        let (mut last, mut pauses) = (None, Vec::new());
        for _ in 0..10 {
            let next = Backoff::after(last, now);
            assert!(!next.is_due(now), "at once");
            let pause = next.due - now;
            assert!(!next.is_due(now + pause - Duration::from_nanos(1)));
            assert!(next.is_due(now + pause) && next.is_due(now + 2 * pause));
            pauses.push(pause.as_millis());
            // That it comes late changes nothing.
            now += pause + Duration::from_millis(70);
            last = Some(next);
        }
        assert_eq!(pauses, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
    }
}
