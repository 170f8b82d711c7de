//! Programs that have just been executed, and wait in the kernel until the owner has seen to them.
//!
//! Who waits keeps its CPU, in memory that is shared with the owner: a claim and a release are one instruction each. A ring
//! tells an owner that sleeps.

mod crew;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, RingBuf};
use chaos_ebpf::time::{ExecEvent, HoldSlot, hold, map};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

pub use self::crew::{Crew, Work, as_urgent, first};
use super::{Error, Result, maps};

/// The slots, for as many threads as want them.
#[derive(Clone, Debug)]
pub struct Holds(Arc<Slots>);

impl Holds {
    /// Those of a map with so many of them.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn new(map: &MapData, count: u32) -> Result<Self> {
        Slots::map(map.fd().as_fd(), count as usize).map(|slots| Self(Arc::new(slots)))
    }

    /// Has the program that this process has executed wait until what is returned is dropped; nothing if it waits no more.
    #[must_use]
    pub fn claim(&self, cpu: u32, pid: u32) -> Option<Claim<'_>> {
        let slot = self.0.slot(cpu)?;
        let number = self.0.claims.fetch_add(1, Ordering::Relaxed) << hold::STATE.count_ones();
        let claim = Claim { state: state(slot), word: hold::WORKING | number };
        if !claim.exchange(hold::WAITING, claim.word) {
            return None;
        }
        // SAFETY: in the mapping; whoever is claimed does not write it.
        let found = unsafe { (&raw const (*slot.as_ptr()).pid).read_volatile() };
        if found != pid {
            // Somebody else by now, whose own event is on its way.
            claim.exchange(claim.word, hold::WAITING);
            return None;
        }
        Some(claim)
    }
}

/// A program that is held, and is being seen to. It goes on when this is dropped, or else at its cap.
#[derive(Debug)]
pub struct Claim<'a> {
    state: &'a AtomicU32,
    /// What is there until then.
    word: u32,
}

impl Claim<'_> {
    /// Whether the program waits still. It may go on in the next moment, [`STUCK_CAP`](chaos_ebpf::time::STUCK_CAP) after it
    /// was executed.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.state.load(Ordering::Acquire) == self.word
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // One that has gone on by itself, because it took too long, is nobody's.
        self.exchange(self.word, hold::DONE);
    }
}

/// What both sides exchange.
fn state(slot: NonNull<HoldSlot>) -> &'static AtomicU32 {
    // SAFETY: in the mapping, aligned, and written to by atomic instructions alone. The callers are methods of what holds
    // the mapping, and keep this no longer than they run.
    unsafe { AtomicU32::from_ptr(&raw mut (*slot.as_ptr()).state) }
}

/// The map, in our memory.
#[derive(Debug)]
struct Slots {
    start: NonNull<HoldSlot>,
    count: usize,
    bytes: usize,
    /// How many claims there were.
    claims: AtomicU32,
}

// SAFETY: what lies there is shared with other CPUs in any case: it is only read and written as `Holds` does.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    fn map(map: BorrowedFd<'_>, count: usize) -> Result<Self> {
        let error = |source| Error::new("mmap", map::HOLDS, source);
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .map_err(|errno| error(errno.into()))?
            .map_or(4096, |bytes| bytes as usize);
        let bytes = (count * size_of::<HoldSlot>()).next_multiple_of(page);
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(error(io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))?;
        Ok(Self { start, count, bytes, claims: AtomicU32::new(0) })
    }

    fn slot(&self, cpu: u32) -> Option<NonNull<HoldSlot>> {
        // SAFETY: within the mapping.
        ((cpu as usize) < self.count).then(|| unsafe { self.start.add(cpu as usize) })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping of that length, which nobody uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The programs that are executed, as they are; each event comes to one thread, of as many as ask.
#[derive(Clone, Debug)]
pub struct Events(Arc<Ring>);

struct Ring {
    ring: Mutex<RingBuf<MapData>>,
    /// Of the same ring: who waits keeps nobody from reading.
    fd: OwnedFd,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(&self.fd).finish()
    }
}

