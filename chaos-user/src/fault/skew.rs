//! What a clock is wrong by at each moment.

use std::time::Duration;

use crate::spec::{Clock, Leap, Skew, Slope};

/// Nanoseconds of a second, and of a day.
const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

/// A stretch of time in which a clock is wrong by a straight line. All times are in nanoseconds since it began to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Since when.
    pub since: u64,
    /// By what, then.
    pub offset: i64,
    /// By how much more each second: see [`Slope`].
    pub slope: i64,
    /// Until when.
    pub until: u64,
}

impl Stretch {
    /// By what, at a moment within it.
    #[must_use]
    pub fn at(&self, elapsed: u64) -> i64 {
        self.offset.saturating_add(along(elapsed.saturating_sub(self.since), self.slope))
    }
}

/// What a slope comes to after a time.
#[must_use]
pub fn along(time: u64, slope: i64) -> i64 {
    ((i128::from(time) * i128::from(slope)) >> 32) as i64
}

/// What a clock is wrong by, from the moment it begins to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    skew: Skew,
    /// When the clock itself tells midnight, if there is a leap second.
    midnight: u64,
}

impl Course {
    /// The course of a clock which tells this, in nanoseconds since 1970, when it begins.
    #[must_use]
    pub fn new(skew: &Skew, clock: Clock, now: u64) -> Self {
        let mut skew = skew.clone();
        if clock != Clock::Realtime {
            skew.leap = None;
        }
        let told = now.saturating_add_signed(skew.offset.0);
        Self { skew, midnight: DAY - told % DAY }
    }

