//! A process beside the owner that does at once what the next command would do: it sees the owner end, however that
//! happens, and sweeps what is left of its run.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{Record, SweepError, folder::Folder, sweep};
use crate::kernel::{
    change::{Change, LONGEST},
    hold,
    memory::VdsoChange,
};

/// The command that a guard is.
pub const COMMAND: &str = "guard";

/// The owner's side: as long as this is there the guard waits.
#[derive(Debug)]
pub(super) struct Guard {
    pid: u32,
    _hold: mpsc::Sender<()>,
}

impl Guard {
    /// Starts the guard of a run.
    pub(super) fn begin(id: &str) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args([COMMAND, id]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // What a terminal tells its owner is not meant for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let pid = child.id();
        let pipe = child.stdin.take().map(OwnedFd::from).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { pid, _hold: hold(pipe, child)? })
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

/// Keeps the pipe open in a thread with files of its own, until what is returned is dropped, and hears of the guard's end then.
/// When a process is killed its other files, eBPF's links among them, take the kernel milliseconds to close; this thread has one.
fn hold(pipe: OwnedFd, mut guard: Child) -> io::Result<mpsc::Sender<()>> {
    let (sender, over) = mpsc::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let number = pipe.as_raw_fd();
    let stay = move || {
        let alone = keep_only(number);
        let is_alone = alone.is_ok();
        let _ = ready.send(alone);
        if is_alone {
            hold::first();
            // Until the owner lets go of it, which is when nothing can be sent any more.
            let _ = over.recv();
            // SAFETY: this thread's own, which nobody else has.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
        // Nobody is told how it ended.
        let _ = guard.wait();
    };
    thread::Builder::new().name("guard".into()).spawn(stay)?;
    is_ready.recv().map_err(io::Error::other)??;
    // This closes it for all other threads.
    drop(pipe);
    Ok(sender)
}

/// Gives the calling thread a table of files of its own, with this one alone.
fn keep_only(kept: RawFd) -> io::Result<()> {
    let kept = kept.cast_unsigned();
    let ranges = [(0, kept.checked_sub(1)), (kept + 1, Some(u32::MAX))];
    for (first, last) in ranges.into_iter().filter_map(|(first, last)| Some((first, last?))) {
        // SAFETY: three integers; the files of this process stay open in its other threads.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
        if closed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits until standard input ends, which is when the owner of the run `id` has, and takes back what it has left.
///
/// # Errors
///
/// [`SweepError`].
pub fn guard(id: &str) -> Result<(), SweepError> {
    /// An owner that was killed is gone when the kernel has closed its files.
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(1);
    hold::first();
    // Whatever it says, it ends with the owner.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let own = || match Folder::open()? {
        Some(folder) => Ok(Record::read(&folder, id)?),
        None => Ok::<_, SweepError>(None),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut changes = None;
    loop {
        // What cannot be read now, for want of memory say, may be in a moment.
        let found = own();
        match (&found, &changes) {
            (Ok(None), None) => return Ok(()),
            (Ok(Some(record)), None) => {
                let all = record.changes();
                // Clocks are right from here on; the rest takes as long as it takes.
                of_clocks(&all).for_each(|vdso| drop(vdso.set_off()));
                changes = Some(all);
            }
            _ => {}
        }
        if matches!(&found, Ok(record) if record.as_ref().is_none_or(|record| !record.alive)) {
            break;
        }
        if Instant::now() >= deadline {
            // Its end is kept by something that it waits for, and nobody else comes as long as it is there. What is of processes is
            // nobody else's; the record is cleared away by whoever finds its owner gone.
            of_clocks(changes.as_deref().unwrap_or_default())
                .for_each(|vdso| drop(vdso.undo(Instant::now() + LONGEST)));
            break;
        }
        thread::sleep(PAUSE);
    }
    sweep().map(drop)
}

fn of_clocks(changes: &[Change]) -> impl Iterator<Item = &VdsoChange> {
    changes.iter().filter_map(|change| match change {
        Change::Vdso(vdso) => Some(vdso),
        _ => None,
    })
}
