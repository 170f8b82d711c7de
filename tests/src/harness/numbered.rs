//! Processes whose numbers were others'.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::patience;
use crate::{
    ensure,
    error::{Context, Result},
};

/// The last number that the kernel has given; it goes on from there.
pub(super) const LAST: &str = "/proc/sys/kernel/ns_last_pid";
/// Others may get it as well, threads among them.
const PATIENCE: Duration = Duration::from_secs(20);

/// Begins a process again and again until it has the number of one that has ended.
pub(crate) fn numbered<T>(pid: u32, begin: impl Fn() -> Result<T>, number: impl Fn(&T) -> u32) -> Result<T> {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        fs::write(LAST, (pid - 1).to_string()).context(LAST)?;
        let process = begin()?;
        if number(&process) == pid {
            return Ok(process);
        }
        ensure!(Instant::now() < deadline, "nobody gets the number {pid}");
    }
}
