//! A thread that is traced.

use std::{
    io, mem, ptr, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_void, pid_t};

use super::{
    StopError,
    task::{self, Event},
    tracer::{self, seizing},
};
use crate::kernel::{Error, process::Stat};

/// How often it is looked whether it stands, and for how long; and how often then.
const OFTEN: Duration = Duration::from_micros(20);
const AT_ONCE: Duration = Duration::from_millis(2);
const SELDOM: Duration = Duration::from_millis(1);
/// How long one may wait in the kernel where no signal reaches it: all others of its process stand still meanwhile.
pub(super) const AWHILE: Duration = Duration::from_millis(10);

/// A thread that is traced.
#[derive(Debug)]
pub(super) struct Thread {
    process: u32,
    pub(super) number: pid_t,
    pub(super) stands: bool,
    /// Whether it does so because somebody has stopped its process.
    is_stopped: bool,
}

/// Where a thread is: the next instruction, and the top of its stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) next: u64,
    pub(super) stack: u64,
}

impl Thread {
    /// Has it be traced, which does not stop it; nothing if it has ended. One whose tracer ends may be traced again a moment after
    /// that has, which others see before.
    pub(super) fn seize(process: u32, number: pid_t) -> Result<Option<Self>, StopError> {
        let end = Instant::now() + AWHILE;
        loop {
            // Who executes a program is not to be had before that is done.
            match seizing(|| trace(libc::PTRACE_SEIZE, number, ptr::null_mut(), ptr::null_mut())) {
                Ok(()) => return Ok(Some(Self { process, number, stands: false, is_stopped: false })),
                Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
                // One that has ended may not be traced either.
                Err(_) if stat(process, number)?.is_none_or(|stat| stat.is_dead()) => return Ok(None),
                Err(source) if source.raw_os_error() != Some(libc::EPERM) || Instant::now() >= end => {
                    return Err(StopError::Refused { thread: number, source });
                }
                Err(_) => thread::sleep(OFTEN),
            }
        }
    }

    /// Has it stop; what becomes of that says [`wait`](Self::wait).
    pub(super) fn interrupt(&self) -> Result<(), StopError> {
        match trace(libc::PTRACE_INTERRUPT, self.number, ptr::null_mut(), ptr::null_mut()) {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                Err(StopError::Refused { thread: self.number, source })
            }
            // One that has ended says so there.
            _ => Ok(()),
        }
    }

    /// Waits until it stands; false if it has ended instead. That a process has ended is for whoever began it to hear, which
    /// may be this one: it is not asked for, and so not taken away. That of a further thread nobody else can hear.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<bool, StopError> {
        let is_process = self.number.cast_unsigned() == self.process;
        let kinds = if is_process { libc::WSTOPPED } else { libc::WSTOPPED | libc::WEXITED };
        self.stands = false;
        let (begun, mut deaf) = (Instant::now(), None);
        loop {
            match task::wait(self.number, kinds) {
                Ok(Some(Event::Stands(status))) => {
                    self.note(status);
                    return Ok(true);
                }
                Ok(None) => {}
                Ok(Some(Event::Ended)) | Err(_) => return Ok(false),
            }
            let now = Instant::now();
            let is_soon = now - begun < AT_ONCE;
            let is_deaf = !is_soon && stat(self.process, self.number)?.is_some_and(|stat| stat.is_deaf());
            deaf = if is_deaf { deaf.or(Some(now)) } else { None };
            if now >= deadline || deaf.is_some_and(|since| now - since >= AWHILE) {
                return Err(StopError::Stuck(self.number));
            }
            thread::sleep(if is_soon { OFTEN } else { SELDOM });
        }
    }

    fn note(&mut self, status: c_int) {
        /// Of the events only this one tells of one that was to stop before: by its signal, where others have `SIGTRAP`.
        const STOP: c_int = libc::PTRACE_EVENT_STOP;
        // What is no event is a signal on its way.
        if status >> 8 == 0 {
            tracer::keep(self.number, status);
        }
        self.is_stopped = status >> 8 == STOP && status & 0xff != libc::SIGTRAP;
        self.stands = true;
    }

    /// Has it go on, and stand again, until it is out of where it must not be, or has ended. Whether it went on. One that somebody has
    /// stopped stays where it is.
    pub(super) fn leave(
        &mut self,
        is_inside: impl Fn(u64) -> bool,
        deadline: Instant,
    ) -> Result<bool, StopError> {
        // Of different lengths, lest it go round with them; and longer ones, for it may have to wait for a CPU.
        let pause = |turn: u64| 20 + turn * 37 % 101 + (10 * turn * turn).min(5_000);
        let mut pauses = (0..).map(|turn| Duration::from_micros(pause(turn)));
        let mut has_gone_on = false;
        while !self.is_stopped && self.is_in(&is_inside)? {
            if Instant::now() >= deadline {
                return Err(StopError::Stuck(self.number));
            }
            has_gone_on = true;
            self.go_on();
            thread::sleep(pauses.next().unwrap_or_default());
            // Who has stopped by then, at a signal or since it was to stop twice, would do so at once the next time for being asked to.
            if matches!(task::wait(self.number, libc::WSTOPPED | libc::WNOWAIT), Ok(None)) {
                self.interrupt()?;
            }
            self.wait(deadline)?;
        }
        Ok(has_gone_on)
    }

    /// Whether it stands where this holds.
    pub(super) fn is_in(&self, is_inside: impl Fn(u64) -> bool) -> Result<bool, StopError> {
        Ok(self.stands && self.place()?.is_some_and(|place| is_inside(place.next)))
    }

    /// Has it go on, still traced, with the first signal that it was about to be told.
    fn go_on(&mut self) {
        let signal = tracer::next_for(self.number).unwrap_or(0);
        self.stands = false;
        // One that is gone needs nothing more.
        let _ = trace(libc::PTRACE_CONT, self.number, ptr::null_mut(), signal as usize as *mut c_void);
    }

    /// Has it go on, and be traced no more. What else it was about to be told it is told when all are let go.
    pub(super) fn let_go(self) {
        let first = tracer::next_for(self.number).unwrap_or(0);
        // One that is gone needs nothing more.
        let _ = trace(libc::PTRACE_DETACH, self.number, ptr::null_mut(), first as usize as *mut c_void);
    }

    /// Where it is; nothing if it has been killed meanwhile.
    pub(super) fn place(&self) -> Result<Option<Place>, StopError> {
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

fn stat(process: u32, thread: pid_t) -> Result<Option<Stat>, StopError> {
    let error = |source| Error::new("read", format!("/proc/{process}/task/{thread}/stat"), source);
    Stat::of_thread(process, thread).map_err(error).map_err(StopError::Kernel)
}

fn trace(request: libc::c_uint, thread: pid_t, address: *mut c_void, data: *mut c_void) -> io::Result<()> {
    // SAFETY: none of the requests made here writes but to what `data` of `PTRACE_GETREGSET` points to, which lives.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
