//! Waits whose end is the kernel's to decide, and what else it stamps with its own time.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    ptr,
};

use faultline_tests::{
    clocks::{Source, Wait, Waited, Way},
    ensure,
    error::{Context, Result, check},
};

const SECOND: i64 = 1_000_000_000;

/// Waits until the clock, as the C library reads it, says so much more than it does.
pub(super) fn wait(how: Wait, clock: Source, milliseconds: u64) -> Result<Waited> {
    let raw = || Source::MonotonicRaw.read(Way::Raw).context("CLOCK_MONOTONIC_RAW");
    let now = || clock.read(Way::Libc).context(clock);
    let length = milliseconds as i64 * 1_000_000;
    let (first, began, second) = (raw()?, now()?, raw()?);
    let until = timespec(began + length);
    match how {
        Wait::Sleep => sleep(clock, libc::TIMER_ABSTIME, until),
        Wait::SleepFor => sleep(clock, 0, timespec(length)),
        Wait::Timerfd => timerfd(clock, until),
        Wait::Condition => condition(until),
    }?;
    let (third, ended, fourth) = (raw()?, now()?, raw()?);
    Ok(Waited { least: third - second, most: fourth - first, seen: ended - began })
}

fn timespec(ns: i64) -> libc::timespec {
    libc::timespec { tv_sec: ns.div_euclid(SECOND), tv_nsec: ns.rem_euclid(SECOND) }
}

fn sleep(clock: Source, flags: i32, time: libc::timespec) -> Result {
    // SAFETY: reads one timespec, and is not told where to write what is left.
    let error = unsafe { libc::clock_nanosleep(clock.clock(), flags, &raw const time, ptr::null_mut()) };
    ensure!(error == 0, "clock_nanosleep: errno {error}");
    Ok(())
}

fn timerfd(clock: Source, until: libc::timespec) -> Result {
    // SAFETY: takes no pointers.
    let fd =
        check(unsafe { libc::timerfd_create(clock.clock(), libc::TFD_CLOEXEC) }.into(), "timerfd_create")?;
    // SAFETY: a new one, which nobody else has.
    let timer = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let once = libc::itimerspec { it_interval: timespec(0), it_value: until };
    let fd = timer.as_raw_fd();
    // SAFETY: reads one itimerspec, and is not told where to write what was set.
    let set = unsafe { libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &raw const once, ptr::null_mut()) };
    check(set.into(), "timerfd_settime")?;
    let mut times = 0_u64;
    // SAFETY: reads into eight bytes.
    let length = unsafe { libc::read(fd, (&raw mut times).cast(), 8) };
    ensure!(length == 8 && times == 1, "a timer gave {length} bytes: {times}");
    Ok(())
}

/// Of `CLOCK_REALTIME`, as by default.
fn condition(until: libc::timespec) -> Result {
    let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    let mut condition = libc::PTHREAD_COND_INITIALIZER;
    let mut error = 0;
    // SAFETY: both are initialised, this thread's alone, and stay where they are.
    unsafe {
        libc::pthread_mutex_lock(&raw mut mutex);
        while error == 0 {
            error = libc::pthread_cond_timedwait(&raw mut condition, &raw mut mutex, &raw const until);
        }
        libc::pthread_mutex_unlock(&raw mut mutex);
    }
    ensure!(error == libc::ETIMEDOUT, "pthread_cond_timedwait: errno {error}");
    Ok(())
}

/// Writes to a file; when the kernel says that was, in nanoseconds.
pub(super) fn touch(path: &Path) -> Result<i64> {
    let mut file = File::create(path).context(path.display())?;
    file.write_all(b"x").context(path.display())?;
    let status = file.metadata().context(path.display())?;
    Ok(status.mtime() * SECOND + status.mtime_nsec())
}
