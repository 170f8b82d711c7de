//! The vDSO of another process, by `/proc/PID/mem`: finding it, and changing its clocks and back.

mod touch;
mod undo;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chaos_ebpf::time::Block;

pub use self::{touch::Touch, undo::VdsoChange};
use super::{
    Error,
    mappings::Mappings,
    process::Process,
    stop::{self, StopError, Stopped, traces, while_stopped, while_traced},
    vdso::Patch,
};

/// Why a process's clocks cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// It has ended, or executes another program.
    #[error("it has ended, or executes another program")]
    Gone,
    /// It is there, and cannot be written: by nobody but its tracer, if that.
    #[error(
        "the kernel does not let its memory be written : proc_mem.force_override forbids it, or its cgroup has no memory left for a page"
    )]
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

impl Memory {
    /// That which a process has now. One that runs may leave it at any time, and others may run in it: what needs it to stand is
    /// asked of memory that was opened while it did.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn open(process: u32) -> Result<Self, ClockError> {
        let path = format!("/proc/{process}/maps");
        let mappings = Mappings::of(process).map_err(|error| lost("read", &path, error))?;
        if mappings.is_empty() {
            return Err(ClockError::NoMemory);
        }
        Self::by(process, mappings.thread, mappings.vdso.map_or(0, |vdso| vdso.start))
    }

    /// That of a process whose vDSO the kernel says to lie there; nowhere if at 0.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn at(process: u32, vdso: u64) -> Result<Self, ClockError> {
        Self::by(process, process, vdso)
    }

    fn by(process: u32, thread: u32, vdso: u64) -> Result<Self, ClockError> {
        if vdso == 0 {
            return Err(ClockError::NoVdso);
        }
        let path = if thread == process {
            format!("/proc/{process}/mem")
        } else {
            format!("/proc/{process}/task/{thread}/mem")
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| lost("open", &path, error))?;
        let memory = Self { process, file, vdso };
        let mut start = [0; 5];
        match memory.file.read_exact_at(&mut start, vdso) {
            // There is nothing mapped.
            Err(nothing) if nothing.raw_os_error() == Some(libc::EIO) && !is_mapped(process, vdso)? => {
                return Err(ClockError::NoVdso);
            }
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
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), ClockError> {
        let read = self.file.read_exact_at(to, self.vdso + offset as u64);
        read.map_err(|error| lost("read", &self.name(), error))
    }

    /// Writes into the vDSO: one call.
    ///
    /// # Errors
    ///
    /// [`ClockError::Gone`], [`ClockError::Unforced`], or the kernel's.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), ClockError> {
        let written = self.file.write_all_at(bytes, self.vdso + offset as u64);
        written.map_err(|error| match error.raw_os_error() {
            Some(libc::EIO) => ClockError::Unforced,
            _ => lost("write", &self.name(), error),
        })
    }

    /// Does what writes; as the tracer of the process where the kernel lets nobody else, see [`as_writer`].
    pub(super) fn forced(
        &self,
        action: impl Fn() -> Result<(), ClockError> + Sync,
    ) -> Result<(), ClockError> {
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

    fn has(&self, offset: usize, bytes: &[u8]) -> Result<bool, ClockError> {
        let mut there = vec![0; bytes.len()];
        self.read(offset, &mut there)?;
        Ok(there == bytes)
    }
}

/// Whether something is still mapped there: what cannot be read may also be a page that there is no room for.
fn is_mapped(process: u32, address: u64) -> Result<bool, ClockError> {
    let mappings =
        Mappings::of(process).map_err(|error| lost("read", &format!("/proc/{process}/maps"), error))?;
    Ok(mappings.around(address).is_some())
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
pub fn as_writer(process: u32, action: impl Fn() -> Result<(), ClockError> + Sync) -> Result<(), ClockError> {
    if TRACERS_ALONE.load(Ordering::Relaxed) { while_traced(process, MOMENT, &action)? } else { action() }
}

/// What an error on a file of a process's means: of memory that is no more nothing is read, and to it nothing is written. `EIO` is
/// the kernel's refusal of what is there.
fn lost(call: &'static str, path: &str, error: io::Error) -> ClockError {
    let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
        || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero);
    if gone { ClockError::Gone } else { Error::new(call, path, error).into() }
}

