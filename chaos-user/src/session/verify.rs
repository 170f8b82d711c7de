//! Whether everything of a run is gone, as the kernel's own listings say.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{JournalError, journal::HookRecord};
use crate::kernel::{
    self,
    sys::{self, Kind},
};

/// The kernel frees what a closed link held after a grace period.
const GRACE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Something is left of a run, or whether anything is cannot be established.
#[derive(Debug, thiserror::Error)]
#[error("not known to be clean: {what}; `{remedy}` shows or removes it")]
pub struct Dirty {
    what: String,
    remedy: String,
}

impl Dirty {
    pub(super) fn unknown(error: kernel::Error) -> Self {
        Self { what: error.to_string(), remedy: "faultline ps".into() }
    }

    pub(super) fn journal(error: JournalError) -> Self {
        Self { what: error.to_string(), remedy: "faultline sweep".into() }
    }
}

/// Waits until no link and no program of these hooks is there any more.
pub(super) fn gone(hooks: &[HookRecord]) -> Result<(), Dirty> {
    let deadline = Instant::now() + GRACE;
    loop {
        let left = left(hooks).map_err(Dirty::unknown)?;
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let what = format!("after {GRACE:?} there are still {}", left.join(", "));
            return Err(Dirty { what, remedy: format!("bpftool {first}") });
        }
        thread::sleep(PAUSE);
    }
}

/// What is left, each as `bpftool` takes it.
fn left(hooks: &[HookRecord]) -> kernel::Result<Vec<String>> {
    let mut left = Vec::new();
    for hook in hooks {
        if sys::open(Kind::Link, hook.link_id)?.is_some() {
            left.push(format!("link show id {}", hook.link_id));
        }
        if sys::open(Kind::Program, hook.program_id)?.is_some() {
            left.push(format!("prog show id {}", hook.program_id));
        }
    }
    Ok(left)
}
