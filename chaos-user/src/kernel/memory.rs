//! The vDSO of another process, by `/proc/PID/mem`: finding it, and changing its clocks and back.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use chaos_ebpf::time::Block;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    stop::{StopError, traces, while_stopped, while_traced},
    vdso::Patch,
};
use crate::host::{Use, rights};

/// Why a process's clocks cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// It has ended, or executes another program.
    #[error("it has ended, or executes another program")]
    Gone,
    /// It is there, and cannot be written: by nobody but its tracer, if that.
    #[error("the kernel does not let its memory be written (proc_mem.force_override)")]
    Unforced,
    /// A thread of the kernel's own, or one that has ended and is not waited for yet.
    #[error("it has no memory: it is the kernel's own, or has ended")]
    NoMemory,
    /// Nothing is mapped there.
    #[error("it has no vDSO, so all its clocks are read by system calls")]
    NoVdso,
    /// A program of 32 bits has a vDSO of its own.
    #[error("it is a 32-bit program; only 64-bit ones can be told a wrong time")]
    ThirtyTwoBits,
    /// Its monotonic clocks are not the caller's.
    #[error("it is in another time namespace")]
    TimeNamespace,
    /// Faultline itself, which tells the time for all others.
    #[error("it is Faultline itself")]
    Own,
    /// Somebody else was there before.
    #[error("its vDSO is not as the kernel made it: another fault, or a debugger, has changed it")]
    Unlike,
    /// It does not stand still.
    #[error(transparent)]
    Stop(StopError),
    /// It was held by the kernel, but not for long enough.
    #[error("it had begun before its clocks were changed, because that took too long")]
    LetGo,
    /// Anything else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl ClockError {
    /// Whether it may be otherwise a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Stop(_) | Self::LetGo)
    }

    /// Whether that may be in a moment, with nobody's help.
    #[must_use]
    pub fn is_soon_over(&self) -> bool {
        matches!(self, Self::Stop(StopError::Stuck(_) | StopError::Shared(_)))
    }
}

impl From<StopError> for ClockError {
    fn from(error: StopError) -> Self {
        match error {
            StopError::Gone => Self::Gone,
            StopError::Kernel(error) => Self::Kernel(error),
            error => Self::Stop(error),
        }
    }
}

/// A process's memory, as it was when this was opened: once the process executes another program, it is gone.
#[derive(Debug)]
pub struct Memory {
    /// The process.
    pub process: u32,
    file: File,
    vdso: u64,
}

/// How long to wait to become a process's tracer: the loop that renews all other processes waits meanwhile, and so does a program
/// that is held.
const MOMENT: Duration = Duration::from_millis(50);
/// How long a process may take to stand still: one that runs takes microseconds, but each of its threads has to have its
/// turn for that.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for all processes together, where their bytes are to be put back. Other owners wait for as long, but there may be
/// nobody who comes again.
const LONG: Duration = Duration::from_secs(2);
/// What is left of it for each at least.
const SHORT: Duration = Duration::from_millis(100);

