//! Children that come and go.

use std::{
    io, process,
    ptr::{self, null_mut},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use faultline_tests::{
    clocks::{Source, Way},
    ensure,
    error::{Context, Failure, Result, check},
};

use super::say;

/// As many as begin children at a time: more than there are CPUs on small machines.
const THREADS: usize = 4;

static OVER: AtomicBool = AtomicBool::new(false);
/// Children that have ended as they should.
static CHILDREN: AtomicU64 = AtomicU64::new(0);

/// For ever.
pub(super) fn forks() -> Result {
    say("ready")?;
    loop {
        // SAFETY: this process has one thread.
        match check(unsafe { libc::fork() }.into(), "fork")? {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            child => reap(child as i32)?,
        }
    }
}

/// Until the input ends; how many there were.
pub(super) fn vforks() -> Result {
    let threads: io::Result<Vec<_>> =
        (0..THREADS).map(|_| thread::Builder::new().spawn(begin_children)).collect();
    let threads = threads.context("a thread")?;
    say("ready")?;
    io::copy(&mut io::stdin().lock(), &mut io::sink()).context("read")?;
    OVER.store(true, Relaxed);
    for thread in threads {
        thread.join().map_err(|_| Failure::new("it panicked"))?;
    }
    say(&format!("children {}", CHILDREN.load(Relaxed)))
}

fn begin_children() {
    while !OVER.load(Relaxed) {
        let done = nothing().and_then(|()| spawn());
        if let Err(failure) = done {
            // At once, whatever the other threads do.
            let _ = say(&format!("crash: {failure}"));
            process::exit(1);
        }
        CHILDREN.fetch_add(1, Relaxed);
    }
}

/// What a child does.
pub(super) fn nothing() -> Result {
    Source::Realtime.read(Way::Vdso).context("no vDSO").map(drop)
}

/// A child that runs in the memory of this process until it executes its program, while the other threads run.
fn spawn() -> Result {
    let path = c"/proc/self/exe";
    let words = [c"fl-hostile".as_ptr().cast_mut(), c"nothing".as_ptr().cast_mut(), null_mut()];
    let environment = [null_mut()];
    let mut child = 0;
    // SAFETY: strings that end with NUL, in lists that end with a null pointer; it writes one integer.
    let errno = unsafe {
        let (words, environment) = (words.as_ptr(), environment.as_ptr());
        libc::posix_spawn(&raw mut child, path.as_ptr(), ptr::null(), ptr::null(), words, environment)
    };
    ensure!(errno == 0, "posix_spawn: errno {errno}");
    reap(child)
}

fn reap(child: i32) -> Result {
    let mut status = 0;
    // SAFETY: writes one integer.
    check(unsafe { libc::waitpid(child, &raw mut status, 0) }.into(), "waitpid")?;
    ensure!(status == 0, "child {child} ended with status {status:#x}");
    Ok(())
}
