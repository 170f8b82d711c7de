//! Processes of which more, or less, is there than their numbers say.

use std::{io, sync::mpsc, thread};

use faultline_tests::error::{Context, Result, check};
use nix::sched::{CloneFlags, unshare};

use super::{end_with_parent, say, wait};

/// Until it is told.
fn told() -> Result {
    say("ready")?;
    io::stdin().read_line(&mut String::new()).context("read").map(drop)
}

/// The child has all that its parent has by then, and other monotonic clocks.
pub(super) fn times() -> Result {
    told()?;
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)).context("unshare(CLONE_NEWTIME)")?;
    // SAFETY: this process has one thread.
    match check(unsafe { libc::fork() }.into(), "fork")? {
        0 => end_with_parent()?,
        child => say(&format!("child {child}"))?,
    }
    wait()
}

/// Its number is that of a thread that has ended; what it has is another's.
pub(super) fn headless() -> Result {
    let (begun, number) = mpsc::channel();
    let other = thread::Builder::new().spawn(move || {
        // Each thread has its own.
        let _ = end_with_parent();
        // SAFETY: takes nothing.
        let _ = begun.send(unsafe { libc::gettid() });
        wait()
    });
    other.context("a thread")?;
    let other = number.recv().context("its number")?;
    told()?;
    say(&format!("thread {other}"))?;
    // SAFETY: ends this thread alone.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    wait()
}
