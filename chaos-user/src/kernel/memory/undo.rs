//! Finding the processes whose vDSO is changed, and putting back what there was.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{ClockError, Memory, PATIENCE, is_still, touch::touched};
use crate::{
    host::{Use, rights},
    kernel::{
        Error, Result,
        mappings::Mappings,
        process::{self, Process},
        reach,
        stop::{StopError, Stopped, while_stopped},
        vdso::Patch,
    },
};

/// How long all processes together may take to be looked at, however few they are.
const LOOK: Duration = Duration::from_millis(500);
/// And each of many.
const EACH: Duration = Duration::from_micros(200);
/// What is left for a process to stand still at least, whatever others have taken.
const SHORT: Duration = Duration::from_millis(100);

/// Those at whom threads look just now.
type Looks = Arc<Mutex<BTreeSet<u32>>>;

/// The looks that are over, but for threads that have not come back, and may not for as long as somebody pleases.
static KEPT: Mutex<Vec<Looks>> = Mutex::new(Vec::new());

/// At whom these still look.
fn kept() -> BTreeSet<u32> {
    let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |looks: &Looks| looks.lock().unwrap_or_else(PoisonError::into_inner).clone();
    all.retain(|looks| !of(looks).is_empty());
    all.iter().flat_map(of).collect()
}

/// What a run changes of every process's vDSO, all that it takes to find and undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdsoChange {
    /// Where what was added begins, and with what.
    body: usize,
    mark: Vec<u8>,
    /// How long that is.
    length: usize,
    /// Bytes of the whole vDSO.
    whole: usize,
    /// What makes clocks wrong, if it is not zero.
    windows: Vec<usize>,
    /// The bytes there were, and where.
    entries: Vec<(usize, Vec<u8>)>,
}

/// What looking at a process came to.
enum Looked {
    /// It has nothing of this, or is no more.
    Free,
    /// It was read, and has nothing of this.
    Read,
    /// It may not be looked at, and so is not known to have been changed.
    Barred(Error),
    /// It has.
    Changed(Process),
    /// It could not be looked at.
    Unknown(Error),
}

/// The processes that have what a run has added to them.
#[derive(Default)]
struct Found {
    changed: Vec<Process>,
    /// Those that could not be looked at, which may be others, and why.
    unknown: BTreeMap<u32, Error>,
}

impl Found {
    /// Tells of those that could not be looked at, if there are any.
    fn all(self) -> Result<Vec<Process>> {
        match several(self.unknown) {
            None => Ok(self.changed),
            Some((processes, error)) => {
                Err(Error::new(error.call, format!("{} ({processes})", error.object), error.source))
            }
        }
    }
}

/// Whose vDSO, and what came of the first of them.
fn several<K: Copy + Ord + Into<u32>, E>(all: BTreeMap<K, E>) -> Option<(String, E)> {
    /// Most that are named.
    const NAMED: usize = 5;
    let names: Vec<_> = all.keys().take(NAMED).map(|process| (*process).into().to_string()).collect();
    let more = all.len() - names.len();
    let (s, more) = match (all.len(), more) {
        (1, _) => ("", String::new()),
        (_, 0) => ("es", String::new()),
        (_, more) => ("es", format!(" and {more} more")),
    };
    let (_, first) = all.into_iter().next()?;
    Some((format!("the vDSO of process{s} {}{more}", names.join(", ")), first))
}

impl VdsoChange {
    /// What a patch changes.
    #[must_use]
    pub fn of(patch: &Patch) -> Self {
        let body = patch.body();
        Self {
            body: body.offset,
            mark: patch.mark().to_vec(),
            length: body.bytes.len(),
            whole: patch.length(),
            windows: patch.off().into_iter().map(|(at, _)| at).collect(),
            entries: patch.entries().iter().map(|entry| (entry.offset, entry.original.clone())).collect(),
        }
    }

    /// Whether it is what this memory has.
    pub(super) fn is_in(&self, memory: &Memory) -> std::result::Result<bool, ClockError> {
        memory.has(self.body, &self.mark)
    }

    /// Zeros, in whatever order they come, only ever make a number smaller.
    fn off(&self, memory: &Memory) -> std::result::Result<(), ClockError> {
        memory.forced(|| self.windows.iter().try_for_each(|at| memory.write(*at, &[0; 8])))
    }

