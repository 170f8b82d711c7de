//! What has to be done in a thread of its own: whoever enters a namespace or traces another must not come back to where
//! the caller is.

use std::{
    io, panic,
    thread::{self, Scope, ScopedJoinHandle},
};

/// Does something in a thread of its own, and waits for it.
///
/// # Errors
///
/// The kernel's, where there is no room for a thread: nothing was done then.
///
/// # Panics
///
/// If the action does.
pub(crate) fn run<T: Send>(action: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = begin(scope, action)?;
        Ok(thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    })
}

/// The same, without waiting. `Scope::spawn` would panic where there is no room.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn begin<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    action: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().spawn_scoped(scope, action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back() {
        let here = thread::current().id();
        assert!(run(|| thread::current().id() != here).expect("a thread"));
    }
}