impl Events {
    pub(super) fn new(map: Map) -> Result<Self> {
        if !matches!(map, Map::RingBuf(_)) {
            return Err(maps::missing(map::EVENTS));
        }
        let ring: RingBuf<MapData> =
            RingBuf::try_from(map).map_err(|error| Error::aya("mmap", map::EVENTS, &error))?;
        let fd =
            ring.as_fd().try_clone_to_owned().map_err(|source| Error::new("dup", map::EVENTS, source))?;
        Ok(Self(Arc::new(Ring { ring: Mutex::new(ring), fd })))
    }

    /// The next one, waited for no longer than that; `None` if there is none, or a signal comes.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn next(&self, timeout: Duration) -> Result<Option<ExecEvent>> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(event) = self.take() {
                return Ok(Some(event));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up: a millisecond too long is not a loop.
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.fd.as_fd(), PollFlags::POLLIN)], left) {
                Ok(_) => {}
                Err(Errno::EINTR) => return Ok(None),
                Err(errno) => return Err(Error::new("poll", map::EVENTS, errno.into())),
            }
        }
    }

    /// The next one that is there.
    fn take(&self) -> Option<ExecEvent> {
        let mut ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let item = ring.next()?;
        // SAFETY: so many bytes, any of which are one.
        (item.len() >= size_of::<ExecEvent>())
            .then(|| unsafe { item.as_ptr().cast::<ExecEvent>().read_unaligned() })
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const COUNT: usize = 2;

    fn holds() -> Holds {
        let file = memfd_create(c"holds", MFdFlags::empty()).expect("a file");
        nix::unistd::ftruncate(&file, 4096).expect("a page");
        Holds(Arc::new(Slots::map(file.as_fd(), COUNT).expect("a mapping")))
    }

    /// What a program does that is executed.
    fn wait(holds: &Holds, cpu: u32, pid: u32) -> &'static AtomicU32 {
        let slot = holds.0.slot(cpu).expect("a slot");
        // SAFETY: in the mapping, and nobody else has it yet.
        unsafe { (&raw mut (*slot.as_ptr()).pid).write_volatile(pid) };
        state(slot).store(hold::WAITING, Ordering::Release);
        state(slot)
    }

    #[test]
    fn one_that_waits_goes_on_when_it_has_been_seen_to() {
        let holds = holds();
        assert!(holds.claim(0, 7).is_none(), "nobody waits");
        let state = wait(&holds, 0, 7);
        assert!(holds.claim(0, 8).is_none() && holds.claim(1, 7).is_none(), "another waits");
        assert!(holds.claim(COUNT as u32, 7).is_none(), "there is no such CPU");
        assert_eq!(state.load(Ordering::Acquire), hold::WAITING);
        let claim = holds.claim(0, 7).expect("a claim");
        assert!(holds.claim(0, 7).is_none(), "it has been claimed");
        assert!(claim.stands());
        assert_eq!(state.load(Ordering::Acquire) & hold::STATE, hold::WORKING);
        drop(claim);
        assert_eq!(state.load(Ordering::Acquire), hold::DONE);
    }

    #[test]
    fn one_that_went_on_by_itself_is_told_from_the_next() {
        let holds = holds();
        let state = wait(&holds, 0, 7);
        let late = holds.claim(0, 7).expect("a claim");
        state.store(hold::FREE, Ordering::Release);
        assert!(!late.stands());
        // The same process may execute another program.
        wait(&holds, 0, 7);
        assert!(!late.stands());
        let next = holds.claim(0, 7).expect("a claim");
        assert!(!late.stands() && next.stands());
        drop(late);
        assert!(next.stands(), "it goes on because another has been seen to");
        drop(next);
        assert_eq!(state.load(Ordering::Acquire), hold::DONE);
    }
}