impl Memory {
    /// That of a process that runs.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn open(process: u32) -> std::result::Result<Self, ClockError> {
        let vdso = vdso_of(process)?;
        Self::at(process, vdso)
    }

    /// That of a process whose vDSO is known to lie there; nowhere if at 0.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn at(process: u32, vdso: u64) -> std::result::Result<Self, ClockError> {
        if vdso == 0 {
            return Err(ClockError::NoVdso);
        }
        let path = format!("/proc/{process}/mem");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| lost("open", &path, error))?;
        let memory = Self { process, file, vdso };
        let mut start = [0; 5];
        match memory.file.read_exact_at(&mut start, vdso) {
            // There is nothing mapped; of memory that is no more nothing is read.
            Err(nothing) if nothing.raw_os_error() == Some(libc::EIO) => return Err(ClockError::NoVdso),
            read => read.map_err(|error| lost("read", &memory.name(), error))?,
        }
        match start {
            [0x7f, b'E', b'L', b'F', 2] => Ok(memory),
            [0x7f, b'E', b'L', b'F', 1] => Err(ClockError::ThirtyTwoBits),
            _ => Err(ClockError::NoVdso),
        }
    }

    /// Reads of the vDSO.
    ///
    /// # Errors
    ///
    /// [`ClockError::Gone`], or the kernel's.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> std::result::Result<(), ClockError> {
        let read = self.file.read_exact_at(to, self.vdso + offset as u64);
        read.map_err(|error| lost("read", &self.name(), error))
    }

    /// Writes into the vDSO: one call.
    ///
    /// # Errors
    ///
    /// [`ClockError::Gone`], [`ClockError::Unforced`], or the kernel's.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> std::result::Result<(), ClockError> {
        let written = self.file.write_all_at(bytes, self.vdso + offset as u64);
        written.map_err(|error| match error.raw_os_error() {
            Some(libc::EIO) => ClockError::Unforced,
            _ => lost("write", &self.name(), error),
        })
    }

    /// Does what writes; as the tracer of the process where the kernel lets nobody else, see [`as_writer`].
    pub(super) fn forced(
        &self,
        action: impl Fn() -> std::result::Result<(), ClockError> + Sync,
    ) -> std::result::Result<(), ClockError> {
        match action() {
            Err(ClockError::Unforced) if !traces(self.process) => {
                let done = while_traced(self.process, MOMENT, &action)?;
                // What else is refused so (memory that is no more, or that there is no room for) a tracer is refused as well.
                if done.is_ok() {
                    TRACERS_ALONE.store(true, Ordering::Relaxed);
                }
                done
            }
            done => done,
        }
    }

    fn name(&self) -> String {
        format!("/proc/{}/mem", self.process)
    }

    fn has(&self, offset: usize, bytes: &[u8]) -> std::result::Result<bool, ClockError> {
        let mut there = vec![0; bytes.len()];
        self.read(offset, &mut there)?;
        Ok(there == bytes)
    }

    /// Whether it has been changed by whoever made this.
    fn is_changed(&self, change: &VdsoChange) -> std::result::Result<bool, ClockError> {
        self.has(change.body, &change.mark)
    }
}

/// Whether the kernel has let nobody but a tracer write, so far. That is so with `CONFIG_PROC_MEM_FORCE_PTRACE` (Linux 6.12,
/// `Documentation/admin-guide/kernel-parameters.txt`, `proc_mem.force_override`).
static TRACERS_ALONE: AtomicBool = AtomicBool::new(false);

/// Does what writes several times into the memory of a process, as its tracer throughout where it has to be that: to become one
/// takes a thread each time, for which who is held by the kernel does not wait.
///
/// # Errors
///
/// [`ClockError`].
pub fn as_writer(
    process: u32,
    action: impl Fn() -> std::result::Result<(), ClockError> + Sync,
) -> std::result::Result<(), ClockError> {
    if TRACERS_ALONE.load(Ordering::Relaxed) { while_traced(process, MOMENT, &action)? } else { action() }
}

/// What an error on `/proc/PID/mem` means: memory that is no more reads as nothing.
fn lost(call: &'static str, path: &str, error: io::Error) -> ClockError {
    let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EIO))
        || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero);
    if gone { ClockError::Gone } else { Error::new(call, path, error).into() }
}

/// Where a process's vDSO lies, as the kernel has told it.
fn vdso_of(process: u32) -> std::result::Result<u64, ClockError> {
    let path = format!("/proc/{process}/auxv");
    let bytes = fs::read(&path).map_err(|error| lost("read", &path, error))?;
    if bytes.is_empty() {
        return Err(ClockError::NoMemory);
    }
    fn find<const N: usize>(bytes: &[u8]) -> Option<u64> {
        let number = |at: &[u8]| at.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let mut pairs = bytes.chunks_exact(2 * N).map(|pair| (number(&pair[..N]), number(&pair[N..])));
        pairs.find(|(kind, _)| *kind == libc::AT_SYSINFO_EHDR).map(|(_, value)| value)
    }
    match (find::<8>(&bytes), find::<4>(&bytes)) {
        (Some(vdso), _) => Ok(vdso),
        (None, Some(_)) => Err(ClockError::ThirtyTwoBits),
        (None, None) => Err(ClockError::NoVdso),
    }
}

/// A process whose clocks are changed.
#[derive(Debug)]
pub struct Changed(Memory);

