//! What is gone already need not be removed.

use super::Result;

/// `None` if the kernel says that there is no such interface, or no such thing on it.
///
/// # Errors
///
/// All others.
pub(super) fn is_nothing<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if matches!(error.errno(), libc::ENODEV | libc::ENOENT | libc::EINVAL) => Ok(None),
        result => result.map(Some),
    }
}
