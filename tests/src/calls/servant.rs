//! The process that obeys: it makes the system calls it is told to, and nothing else while it does.
//!
//! From an order to its answer it allocates nothing and makes no other call but `futex`, and `fork` if the order is for a
//! child: any of them might be what a fault is aimed at.

use std::{os::fd::AsFd, sync::atomic::Ordering::SeqCst, thread};

use super::board::{Board, MOST, Shared, tell, wait_for_change};
use crate::{error::Result, traffic::monotonic_ns};

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The process's first thread.
    Itself = 0,
    /// Another, which has been there all along.
    Thread = 1,
    /// A child that is forked when the order comes, and then ends.
    Child = 2,
    /// That child's child.
    Grandchild = 3,
}

/// Obeys whoever has the other end of standard input, which is memory, until killed.
///
/// # Errors
///
/// If it is not.
pub fn serve() -> Result {
    let shared: &'static Shared = Box::leak(Box::new(Shared::map(std::io::stdin().as_fd())?));
    let board = shared.board();
    board.base.store(std::ptr::from_ref(board) as u64, SeqCst);
    thread::spawn(move || help(board));
    wait_for_thread(board);
    let mut seen = 0;
    tell(&board.done, 1);
    loop {
        seen = wait_for_change(&board.order, seen);
        obey(board);
        tell(&board.done, seen + 1);
    }
}

/// What the other thread does.
fn help(board: &Board) -> ! {
    let mut seen = 0;
    tell(&board.thread_done, 1);
    loop {
        seen = wait_for_change(&board.thread_order, seen);
        make_calls(board);
        tell(&board.thread_done, seen + 1);
    }
}

fn wait_for_thread(board: &Board) {
    let expected = board.thread_order.load(SeqCst) + 1;
    let mut now = board.thread_done.load(SeqCst);
    while now != expected {
        now = wait_for_change(&board.thread_done, now);
    }
}

fn obey(board: &Board) {
    match board.who.load(SeqCst) {
        who if who == Who::Thread as u32 => {
            tell(&board.thread_order, board.thread_order.load(SeqCst) + 1);
            wait_for_thread(board);
        }
        who if who == Who::Child as u32 => in_child(board, make_calls),
        who if who == Who::Grandchild as u32 => in_child(board, |board| in_child(board, make_calls)),
        _ => make_calls(board),
    }
}

fn in_child(board: &Board, action: fn(&Board)) {
    // SAFETY: the child makes system calls only; nothing here holds a lock.
    match unsafe { libc::fork() } {
        // SAFETY: this thread's own.
        -1 => board.childless.store(unsafe { *libc::__errno_location() }.cast_unsigned(), SeqCst),
        0 => {
            action(board);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        child => {
            let mut status = 0;
            // SAFETY: writes one integer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            board.status.store(status.cast_unsigned(), SeqCst);
        }
    }
}

fn make_calls(board: &Board) {
    let count = (board.count.load(SeqCst) as usize).min(MOST);
    let number = board.number.load(SeqCst);
    let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|place: usize| board.arguments[place].load(SeqCst));
    for (value, time) in &board.results[..count] {
        // A call that does not come back, `execve`, has succeeded.
        board.begun.fetch_add(1, SeqCst);
        value.store(0, SeqCst);
        time.store(0, SeqCst);
        let began = monotonic_ns();
        // SAFETY: whatever the test asks for, with memory of the board's.
        let mut result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        if result == -1 {
            // SAFETY: this thread's own.
            result = -i64::from(unsafe { *libc::__errno_location() });
        }
        time.store(monotonic_ns() - began, SeqCst);
        value.store(result, SeqCst);
    }
}
