//! Straight lines that wrong clocks go along, as the stubs in the vDSO and the programs in the kernel are given them.

use chaos_ebpf::time::{Block, MARGIN, SLOTS, SlotLine};

use super::skew::{Course, along};
use crate::spec::{Clock, Skew, Slope};

/// What all clocks tell at about one moment, in nanoseconds, in the order of [`Clock::ALL`].
pub type Readings = [u64; SLOTS];

/// What a clock is wrong by: straight up to a reading of its own, and straight from there on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    /// The reading.
    base: u64,
    /// By how much there.
    offset: i64,
    /// By how much more for each nanosecond up to it, as a fraction of 2^32.
    before: i64,
    /// And behind it.
    slope: i64,
}

/// How long before it comes a change of a clock is written that must not jump: whoever reads the clock before that is
/// written reads the same as those who read it after. A process whose threads wait for each other in the kernel's
/// accounts of its memory can hold a writing up for as long as all of them have their turn.
const LEAD: u64 = 100_000_000;

/// Further from where a line was said last than it is ever left unsaid.
const FAR: u64 = 10_000_000_000;

/// A monotonic clock that is to be right again goes half as fast as time if it is ahead, and twice as fast if it is behind;
/// slower and slower when it is this close.
const CLOSE: u64 = 100_000_000;
/// About how long that takes, in nanoseconds.
const SLOWLY: u64 = 3_000_000_000;
/// This close, behind, it is right.
const RIGHT: i64 = 200_000;

impl Line {
    fn at(self, value: u64) -> i64 {
        let gained = match value.checked_sub(self.base) {
            Some(run) => along(run, self.slope),
            None => along(self.base - value, self.before.saturating_neg()),
        };
        self.offset.saturating_add(gained)
    }

    /// The same line, said from a later reading on. A fraction is rounded up, so that no reading is before another.
    fn from(self, value: u64) -> Self {
        if value <= self.base {
            return self;
        }
        let past = i128::from(value - self.base) * i128::from(self.slope);
        let rounded = i64::from(past & i128::from(u32::MAX) != 0);
        let offset = self.at(value).saturating_add(rounded);
        Self { base: value, offset, before: self.slope, slope: self.slope }
    }

    /// The same up to a little later, and from there on of this slope; from now on ahead of it if that is wanted.
    fn bent(self, value: u64, offset: i64, slope: i64) -> Self {
        let base = value + LEAD;
        // Rounded up, as above.
        let along = self.at(base).saturating_add(1);
        Self { base, offset: offset.max(along), before: self.slope, slope }
    }

    /// Whether it is bent later than this.
    fn is_bent_after(self, value: u64) -> bool {
        value < self.base && self.before != self.slope
    }
}

/// One clock's way.
#[derive(Clone, Debug)]
struct Way {
    course: Course,
    keeps_order: bool,
    line: Line,
    /// The stretch that the line is of, by when it begins.
    since: Option<u64>,
    settled: bool,
}

/// The ways of all clocks that are wrong.
#[derive(Clone, Debug)]
pub struct Lines {
    ways: [Option<Way>; SLOTS],
    settling: bool,
}

impl Lines {
    /// The ways of these clocks from now on.
    #[must_use]
    pub fn new(skew: &Skew, clocks: &[Clock], allow_backwards: bool, now: &Readings) -> Self {
        let way = |clock: Clock, now: u64| Way {
            course: Course::new(skew, clock, now),
            keeps_order: clock.is_monotonic() && !allow_backwards,
            line: Line::default(),
            since: None,
            settled: false,
        };
        let mut ways = [const { None }; SLOTS];
        for ((to, clock), now) in ways.iter_mut().zip(Clock::ALL).zip(now) {
            *to = clocks.contains(&clock).then(|| way(clock, *now));
        }
        Self { ways, settling: false }
    }

    /// Whether one of them must not go back, however late it is written that it is to be right.
    #[must_use]
    pub fn keep_order(&self) -> bool {
        self.ways.iter().flatten().any(|way| way.keeps_order)
    }

    /// Whether clocks are becoming right.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    /// Whether a clock changes its way by itself.
    #[must_use]
    pub fn change(&self) -> bool {
        self.settling || self.ways.iter().flatten().any(|way| way.course.changes())
    }

    /// Whether a clock that must not jump has been told of a change that is still to come.
    #[must_use]
    pub fn bend(&self, now: &Readings) -> bool {
        let bends = |(way, now): (&Option<Way>, &u64)| {
            way.as_ref().is_some_and(|way| way.keeps_order && way.line.is_bent_after(*now))
        };
        self.ways.iter().zip(now).any(bends)
    }

