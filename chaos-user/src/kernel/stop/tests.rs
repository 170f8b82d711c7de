//! With processes that are begun for it, and what they count in memory that they share with this one.

use std::{
    fs, ptr,
    sync::{
        atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread::sleep,
};

use libc::{c_int, c_void};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::*;

/// Longer than anything takes that is meant to happen.
const LONG: Duration = Duration::from_secs(10);
/// Within this time whatever runs has counted.
const SHORT: Duration = Duration::from_millis(3);

/// What is shared.
#[derive(Default)]
pub(in crate::kernel) struct Page {
    count: AtomicU64,
    signals: AtomicU64,
    /// How many threads that count there were.
    begun: AtomicI32,
    /// A thread's or process's number, once it is there.
    other: AtomicI32,
    go: AtomicI32,
}

/// A process of this one's. Killed when dropped.
pub(in crate::kernel) struct Subject {
    pub(in crate::kernel) pid: u32,
    page: &'static Page,
}

impl Subject {
    pub(in crate::kernel) fn begin(life: fn(&'static Page)) -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of zeros, which stays.
        let page = unsafe { libc::mmap(ptr::null_mut(), size_of::<Page>(), access, kind, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        // SAFETY: zeros are such a page, and all in it is atomic.
        let page: &'static Page = unsafe { &*page.cast() };
        // SAFETY: the child keeps to what needs no lock that another thread may have had, and never returns.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Parent { child } => Self { pid: child.as_raw().cast_unsigned(), page },
            ForkResult::Child => {
                // SAFETY: two integers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                life(page);
                idle()
            }
        }
    }

    pub(in crate::kernel) fn number(&self) -> Pid {
        Pid::from_raw(self.pid.cast_signed())
    }

    /// Once it is known.
    pub(in crate::kernel) fn other(&self) -> pid_t {
        until("it is there", || self.page.other.load(SeqCst) != 0);
        self.page.other.load(SeqCst)
    }

    /// Holds it, at last: on a busy machine one of its threads may wait for another that has no CPU.
    fn stopped<T: Send>(
        &self,
        action: impl Fn(&mut Stopped) -> Result<T, StopError> + Sync,
    ) -> Result<T, StopError> {
        let deadline = Instant::now() + LONG;
        loop {
            match while_stopped(self.pid, LONG, &action) {
                Err(StopError::Stuck(_)) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    }

    fn has_lost_its_first(&self) -> bool {
        stat_of(self.pid, self.number().as_raw()).is_some_and(|stat| stat.is_dead())
    }

    fn goes_on(&self) {
        until("it goes on", || self.counts());
    }

    fn counts(&self) -> bool {
        let before = self.page.count.load(SeqCst);
        sleep(SHORT);
        self.page.count.load(SeqCst) != before
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = kill(self.number(), Signal::SIGKILL);
        let _ = waitpid(self.number(), None);
    }
}

fn stat_of(process: u32, thread: pid_t) -> Option<Stat> {
    Stat::of_thread(process, thread).expect("its stat")
}

pub(in crate::kernel) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        sleep(PAUSE);
    }
}

fn idle() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

fn nap() {
    // SAFETY: takes a number.
    unsafe { libc::usleep(20) };
}

/// A thread, which may begin and end as it likes.
fn begin_thread(life: extern "C" fn(*mut c_void) -> *mut c_void, page: &'static Page) {
    // SAFETY: `pthread_attr_t` is for `pthread_attr_init` to fill.
    let mut how: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
    let (mut thread, argument) = (0, ptr::from_ref(page).cast_mut().cast());
    // SAFETY: as they are meant to be used, and the page stays.
    unsafe {
        libc::pthread_attr_init(&raw mut how);
        libc::pthread_attr_setdetachstate(&raw mut how, libc::PTHREAD_CREATE_DETACHED);
        while libc::pthread_create(&raw mut thread, &raw const how, life, argument) != 0 {
            nap();
        }
    }
}

fn page_of(argument: *mut c_void) -> &'static Page {
    // SAFETY: what `begin_thread` and `begin_beside` pass on.
    unsafe { &*argument.cast() }
}

fn note_self(page: &Page) {
    // SAFETY: takes nothing. Not the library's number, which who shares memory shares.
    page.other.store(unsafe { libc::syscall(libc::SYS_gettid) } as i32, SeqCst);
}

extern "C" fn counting(page: *mut c_void) -> *mut c_void {
    note_self(page_of(page));
    page_of(page).begun.fetch_add(1, SeqCst);
    loop {
        page_of(page).count.fetch_add(1, SeqCst);
        nap();
    }
}

extern "C" fn waiting(page: *mut c_void) -> *mut c_void {
    note_self(page_of(page));
    idle()
}

/// It counts, and leaves the rest to another.
extern "C" fn renewed(page: *mut c_void) -> *mut c_void {
    page_of(page).count.fetch_add(1, SeqCst);
    begin_thread(renewed, page_of(page));
    ptr::null_mut()
}

/// Threads that begin others and end, and nobody else.
fn renews(page: &'static Page) {
    for _ in 0..3 {
        begin_thread(renewed, page);
    }
    end_thread();
}

/// A thread that begins others, each of which counts.
fn begins_when_told(page: &'static Page) {
    extern "C" fn beginning(page: *mut c_void) -> *mut c_void {
        let page = page_of(page);
        for number in 1.. {
            while page.go.load(SeqCst) < number {
                nap();
            }
            begin_thread(counting, page);
        }
        ptr::null_mut()
    }
    begin_thread(beginning, page);
    end_thread();
}

fn end_thread() {
    // SAFETY: ends this thread alone.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

fn first_ends(page: &'static Page) {
    begin_thread(counting, page);
    end_thread();
}

fn ends_when_told(page: &'static Page) {
    note_self(page);
    while page.go.load(SeqCst) == 0 {
        nap();
    }
    // SAFETY: nothing is to be done any more.
    unsafe { libc::_exit(7) };
}

static OWN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note_signal(_signal: c_int) {
    page_of(OWN.load(SeqCst) as *mut c_void).signals.fetch_add(1, SeqCst);
}

pub(in crate::kernel) fn hears_signals(page: &'static Page) {
    OWN.store(ptr::from_ref(page).addr(), SeqCst);
    for signal in [libc::SIGUSR1, libc::SIGRTMIN() + 3] {
        // SAFETY: what is called adds a number in memory that stays.
        unsafe { libc::signal(signal, note_signal as extern "C" fn(c_int) as usize) };
    }
    note_self(page);
}

/// A process in the same memory, and with a stack of its own; it counts.
fn begin_beside(page: &'static Page, flags: c_int) {
    extern "C" fn count(page: *mut c_void) -> c_int {
        counting(page);
        0
    }
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    const STACK: usize = 1 << 16;
    // SAFETY: a new mapping, whose end becomes the top of a stack.
    unsafe {
        let stack = libc::mmap(ptr::null_mut(), STACK, access, kind, -1, 0);
        libc::clone(
            count,
            stack.byte_add(STACK),
            flags | libc::SIGCHLD,
            ptr::from_ref(page).cast_mut().cast(),
        );
    }
}

pub(in crate::kernel) fn waits_for_its_child(page: &'static Page) {
    begin_beside(page, libc::CLONE_VM | libc::CLONE_VFORK);
}

fn shares_with_its_child(page: &'static Page) {
    begin_beside(page, libc::CLONE_VM);
}

fn has_a_child(page: &'static Page) {
    begin_beside(page, 0);
}

fn executes_when_told(page: &'static Page) {
    extern "C" fn executing(page: *mut c_void) -> *mut c_void {
        while page_of(page).go.load(SeqCst) == 0 {
            nap();
        }
        // SAFETY: constants, the last of them null.
        unsafe { libc::execl(c"/bin/sleep".as_ptr(), c"sleep".as_ptr(), c"60".as_ptr(), ptr::null::<u8>()) };
        ptr::null_mut()
    }
    begin_thread(executing, page);
    begin_thread(waiting, page);
}

#[test]
fn nobody_runs_though_threads_come_and_go() {
    let subject = Subject::begin(renews);
    subject.goes_on();
    for round in 0..100 {
        let ran = subject.stopped(|_| Ok(subject.counts()));
        assert!(matches!(ran, Ok(false)), "round {round}: {ran:?}");
    }
    subject.goes_on();
}

#[test]
fn who_was_begun_by_one_that_leaves_stands_too() {
    let subject = Subject::begin(begins_when_told);
    until("its first thread has ended", || subject.has_lost_its_first());
    for round in 1..=30 {
        let (turns, begun) = (AtomicUsize::new(1), || subject.page.begun.load(SeqCst));
        let ran = subject.stopped(|stopped| {
            // While one of them leaves, and not before.
            subject.page.go.store(round, SeqCst);
            // Whichever it is of them that begins others, each has its turns.
            stopped.leave(|_| begun() < round && turns.fetch_add(1, SeqCst) % 20 != 0)?;
            let threads = stat_of(subject.pid, subject.number().as_raw()).map(|stat| stat.threads);
            // The first one is there too, though it has ended.
            Ok((subject.counts(), threads == Some(stopped.threads.len() + 1)))
        });
        assert!(matches!(ran, Ok((false, true))), "round {round}: {ran:?}");
        assert_eq!(begun(), round);
        subject.goes_on();
    }
}

#[test]
fn a_first_thread_that_has_ended_is_no_reason() {
    let subject = Subject::begin(first_ends);
    until("its first thread has ended", || subject.has_lost_its_first() && subject.counts());
    let ran = subject.stopped(|_| Ok(subject.counts()));
    assert!(matches!(ran, Ok(false)), "{ran:?}");
    subject.goes_on();
}

#[test]
fn whose_child_it_is_hears_of_its_end() {
    // Killed while it stands still.
    let subject = Subject::begin(ends_when_told);
    subject.other();
    let held = subject.stopped(|stopped| {
        kill(subject.number(), Signal::SIGKILL).expect("a signal");
        until("it has ended", || {
            stat_of(subject.pid, subject.number().as_raw()).is_none_or(|stat| stat.is_dead())
        });
        let deadline = stopped.deadline;
        let thread = stopped.threads.first_mut().expect("a thread");
        assert!(!thread.wait(deadline)?, "it stands still");
        Ok(())
    });
    assert!(held.is_ok(), "{held:?}");
    assert_eq!(
        waitpid(subject.number(), None),
        Ok(WaitStatus::Signaled(subject.number(), Signal::SIGKILL, false))
    );
    // By itself, while it leaves.
    let subject = Subject::begin(ends_when_told);
    subject.other();
    let held = subject.stopped(|stopped| {
        subject.page.go.store(1, SeqCst);
        stopped.leave(|_| true)
    });
    assert!(matches!(held, Err(StopError::Gone)), "{held:?}");
    assert_eq!(waitpid(subject.number(), None), Ok(WaitStatus::Exited(subject.number(), 7)));
    let held = while_stopped(subject.pid, LONG, |_| Ok(()));
    assert!(matches!(held, Err(StopError::Gone)), "{held:?}");
}

#[test]
fn signals_arrive() {
    let subject = Subject::begin(hears_signals);
    subject.other();
    for (round, signal) in [libc::SIGUSR1, libc::SIGRTMIN() + 3].into_iter().cycle().take(20).enumerate() {
        let turns = AtomicUsize::new(0);
        let held = subject.stopped(|stopped| {
            if turns.load(SeqCst) == 0 {
                // SAFETY: two integers.
                unsafe { libc::kill(subject.number().as_raw(), signal) };
            }
            stopped.leave(|_| turns.fetch_add(1, SeqCst) < round / 2)
        });
        assert!(held.is_ok(), "{held:?}");
        let heard = || subject.page.signals.load(SeqCst);
        until("it has heard", || heard() == round as u64 + 1);
    }
}

#[test]
fn who_shares_its_memory_is_told_of() {
    let subject = Subject::begin(shares_with_its_child);
    let other = subject.other();
    let child = Subject { pid: other.cast_unsigned(), page: subject.page };
    for (process, other) in [(&subject, &child), (&child, &subject)] {
        let held = process.stopped(|_| Ok(()));
        assert!(matches!(held, Err(StopError::Shared(found)) if found == other.pid), "{held:?}");
        subject.goes_on();
    }
    let subject = Subject::begin(has_a_child);
    let child = Subject { pid: subject.other().cast_unsigned(), page: subject.page };
    for process in [&subject, &child] {
        let held = process.stopped(|_| Ok(()));
        assert!(held.is_ok(), "{held:?}");
    }
}

#[test]
fn several_threads_of_one_tracer_take_turns() {
    let subject = Subject::begin(|_| ());
    let pid = subject.pid;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let traced = while_traced(pid, LONG, &|| ());
                    assert!(traced.is_ok(), "{traced:?}");
                    let held = while_stopped(pid, LONG, |_| Ok(()));
                    assert!(held.is_ok(), "{held:?}");
                }
            });
        }
    });
}