/// A process whose clocks are changed.
#[derive(Debug)]
pub struct Changed {
    memory: Memory,
    /// Whether somebody writes, or waits for that.
    is_written: AtomicBool,
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Changed {
    fn of(memory: Memory) -> Self {
        Self { memory, is_written: AtomicBool::new(false) }
    }

    /// Whose they are.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.memory.process
    }

    /// Lets the caller write; nothing if another still does: it may be kept by the process for as long as that pleases.
    #[must_use]
    pub fn turn(&self) -> Option<Turn<'_>> {
        (!self.is_written.swap(true, Ordering::Acquire)).then_some(Turn(&self.is_written))
    }

    /// Changes the clocks of a process, which tell what they did until they are given another block. That may take as long as the
    /// process pleases; nothing is written any more once it is over.
    ///
    /// # Errors
    ///
    /// [`ClockError`]; nothing that runs has been changed.
    pub fn new(
        process: Process,
        patch: &Patch,
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, ClockError> {
        // A child of one that was is as its parent. What is not that one's now never is again.
        if !stop::is_in_anothers_memory(process.pid)? {
            let memory = Memory::open(process.pid)?;
            is_still(process)?;
            if is_put(&memory, patch)? {
                return Ok(Self::of(memory));
            }
        }
        while_stopped(process.pid, PATIENCE, |stopped| Ok(Self::standing(process, patch, stopped, is_over)))?
    }

    /// Of one that stands, alone in its memory, and executes nothing.
    fn standing(
        process: Process,
        patch: &Patch,
        stopped: &mut Stopped,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Self, ClockError> {
        is_still(process)?;
        let memory = Memory::open(process.pid)?;
        // Somebody else may have been quicker until it stood still.
        if is_put(&memory, patch)? {
            return Ok(Self::of(memory));
        }
        let vdso = memory.vdso;
        let all: Vec<_> =
            patch.text().iter().map(|it| it.start as u64 + vdso..it.end as u64 + vdso).collect();
        if stopped.leave(|place| all.iter().any(|range| range.contains(&place)))? || stopped.mentions(&all)? {
            return Err(StopError::Stuck(process.pid.cast_signed()).into());
        }
        // Whatever is wrong shows when the time is told.
        put(&memory, patch, &|| !is_over())?;
        Ok(Self::of(memory))
    }

    /// The same of a process that is held by the kernel, for as long as `is_held` says so, and that need not be stopped. Its memory
    /// is nobody else's: it has just executed a program.
    ///
    /// # Errors
    ///
    /// [`ClockError`]; see [`put`] for [`ClockError::LetGo`].
    pub fn held(
        memory: Memory,
        patch: &Patch,
        is_held: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, ClockError> {
        if !is_put(&memory, patch)? {
            memory.forced(|| put(&memory, patch, is_held))?;
        }
        Ok(Self::of(memory))
    }

    /// Has its clocks go by this block.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn set(&self, patch: &Patch, block: &Block) -> Result<(), ClockError> {
        self.memory.forced(|| {
            let mut sequence = [0];
            self.memory.read(patch.seq_offset(), &mut sequence)?;
            patch.renewal(sequence[0], block).iter().try_for_each(|(at, bytes)| self.memory.write(*at, bytes))
        })
    }

    /// Has its clocks be right.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn set_off(&self, patch: &Patch) -> Result<(), ClockError> {
        self.memory.forced(|| patch.off().iter().try_for_each(|(at, zeros)| self.memory.write(*at, zeros)))
    }
}

/// Whether a process's vDSO is changed, wholly; in part it may be by [`put`].
fn is_put(memory: &Memory, patch: &Patch) -> Result<bool, ClockError> {
    let is_marked = VdsoChange::of(patch).is_in(memory)?;
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

/// Refuses what is another by now.
fn is_still(process: Process) -> Result<(), ClockError> {
    match process.lives() {
        Ok(true) => Ok(()),
        Ok(false) => Err(ClockError::Gone),
        Err(source) => Err(Error::new("read", format!("/proc/{}/stat", process.pid), source).into()),
    }
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
fn put(memory: &Memory, patch: &Patch, stands: &dyn Fn() -> bool) -> Result<(), ClockError> {
    for piece in std::iter::once(patch.body()).chain(patch.entries()) {
        if !stands() {
            return Err(ClockError::LetGo);
        }
        memory.write(piece.offset, &piece.bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
