//! What a test and the process that obeys it share: a page of memory and two futexes.
//!
//! Pipes and sockets would not do: what is read from them and written to them passes the very hooks that are tested.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::error::{Failure, Result};

/// How often one order can have its call made.
pub(super) const MOST: usize = 8192;
/// Bytes for what calls read and write.
pub(super) const DATA: usize = 64 * 1024;

/// The memory itself. Whoever gives an order fills it in first and counts `order` up last.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Board {
    /// How many orders were given.
    pub(super) order: AtomicU32,
    /// How many of them are done.
    pub(super) done: AtomicU32,
    /// The same for the helper thread.
    pub(super) thread_order: AtomicU32,
    pub(super) thread_done: AtomicU32,
    /// Where the process that obeys sees this.
    pub(super) base: AtomicU64,
    /// Who is to make the call: a number of `Who`.
    pub(super) who: AtomicU32,
    /// How often.
    pub(super) count: AtomicU32,
    /// How often it has begun to.
    pub(super) begun: AtomicU32,
    /// How a child ended that made the call, as `waitpid` says.
    pub(super) status: AtomicU32,
    /// Why there is no child to make it: the errno of `fork`.
    pub(super) childless: AtomicU32,
    /// The system call's number and arguments.
    pub(super) number: AtomicI64,
    pub(super) arguments: [AtomicU64; 6],
    /// What each call gave, `-errno` if it failed, and the nanoseconds it took.
    pub(super) results: [(AtomicI64, AtomicU64); MOST],
    pub(super) data: [AtomicU8; DATA],
}

/// A mapping of the memory.
#[derive(Debug)]
pub(super) struct Shared(NonNull<Board>);

// SAFETY: everything in it is atomic.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Of the memory file, which is as long as a board.
    pub(super) fn map(memory: BorrowedFd<'_>) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel puts it.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Board>(),
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                memory.as_raw_fd(),
                0,
            )
        };
        let board = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        board.map(Self).ok_or_else(|| Failure::last_os_error("mmap(the board)"))
    }

    /// The memory.
    pub(super) fn board(&self) -> &Board {
        // SAFETY: mapped as long as this lives, zeroed by the kernel, and everything in it is atomic.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: what `map` mapped, and no reference to it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Board>()) };
    }
}

/// Sets a word and wakes whoever waits for that.
pub(super) fn tell(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::SeqCst);
    // SAFETY: a word of ours; wakes whoever waits.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits until a word is no longer `old`.
pub(super) fn wait_for_change(word: &AtomicU32, old: u32) -> u32 {
    loop {
        let now = word.load(Ordering::SeqCst);
        if now != old {
            return now;
        }
        futex_wait(word, old, ptr::null());
    }
}

/// Waits until a word is `value`; false if it is not in time.
pub(super) fn wait_for(word: &AtomicU32, value: u32, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    loop {
        let now = word.load(Ordering::SeqCst);
        if now == value {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let left = libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        futex_wait(word, now, &raw const left);
    }
}

fn futex_wait(word: &AtomicU32, old: u32, timeout: *const libc::timespec) {
    // SAFETY: a word of ours, and a timeout that outlives the call if there is one. Other processes see the word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, old, timeout) };
}