    /// Goes on to what the clocks tell now, that many nanoseconds after they began to be wrong.
    pub fn go_on(&mut self, now: &Readings, elapsed: u64) {
        for (way, now) in self.ways.iter_mut().zip(now) {
            let Some(way) = way else { continue };
            if self.settling { way.settle(*now) } else { way.follow(*now, elapsed) }
        }
    }

    /// Has clocks that must not go back be right by and by, and all others at once. For how long, in nanoseconds, at about;
    /// nothing if all are right.
    pub fn settle(&mut self, now: &Readings) -> Option<u64> {
        self.settling = true;
        let mut longest = None;
        for (way, now) in self.ways.iter_mut().zip(now) {
            *way = way.take().filter(|way| way.keeps_order && way.line.at(*now) != 0);
            let Some(way) = way else { continue };
            let wrong = way.line.at(*now);
            let fastest = if wrong > 0 { 2 } else { 1 };
            longest = longest.max(Some(wrong.unsigned_abs().saturating_mul(fastest).saturating_add(SLOWLY)));
        }
        longest
    }

    /// Whether all clocks that were to be right by and by are.
    #[must_use]
    pub fn are_settled(&self) -> bool {
        self.settling && self.ways.iter().flatten().all(|way| way.settled)
    }

    /// What the stubs and the programs are given, for a window of so many nanoseconds from the readings on that were last
    /// gone on to.
    #[must_use]
    pub fn block(&self, window: u64) -> Block {
        let slot = |way: &Option<Way>| match way {
            Some(way) if !way.settled => {
                let Line { base, offset, before, slope } = way.line;
                SlotLine { start: base.wrapping_sub(MARGIN), offset, slope, before }
            }
            _ => SlotLine::RIGHT,
        };
        let mut slots = [SlotLine::RIGHT; SLOTS];
        slots.iter_mut().zip(&self.ways).for_each(|(to, way)| *to = slot(way));
        Block { window: window.saturating_add(MARGIN), slots }
    }
}

impl Way {
    fn follow(&mut self, now: u64, elapsed: u64) {
        let stretch = self.course.at(elapsed);
        // Somebody has set the host's clock.
        let is_set = !self.keeps_order && (now < self.line.base || now - self.line.base > FAR);
        let is_same = self.since == Some(stretch.since) && !is_set;
        if is_same || self.keeps_order && self.line.is_bent_after(now) {
            self.line = self.line.from(now);
            return;
        }
        self.since = Some(stretch.since);
        self.line = if self.keeps_order {
            self.line.bent(now, stretch.at(elapsed), stretch.slope)
        } else {
            Line { base: now, offset: stretch.at(elapsed), before: 0, slope: stretch.slope }
        };
    }