#[test]
fn who_waits_in_the_kernel_is_not_waited_for() {
    let subject = Subject::begin(waits_for_its_child);
    let child = Subject { pid: subject.other().cast_unsigned(), page: subject.page };
    until("it waits", || stat_of(subject.pid, subject.number().as_raw()).is_some_and(|stat| stat.is_deaf()));
    let begun = Instant::now();
    let held = while_stopped(subject.pid, LONG, |_| Ok(()));
    assert!(matches!(held, Err(StopError::Stuck(thread)) if thread == subject.number().as_raw()), "{held:?}");
    assert!(begun.elapsed() < LONG / 10, "{:?}", begun.elapsed());
    let held = child.stopped(|_| Ok(()));
    assert!(matches!(held, Err(StopError::Shared(found)) if found == subject.pid), "{held:?}");
}

/// The kernel has whoever seizes a thread wait until another has executed its program, and that one until those are waited
/// for that it has ended: among them the one that is traced here.
#[test]
fn who_executes_a_program_is_not_kept_from_it() {
    let subject = Subject::begin(executes_when_told);
    let waiting = subject.other();
    let (done, over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let number = subject.number();
        scope.spawn(move || {
            // It would be for ever.
            if over.recv_timeout(LONG / 2) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(number, Signal::SIGKILL);
            }
        });
        let _done = done;
        let traced = || {
            let deadline = Instant::now() + LONG;
            let partners = Partners::ask(subject.pid, deadline).expect("its kin");
            let mut stopped = Stopped { process: subject.pid, threads: Vec::new(), partners, deadline };
            stopped.threads.extend(Thread::seize(subject.pid, waiting).expect("a tracee"));
            subject.page.go.store(1, SeqCst);
            // Only this thread would wait for it.
            until("its threads are ended", || {
                stat_of(subject.pid, waiting).is_none_or(|stat| stat.is_dead())
            });
            // It may be another program's by now.
            let _ = stopped.hold();
            Ok(())
        };
        tracer::run(subject.pid, LONG, traced).expect("a tracer");
    });
    let program = || fs::read_link(format!("/proc/{}/exe", subject.pid)).ok();
    let own = fs::read_link("/proc/self/exe").ok();
    until("it has executed the program", || program() != own);
    assert!(program().is_some(), "it had to be killed");
    let held = subject.stopped(|_| Ok(()));
    assert!(held.is_ok(), "{held:?}");
}

