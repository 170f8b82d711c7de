//! Threads that read clocks as fast as they can, and keep account of what those say.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicI64, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
};

use faultline_tests::{
    clocks::{Source, Watched, Way},
    ensure,
    error::{Context, Failure, Result},
};

/// How far from what it should be a reading may be: a clock may be a little away after a while.
const NEAR: i64 = 20_000_000;
/// Readings that took longer say nothing of where a clock was.
const SLOW: i64 = 10_000_000;
/// Those that must not go back, whoever looks.
const STEADY: [Source; 3] = [Source::Monotonic, Source::Boottime, Source::MonotonicRaw];
/// What is compared with `CLOCK_REALTIME`.
const REALTIME: [Source; 3] = [Source::Realtime, Source::Gettimeofday, Source::Time];
/// The reference, which must not be skewed meanwhile.
const REFERENCE: Source = Source::MonotonicRaw;

#[derive(Debug, Default)]
struct Board {
    ended: AtomicBool,
    /// How far the right time is ahead of the reference.
    ahead: AtomicI64,
    skew: AtomicI64,
    /// The latest that anybody has seen.
    latest: [AtomicI64; STEADY.len()],
    /// When somebody last went round.
    last: AtomicI64,
    rounds: AtomicU64,
    right: AtomicU64,
    skewed: AtomicU64,
    absurd: AtomicU64,
    absurdity: AtomicI64,
    backwards: AtomicU64,
    furthest_back: AtomicI64,
    last_skewed: AtomicI64,
    last_right: AtomicI64,
    longest_gap: AtomicI64,
}

/// Those that look, and what they have seen.
type Running = (&'static Board, Vec<JoinHandle<Option<()>>>);

static BOARD: Mutex<Option<Running>> = Mutex::new(None);

pub(super) fn start(threads: usize, skew: i64) -> Result<Watched> {
    let mut running = BOARD.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(running.is_none(), "threads watch already");
    // As long as the process lives, which is not long.
    let board: &'static Board = Box::leak(Box::default());
    let truth = Source::Realtime.reading(Way::Vdso, REFERENCE).context("no vDSO")?;
    board.ahead.store(truth.ahead(), SeqCst);
    board.skew.store(skew, SeqCst);
    board.last.store(truth.after, SeqCst);
    let handles = (0..threads).map(|_| thread::Builder::new().spawn(move || go_round(board)));
    let handles = handles.collect::<std::io::Result<Vec<_>>>().context("a thread")?;
    *running = Some((board, handles));
    Ok(board.watched())
}

pub(super) fn seen() -> Watched {
    let running = BOARD.lock().unwrap_or_else(PoisonError::into_inner);
    running.as_ref().map(|(board, _)| board.watched()).unwrap_or_default()
}

pub(super) fn halt() -> Watched {
    let running = BOARD.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((board, threads)) = running else { return Watched::default() };
    board.ended.store(true, SeqCst);
    for thread in threads {
        let ended = thread.join().map_err(|_| Failure::new("it panicked"));
        if !matches!(ended, Ok(Some(()))) {
            board.absurd.fetch_add(1, SeqCst);
        }
    }
    board.watched()
}

/// Until it is told to end; nothing if a clock cannot be read.
fn go_round(board: &Board) -> Option<()> {
    let mut vdso = false;
    while !board.ended.load(Relaxed) {
        // The C library may have kept another way in.
        vdso = !vdso;
        let way = if vdso { Way::Vdso } else { Way::Libc };
        for (source, latest) in STEADY.into_iter().zip(&board.latest) {
            let before = latest.load(SeqCst);
            let now = source.read(way)?;
            latest.fetch_max(now, SeqCst);
            if now < before {
                board.backwards.fetch_add(1, Relaxed);
                board.furthest_back.fetch_max(before - now, Relaxed);
            }
        }
        for source in REALTIME {
            // A static C library asks the kernel for some of these, which says what is right; that is not looked at here.
            let way = if source == Source::Realtime { way } else { Way::Vdso };
            let late = if source == Source::Time { since_tick()? } else { 0 };
            board.compare(source, source.first_reading(way, REFERENCE)?, late);
        }
        board.rounds.fetch_add(1, Relaxed);
    }
    Some(())
}

/// How long ago the kernel last kept the time, of which `time` tells the seconds: a machine that stands still has it do so late.
fn since_tick() -> Option<i64> {
    let tick = Source::RealtimeCoarse.read(Way::Raw)?;
    let now = Source::Realtime.read(Way::Raw)?;
    // What is rewritten between the two is no time.
    Some((now - tick).clamp(0, 1_000_000_000))
}

impl Board {
    /// A reading that was no more behind than it may be and this much.
    fn compare(&self, source: Source, reading: faultline_tests::clocks::Reading, late: i64) {
        let gap = reading.after - self.last.fetch_max(reading.after, SeqCst);
        self.longest_gap.fetch_max(gap, Relaxed);
        if reading.after - reading.before > SLOW {
            return;
        }
        let off = reading.ahead() - self.ahead.load(Relaxed);
        let near = |skew: i64| off - skew <= NEAR && off - skew >= -NEAR - source.lag() - late;
        let exact = source == Source::Realtime;
        if near(0) {
            self.right.fetch_add(u64::from(exact), Relaxed);
            self.last_right.fetch_max(if exact { reading.after } else { 0 }, Relaxed);
        } else if near(self.skew.load(Relaxed)) {
            self.skewed.fetch_add(u64::from(exact), Relaxed);
            self.last_skewed.fetch_max(reading.after, Relaxed);
        } else {
            self.absurd.fetch_add(1, Relaxed);
            self.absurdity.store(off, Relaxed);
        }
    }

    fn watched(&self) -> Watched {
        Watched {
            rounds: self.rounds.load(SeqCst),
            right: self.right.load(SeqCst),
            skewed: self.skewed.load(SeqCst),
            absurd: self.absurd.load(SeqCst),
            absurdity: self.absurdity.load(SeqCst),
            backwards: self.backwards.load(SeqCst),
            furthest_back: self.furthest_back.load(SeqCst),
            last_skewed: self.last_skewed.load(SeqCst),
            last_right: self.last_right.load(SeqCst),
            longest_gap: self.longest_gap.load(SeqCst),
        }
    }
}
