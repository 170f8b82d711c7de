//! What the kernel says of processes and their threads.

use std::{collections::BTreeSet, fs, io};

use libc::{c_int, pid_t};

use super::StopError;
use crate::kernel::{Error, process::unless_gone};

/// The threads of a process. One that ends while the kernel lists it ends the list too.
pub(super) fn threads(process: u32) -> Result<BTreeSet<pid_t>, StopError> {
    let path = format!("/proc/{process}/task");
    let list = || -> io::Result<BTreeSet<pid_t>> {
        let names = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    };
    let listed = unless_gone(list()).map_err(|source| Error::new("readdir", path.as_str(), source))?;
    listed.ok_or(StopError::Gone)
}

/// Whether they run in the same. One that has ended does not, and where the kernel does not compare them (`CONFIG_KCMP`) none is
/// known to.
///
/// # Errors
///
/// The kernel's.
pub(super) fn have_one_memory(one: pid_t, other: pid_t) -> Result<bool, StopError> {
    /// `KCMP_VM`.
    const MEMORY: c_int = 1;
    // SAFETY: integers, of which the last two mean nothing here.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, MEMORY, 0, 0) };
    let source = io::Error::last_os_error();
    match (order, source.raw_os_error()) {
        (-1, Some(libc::ESRCH | libc::ENOSYS)) => Ok(false),
        (-1, _) => Err(Error::new("kcmp", format!("processes {one} and {other}"), source).into()),
        (order, _) => Ok(order == 0),
    }
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
    fn this_process_is_as_it_is() {
        let own = std::process::id();
        // SAFETY: takes nothing.
        let this = unsafe { libc::gettid() };
        // Those of other tests come and go.
        super::super::tests::until("both are listed", || {
            let threads = threads(own).expect("threads");
            threads.contains(&this) && threads.contains(&own.cast_signed())
        });
        assert!(have_one_memory(this, own.cast_signed()).expect("kcmp"), "with itself");
        assert!(
            !have_one_memory(this, std::os::unix::process::parent_id().cast_signed()).expect("kcmp"),
            "with who began it"
        );
    }
}
