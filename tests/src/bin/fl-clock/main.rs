//! A process that reads clocks, and waits for them, when it is told to; what faults of time are tried on.
//!
//! `fl-clock` takes orders. `fl-clock first` reads the time before it does anything else, says it, and ends;
//! `fl-clock chain N` becomes itself N times and says it each time; `fl-clock bare` has no vDSO and waits.

mod wait;
mod watch;

use std::{
    env,
    ffi::CString,
    io::{self, BufRead, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

use faultline_tests::{
    clocks::{From, Order, Reading, Source, Way, remove_vdso},
    ensure,
    error::{Context, Failure, Result, check},
};
use serde::Serialize;

/// What was forked ends with this if it has said nothing.
const SPEECHLESS: i32 = 9;

fn main() -> ExitCode {
    // Before anything else.
    let first = Source::Realtime.first_reading(Way::Libc, Source::MonotonicRaw);
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match run(&words, first) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fl-clock: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str], first: Option<Reading>) -> Result {
    match words {
        [] => serve(),
        ["first"] => say(&first),
        ["chain", left] => {
            say(&first)?;
            match left.parse::<u32>().context(left)? {
                0 => Ok(()),
                left => become_itself(&["chain", &(left - 1).to_string()]),
            }
        }
        ["again", reference] => {
            let reference = serde_json::from_str(reference).context(reference)?;
            // By the reference wanted, which the first is not.
            let reading = if reference == Source::MonotonicRaw { first } else { now(reference) };
            say(&reading)?;
            serve()
        }
        ["bare"] => {
            remove_vdso()?;
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
            Ok(())
        }
        other => Err(Failure::new(format!("nothing is called {other:?}"))),
    }
}

fn now(reference: Source) -> Option<Reading> {
    Source::Realtime.first_reading(Way::Libc, reference)
}

/// One line, at once.
fn say(answer: &impl Serialize) -> Result {
    let line = serde_json::to_string(answer).context("JSON")?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write")
}

/// Until there are no more orders.
fn serve() -> Result {
    for line in io::stdin().lock().lines() {
        let line = line.context("read")?;
        obey(serde_json::from_str(&line).context(&line)?)?;
    }
    Ok(())
}

fn obey(order: Order) -> Result {
    match order {
        Order::Read { by, reference } => read(by, reference),
        Order::One { source, way, reference } => say(&source.reading(way, reference)),
        Order::Sample { source, reference, milliseconds, pause_us } => {
            say(&sample(source, reference, milliseconds, pause_us).context("no vDSO")?)
        }
        Order::Watch { threads, skew } => say(&watch::start(threads, skew)?),
        Order::Seen => say(&watch::seen()),
        Order::Halt => say(&watch::halt()),
        Order::Exec { reference } => {
            become_itself(&["again", &serde_json::to_string(&reference).context("JSON")?])
        }
        Order::Wait { how, clock, milliseconds } => say(&wait::wait(how, clock, milliseconds)?),
        Order::Touch { path } => say(&wait::touch(&path)?),
    }
}

fn read(by: From, reference: Source) -> Result {
    let read = move || say(&Source::readings(reference));
    match by {
        From::Itself => read(),
        From::Thread => thread::spawn(read).join().unwrap_or_else(|_| Err(Failure::new("it panicked"))),
        From::Child => in_child(read),
        From::Orphan => in_child(move || {
            // SAFETY: takes no pointers.
            let parent = unsafe { libc::getpid() };
            // SAFETY: this process has one thread.
            if check(unsafe { libc::fork() }.into(), "fork")? != 0 {
                return Ok(());
            }
            // It ends without waiting.
            // SAFETY: takes no pointers.
            while unsafe { libc::getppid() } == parent {
                thread::yield_now();
            }
            read()
        }),
    }
}

/// Has a child do it, which says the answer.
fn in_child(action: impl FnOnce() -> Result) -> Result {
    // SAFETY: only one thread allocates while there are others, none of which holds a lock of this one's.
    match check(unsafe { libc::fork() }.into(), "fork")? {
        0 => {
            let code = if action().is_ok() { 0 } else { SPEECHLESS };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        child => {
            let mut status = 0;
            // SAFETY: writes one integer.
            check(unsafe { libc::waitpid(child as i32, &raw mut status, 0) }.into(), "waitpid")?;
            ensure!(status == 0, "the child ended with {status:#x}");
            Ok(())
        }
    }
}

/// Only returns if that fails.
fn become_itself(words: &[&str]) -> Result {
    let path = c"/proc/self/exe";
    let words: Vec<CString> = [&["fl-clock"], words].concat().into_iter().flat_map(CString::new).collect();
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null()];
    // SAFETY: strings that end with NUL, in lists that end with a null pointer.
    let result = unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    check(result.into(), "execve").map(drop)
}

/// The pauses are the kernel's, which counts them by a clock of its own.
fn sample(source: Source, reference: Source, milliseconds: u64, pause_us: u64) -> Option<Vec<Reading>> {
    let start = reference.read(Way::Raw)?;
    let until = start + milliseconds as i64 * 1_000_000;
    let mut readings = Vec::new();
    while readings.last().is_none_or(|last: &Reading| last.after < until) {
        readings.push(source.first_reading(Way::Vdso, reference)?);
        thread::sleep(Duration::from_micros(pause_us));
    }
    Some(readings)
}
