//! Whether everything of a run is gone, as the kernel's own listings say.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{JournalError, journal::HookRecord};
use crate::kernel::{
    self,
    change::Change,
    sys::{self, Kind},
};

/// The kernel frees what a closed link held after a grace period.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// What to do when it may be otherwise in a moment.
const SWEEP: &str = "`faultline sweep` tries again";

/// Something is left of a run, or whether anything is cannot be established.
#[derive(Debug, thiserror::Error)]
#[error("not known to be clean: {what}; {remedy}")]
pub struct Dirty {
    what: String,
    remedy: String,
}

impl Dirty {
    pub(super) fn unknown(error: kernel::Error) -> Self {
        Self { what: error.to_string(), remedy: SWEEP.into() }
    }

    /// What was changed is not found here, and may be elsewhere.
    pub(super) fn unseen(why: &str, change: &Change) -> Self {
        let remedy = change.remedy();
        let remedy = format!(
            "run `faultline sweep` on the host, or where its owner ran; by hand it is `{remedy}` there"
        );
        Self { what: format!("{change} were not found: {why}"), remedy }
    }

    pub(super) fn journal(error: JournalError) -> Self {
        Self { what: error.to_string(), remedy: SWEEP.into() }
    }
}

/// Waits until no link and no program of these hooks is there any more, and no limit. A filter goes with its program:
/// while there is one, it holds the other.
pub(super) fn gone(hooks: &[HookRecord], changes: &[Change]) -> Result<(), Dirty> {
    let deadline = Instant::now() + GRACE;
    loop {
        let left = left(hooks, changes).map_err(Dirty::unknown)?;
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let names: Vec<_> = left.iter().map(|left| left.name.as_str()).collect();
            let what = format!("after {GRACE:?} there are still {}", names.join(", "));
            return Err(Dirty { what, remedy: first.remedy.clone() });
        }
        thread::sleep(PAUSE);
    }
}

/// Something that is left.
struct Left {
    name: String,
    remedy: String,
}

impl Left {
    /// As `bpftool` takes it.
    fn bpf(name: String) -> Self {
        Self { remedy: format!("`bpftool {name}` shows it"), name }
    }
}

fn left(hooks: &[HookRecord], changes: &[Change]) -> kernel::Result<Vec<Left>> {
    let mut left = Vec::new();
    for throttle in changes.iter().filter_map(Change::throttle) {
        if throttle.is_set()? {
            let name = throttle.to_string();
            left.push(Left { name, remedy: format!("`{}` removes them", throttle.remedy()) });
        }
    }
    for link in hooks.iter().filter_map(|hook| hook.link_id) {
        if sys::open(Kind::Link, link)?.is_some() {
            left.push(Left::bpf(format!("link show id {link}")));
        }
    }
    let programs =
        hooks.iter().filter_map(|hook| hook.program_id).chain(changes.iter().filter_map(Change::program));
    for program in programs {
        if sys::open(Kind::Program, program)?.is_some() {
            left.push(Left::bpf(format!("prog show id {program}")));
        }
    }
    Ok(left)
}