impl Changed {
    /// Changes the clocks of a process, which tell what they did until they are given another block. A process need not be
    /// stopped that is held by the kernel, for as long as `is_held` says so.
    ///
    /// # Errors
    ///
    /// [`ClockError`]; nothing that runs has been changed, but see [`put`] for [`ClockError::LetGo`].
    pub fn new(
        memory: Memory,
        patch: &Patch,
        is_held: Option<&(dyn Fn() -> bool + Sync)>,
    ) -> std::result::Result<Self, ClockError> {
        // A child of one that was is as its parent.
        if is_put(&memory, patch)? {
            return Ok(Self(memory));
        }
        if let Some(is_held) = is_held {
            memory.forced(|| put(&memory, patch, is_held))?;
        } else {
            let vdso = memory.vdso;
            while_stopped(memory.process, PATIENCE, |stopped| {
                // Somebody else may have been quicker until it stood still.
                match is_put(&memory, patch) {
                    Ok(false) => {}
                    done => return Ok(done.map(drop)),
                }
                let cut = |place: u64| {
                    patch.text().iter().any(|cut| cut.contains(&(place.wrapping_sub(vdso) as usize)))
                };
                stopped.leave(cut)?;
                for range in patch.text() {
                    let range = range.start as u64 + vdso..range.end as u64 + vdso;
                    if stopped.mentions(&range, |place, to| memory.file.read_at(to, place).unwrap_or(0))? {
                        return Err(StopError::Stuck(memory.process.cast_signed()));
                    }
                }
                // Whatever is wrong shows when the time is told.
                Ok(put(&memory, patch, &|| true))
            })??;
        }
        Ok(Self(memory))
    }

    /// Has its clocks go by this block.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn set(&self, patch: &Patch, block: &Block) -> std::result::Result<(), ClockError> {
        self.0.forced(|| {
            let mut sequence = [0];
            self.0.read(patch.seq_offset(), &mut sequence)?;
            patch.renewal(sequence[0], block).iter().try_for_each(|(at, bytes)| self.0.write(*at, bytes))
        })
    }

    /// Has its clocks be right.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn set_off(&self, patch: &Patch) -> std::result::Result<(), ClockError> {
        self.0.forced(|| patch.off().iter().try_for_each(|(at, zeros)| self.0.write(*at, zeros)))
    }
}

/// The processes that have what a run has added to them.
struct Found {
    changed: Vec<Memory>,
    /// Why one could not be looked at that may be another, if any could not.
    refused: Option<Error>,
}

