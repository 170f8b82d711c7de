//! What the kernel says of a process or thread: what it does, who began it, and since when, which tells it from another of its
//! number.

use std::{fs, io};

use serde::{Deserialize, Serialize};

/// A process, told from all that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl From<Process> for u32 {
    fn from(process: Process) -> Self {
        process.pid
    }
}

impl Process {
    /// The calling process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn current() -> io::Result<Self> {
        Self::find(std::process::id())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The one that has this number now and has not ended.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn find(pid: u32) -> io::Result<Option<Self>> {
        let stat = Stat::of_process(pid)?.filter(|stat| !stat.has_ended());
        Ok(stat.map(|stat| Self { pid, start_time: stat.start_time }))
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn lives(&self) -> io::Result<bool> {
        Ok(Self::find(self.pid)? == Some(*self))
    }
}

/// Of a `stat` in `/proc`, what is asked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    state: u8,
    /// Who began the process, or sees to it since that one has ended.
    pub parent: u32,
    /// Of a process: how many threads it has, those included that have ended and are not waited for yet.
    pub threads: usize,
    /// See [`Process::start_time`].
    pub start_time: u64,
}

impl Stat {
    /// That of a process; nothing if it is gone.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be read.
    pub fn of_process(process: u32) -> io::Result<Option<Self>> {
        Self::read(&format!("/proc/{process}/stat"))
    }

    /// That of a thread; nothing if it is gone.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be read.
    pub fn of_thread(process: u32, thread: libc::pid_t) -> io::Result<Option<Self>> {
        Self::read(&format!("/proc/{process}/task/{thread}/stat"))
    }

    fn read(path: &str) -> io::Result<Option<Self>> {
        let Some(text) = unless_gone(fs::read(path))? else { return Ok(None) };
        Self::parse(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name is in brackets and may hold any bytes, brackets and spaces included.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&text[end + 1..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let threads = fields.nth(15)?.parse().ok()?;
        let start_time = fields.nth(1)?.parse().ok()?;
        Some(Self { state, parent, threads, start_time })
    }

    /// Of a process: whether it has ended, and is only there for somebody to hear of that. Its first thread may have ended before
    /// the others.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.is_dead() && self.threads <= 1
    }

    /// Of a thread: the same.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it waits in the kernel where nothing but the end of that wait reaches it.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.state == b'D'
    }
}

/// A thread by which the memory of a process can be had: itself, or another if its first one has ended.
///
/// # Errors
///
/// If it is there and cannot be read.
pub fn living_thread(process: u32) -> io::Result<Option<u32>> {
    let Some(stat) = Stat::of_process(process)? else { return Ok(None) };
    if !stat.is_dead() {
        return Ok(Some(process));
    }
    let Some(threads) = unless_gone(fs::read_dir(format!("/proc/{process}/task")))? else { return Ok(None) };
    for thread in threads {
        let Some(thread) = unless_gone(thread)? else { continue };
        let Some(number) = thread.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if Stat::of_thread(process, number.cast_signed())?.is_some_and(|stat| !stat.is_dead()) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The numbers of all processes.
///
/// # Errors
///
/// If they cannot be listed.
pub fn numbers() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// What was read of a process; nothing of one that is gone, as any may be at any time. That it is not to be had now, for want
/// of memory or of descriptors, says nothing of the kind.
///
/// # Errors
///
/// All others.
pub fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(gone) if matches!(gone.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_matter() {
        let rest = b"Z 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 12 0 99 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 1 2 3 4 5 70 80 0";
        for name in [&b"a"[..], b"a b", b"a) R (b", b")", b"", b"\xff\x80) S 3 (", b"\n) S 1"] {
            let text = [b"4711 (", name, b") ", rest].concat();
            let expected = Stat { state: b'Z', parent: 7, threads: 12, start_time: 99 };
            assert_eq!(Stat::parse(&text), Some(expected), "{name:?}");
        }
        assert_eq!(Stat::parse(b"4711 (a) Z 7 1"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    #[test]
    fn this_process_is_as_it_is() {
        let own = Process::current().expect("a stat");
        let stat = Stat::of_process(own.pid).expect("read").expect("a stat");
        assert!(!stat.is_dead() && stat.parent == std::os::unix::process::parent_id() && stat.threads > 0);
        assert!(own.lives().expect("read"));
        assert!(!Process { start_time: own.start_time + 1, ..own }.lives().expect("read"));
        // SAFETY: takes nothing.
        let this = unsafe { libc::gettid() };
        assert!(Stat::of_thread(own.pid, this).expect("read").is_some_and(|stat| !stat.is_dead()));
    }

    #[test]
    fn only_what_is_not_found_is_gone() {
        let error = |errno| Err::<(), _>(io::Error::from_raw_os_error(errno));
        assert!(matches!(unless_gone(error(libc::ENOENT)), Ok(None)));
        assert!(matches!(unless_gone(error(libc::ESRCH)), Ok(None)));
        for errno in [libc::EMFILE, libc::ENOMEM, libc::EACCES] {
            assert!(unless_gone(error(errno)).is_err());
        }
    }
}
