//! Printing beside what renews a lease: whoever reads may take all the time there is.

use std::{
    collections::VecDeque,
    io::{self, PipeReader},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};

use crate::kernel::{self, signals};

/// How much progress may wait to be read. What is more is dropped: it will have been overtaken.
const WAITING: usize = 16;

/// Something to be printed.
struct Message {
    text: String,
    /// Whether it may be dropped.
    is_progress: bool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Message>,
    /// Whether something is being written that must not be dropped.
    writes: bool,
    /// The first error.
    failed: Option<Errno>,
    /// Whether nothing comes any more.
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that prints.
pub(super) struct Printer {
    shared: Arc<Shared>,
    /// Its other end is closed when the thread ends.
    ends: PipeReader,
}

impl Printer {
    /// Begins to print on a stream.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn begin(name: &'static str, stream: impl AsFd + Send + 'static) -> kernel::Result<Self> {
        let (ends, end) = io::pipe().map_err(|source| kernel::Error::new("pipe", name, source))?;
        let shared = Arc::new(Shared::default());
        let to = Arc::clone(&shared);
        // One that still waits for somebody to read ends with the process.
        drop(signals::thread(name, move || {
            print(&to, stream.as_fd());
            drop(end);
        })?);
        Ok(Self { shared, ends })
    }

    /// Has something printed, in its turn.
    pub(super) fn print(&self, text: String) {
        self.push(Message { text, is_progress: false });
    }

    /// Has something printed unless too much waits already.
    pub(super) fn progress(&self, text: String) {
        self.push(Message { text, is_progress: true });
    }

    fn push(&self, message: Message) {
        let mut state = self.shared.lock();
        if !message.is_progress || state.waiting.len() < WAITING {
            state.waiting.push_back(message);
            self.shared.news.notify_one();
        }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_unheard(&self) -> bool {
        self.shared.lock().failed == Some(Errno::EPIPE)
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        self.shared.lock().is_over = true;
        self.shared.news.notify_one();
    }

    /// Whether something waits that must not be dropped.
    pub(super) fn owes(&self) -> bool {
        let state = self.shared.lock();
        state.writes || state.waiting.iter().any(|message| !message.is_progress)
    }

    /// What is closed at its other end when all is printed.
    pub(super) fn ends(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }

    /// Whether all could be printed that has been so far.
    ///
    /// # Errors
    ///
    /// The first of those that there were.
    pub(super) fn printed(&self) -> io::Result<()> {
        self.shared.lock().failed.map_or(Ok(()), |errno| Err(errno.into()))
    }
}

/// Prints until nothing comes any more.
fn print(shared: &Shared, stream: BorrowedFd<'_>) {
    loop {
        let mut state = shared.lock();
        state.writes = false;
        let message = loop {
            match state.waiting.pop_front() {
                Some(message) => break message,
                None if state.is_over => return,
                None => state = shared.news.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.writes = !message.is_progress;
        drop(state);
        if let Err(errno) = write_all(stream, message.text.as_bytes()) {
            shared.lock().failed.get_or_insert(errno);
        }
    }
}

/// Also where whoever shares the stream has it not wait.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(stream, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(stream, PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        time::{Duration, Instant},
    };

    use super::*;

    /// More than a pipe holds.
    fn much() -> String {
        "x".repeat(1 << 17)
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nobody_waits_for_who_reads() {
        let (mut read, write) = io::pipe().expect("pipe");
        let printer = Printer::begin("a test", write).expect("a thread");
        printer.progress(much());
        until("nothing was taken", || printer.shared.lock().waiting.is_empty());
        assert!(!printer.owes(), "progress is owed to nobody");
        (0..2 * WAITING).for_each(|number| printer.progress(format!("[{number}]")));
        printer.print("last".into());
        assert!(printer.owes());
        printer.close();
        let mut all = String::new();
        read.read_to_string(&mut all).expect("read");
        let kept: String = (0..WAITING).map(|number| format!("[{number}]")).collect();
        assert_eq!(all, much() + &kept + "last");
        until("it still owes", || !printer.owes());
        assert!(printer.printed().is_ok() && !printer.is_unheard());
    }

    #[test]
    fn nobody_reads() {
        let (read, write) = io::pipe().expect("pipe");
        drop(read);
        let printer = Printer::begin("a test", write).expect("a thread");
        printer.print("first".into());
        printer.print("second".into());
        until("it still owes", || !printer.owes());
        assert!(printer.is_unheard() && printer.printed().is_err());
    }
}
