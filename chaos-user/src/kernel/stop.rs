//! Processes that stand still for a moment, so that the code they run can be changed. It is done by ptrace, which the
//! kernel itself ends should the caller die: its tracees go on as if nothing had been.

use std::{
    fs, io, mem, ptr, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_void, pid_t};

use super::{Error, hold};

/// Why a process does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// It may not be traced, or another does so.
    #[error("thread {thread} cannot be held: {source}; a debugger or strace may have it")]
    Refused {
        /// The thread.
        thread: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A thread that is within the kernel and does not come back, or that does not leave what is to be changed.
    #[error("thread {0} does not come to where it can be held; it may wait in the kernel for something")]
    Stuck(i32),
    /// Anything else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// A thread that is traced.
#[derive(Debug)]
struct Thread {
    number: pid_t,
    stands: bool,
    /// What it was about to be told; told when it goes on.
    signals: Vec<c_int>,
}

/// All threads of a process, standing still.
#[derive(Debug)]
pub struct Stopped {
    process: u32,
    threads: Vec<Thread>,
    deadline: Instant,
}

/// Where a thread is: the next instruction, and the top of its stack.
#[derive(Clone, Copy, Debug)]
struct Place {
    next: u64,
    stack: u64,
}

/// Does something while all threads of a process stand still, at most that long.
///
/// # Errors
///
/// [`StopError`]; the process goes on at any rate.
pub fn while_stopped<T: Send>(
    process: u32,
    patience: Duration,
    action: impl FnOnce(&mut Stopped) -> Result<T, StopError> + Send,
) -> Result<T, StopError> {
    // A thread's tracees are let go of by the kernel as it ends, also those that would not stop.
    let traced = || {
        // Those that are to stop may be many, and all want to run.
        hold::first();
        let mut stopped = Stopped { process, threads: Vec::new(), deadline: Instant::now() + patience };
        let done = stopped.hold().and_then(|()| action(&mut stopped));
        stopped.let_go();
        done
    };
    let done = thread::scope(|scope| scope.spawn(traced).join());
    done.unwrap_or_else(
        |_| Err(Error::new("ptrace", process.to_string(), io::ErrorKind::Other.into()).into()),
    )
}

impl Stopped {
    fn hold(&mut self) -> Result<(), StopError> {
        // A thread that is not held yet may begin another meanwhile.
        loop {
            let before = self.threads.len();
            for number in threads(self.process)? {
                if !self.threads.iter().any(|thread| thread.number == number) {
                    self.seize(number)?;
                }
            }
            let mut gone = Vec::new();
            for thread in self.threads.iter_mut().filter(|thread| !thread.stands) {
                if !thread.wait(self.deadline)? {
                    gone.push(thread.number);
                }
            }
            self.threads.retain(|thread| !gone.contains(&thread.number));
            if self.threads.is_empty() {
                return Err(StopError::Gone);
            }
            if self.threads.len() == before {
                return Ok(());
            }
        }
    }

    fn seize(&mut self, number: pid_t) -> Result<(), StopError> {
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            match trace(request, number, ptr::null_mut(), ptr::null_mut()) {
                Ok(()) => {}
                Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(source) => return Err(StopError::Refused { thread: number, source }),
            }
        }
        self.threads.push(Thread { number, stands: false, signals: Vec::new() });
        Ok(())
    }

    /// Has each thread go on, and stand again, until it is out of where it must not be. Not by single steps: a thread whose
    /// tracer dies in the middle of one is killed by it.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn leave(&mut self, is_inside: impl Fn(u64) -> bool) -> Result<(), StopError> {
        let deadline = self.deadline;
        for thread in &mut self.threads {
            // Of different lengths, lest it go round with them.
            let mut pauses = (0_u64..).map(|turn| Duration::from_micros(20 + turn * 37 % 101));
            while thread.stands && thread.place()?.is_some_and(|place| is_inside(place.next)) {
                if Instant::now() >= deadline {
                    return Err(StopError::Stuck(thread.number));
                }
                thread.go_on();
                thread::sleep(pauses.next().unwrap_or_default());
                let interrupted =
                    trace(libc::PTRACE_INTERRUPT, thread.number, ptr::null_mut(), ptr::null_mut());
                // One that has ended meanwhile is nowhere.
                if interrupted.is_err() || !thread.wait(deadline)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether a handler of a signal runs that has interrupted a thread in this range, and goes back there: then its stack
    /// has what the kernel saved of the registers. On x86-64 that is told from what is left of other calls by its neighbours
    /// (`struct sigcontext`): flags, and the segment of user code; elsewhere any mention counts.
    ///
    /// # Errors
    ///
    /// [`StopError`].
    pub fn mentions(
        &self,
        range: &std::ops::Range<u64>,
        read: impl Fn(u64, &mut [u8]) -> usize,
    ) -> Result<bool, StopError> {
        const DEPTH: usize = 64 << 10;
        let mut bytes = vec![0; DEPTH];
        for thread in &self.threads {
            let Some(place) = thread.place()? else { continue };
            let length = read(place.stack & !7, &mut bytes);
            let words = bytes[..length].chunks_exact(8);
            let words: Vec<u64> = words.map(|word| word.try_into().map_or(0, u64::from_ne_bytes)).collect();
            if words.windows(3).any(|saved| range.contains(&saved[0]) && is_saved(saved[1], saved[2])) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn let_go(&mut self) {
        for thread in self.threads.drain(..).filter(|thread| thread.stands) {
            let mut signals = thread.signals.into_iter();
            let first = signals.next().unwrap_or(0);
            // One that is gone needs nothing more.
            let _ = trace(libc::PTRACE_DETACH, thread.number, ptr::null_mut(), first as usize as *mut c_void);
            for signal in signals {
                // SAFETY: three integers.
                unsafe { libc::syscall(libc::SYS_tgkill, self.process, thread.number, signal) };
            }
        }
    }
}

impl Thread {
    /// Waits until it stands; false if it has ended instead.
    fn wait(&mut self, deadline: Instant) -> Result<bool, StopError> {
        const PAUSE: Duration = Duration::from_micros(20);
        self.stands = false;
        loop {
            let mut status = 0;
            // SAFETY: `status` is there to be written.
            let found = unsafe { libc::waitpid(self.number, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match found {
                0 if Instant::now() >= deadline => return Err(StopError::Stuck(self.number)),
                0 => thread::sleep(PAUSE),
                found if found == self.number && libc::WIFSTOPPED(status) => break self.note(status),
                -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn note(&mut self, status: c_int) {
        // What is no event is a signal on its way.
        if status >> 16 == 0 {
            self.signals.push(libc::WSTOPSIG(status));
        }
        self.stands = true;
    }

    /// Has it go on, still traced, with the first signal that it was about to be told.
    fn go_on(&mut self) {
        let signal = if self.signals.is_empty() { 0 } else { self.signals.remove(0) };
        self.stands = false;
        // One that is gone needs nothing more.
        let _ = trace(libc::PTRACE_CONT, self.number, ptr::null_mut(), signal as usize as *mut c_void);
    }

    /// Where it is; nothing if it has been killed meanwhile.
    fn place(&self) -> Result<Option<Place>, StopError> {
        // SAFETY: integers, for which zeros are a value.
        let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
        let mut vector =
            libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of_val(&registers) };
        /// `NT_PRSTATUS`: the general registers.
        const GENERAL: usize = 1;
        let asked =
            trace(libc::PTRACE_GETREGSET, self.number, GENERAL as *mut c_void, (&raw mut vector).cast());
        match asked {
            Ok(()) => {}
            Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(source) => {
                return Err(Error::new("ptrace(PTRACE_GETREGSET)", self.number.to_string(), source).into());
            }
        }
        #[cfg(target_arch = "x86_64")]
        let place = Place { next: registers.rip, stack: registers.rsp };
        #[cfg(target_arch = "aarch64")]
        let place = Place { next: registers.pc, stack: registers.sp };
        Ok(Some(place))
    }
}

/// Whether these come behind a saved instruction pointer.
fn is_saved(flags: u64, segments: u64) -> bool {
    /// Of which the second is always set, and none is beyond the 22nd.
    const ALWAYS: u64 = 1 << 1;
    const USER_CODE: u64 = 0x33;
    !cfg!(target_arch = "x86_64") || flags & ALWAYS != 0 && flags < 1 << 22 && segments & 0xffff == USER_CODE
}

fn threads(process: u32) -> Result<Vec<pid_t>, StopError> {
    let path = format!("/proc/{process}/task");
    let entries = match fs::read_dir(&path) {
        Err(gone) if matches!(gone.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Err(StopError::Gone);
        }
        entries => entries.map_err(|source| Error::new("readdir", path, source))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn trace(request: libc::c_uint, thread: pid_t, address: *mut c_void, data: *mut c_void) -> io::Result<()> {
    // SAFETY: none of the requests made here writes but to what `data` of `PTRACE_GETREGSET` points to, which lives.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
