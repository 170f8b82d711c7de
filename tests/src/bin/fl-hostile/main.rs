//! Processes that do not cooperate, for Faultline to come through. Each says `ready` once it is what it should be, and is killed
//! when whoever started it ends. What the kernel does not let it be it says in a line that begins with `refused`.
//!
//! | words | what it is |
//! |---|---|
//! | `threads N` | so many threads that sleep |
//! | `forks` | begins children that end at once, one after the other |
//! | `vforks` | the same by `posix_spawn` in several threads, which read clocks; until its input ends |
//! | `times` | once told to, begins a child in another time namespace |
//! | `headless` | once told to, ends its first thread; another goes on |
//! | `counts FILE [clocks]` | counts in the first eight bytes of a file, as fast as it can, or reads a clock each time |
//! | `forged KIND...` | its vDSO is not the kernel's, or is not where it says |
//! | `stuck FOLDER [KIND...]` | serves a file system there, and then no longer; its children wait for that |

mod forged;
mod fuse;
mod kin;
mod own_map;
mod spawning;
mod stuck;

use std::{
    env,
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    process::ExitCode,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use faultline_tests::{
    clocks::{Source, Way},
    ensure,
    error::{Context, Failure, Result},
};
use nix::sys::{prctl, signal::Signal};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fl-hostile {}: {failure}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result {
    if let ["nothing"] = words {
        return spawning::nothing();
    }
    end_with_parent()?;
    match words {
        ["threads", count] => threads(count.parse().context(count)?),
        ["forks"] => spawning::forks(),
        ["vforks"] => spawning::vforks(),
        ["times"] => kin::times(),
        ["headless"] => kin::headless(),
        ["counts", file] => counts(file, false),
        ["counts", file, "clocks"] => counts(file, true),
        ["forged", kind @ ..] => forged::forge(kind),
        ["stuck", folder, kinds @ ..] => stuck::serve(folder, kinds),
        other => Err(Failure::new(format!("nothing is called {other:?}"))),
    }
}

/// Has the calling process killed when whoever began it ends.
fn end_with_parent() -> Result {
    prctl::set_pdeathsig(Signal::SIGKILL).context("prctl(PR_SET_PDEATHSIG)")
}

/// One line, at once.
fn say(line: &str) -> Result {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write")
}

/// Until it is killed.
fn wait() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

fn threads(count: u32) -> Result {
    // The C library takes as much more as it needs.
    const STACK: usize = 16 << 10;
    for number in 0..count {
        let thread = thread::Builder::new().stack_size(STACK).spawn(|| {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        thread.context(format_args!("thread {number}"))?;
    }
    say("ready")?;
    wait()
}

/// Whoever maps the file, or reads it, sees whether this process runs.
fn counts(path: &str, with_clocks: bool) -> Result {
    let file = File::options().read(true).write(true).open(path).context(path)?;
    let (access, length) = (libc::PROT_READ | libc::PROT_WRITE, size_of::<AtomicU64>());
    // SAFETY: new memory, wherever there is room.
    let start = unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    ensure!(start != libc::MAP_FAILED, "{}", Failure::last_os_error("mmap"));
    // SAFETY: at the start of a page, and never unmapped; whoever else writes there does so as one.
    let counter = unsafe { &*start.cast::<AtomicU64>() };
    say("ready")?;
    loop {
        if with_clocks {
            Source::Realtime.read(Way::Vdso).context("no vDSO")?;
        }
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