/// What lies in the vDSO of a process, whoever's process it is: its folder's files are its user's, its memory is not.
fn peek(process: u32, offset: usize, length: usize) -> io::Result<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let start = line.and_then(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
    let start = start.ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = vec![0_u8; length];
    let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let from = libc::iovec { iov_base: (start + offset) as *mut libc::c_void, iov_len: length };
    // SAFETY: writes into `bytes` alone, which is as long as it says; the other address is of another process.
    let read =
        unsafe { libc::process_vm_readv(process.cast_signed(), &raw const to, 1, &raw const from, 1, 0) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

/// Whether a process's vDSO is changed, wholly; in part it may be by [`put`].
fn is_put(memory: &Memory, patch: &Patch) -> std::result::Result<bool, ClockError> {
    let is_marked = memory.is_changed(&VdsoChange::of(patch))?;
    let mut is_whole = is_marked;
    for entry in patch.entries() {
        if is_marked && memory.has(entry.offset, &entry.bytes)? {
            continue;
        }
        is_whole = false;
        if !memory.has(entry.offset, &entry.original)? {
            return Err(ClockError::Unlike);
        }
    }
    Ok(is_whole)
}

/// Writes the body, where nobody comes before there is an entry, and then the entries, as long as the process stands still.
///
/// A program that is held by the kernel does not for ever: its owner may have been stopped meanwhile. So that is looked at
/// before each entry. Those that are written by then stay: each leads to a whole body, and they do not need each other. The
/// functions that have theirs are told the wrong time once there is a block, the others the right one, until somebody
/// comes back with the process stopped, who finds by [`is_put`] what is missing; whoever takes all back finds the body.
///
/// What is left is an owner that is stopped between that look and the store that is next, until the program is no longer held
/// ([`STUCK_CAP`](chaos_ebpf::time::STUCK_CAP)). When it goes on it writes one entry, and no other. That is eight bytes
/// on x86-64 and four on aarch64, in one call, at the start of a function, which compilers have at a multiple of 16: the
/// kernel copies them by stores of all of them, or by a `rep movsb`, of which nobody promises that it is seen as a whole.
/// A thread that is within these very bytes just then goes on with what is no instruction of either.
fn put(
    memory: &Memory,
    patch: &Patch,
    stands: &(dyn Fn() -> bool + Sync),
) -> std::result::Result<(), ClockError> {
    for piece in std::iter::once(patch.body()).chain(patch.entries()) {
        if !stands() {
            return Err(ClockError::LetGo);
        }
        memory.write(piece.offset, &piece.bytes)?;
    }
    Ok(())
}

/// Zeros, in whatever order they come, only ever make a number smaller.
fn off(memory: &Memory, windows: &[usize]) -> std::result::Result<(), ClockError> {
    memory.forced(|| windows.iter().try_for_each(|at| memory.write(*at, &[0; 8])))
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

    /// The processes that are changed. Those whose children are by being such need not be known to anybody.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    fn changed(&self) -> Result<Found> {
        let entries = fs::read_dir("/proc").map_err(|source| Error::new("readdir", "/proc", source))?;
        let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found = Found { changed: Vec::new(), refused: None };
        for process in processes {
            match Memory::open(process) {
                Ok(memory) if memory.is_changed(self).unwrap_or(false) => found.changed.push(memory),
                Err(ClockError::Kernel(error))
                    if rights::is_refusal(&error.source) && !self.is_free(process) =>
                {
                    found.refused = Some(error);
                }
                // Of processes that come and go it cannot be known, and those of other kinds are none of ours.
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether a process that may not be written to is known to have nothing of this. Who may trace everybody, and is kept
    /// from this process all the same, has not changed it either.
    fn is_free(&self, process: u32) -> bool {
        match peek(process, self.body, self.mark.len()) {
            Ok(there) => there != self.mark,
            Err(error) => !rights::is_refusal(&error) || Use::Clocks.is_allowed(),
        }
    }

    /// The processes that are changed, by number.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn left(&self) -> Result<Vec<u32>> {
        let Found { changed, refused } = self.changed()?;
        refused.map_or(Ok(()), Err)?;
        Ok(changed.iter().map(|memory| memory.process).collect())
    }

    /// Has all clocks be right, and leaves what was added.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn set_off(&self) -> Result<()> {
        let Found { changed, refused } = self.changed()?;
        for memory in changed {
            // One that ends meanwhile has no clocks.
            let _ = off(&memory, &self.windows);
        }
        refused.map_or(Ok(()), Err)
    }

    /// Puts back what there was. A child that is made meanwhile is found in the next turn. Who does not stand still is let go
    /// on and tried again as long as there is time, which is little: it may wait for a disk, or be about to execute a
    /// program. Who may not be traced is not tried again: that takes somebody else.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or a process does not stand still.
    pub fn undo(&self) -> Result<()> {
        const TURNS: u32 = 8;
        const PAUSE: Duration = Duration::from_millis(5);
        // Who may not be written to is told of in the end, when all others are as they were.
        let mut refused = self.set_off().err();
        let end = Instant::now() + LONG;
        let mut failed: BTreeMap<u32, ClockError> = BTreeMap::new();
        for turn in 0..TURNS {
            let Found { changed: mut left, refused: now } = self.changed()?;
            refused = now;
            // Who has ended since, or executed a program, has nothing of ours.
            failed.retain(|process, _| left.iter().any(|memory| memory.process == *process));
            let may_come = |error: &ClockError| error.is_soon_over() && Instant::now() < end;
            left.retain(|memory| failed.get(&memory.process).is_none_or(may_come));
            if left.is_empty() {
                break;
            }
            if left.iter().all(|memory| failed.contains_key(&memory.process)) {
                thread::sleep(PAUSE * (1 << turn));
            }
            for memory in left {
                let patience = end.saturating_duration_since(Instant::now()).max(SHORT);
                match self.clear(&memory, patience) {
                    Ok(()) | Err(ClockError::Gone | ClockError::NoMemory) => failed.remove(&memory.process),
                    Err(error) => failed.insert(memory.process, error),
                };
            }
        }
        failed.into_iter().next().map_or(refused.map_or(Ok(()), Err), |(process, error)| match error {
            ClockError::Kernel(error) => Err(error),
            error => {
                let object = format!("the vDSO of process {process}");
                Err(Error::new("undo", object, io::Error::other(error.to_string())))
            }
        })
    }

    fn clear(&self, memory: &Memory, patience: Duration) -> std::result::Result<(), ClockError> {
        let vdso = memory.vdso;
        off(memory, &self.windows)?;
        while_stopped(memory.process, patience, |stopped| {
            // Whoever is in a function that was moved comes back to what was added.
            stopped.leave(|place| place.wrapping_sub(vdso) < self.whole as u64)?;
            let all = vdso..vdso + self.whole as u64;
            let is_used = stopped.mentions(&all, |place, to| memory.file.read_at(to, place).unwrap_or(0))?;
            let restore = || {
                self.entries.iter().try_for_each(|(offset, bytes)| memory.write(*offset, bytes))?;
                // A handler may return to it; nobody else comes there any more.
                let gone = if is_used { self.mark.len() } else { self.length };
                memory.write(self.body, &vec![0; gone])
            };
            Ok(restore())
        })?
    }
}

#[cfg(test)]
mod tests;