    /// Looks at all processes, and has the clocks of those that are changed be right if that is asked. Those whose children are by
    /// being such need not be known to anybody.
    fn changed(&self, with_off: bool) -> Result<Found> {
        let mut found = Found::default();
        let error = |source| Error::new("readdir", "/proc", source);
        let mut all = process::numbers().map_err(error)?;
        // Who was begun last may have ended, and begun another, before anybody looks.
        all.sort_unstable_by(|one, other| other.cmp(one));
        let longest = LOOK.max(EACH * u32::try_from(all.len()).unwrap_or(u32::MAX));
        let late = |process: u32| {
            let late = io::Error::other(format!("not done after {} ms", longest.as_millis()));
            Error::new("look", format!("/proc/{process}/mem"), late)
        };
        // Whom a thread still waits for is not to have others wait as well.
        let kept = kept();
        all.retain(|process| !kept.contains(process));
        found.unknown.extend(kept.into_iter().map(|process| (process, late(process))));
        let looks = Looks::default();
        let (change, begun) = (self.clone(), Arc::clone(&looks));
        let look = move |process| {
            begun.lock().unwrap_or_else(PoisonError::into_inner).insert(process);
            let looked = change.look(process, with_off);
            begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&process);
            looked
        };
        let looked = reach::each(all.clone(), Instant::now() + longest, || false, look)?;
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(looks);
        let (mut barred, mut is_any_read) = (BTreeMap::new(), false);
        for (process, looked) in all.into_iter().zip(looked) {
            let is_other = process != std::process::id();
            is_any_read |= is_other && matches!(looked, Some(Looked::Read | Looked::Changed(_)));
            match looked {
                Some(Looked::Free | Looked::Read) => {}
                Some(Looked::Barred(error)) => drop(barred.insert(process, error)),
                Some(Looked::Changed(process)) => found.changed.push(process),
                Some(Looked::Unknown(error)) => drop(found.unknown.insert(process, error)),
                None => drop(found.unknown.insert(process, late(process))),
            }
        }
        // Who may trace everybody, and is kept from one all the same, has not changed that either. But where nobody may be read
        // that may be so only now (`kernel.yama.ptrace_scope`).
        if !is_any_read || !Use::Clocks.is_allowed() {
            found.unknown.append(&mut barred);
        }
        Ok(found)
    }

    fn look(&self, number: u32, with_off: bool) -> Looked {
        let process = match Process::find(number) {
            Ok(Some(process)) => process,
            Ok(None) => return Looked::Free,
            Err(source) => {
                return Looked::Unknown(Error::new("read", format!("/proc/{number}/stat"), source));
            }
        };
        let found = Memory::open(number).and_then(|memory| {
            let is_changed = self.is_in(&memory)?;
            if is_changed && with_off {
                // One that ends meanwhile has no clocks; one that cannot be written to now is undone later, or told of.
                let _ = self.off(&memory);
            }
            Ok(is_changed)
        });
        match found {
            Ok(true) => Looked::Changed(process),
            Err(ClockError::Kernel(error)) if !rights::is_refusal(&error.source) => Looked::Unknown(error),
            Err(ClockError::Kernel(error)) => {
                match process::unless_gone(peek(number, self.body, self.mark.len())) {
                    Ok(there) if there.as_ref().is_none_or(|there| *there != self.mark) => Looked::Free,
                    Err(refused) if rights::is_refusal(&refused) => Looked::Barred(error),
                    Ok(_) | Err(_) => Looked::Unknown(error),
                }
            }
            Ok(false) => Looked::Read,
            // It is gone, or of another kind.
            Err(_) => Looked::Free,
        }
    }

    /// The processes that are changed, by number.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or not of all.
    #[cfg(test)]
    pub(crate) fn left(&self) -> Result<Vec<u32>> {
        Ok(self.changed(false)?.all()?.iter().map(|process| process.pid).collect())
    }

    /// Has all clocks be right, and leaves what was added.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or not of all.
    pub fn set_off(&self) -> Result<()> {
        self.changed(true)?.all().map(drop)
    }

    /// Puts back what there was, and looks whether it is there while the process stands still. What a process writes there later is
    /// its own. A child that is made meanwhile is found in the next turn. Who does not stand still is let go on and tried again until
    /// that time: it may wait for a disk, or be about to execute a program. Who may not be traced is not tried again: that takes
    /// somebody else.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or not of all, or a process does not stand still.
    pub fn undo(&self, end: Instant) -> Result<()> {
        const TURNS: u32 = 8;
        const PAUSE: Duration = Duration::from_millis(5);
        let mut failed: BTreeMap<Process, ClockError> = BTreeMap::new();
        let mut cleared: BTreeSet<Process> = BTreeSet::new();
        // Who could not be looked at is told of in the end, when all others are as they were.
        let mut unknown = Found::default();
        let mut is_clean = false;
        for turn in 0..TURNS {
            // Whoever writes by now may write behind this look, and behind what is put back.
            let kept = kept();
            let writers = touched(&self.mark);
            let is_touched = writers.iter().any(|process| !kept.contains(process));
            // Clocks are right before anything takes its time.
            unknown = self.changed(turn == 0)?;
            let mut left = std::mem::take(&mut unknown.changed);
            left.retain(|process| !cleared.contains(process));
            // Who has ended since, or executed a program, has nothing of ours.
            failed.retain(|process, _| left.contains(process));
            let may_come = |error: &ClockError| error.is_soon_over() && Instant::now() < end;
            left.retain(|process| failed.get(process).is_none_or(may_come));
            is_clean = left.is_empty() && !is_touched;
            // A look is all there is time for then.
            if is_clean || turn > 0 && Instant::now() >= end {
                break;
            }
            if left.iter().all(|process| failed.contains_key(process)) {
                thread::sleep(PAUSE * (1 << turn));
            }
            for (process, done) in self.clear(left, end)? {
                match done {
                    Ok(()) => {
                        failed.remove(&process);
                        if !writers.contains(&process.pid) {
                            cleared.insert(process);
                        }
                    }
                    Err(ClockError::Gone | ClockError::NoMemory) => drop(failed.remove(&process)),
                    Err(error) => drop(failed.insert(process, error)),
                }
            }
        }
        // Whoever of this process was about to change one, and waits for it, may do so yet.
        let waits = |process| {
            let waits = io::Error::other("a write that was begun has not ended");
            (process, Error::new("write", format!("/proc/{process}/mem"), waits))
        };
        unknown.unknown.extend(touched(&self.mark).into_iter().map(waits));
        match several(failed) {
            None if is_clean || !unknown.unknown.is_empty() => unknown.all().map(drop),
            None => {
                let more = io::Error::other(
                    "new processes with changed clocks begin faster than they are put right",
                );
                Err(Error::new("undo", "the vDSOs of a target's processes", more))
            }
            Some((_, ClockError::Kernel(error))) => Err(error),
            Some((object, error)) => Err(Error::new("undo", object, io::Error::other(error.to_string()))),
        }
    }

    /// Each for itself: one may keep whoever looks at it. None stands for longer than others do who are changed.
    fn clear(
        &self,
        all: Vec<Process>,
        end: Instant,
    ) -> Result<Vec<(Process, std::result::Result<(), ClockError>)>> {
        let end = end.max(Instant::now() + SHORT);
        let change = self.clone();
        let clear = move |process: Process| {
            let patience = end.saturating_duration_since(Instant::now()).clamp(SHORT, PATIENCE);
            while_stopped(process.pid, patience, |stopped| Ok(change.clear_standing(process, stopped)))?
        };
        let done = reach::each(all.clone(), end + 2 * SHORT, || false, clear)?;
        let stuck = |process: Process| Err(StopError::Stuck(process.pid.cast_signed()).into());
        Ok(all
            .into_iter()
            .zip(done)
            .map(|(process, done)| (process, done.unwrap_or_else(|| stuck(process))))
            .collect())
    }

    /// Of one that stands, alone in its memory, and executes nothing.
    fn clear_standing(&self, process: Process, stopped: &mut Stopped) -> std::result::Result<(), ClockError> {
        is_still(process)?;
        let memory = Memory::open(process.pid)?;
        if !self.is_in(&memory)? {
            return Ok(());
        }
        let vdso = memory.vdso;
        self.off(&memory)?;
        // Whoever is in a function that was moved comes back to what was added.
        let is_within = stopped.leave(|place| place.wrapping_sub(vdso) < self.whole as u64)?;
        let whole = vdso..vdso + self.whole as u64;
        let is_used = is_within || stopped.mentions(std::slice::from_ref(&whole))?;
        self.entries.iter().try_for_each(|(offset, bytes)| memory.write(*offset, bytes))?;
        // A handler may return to it, or one that was stopped in a function that was moved; nobody else comes there any more.
        let gone = vec![0; if is_used { self.mark.len() } else { self.length }];
        memory.write(self.body, &gone)?;
        let mut written = self.entries.iter().map(|(at, bytes)| (*at, bytes)).chain([(self.body, &gone)]);
        match written.try_fold(true, |all, (at, bytes)| Ok::<_, ClockError>(all && memory.has(at, bytes)?))? {
            true => Ok(()),
            false => Err(ClockError::Unforced),
        }
    }
}

/// What lies in the vDSO of a process, whoever's process it is: its folder's files are its user's, its memory is not.
fn peek(process: u32, offset: usize, length: usize) -> io::Result<Vec<u8>> {
    let mappings = Mappings::of(process)?;
    let vdso = mappings.vdso.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let mut bytes = vec![0_u8; length];
    let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let start = vdso.start as usize + offset;
    let from = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: length };
    // SAFETY: writes into `bytes` alone, which is as long as it says; the other address is of another process.
    let read = unsafe {
        libc::process_vm_readv(mappings.thread.cast_signed(), &raw const to, 1, &raw const from, 1, 0)
    };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}
