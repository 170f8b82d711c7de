//! What is left of a step, and who noticed it.

use std::{
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use super::{
    Went, events, faults::Fault, owners::Owner, plan::Step, report::Finding, roles::Role, scene::Scene,
};
use crate::{error::Result, faultline::Faultline, harness::patience};

/// A sweep that could not put something back may do so a little later.
pub(super) const SWEPT: Duration = Duration::from_secs(6);

/// What the last sweep said, if there was one.
#[derive(Debug, Default)]
struct Swept {
    said: String,
    /// Whether it named what it could not put back.
    is_kept: bool,
}

impl Swept {
    /// Sweeps until nothing is kept, for so long.
    fn sweep(&mut self) -> Result {
        let deadline = Instant::now() + patience(SWEPT);
        loop {
            let exit = Faultline::run(&["sweep"])?;
            self.said = format!("exit {:?}, {:?}{:?}", exit.code, exit.stdout.trim(), exit.stderr.trim());
            self.is_kept = exit.code == Some(6);
            if !self.is_kept || Instant::now() > deadline {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Sweeps, and compares what there is with what there was.
pub(super) fn compare(step: &Step, scene: &mut Scene<'_>, went: &mut Went) -> Result {
    let mut swept = Swept::default();
    let was_killed = |owner: &Owner| owner.exit.as_ref().is_some_and(|exit| exit.code.is_none());
    if went.owners.iter().any(|owner| was_killed(owner) || owner.is_dirty()) {
        swept.sweep()?;
    }
    let changed = match &scene.spare {
        Some(spare) => settled(|| spare.changed())?,
        None => Vec::new(),
    };
    if !changed.is_empty() {
        went.left(&changed.join(", "), &swept);
    }
    scene.clear()?;
    if swept.is_kept && step.event.takes_interface() {
        // With the interface and all namespaces gone there is nothing left to be put back.
        swept.sweep()?;
    }
    target(step, scene, went);
    scene.restore()?;
    if let Err(difference) = scene.wait_for_start() {
        went.is_spoilt = true;
        went.left(&difference.to_string(), &swept);
    } else if let Some(target) = &scene.target
        && let Err(failure) = events::works_again(target)
    {
        went.is_spoilt = true;
        let what = format!("nothing is left, and the target is still hit: {failure}");
        went.findings.push(Finding::Lie { what });
    }
    Ok(())
}

impl Went {
    /// Something is left: was it told?
    fn left(&mut self, what: &str, swept: &Swept) {
        let words: Vec<String> = self.owners.iter().map(Owner::word).collect();
        let what = format!("{}; owners: {}; sweep: {}", what.trim(), words.join(", "), swept.said);
        let is_told = swept.is_kept || self.owners.iter().any(Owner::is_dirty);
        self.findings.push(if is_told { Finding::Residue { what } } else { Finding::Lie { what } });
    }
}

/// What is still there when nothing changes any more.
fn settled(look: impl Fn() -> Result<Vec<String>>) -> Result<Vec<String>> {
    let deadline = Instant::now() + patience(Duration::from_secs(2));
    loop {
        let found = look()?;
        if found.is_empty() || Instant::now() > deadline {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The target lives, unless the step has ended it.
fn target(step: &Step, scene: &mut Scene<'_>, went: &mut Went) {
    let Some(status) = scene.target.as_mut().and_then(Role::ended) else { return };
    scene.target = None;
    let has_no_memory = step.faults.iter().any(Fault::is_of_memory);
    if is_crash(status) || !has_no_memory {
        went.findings.push(Finding::Crash { what: format!("the target has ended: {status}") });
    }
}

/// Whether it was its own code, or what was made of it.
fn is_crash(status: ExitStatus) -> bool {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    signal.is_some_and(|signal| {
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS]
            .contains(&signal)
    })
}

/// The bystander has noticed nothing, and goes on.
pub(super) fn bystander(scene: &mut Scene<'_>, beats: &[(String, u64)], went: &mut Went) {
    if let Some(status) = scene.bystander.ended() {
        went.findings.push(Finding::Bystander { what: format!("it has ended: {status}") });
        went.is_spoilt = true;
    } else if let Err(failure) = scene.bystander.wait_for_beats(beats) {
        went.findings.push(Finding::Bystander { what: failure.to_string() });
        went.is_spoilt = true;
    }
    let errors = scene.bystander.take_errors();
    went.findings.extend(errors.into_iter().map(|what| Finding::Bystander { what }));
}