/// Who waits in `execve` for a thread that a debugger does not let go of, and so long cannot be traced.
#[test]
fn who_cannot_be_traced_yet_is_not_waited_for() {
    let subject = Subject::begin(executes_when_told);
    let (pid, page, waiting) = (subject.pid, subject.page, subject.other());
    // SAFETY: the child makes system calls alone, and never returns.
    let debugger = match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => Subject { pid: child.as_raw().cast_unsigned(), page },
        ForkResult::Child => {
            // SAFETY: as they are meant to be used.
            let seized = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(
                    libc::PTRACE_SEIZE,
                    waiting,
                    ptr::null_mut::<c_void>(),
                    ptr::null_mut::<c_void>(),
                )
            };
            page.signals.store(if seized == 0 { 1 } else { 2 }, SeqCst);
            idle()
        }
    };
    until("it is traced", || page.signals.load(SeqCst) == 1);
    page.go.store(1, SeqCst);
    until("its threads are ended", || stat_of(pid, waiting).is_none_or(|stat| stat.is_dead()));
    let (begun, runs) = (Instant::now(), AtomicUsize::new(0));
    let traced = while_traced(pid, SHORT, &|| runs.fetch_add(1, SeqCst));
    assert!(matches!(traced, Err(StopError::Stuck(_))), "{traced:?}");
    let held = while_stopped(pid, SHORT, |_| Ok(()));
    assert!(matches!(held, Err(StopError::Stuck(_))), "{held:?}");
    assert!(begun.elapsed() < LONG / 10, "{:?}", begun.elapsed());
    drop(debugger);
    let own = fs::read_link("/proc/self/exe").ok();
    until("it has executed the program", || fs::read_link(format!("/proc/{pid}/exe")).ok() != own);
    until("its turn has come", || while_traced(pid, SHORT, &|| ()).is_ok());
    assert_eq!(runs.load(SeqCst), 0, "what was given up was done");
}
