//! The same action in another process: whom a mechanism must spare.

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

use crate::error::{Context, Failure, Result};

/// An action's errno: 0 if it went well.
pub(super) type Errno = i32;

/// What the child says of an action that panicked. No errno.
const PANICKED: i32 = 255;

/// Runs an action in a child process. For a process with one thread.
pub(super) fn elsewhere(action: impl FnOnce() -> Errno) -> Result<Errno> {
    // SAFETY: there is no other thread that could hold a lock across the fork.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let errno = catch_unwind(AssertUnwindSafe(action)).unwrap_or(PANICKED);
            // SAFETY: ends the process. What the parent would do at its end is not for the child to do.
            unsafe { libc::_exit(errno) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).context("waitpid")? {
            WaitStatus::Exited(_, PANICKED) => Err(Failure::new("the action panicked in another process")),
            WaitStatus::Exited(_, errno) => Ok(errno),
            other => Err(Failure::new(format!("another process ended by {other:?}"))),
        },
    }
}

/// The errno of a result of the standard library; -1 for an error without.
pub(super) fn errno<T>(result: std::io::Result<T>) -> Errno {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}
