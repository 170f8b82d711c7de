//! The vDSO of another process, by `/proc/PID/mem`: finding it, and changing its clocks and back.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    time::Duration,
};

use chaos_ebpf::time::Block;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    stop::{StopError, while_stopped},
    vdso::{Patch, Piece},
};

/// Why a process's clocks cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// It has ended, or executes another program.
    #[error("it has ended")]
    Gone,
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
    /// Anything else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl ClockError {
    /// Whether it may be otherwise a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Stop(_))
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

/// How long a process may take to stand still: one that runs takes microseconds, but each of its threads has to have its
/// turn for that.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same where nobody is kept waiting.
const LONG: Duration = Duration::from_secs(2);

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

    /// Writes into the vDSO: one call, and with eight bytes or fewer one store.
    ///
    /// # Errors
    ///
    /// [`ClockError::Gone`], or the kernel's.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> std::result::Result<(), ClockError> {
        let written = self.file.write_all_at(bytes, self.vdso + offset as u64);
        written.map_err(|error| lost("write", &self.name(), error))
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
    /// Changes the clocks of a process, which tell what they did until they are given another block. A process that is held
    /// by the kernel need not be stopped.
    ///
    /// # Errors
    ///
    /// [`ClockError`]; nothing that runs has been changed.
    pub fn new(memory: Memory, patch: &Patch, is_held: bool) -> std::result::Result<Self, ClockError> {
        let change = VdsoChange::of(patch);
        if memory.is_changed(&change)? {
            // A child of one that was.
            return Ok(Self(memory));
        }
        let as_made = |piece: &Piece| memory.has(piece.offset, &piece.original);
        for piece in patch.entries() {
            if !as_made(piece)? {
                return Err(ClockError::Unlike);
            }
        }
        if is_held {
            put(&memory, patch)?;
        } else {
            let vdso = memory.vdso;
            while_stopped(memory.process, PATIENCE, |stopped| {
                // Somebody else may have been quicker until it stood still.
                match memory.is_changed(&change) {
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
                Ok(put(&memory, patch))
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
        let mut sequence = [0];
        self.0.read(patch.seq_offset(), &mut sequence)?;
        patch.renewal(sequence[0], block).into_iter().try_for_each(|(at, bytes)| self.0.write(at, &bytes))
    }

    /// Has its clocks be right.
    ///
    /// # Errors
    ///
    /// [`ClockError`].
    pub fn set_off(&self, patch: &Patch) -> std::result::Result<(), ClockError> {
        patch.off().iter().try_for_each(|(at, zeros)| self.0.write(*at, zeros))
    }
}

fn put(memory: &Memory, patch: &Patch) -> std::result::Result<(), ClockError> {
    memory.write(patch.body().offset, &patch.body().bytes)?;
    patch.entries().iter().try_for_each(|entry| memory.write(entry.offset, &entry.bytes))
}

/// Zeros, in whatever order they come, only ever make a number smaller.
fn off(memory: &Memory, windows: &[usize]) -> std::result::Result<(), ClockError> {
    windows.iter().try_for_each(|at| memory.write(*at, &[0; 8]))
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
    fn changed(&self) -> Result<Vec<Memory>> {
        let entries = fs::read_dir("/proc").map_err(|source| Error::new("readdir", "/proc", source))?;
        let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // Of processes that come and go it cannot be known, and those of other kinds are none of ours.
        let all = processes.filter_map(|process| Memory::open(process).ok());
        Ok(all.filter(|memory| memory.is_changed(self).unwrap_or(false)).collect())
    }

    /// The processes that are changed, by number.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn left(&self) -> Result<Vec<u32>> {
        Ok(self.changed()?.iter().map(|memory| memory.process).collect())
    }

    /// Has all clocks be right, and leaves what was added.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn set_off(&self) -> Result<()> {
        for memory in self.changed()? {
            // One that ends meanwhile has no clocks.
            let _ = off(&memory, &self.windows);
        }
        Ok(())
    }

    /// Puts back what there was. A child that is made meanwhile is found in the next turn.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or a process does not stand still.
    pub fn undo(&self) -> Result<()> {
        const TURNS: usize = 5;
        self.set_off()?;
        let mut failed = Ok(());
        for _ in 0..TURNS {
            let left = self.changed()?;
            if left.is_empty() {
                return Ok(());
            }
            failed = Ok(());
            for memory in &left {
                match self.clear(memory) {
                    Ok(()) | Err(ClockError::Gone | ClockError::NoMemory) => {}
                    Err(ClockError::Kernel(error)) => failed = Err(error),
                    Err(error) => {
                        failed = Err(Error::new(
                            "undo",
                            format!("the vDSO of process {}", memory.process),
                            io::Error::other(error.to_string()),
                        ));
                    }
                }
            }
        }
        failed
    }

    fn clear(&self, memory: &Memory) -> std::result::Result<(), ClockError> {
        let vdso = memory.vdso;
        off(memory, &self.windows)?;
        while_stopped(memory.process, LONG, |stopped| {
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
