//! Other people's processes, looked at by threads that can be left behind: one that hangs on a dead server, or that has made itself
//! so, must not keep anybody from the others.
//!
//! Only what ends with the caller may be done so, should it never come back: what waits for a lock of the kernel's may be killed
//! there, what waits for a page of somebody's file may not.

use std::{
    collections::VecDeque,
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Result, hold, signals};

/// How long one may take before the next are begun beside it; most take microseconds.
const LATE: Duration = Duration::from_millis(20);
/// Most threads that are left behind.
const MOST: usize = 256;

struct Shared<T, R> {
    waiting: Mutex<VecDeque<(usize, T)>>,
    look: Box<dyn Fn(T) -> R + Send + Sync>,
}

/// Does something for each of these, until that time or until it is over; nothing for those it has not come back from by then.
///
/// # Errors
///
/// The kernel's, where there is no room for a single thread.
pub fn each<T: Send + 'static, R: Send + 'static>(
    items: impl IntoIterator<Item = T>,
    end: Instant,
    is_over: impl Fn() -> bool,
    look: impl Fn(T) -> R + Send + Sync + 'static,
) -> Result<Vec<Option<R>>> {
    let waiting: VecDeque<_> = items.into_iter().enumerate().collect();
    let mut done: Vec<Option<R>> = waiting.iter().map(|_| None).collect();
    let shared = Arc::new(Shared { waiting: Mutex::new(waiting), look: Box::new(look) });
    let (results, found) = mpsc::channel();
    let mut left = done.len();
    let (mut threads, cpus) = (0, thread::available_parallelism().map_or(1, NonZero::get));
    while left > 0 && Instant::now() < end && !is_over() {
        // All that there are have something that takes its time.
        let is_waiting = !shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if is_waiting {
            // Twice as many each time: whoever is behind those that keep everybody is not to wait for each of them.
            let more = threads.max(cpus).min(left).min(MOST - threads);
            for _ in 0..more {
                match begin(&shared, &results) {
                    Ok(()) => threads += 1,
                    Err(error) if threads == 0 => return Err(error),
                    // Those that there are go on.
                    Err(_) => break,
                }
            }
        }
        left -= collect(&found, &mut done, left, end);
    }
    // What nobody has come to is not begun any more.
    shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    Ok(done)
}

/// Does one such thing, for at most that long; nothing if it has not come back by then.
///
/// # Errors
///
/// The kernel's, where there is no room for a thread.
pub fn one<R: Send + 'static>(
    patience: Duration,
    action: impl FnOnce() -> R + Send + 'static,
) -> Result<Option<R>> {
    let (said, heard) = mpsc::channel();
    // Nobody may wait for it any more.
    signals::thread("fl-reach", move || drop(said.send(action())))?;
    Ok(heard.recv_timeout(patience).ok())
}

/// Waits for the ends of threads that were told to end, until that time; whoever does not come back is left behind.
pub fn join(threads: impl IntoIterator<Item = JoinHandle<()>>, end: Instant) {
    const PAUSE: Duration = Duration::from_millis(1);
    for thread in threads {
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(PAUSE);
        }
        if thread.is_finished() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn begin<T: Send + 'static, R: Send + 'static>(
    shared: &Arc<Shared<T, R>>,
    results: &Sender<(usize, R)>,
) -> Result<()> {
    let (shared, results) = (Arc::clone(shared), results.clone());
    let work = move || {
        loop {
            let next = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, item)) = next else { return };
            // Nobody waits any more: what is left is nobody's.
            if results.send((number, (shared.look)(item))).is_err() {
                return;
            }
        }
    };
    hold::as_urgent(|| signals::thread("fl-reach", work)).map(drop)
}

/// What has come, until nothing has for a while; how many that were.
fn collect<R>(found: &Receiver<(usize, R)>, done: &mut [Option<R>], left: usize, end: Instant) -> usize {
    let mut count = 0;
    while count < left {
        let longest = LATE.min(end.saturating_duration_since(Instant::now()));
        let Ok((number, result)) = found.recv_timeout(longest) else { return count };
        if let Some(place) = done.get_mut(number) {
            *place = Some(result);
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn each_is_done_once() {
        let done = each(0..1000, Instant::now() + LONG, || false, |number| number * 2).expect("threads");
        assert!(done.into_iter().eq((0..1000).map(|number| Some(number * 2))));
        assert!(each(0..0, Instant::now() + LONG, || false, |number| number).expect("threads").is_empty());
    }

    #[test]
    fn who_does_not_come_back_keeps_nobody() {
        let (ends, over) = channel::<()>();
        let over = Mutex::new(over);
        let begun = Instant::now();
        let look = move |number: u32| {
            if number % 10 == 3 {
                let _ = over.lock().expect("a lock").recv();
            }
            number
        };
        let done = each(0..100, begun + Duration::from_secs(2), || false, look).expect("threads");
        for (number, found) in (0..100).zip(done) {
            assert_eq!(found, (number % 10 != 3).then_some(number));
        }
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        drop(ends);
    }

    #[test]
    fn nobody_is_waited_for_when_it_is_over() {
        let (ends, over) = channel::<()>();
        let over = Mutex::new(over);
        let begun = Instant::now();
        let waits = move |()| over.lock().expect("a lock").recv().is_ok();
        let done = each([(), ()], begun + LONG, || begun.elapsed() > LATE, waits).expect("threads");
        assert!(done.iter().all(Option::is_none) && begun.elapsed() < LONG);
        let (others, never) = channel::<()>();
        let threads = [thread::spawn(|| ()), thread::spawn(move || assert!(never.recv().is_err()))];
        join(threads, Instant::now() + LATE);
        assert!(begun.elapsed() < LONG);
        drop((ends, others));
    }

    #[test]
    fn who_comes_back_late_is_heard() {
        let look = |number: u32| {
            if number == 0 {
                thread::sleep(LATE * 5);
            }
            number
        };
        let done = each(0..10, Instant::now() + LONG, || false, look).expect("threads");
        assert!(done.into_iter().eq((0..10).map(Some)));
    }
}
