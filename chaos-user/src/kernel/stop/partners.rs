//! Who else runs in the memory of a process.

use std::{
    fs,
    ops::Range,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use libc::pid_t;

use super::{
    StopError,
    task::have_one_memory,
    turn::{Turn, Turns},
};
use crate::kernel::{
    Error, hold,
    process::{self, Stat},
    signals,
};

type Answer = Result<Option<u32>, StopError>;

/// Other processes that run in the memory of one that is to stand still: it would be changed below them.
///
/// A thread of its own asks for them, which is left behind should it not come back: `kcmp` waits for the end of an `execve` of
/// either, and what that waits for in turn may be a server that is gone. Nobody else asks for this process's then.
#[derive(Debug)]
pub(super) struct Partners {
    process: u32,
    held: Sender<Vec<pid_t>>,
    answers: Receiver<Answer>,
}

static ASKED: Turns = Turns::new();

impl Partners {
    /// Looks whom to ask as long as it goes on.
    ///
    /// # Errors
    ///
    /// [`StopError::Shared`] if there is one already, [`StopError::Stuck`] if that is not known by then, or the kernel's.
    pub(super) fn ask(process: u32, deadline: Instant) -> Result<Self, StopError> {
        let turn = ASKED.take(process, left(deadline))?;
        let (held, to_find) = mpsc::channel();
        let (said, answers) = mpsc::channel();
        hold::as_urgent(|| {
            signals::thread("fl-kin", move || answer(turn, process, deadline, &to_find, &said))
        })?;
        let partners = Self { process, held, answers };
        partners.hear(deadline).map(|_| partners)
    }

    /// One of them, now that these threads stand: all there are.
    ///
    /// # Errors
    ///
    /// [`StopError::Stuck`] if that is not known by then, or the kernel's.
    pub(super) fn find(&self, threads: &[pid_t], deadline: Instant) -> Answer {
        // If nobody hears it, nobody answers.
        let _ = self.held.send(threads.to_vec());
        self.hear(deadline)
    }

    fn hear(&self, deadline: Instant) -> Answer {
        let answer = self.answers.recv_timeout(left(deadline));
        answer.unwrap_or_else(|_| Err(StopError::Stuck(self.process.cast_signed())))
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Whoever asked may have been ended in the middle of what it did, and never say that it asks no more.
fn answer(
    _turn: Turn,
    process: u32,
    deadline: Instant,
    to_find: &Receiver<Vec<pid_t>>,
    said: &Sender<Answer>,
) {
    let kin = Kin::ask(process);
    let (first, kin) = match kin {
        Ok(kin) => (Ok(None), Some(kin)),
        Err(error) => (Err(error), None),
    };
    // Nobody may be there any more to hear it.
    let mut is_heard = said.send(first).is_ok();
    while let (true, Some(kin), Ok(threads)) = (is_heard, &kin, to_find.recv_timeout(left(deadline))) {
        is_heard = said.send(kin.find(&threads)).is_ok();
    }
}

/// To ask everybody takes milliseconds where there are many. So those are asked who come by it: the process that began this one, and
/// those that it has begun. Who shares it as an orphan is not found, nor anybody where the kernel cannot tell (`CONFIG_KCMP`).
struct Kin {
    process: u32,
    /// Of one with many threads, who was begun before it stood was asked then: the number that was given last.
    before: Option<u32>,
}

/// Of more threads it takes longer to ask for the children of each than to ask all processes of most machines.
const FEW: usize = 64;

impl Kin {
    fn ask(process: u32) -> Result<Self, StopError> {
        let mut before = None;
        if of(process)?.threads > FEW {
            before = newest()?;
            if let Some(other) = sharing(process, all_of(process)?)? {
                return Err(StopError::Shared(other));
            }
        }
        Ok(Self { process, before })
    }

    /// One of them, now that these threads stand: all there are.
    fn find(&self, threads: &[pid_t]) -> Answer {
        let parent = of(self.process)?.parent;
        if let Some(other) = sharing(self.process, [parent].into_iter().filter(|parent| *parent != 0))? {
            return Ok(Some(other));
        }
        let since = if threads.len() > FEW { self.since()? } else { None };
        match since {
            Some(numbers) => sharing(self.process, numbers),
            None if threads.len() > FEW => sharing(self.process, all_of(self.process)?),
            None => sharing(self.process, children(self.process, threads)?),
        }
    }

    /// The numbers that were given since it was asked; nothing if that cannot be told, or is more than it takes to ask everybody.
    fn since(&self) -> Result<Option<Range<u32>>, StopError> {
        const MANY: u32 = 4096;
        Ok(match (self.before, newest()?) {
            (Some(before), Some(now)) if now.checked_sub(before).is_some_and(|given| given < MANY) => {
                Some(before + 1..now + 1)
            }
            _ => None,
        })
    }
}

fn of(process: u32) -> Result<Stat, StopError> {
    let stat = Stat::of_process(process);
    let stat = stat.map_err(|source| Error::new("read", format!("/proc/{process}/stat"), source))?;
    stat.ok_or(StopError::Gone)
}

/// The first of these who shares its memory.
fn sharing(process: u32, others: impl IntoIterator<Item = u32>) -> Result<Option<u32>, StopError> {
    for other in others {
        // Its own threads have numbers too.
        if have_one_memory(process.cast_signed(), other.cast_signed())? && !is_thread(process, other) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

fn is_thread(process: u32, other: u32) -> bool {
    fs::exists(format!("/proc/{process}/task/{other}")).unwrap_or(false)
}

/// The number that was given last to anybody: the end of `/proc/loadavg`. What is given next is above it, until it begins from below.
fn newest() -> Result<Option<u32>, StopError> {
    let path = "/proc/loadavg";
    let text = fs::read_to_string(path).map_err(|source| Error::new("read", path, source))?;
    Ok(text.split_ascii_whitespace().next_back().and_then(|number| number.parse().ok()))
}

/// The processes that one has begun, as the kernel lists them by its threads.
fn children(process: u32, threads: &[pid_t]) -> Result<Vec<u32>, StopError> {
    let path = |thread| format!("/proc/{process}/task/{thread}/children");
    let mut found = Vec::new();
    for thread in threads {
        match fs::read_to_string(path(thread)) {
            Ok(all) => found.extend(all.split_ascii_whitespace().filter_map(|it| it.parse::<u32>().ok())),
            // It ends nowhere else but by being killed; or the kernel lists none (`CONFIG_PROC_CHILDREN`).
            Err(none) if matches!(none.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                if !fs::exists("/proc/thread-self/children").unwrap_or(false) {
                    return all_of(process);
                }
            }
            Err(source) => return Err(Error::new("read", path(thread), source).into()),
        }
    }
    Ok(found)
}

/// The same, by who says of itself that it was begun by this one.
fn all_of(process: u32) -> Result<Vec<u32>, StopError> {
    let error = |source| Error::new("read", "/proc", source);
    let mut found = Vec::new();
    for other in process::numbers().map_err(error)? {
        if Stat::of_process(other).map_err(error)?.is_some_and(|stat| stat.parent == process) {
            found.push(other);
        }
    }
    Ok(found)
}