    /// Whether it changes its course.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.at(0).until != u64::MAX
    }

    /// The stretch that a moment lies in.
    #[must_use]
    pub fn at(&self, elapsed: u64) -> Stretch {
        let Skew { offset, slope, jump_every, strobe, leap } = &self.skew;
        let (offset, slope) = (offset.0, slope.0);
        if let Some(leap) = leap {
            return self.leaping(*leap, offset, elapsed);
        }
        let mut stretch = Stretch { since: 0, offset, slope, until: u64::MAX };
        if let Some(every) = jump_every {
            let every = nanoseconds(*every);
            let jumps = elapsed / every;
            let far = offset.saturating_mul(i64::try_from(jumps + 1).unwrap_or(i64::MAX));
            let since = jumps * every;
            stretch = Stretch {
                since,
                offset: far.saturating_add(along(since, slope)),
                slope,
                until: since.saturating_add(every),
            };
        }
        if let Some(strobe) = strobe {
            let (on, off) = (nanoseconds(strobe.on), nanoseconds(strobe.off));
            let begun = elapsed / (on + off) * (on + off);
            let is_on = elapsed - begun < on;
            let (from, to) = if is_on { (begun, begun + on) } else { (begun + on, begun + on + off) };
            let since = stretch.since.max(from);
            stretch = Stretch { since, offset: stretch.at(since), until: stretch.until.min(to), ..stretch };
            if !is_on {
                stretch = Stretch { since: from, offset: 0, slope: 0, until: to };
            }
        }
        stretch
    }

    fn leaping(&self, leap: Leap, offset: i64, elapsed: u64) -> Stretch {
        let midnight = self.midnight;
        let after = |since| Stretch { since, offset: offset - SECOND as i64, slope: 0, until: u64::MAX };
        match leap {
            Leap::Step if elapsed < midnight => Stretch { since: 0, offset, slope: 0, until: midnight },
            Leap::Step => after(midnight),
            Leap::Smear => {
                // From the noon before to the noon behind; a fault that begins in between has missed a part.
                let slope = -(Slope::ONE / (DAY / SECOND).cast_signed());
                let noon = midnight.checked_sub(DAY / 2);
                let end = midnight + DAY / 2;
                let missed = (DAY / 2).saturating_sub(midnight);
                match noon {
                    Some(noon) if elapsed < noon => Stretch { since: 0, offset, slope: 0, until: noon },
                    _ if elapsed < end => {
                        let offset = offset + along(missed, slope);
                        Stretch { since: noon.unwrap_or(0), offset, slope, until: end }
                    }
                    _ => after(end),
                }
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{Offset, Strobe};

    const S: u64 = SECOND;

    fn course(skew: Skew) -> Course {
        Course::new(&skew, Clock::Realtime, 100 * DAY + 86_390 * S)
    }

    fn skew(offset: i64, slope: i64) -> Skew {
        Skew { offset: Offset(offset * S as i64), slope: Slope(slope), ..Skew::default() }
    }

    fn at(course: &Course, seconds: u64) -> i64 {
        course.at(seconds * S).at(seconds * S) / S as i64
    }

    #[test]
    fn straight() {
        let course = course(skew(5, Slope::ONE));
        assert_eq!((at(&course, 0), at(&course, 10), course.changes()), (5, 15, false));
        assert_eq!(at(&Course::new(&skew(0, Slope::STILL.0), Clock::Monotonic, 0), 7), -7);
    }

    #[test]
    fn jumps_and_turns() {
        let jumps = course(Skew { jump_every: Some(Duration::from_secs(10)), ..skew(60, 0) });
        assert_eq!([0, 9, 10, 25].map(|s| at(&jumps, s)), [60, 60, 120, 180]);
        let strobe = Strobe { on: Duration::from_secs(2), off: Duration::from_secs(3) };
        let turns = course(Skew { strobe: Some(strobe), ..skew(60, 0) });
        assert_eq!([0, 1, 2, 4, 5, 6, 7].map(|s| at(&turns, s)), [60, 60, 0, 0, 60, 60, 0]);
        assert!(turns.changes());
        let strobe = Strobe { on: Duration::from_secs(5), off: Duration::from_secs(5) };
        let both =
            course(Skew { strobe: Some(strobe), jump_every: Some(Duration::from_secs(3)), ..skew(60, 0) });
        assert_eq!([0, 3, 5, 10, 12].map(|s| at(&both, s)), [60, 120, 0, 240, 300]);
    }

    /// The clock tells ten seconds to midnight when it begins.
    #[test]
    fn leaps() {
        let step = course(Skew { leap: Some(Leap::Step), ..Skew::default() });
        assert_eq!([0, 9, 10, 100_000].map(|s| at(&step, s)), [0, 0, -1, -1]);
        let smear = course(Skew { leap: Some(Leap::Smear), ..Skew::default() });
        let parts = [0, 10, 43_210].map(|s: u64| smear.at(s * S).at(s * S) as f64 / 1e9);
        assert!((parts[0] + 0.499_88).abs() < 1e-4 && (parts[1] + 0.5).abs() < 1e-4, "{parts:?}");
        assert!((parts[2] + 1.0).abs() < 1e-4, "{parts:?}");
        let noon =
            Course::new(&Skew { leap: Some(Leap::Smear), ..Skew::default() }, Clock::Realtime, 100 * DAY);
        assert_eq!([0, 43_200 * S].map(|e| noon.at(e).since), [0, 43_200 * S]);
        // Other clocks know of no leap seconds.
        assert_eq!(
            at(&Course::new(&Skew { leap: Some(Leap::Step), ..Skew::default() }, Clock::Tai, 0), 90_000),
            0
        );
    }

    proptest! {
        /// A moment lies in its stretch, and so do the stretch's ends.
        #[test]
        fn stretches_cover_time(elapsed in 0..1_000 * S, on in 1u64..20, off in 1u64..20, every in 1u64..20) {
            let strobe = Strobe { on: Duration::from_secs(on), off: Duration::from_secs(off) };
            let jump_every = Some(Duration::from_secs(every));
            for skew in [
                Skew { strobe: Some(strobe), ..skew(3, 5) },
                Skew { jump_every, ..skew(3, 5) },
                Skew { jump_every, strobe: Some(strobe), ..skew(3, 5) },
                Skew { leap: Some(Leap::Step), ..skew(3, 0) },
            ] {
                let course = course(skew);
                let stretch = course.at(elapsed);
                prop_assert!(stretch.since <= elapsed && elapsed < stretch.until);
                prop_assert_eq!(course.at(stretch.since), stretch);
                prop_assert_eq!(course.at(stretch.until - 1), stretch);
                prop_assert!(stretch.until == u64::MAX || course.at(stretch.until) != stretch);
            }
        }
    }
}