    fn settle(&mut self, now: u64) {
        let wrong = self.line.at(now);
        // Ahead it has to arrive, or it would go back at last; behind it is close enough a little before.
        if self.settled || wrong <= 0 && wrong > -RIGHT {
            self.settled = true;
            return;
        }
        if self.line.is_bent_after(now) {
            return;
        }
        // Half as fast each time that half of the way is gone.
        let halves = (CLOSE / wrong.unsigned_abs().max(1)).checked_ilog2().map_or(0, |halves| halves + 1);
        let fastest = if wrong > 0 { -Slope::ONE / 2 } else { Slope::ONE };
        let slope = fastest >> halves.min(10);
        self.line =
            if slope == self.line.slope { self.line.from(now) } else { self.line.bent(now, i64::MIN, slope) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{Offset, Strobe};

    const S: u64 = 1_000_000_000;
    const START: u64 = 1_000_000 * S;
    const MONOTONIC: usize = 2;

    fn lines(offset: i64, slope: i64, clock: Clock) -> Lines {
        let skew = Skew { offset: Offset(offset), slope: Slope(slope), ..Skew::default() };
        Lines::new(&skew, &[clock], false, &[START; SLOTS])
    }

    fn told(lines: &Lines, slot: usize, value: u64) -> u64 {
        lines.block(3 * S).skewed(slot, value)
    }

    #[test]
    fn a_window_and_no_more() {
        let mut lines = lines(7, 0, Clock::Realtime);
        lines.go_on(&[START; SLOTS], 0);
        assert_eq!([0, 3 * S - 1, 3 * S].map(|e| told(&lines, 0, START + e) - START - e), [7, 7, 0]);
        assert_eq!(told(&lines, 1, START), START);
    }

    /// Read just before and just behind each writing, as others do meanwhile.
    fn in_order(lines: &mut Lines, steps: impl Iterator<Item = u64>, settles: bool) -> u64 {
        let (mut last, mut now) = (0, START);
        for step in steps {
            now += step;
            let before = told(lines, MONOTONIC, now);
            assert!(before >= last, "{} ns back", last - before);
            lines.go_on(&[now; SLOTS], now - START);
            // Written half a millisecond later.
            let late = now + 500_000;
            let after = told(lines, MONOTONIC, late);
            assert!(after >= before, "{} ns back by what was written", before - after);
            last = after;
            if settles && lines.are_settled() {
                return now;
            }
        }
        assert!(!settles, "it does not settle");
        now
    }

    #[test]
    fn what_was_ahead_settles() {
        for slope in [Slope::ONE, -Slope::ONE / 2, Slope::STILL.0] {
            let mut lines = lines(0, slope, Clock::Monotonic);
            lines.go_on(&[START; SLOTS], 0);
            let end = in_order(&mut lines, std::iter::repeat_n(S, 20), false);
            let wrong = told(&lines, MONOTONIC, end) as i64 - end as i64;
            let ideal = ((20 * i128::from(S) * i128::from(slope)) >> 32) as i64;
            assert!((wrong - ideal).abs() < 101_000_000, "{wrong} is not {ideal}");
            assert!(lines.settle(&[end; SLOTS]).is_some());
            let mut at = end;
            for _ in 0..10_000 {
                at += 20_000_000;
                let before = told(&lines, MONOTONIC, at + 500_000);
                lines.go_on(&[at; SLOTS], 0);
                let after = told(&lines, MONOTONIC, at + 500_000);
                // However late it is written, it is what it was, but for the last that is missing.
                assert!((0..RIGHT).contains(&(after as i64 - before as i64)), "{before} {after}");
                if lines.are_settled() {
                    break;
                }
            }
            assert!(lines.are_settled() && told(&lines, MONOTONIC, at) == at);
            assert!(at - end < 70 * S, "{} s", (at - end) / S);
        }
    }

    #[test]
    fn what_may_go_back_is_right_at_once() {
        let mut lines = lines(5, 9, Clock::Realtime);
        lines.go_on(&[START; SLOTS], 0);
        assert_eq!(lines.settle(&[START + S; SLOTS]), None);
        assert!(lines.are_settled() && told(&lines, 0, START + S) == START + S);
    }

    /// However far, and whichever way.
    #[test]
    fn a_host_s_clock_that_is_set_is_followed() {
        let mut lines = lines(60, Slope::ONE, Clock::Realtime);
        lines.go_on(&[START; SLOTS], 0);
        for (now, second) in [(START - 3_600 * S, 1), (START + 3_600 * S, 2), (START + 3_595 * S, 3)] {
            lines.go_on(&[now; SLOTS], second * S);
            assert_eq!(told(&lines, 0, now) - now, 60 + second * S);
        }
    }

    proptest! {
        #[test]
        fn monotonic_clocks_never_go_back(
            slope in -Slope::ONE..20 * Slope::ONE,
            offset in 0i64..1_000_000_000,
            steps in prop::collection::vec(20_000_000u64..S, 1..50),
        ) {
            let mut lines = lines(offset, slope, Clock::Monotonic);
            lines.go_on(&[START; SLOTS], 0);
            in_order(&mut lines, steps.into_iter(), false);
        }

        /// However often a line is said anew, it stays the same to within a nanosecond a time.
        #[test]
        fn lines_stay(slope in -Slope::ONE..20 * Slope::ONE, steps in prop::collection::vec(1u64..3 * S, 1..50)) {
            let mut line = Line { base: START, offset: 0, before: 0, slope };
            let first = line;
            let mut now = START;
            for (count, step) in (1..).zip(steps) {
                now += step;
                line = line.from(now);
                prop_assert!((0..=count).contains(&(line.at(now) - first.at(now))));
            }
        }
    }

    #[test]
    fn strobes_are_followed() {
        let strobe = Strobe { on: std::time::Duration::from_secs(1), off: std::time::Duration::from_secs(1) };
        let skew = Skew { offset: Offset(60), strobe: Some(strobe), ..Skew::default() };
        let mut lines = Lines::new(&skew, &[Clock::Realtime], false, &[START; SLOTS]);
        assert!(lines.change());
        for (second, wrong) in [(0, 60), (1, 0), (2, 60)] {
            let now = START + second * S;
            lines.go_on(&[now; SLOTS], second * S);
            assert_eq!(told(&lines, 0, now) - now, wrong);
        }
    }
}
