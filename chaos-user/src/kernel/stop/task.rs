//! What the kernel says of processes and their threads.

use std::{collections::BTreeSet, fs, io};

use libc::{c_int, pid_t};

use super::StopError;
use crate::kernel::Error;

/// Of a `stat` in `/proc`, what is asked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    state: u8,
    parent: u32,
    /// Of a process: how many threads it has, those included that have ended and are not waited for yet.
    pub(super) threads: usize,
}

impl Stat {
    /// That of a process; nothing if it is gone.
    pub(super) fn of_process(process: u32) -> Option<Self> {
        Self::read(&format!("/proc/{process}/stat"))
    }

    /// That of a thread; nothing if it is gone.
    pub(super) fn of_thread(process: u32, thread: pid_t) -> Option<Self> {
        Self::read(&format!("/proc/{process}/task/{thread}/stat"))
    }

    fn read(path: &str) -> Option<Self> {
        // A name may be cut in the middle of a character.
        Self::parse(&String::from_utf8_lossy(&fs::read(path).ok()?))
    }

    fn parse(text: &str) -> Option<Self> {
        // The name is in brackets and may hold anything, brackets and spaces included.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let threads = fields.nth(15)?.parse().ok()?;
        Some(Self { state, parent, threads })
    }

    /// Whether it has ended, and is only there for somebody to hear of that.
    pub(super) fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it waits in the kernel where nothing but the end of that wait reaches it.
    pub(super) fn is_deaf(self) -> bool {
        self.state == b'D'
    }
}

/// The threads of a process. One that ends while the kernel lists it ends the list too.
pub(super) fn threads(process: u32) -> Result<BTreeSet<pid_t>, StopError> {
    let path = format!("/proc/{process}/task");
    let entries = match fs::read_dir(&path) {
        Err(gone) if matches!(gone.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Err(StopError::Gone);
        }
        entries => entries.map_err(|source| Error::new("readdir", path, source))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Another process that runs in the memory of these threads. To ask everybody takes milliseconds where there are many,
/// while these stand still. So those are asked who come by it: the process that began this one, and those that it has
/// begun. Who shares it as an orphan is not found, nor anybody where the kernel cannot tell (`CONFIG_KCMP`), nor a child
/// where it lists none (`CONFIG_PROC_CHILDREN`).
pub(super) fn partner(process: u32, threads: &[pid_t]) -> Option<u32> {
    let first = *threads.first()?;
    let parent = Stat::of_process(process).map(|stat| stat.parent);
    let of_thread = |thread| {
        let children = fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
        children.unwrap_or_default()
    };
    let children = threads.iter().map(of_thread);
    let children = children.flat_map(|all| {
        all.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>()
    });
    parent.into_iter().chain(children).find(|other| have_one_memory(first, other.cast_signed()))
}

fn have_one_memory(one: pid_t, other: pid_t) -> bool {
    /// `KCMP_VM`.
    const MEMORY: c_int = 1;
    // SAFETY: integers, of which the last two mean nothing here.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, MEMORY, 0, 0) == 0 }
}

/// Waits for those threads of a process that are traced by this one and have ended. A process that has ended is left to
/// whoever began it.
///
/// A thread that executes a program ends all others and waits until they are waited for, and meanwhile nobody can seize it:
/// who tries stands still until that is done, and must not be the one who is to wait for them.
pub(super) fn bury(process: u32) {
    // Of one that is gone there is nobody left.
    for thread in threads(process).unwrap_or_default() {
        if thread.cast_unsigned() != process {
            // Unasked the kernel tells of one that stands still, too, and once: that is its tracer's to hear.
            if matches!(wait(thread, libc::WEXITED | libc::WNOWAIT), Ok(Some(Event::Ended))) {
                // Its tracer may have been quicker.
                let _ = wait(thread, libc::WEXITED);
            }
        }
    }
}

/// What has become of a traced thread, if anything has.
///
/// # Errors
///
/// `ECHILD`: it is not traced, or has ended and that was not asked.
pub(super) fn wait(thread: pid_t, kinds: c_int) -> io::Result<Option<Event>> {
    // SAFETY: integers, for which zeros are a value.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = kinds | libc::__WALL | libc::WNOHANG;
    // SAFETY: `found` is there to be written.
    if unsafe { libc::waitid(libc::P_PID, thread.cast_unsigned(), &raw mut found, options) } != 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) };
    }
    // SAFETY: written by `waitid`, or zeros.
    let (who, status) = unsafe { (found.si_pid(), found.si_status()) };
    Ok(match found.si_code {
        _ if who == 0 => None,
        libc::CLD_TRAPPED | libc::CLD_STOPPED => Some(Event::Stands(status)),
        _ => Some(Event::Ended),
    })
}

/// See [`wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It stands still: a signal, and above its eight bits what ptrace has to say.
    Stands(c_int),
    /// It has ended.
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_matter() {
        let rest = "Z 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 12 0 99 0 0";
        for name in ["a", "a b", "a) R (b", ")", ""] {
            let stat = Stat::parse(&format!("4711 ({name}) {rest}"));
            assert_eq!(stat, Some(Stat { state: b'Z', parent: 7, threads: 12 }), "{name:?}");
        }
        assert_eq!(Stat::parse("4711 (a) Z 7 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_is_as_it_is() {
        let own = std::process::id();
        let stat = Stat::of_process(own).expect("a stat");
        assert!(!stat.is_dead() && stat.parent == std::os::unix::process::parent_id() && stat.threads > 0);
        // SAFETY: takes nothing.
        let this = unsafe { libc::gettid() };
        // Those of other tests come and go.
        super::super::tests::until("both are listed", || {
            let threads = threads(own).expect("threads");
            threads.contains(&this) && threads.contains(&own.cast_signed())
        });
        assert!(Stat::of_thread(own, this).is_some_and(|stat| !stat.is_dead()));
        assert!(have_one_memory(this, own.cast_signed()), "with itself");
        assert!(!have_one_memory(this, stat.parent.cast_signed()), "with who began it");
    }
}
