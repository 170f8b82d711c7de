//! Those that see to the processes of a run: to programs that are held as they are executed, which takes them microseconds, and to
//! processes that have to be stopped, which may keep whoever sees to them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use chaos_ebpf::time::ExecEvent;

use super::clocks::{Clocks, Strangers};
use crate::kernel::{
    self,
    hold::{self, Claim, Crew, Events, Holds, Work},
    memory::{ClockError, as_writer},
    process::Process,
    reach, signals,
};

/// How many threads see to those that have to be stopped for the first time: one may wait for its part of a second.
const NEW: usize = 4;
/// And to those that are tried again.
const AGAIN: usize = 1;
/// Most of each.
const MOST: usize = 256;
/// How soon a thread sees that it is over.
const TURN: Duration = Duration::from_millis(50);
/// How long their ends may take.
const LONGEST: Duration = Duration::from_millis(650);

/// The threads, until they are told to end.
#[derive(Debug)]
pub(super) struct Hands {
    clocks: Arc<Clocks>,
    held: Option<Crew>,
    new: Desk,
    /// Those that were tried in vain may take long once more, and nobody new is to wait for them.
    again: Desk,
}

/// Who is seen to while it runs.
enum Late {
    /// One of the target's.
    Member(Process),
    /// One that has executed a program, and may have ended since.
    Executed(u32),
}

/// Whoever waits to be seen to, and the threads that do.
#[derive(Debug)]
struct Desk {
    sender: Option<mpsc::Sender<Late>>,
    waiting: Arc<Mutex<mpsc::Receiver<Late>>>,
    /// How many have nothing to do.
    idle: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    /// Whether all had something to do when that was last looked at.
    was_full: bool,
}

impl Desk {
    fn open(clocks: &Arc<Clocks>, threads: usize) -> kernel::Result<Self> {
        let (sender, waiting) = mpsc::channel();
        let mut desk = Self {
            sender: Some(sender),
            waiting: Arc::new(Mutex::new(waiting)),
            idle: Arc::default(),
            threads: Vec::new(),
            was_full: false,
        };
        (0..threads).try_for_each(|_| desk.hire(clocks))?;
        Ok(desk)
    }

    fn hire(&mut self, clocks: &Arc<Clocks>) -> kernel::Result<()> {
        let (clocks, waiting, idle) = (Arc::clone(clocks), Arc::clone(&self.waiting), Arc::clone(&self.idle));
        self.threads.push(signals::thread("fl-late", move || see_to_late(&clocks, &waiting, &idle))?);
        Ok(())
    }

    fn send(&self, all: Vec<Process>) {
        for process in all {
            // Nobody is there to take it only when all is over.
            let _ = self.sender.as_ref().map(|sender| sender.send(Late::Member(process)));
        }
    }

    /// Has one more where all have had something to do since this was asked last: they may never come back from it.
    fn relieve(&mut self, clocks: &Arc<Clocks>) -> kernel::Result<()> {
        let is_full = self.idle.load(Ordering::Relaxed) == 0;
        if is_full && self.was_full && self.threads.len() < MOST {
            self.hire(clocks)?;
        }
        self.was_full = is_full;
        Ok(())
    }
}

impl Hands {
    /// Begins to see to whatever is executed.
    pub(super) fn begin(clocks: Arc<Clocks>, events: &Events, holds: &Holds) -> kernel::Result<Self> {
        let (new, again) = (Desk::open(&clocks, NEW)?, Desk::open(&clocks, AGAIN)?);
        let mut hands = Self { clocks, held: None, new, again };
        let (clocks, late) = (Arc::clone(&hands.clocks), hands.new.sender.clone());
        let work: Work = Arc::new(move |event, claim| see_to_held(&clocks, event, claim, late.as_ref()));
        hands.held = Some(Crew::start(holds, events, &work)?);
        Ok(hands)
    }

    /// Sees to those among these processes that nobody has seen to yet.
    ///
    /// # Errors
    ///
    /// The kernel's, where there is no room for a thread.
    pub(super) fn look(&mut self, now: &BTreeSet<Process>) -> kernel::Result<()> {
        let Strangers { new, again } = self.clocks.strangers(now)?;
        self.new.send(new);
        self.again.send(again);
        self.new.relieve(&self.clocks)?;
        self.again.relieve(&self.clocks)
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.clocks.end();
        self.held = None;
        let desks = [&mut self.new, &mut self.again];
        let threads = desks.into_iter().flat_map(|desk| {
            desk.sender = None;
            desk.threads.drain(..)
        });
        // Whoever is kept by a process writes nothing any more, but for what it is about to: that is told of.
        reach::join(threads, Instant::now() + LONGEST);
    }
}

/// What is done for a program that is executed, held or not.
fn see_to_held(
    clocks: &Clocks,
    event: &ExecEvent,
    claim: Option<&Claim<'_>>,
    late: Option<&mpsc::Sender<Late>>,
) {
    clocks.forget(event.pid);
    let adopt = |claim| as_writer(event.pid, || clocks.adopt_held(event.pid, event.vdso, claim));
    // One that has gone on, or that another traces, has to be stopped.
    let has_gone_on = matches!(claim.map(adopt), None | Some(Err(ClockError::LetGo | ClockError::Stop(_))));
    if has_gone_on && clocks.see_to(event.pid) {
        // Nobody is there to take it only when all is over.
        let _ = late.map(|late| late.send(Late::Executed(event.pid)));
    }
}

fn see_to_late(clocks: &Clocks, waiting: &Mutex<mpsc::Receiver<Late>>, idle: &AtomicUsize) {
    // Nobody who keeps a CPU is to wait for what this thread has locked.
    hold::first();
    while !clocks.is_over() {
        idle.fetch_add(1, Ordering::Relaxed);
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TURN);
        idle.fetch_sub(1, Ordering::Relaxed);
        match next {
            Ok(Late::Member(process)) => drop(clocks.adopt(process)),
            Ok(Late::Executed(process)) => match clocks.members().find(process) {
                Ok(Some(process)) => drop(clocks.adopt(process)),
                // Whoever still is of the target is found when that is looked at the next time.
                Ok(None) | Err(_) => clocks.leave(process),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}
