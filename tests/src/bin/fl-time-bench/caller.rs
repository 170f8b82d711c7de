//! A process that asks for the time as often as it is told to, as any program would: through the C library.

use std::{
    env,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    mem::MaybeUninit,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    ptr,
};

use faultline_tests::{
    cgroup::Cgroup,
    clocks::{Source, Way},
    ensure,
    error::{Context, Result},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    ClockGettime,
    Gettimeofday,
    Time,
    /// `clock_gettime()` by a system call.
    Raw,
}

impl Call {
    pub(super) const ALL: [Self; 3] = [Self::ClockGettime, Self::Gettimeofday, Self::Time];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ClockGettime => "CLOCK_GETTIME(REALTIME)",
            Self::Gettimeofday => "GETTIMEOFDAY()",
            Self::Time => "TIME()",
            Self::Raw => "SYSCALL(CLOCK_GETTIME)",
        }
    }

    fn of(number: u32) -> Option<Self> {
        [Self::ClockGettime, Self::Gettimeofday, Self::Time, Self::Raw]
            .into_iter()
            .find(|call| *call as u32 == number)
    }
}

/// It. Killed when dropped.
#[derive(Debug)]
pub(super) struct Caller {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Caller {
    /// Starts it in a cgroup, with a library before all others if there is one.
    pub(super) fn start(cgroup: &Cgroup, library: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(env::current_exe().context("readlink /proc/self/exe")?);
        command.arg("call").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(library) = library {
            command.env("LD_PRELOAD", library).env("FAKETIME", super::FAKETIME);
        }
        cgroup.admit(&mut command)?;
        let mut child = command.spawn().context("a caller")?;
        let orders = child.stdin.take().context("its stdin")?;
        let answers = BufReader::new(child.stdout.take().context("its stdout")?);
        Ok(Self { child, orders, answers })
    }

    /// Nanoseconds a call, and the time it was told last, in seconds.
    pub(super) fn make(&mut self, call: Call, count: u32) -> Result<(f64, i64)> {
        writeln!(self.orders, "{} {count}", call as u32).context("tell a caller")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context("hear a caller")?;
        let words: Vec<i64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(words.len() == 2, "a caller says {line:?}");
        Ok((words[0] as f64 / f64::from(count), words[1]))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until there are no more orders: a call's number and how many of them.
pub(super) fn obey() -> Result {
    for line in io::stdin().lock().lines() {
        let line = line.context("read")?;
        let words: Vec<u32> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [call, count] = words[..] else { continue };
        let call = Call::of(call).context("no such call")?;
        // By what neither a fault nor a library is in the way of.
        let now = || Source::MonotonicRaw.read(Way::Vdso).context("no vDSO");
        let start = now()?;
        let seconds = make(call, count);
        let took = now()? - start;
        println!("{took} {seconds}");
    }
    Ok(())
}

/// What was told last, in seconds.
fn make(call: Call, count: u32) -> i64 {
    match call {
        Call::ClockGettime => repeat(count, || {
            let mut time = MaybeUninit::<libc::timespec>::zeroed();
            // SAFETY: writes one timespec, which zeroed memory is as well.
            unsafe {
                libc::clock_gettime(libc::CLOCK_REALTIME, time.as_mut_ptr());
                time.assume_init().tv_sec
            }
        }),
        Call::Raw => repeat(count, || {
            let mut time = MaybeUninit::<libc::timespec>::zeroed();
            // SAFETY: writes one timespec, which zeroed memory is as well.
            unsafe {
                libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, time.as_mut_ptr());
                time.assume_init().tv_sec
            }
        }),
        Call::Gettimeofday => repeat(count, || {
            let mut time = MaybeUninit::<libc::timeval>::zeroed();
            // SAFETY: writes one timeval, which zeroed memory is as well, and no time zone.
            unsafe {
                libc::gettimeofday(time.as_mut_ptr(), ptr::null_mut());
                time.assume_init().tv_sec
            }
        }),
        // SAFETY: writes nothing.
        Call::Time => repeat(count, || unsafe { libc::time(ptr::null_mut()) }),
    }
}

fn repeat(count: u32, call: impl Fn() -> i64) -> i64 {
    (0..count).fold(0, |_, _| black_box(call()))
}
