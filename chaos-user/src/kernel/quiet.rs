//! What a process has written to its own memory, read without waiting for anybody: a page that is not there may have to be asked for
//! from a file system that does not answer, and which pages these are the process chooses.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use nix::unistd::{SysconfVar, sysconf};

use super::{Error, Result, mappings::Mappings};

/// `/proc/PID/pagemap` (Linux, `Documentation/admin-guide/mm/pagemap.rst`): the page is there, or in the swap; and it is one of a
/// file, or of memory that is shared.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// The memory of a process.
#[derive(Debug)]
pub struct Quiet {
    process: u32,
    memory: File,
    /// Nothing on a kernel that does not say (`CONFIG_PROC_PAGE_MONITOR`); all is read then.
    pages: Option<File>,
    page: u64,
    mappings: Mappings,
}

impl Quiet {
    /// That of a process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of(process: u32) -> Result<Self> {
        let mappings = Mappings::of(process)
            .map_err(|source| Error::new("read", format!("/proc/{process}/maps"), source))?;
        let path = |name| format!("/proc/{process}/task/{}/{name}", mappings.thread);
        let open = |name| File::open(path(name)).map_err(|source| Error::new("open", path(name), source));
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |bytes| bytes as u64);
        let pages = match open("pagemap") {
            Err(none) if none.errno() == libc::ENOENT && mappings.vdso.is_some() => None,
            pages => Some(pages?),
        };
        Ok(Self { process, memory: open("mem")?, pages, page, mappings })
    }

    /// What of so many bytes from there on it has written to, in runs; nothing if that memory is not its own alone.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read(&self, from: u64, longest: u64) -> Result<Option<Vec<Vec<u8>>>> {
        let Some((end, is_private)) = self.mappings.around(from) else { return Ok(Some(Vec::new())) };
        if !is_private {
            return Ok(None);
        }
        let end = end.min(from.saturating_add(longest));
        let runs = self.written(from..end)?.into_iter().map(|run| {
            let mut bytes = vec![0; (run.end - run.start) as usize];
            self.memory.read_exact_at(&mut bytes, run.start).map_err(|source| self.error("mem", source))?;
            Ok(bytes)
        });
        runs.collect::<Result<_>>().map(Some)
    }

    /// Those of these addresses that it has written to.
    fn written(&self, all: Range<u64>) -> Result<Vec<Range<u64>>> {
        let Some(pages) = &self.pages else { return Ok(vec![all]) };
        let (first, last) = (all.start / self.page, (all.end - 1) / self.page);
        let mut entries = vec![0; (last - first + 1) as usize * 8];
        pages.read_exact_at(&mut entries, first * 8).map_err(|source| self.error("pagemap", source))?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        let entries = entries.chunks_exact(8).map(|entry| entry.try_into().map_or(0, u64::from_ne_bytes));
        for (number, entry) in (first..).zip(entries) {
            if entry & (PRESENT | SWAPPED) == 0 || entry & OF_A_FILE != 0 {
                continue;
            }
            let start = (number * self.page).max(all.start);
            let end = ((number + 1) * self.page).min(all.end);
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        Ok(runs)
    }

    fn error(&self, name: &str, source: io::Error) -> Error {
        Error::new("read", format!("/proc/{}/{name}", self.process), source)
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    const PAGE: usize = 4096;

    /// Two pages, the second of which is written to.
    fn two(flags: libc::c_int) -> &'static mut [u8] {
        // SAFETY: new memory, which nobody else has.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(ptr::null_mut(), 2 * PAGE, access, flags | libc::MAP_ANONYMOUS, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(start.cast(), 2 * PAGE)
        }
    }

    #[test]
    fn only_what_was_written_is_read() {
        let own = two(libc::MAP_PRIVATE);
        own[PAGE + 7] = 42;
        let shared = two(libc::MAP_SHARED);
        shared[7] = 42;
        let quiet = Quiet::of(std::process::id()).expect("its memory");
        let found = quiet.read(own.as_ptr() as u64 + 8, (2 * PAGE - 16) as u64).expect("its memory");
        let found = found.expect("its own");
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [PAGE - 8]);
        assert_eq!(found[0][7], 42);
        assert_eq!(quiet.read(shared.as_ptr() as u64, 8).expect("its memory"), None);
        assert_eq!(quiet.read(0, 8).expect("its memory"), Some(Vec::new()));
    }
}
