//! What these tests share: a process that is hit, one beside it that does the same to the same file and is not, and
//! a `/run` of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use super::watched::{Seen, Watched};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::{Event, Exit, Faultline},
    harness::Need,
    inventory::Inventory,
    life::scene::at_once,
};
use chaos_user::kernel::mechanism::Mechanism;

/// What the faults here need; `fmod_ret` would do as well, but who has the one has the other.
pub(super) const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::Mechanism(Mechanism::Lsm)];

/// Longer than it takes to load and attach on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How many attempts are looked at.
const SOME: u64 = 30;

/// On the root file system, wherever that is.
const FOLDER: &str = "/var/tmp";

/// All of it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) target: Option<Watched>,
    bystander: Watched,
    pub(super) cgroup: Cgroup,
    _beside: Cgroup,
    _folder: Folder,
    before: Inventory,
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // One that is left is no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scene {
    /// All of it at work, with a listing of what there is.
    pub(super) fn set() -> Result<Self> {
        let folder = Path::new(FOLDER).join(format!("fl-calls-{}", process::id()));
        fs::create_dir_all(&folder).context(folder.display())?;
        let folder = Folder(folder);
        let file = folder.0.join("file");
        fs::write(&file, "x").context(file.display())?;
        let (cgroup, beside) = (Cgroup::new()?, Cgroup::new()?);
        let target = Some(Watched::start(&cgroup, &file)?);
        let bystander = Watched::start(&beside, &file)?;
        let before = Inventory::take(&[])?;
        let scene = Self { target, bystander, cgroup, _beside: beside, _folder: folder, before };
        scene.clean("before")?;
        Ok(scene)
    }

    pub(super) fn target(&self) -> Result<&Watched> {
        self.target.as_ref().context("the target is gone")
    }

    /// The arguments of a fault that hits the target alone, wherever on the root file system.
    fn arguments(&self, rest: &[&str]) -> Vec<String> {
        let cgroup = self.cgroup.path().to_string_lossy();
        let first = ["io", "error", "EIO", "--ops", "open,read,write", "--path", "/", "--cgroup", &cgroup];
        first.iter().chain(rest).map(ToString::to_string).collect()
    }

    /// Starts it.
    pub(super) fn start(&self, rest: &[&str]) -> Result<Faultline> {
        let arguments = self.arguments(rest);
        Faultline::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, armed.
    pub(super) fn armed(&self, rest: &[&str]) -> Result<(Faultline, Event)> {
        let fault = self.start(rest)?;
        let armed = fault.wait_event("armed", PATIENCE)?;
        Ok((fault, armed))
    }

    /// The target's next attempts. The bystander's have all worked, from the beginning on, and go on.
    pub(super) fn sees(&self) -> Result<Seen> {
        let seen = self.target()?.next(SOME)?;
        self.spared()?;
        Ok(seen)
    }

    /// The bystander's calls have all worked, from the beginning on, and go on.
    pub(super) fn spared(&self) -> Result {
        self.bystander.next(SOME)?;
        let beside = self.bystander.seen();
        ensure!(beside.is_clean(), "the bystander was hit: {beside:?}");
        Ok(())
    }

    /// Fails unless all that the target does works.
    pub(super) fn clean(&self, when: &str) -> Result {
        let seen = self.sees().context(when)?;
        ensure!(seen.is_clean(), "{when}: {seen:?}");
        Ok(())
    }

    /// Fails unless nothing that the target does works.
    pub(super) fn hit(&self, when: &str) -> Result {
        let seen = self.sees().context(when)?;
        ensure!(seen.is_hit(), "{when}: {seen:?}");
        Ok(())
    }

    /// Everything is as it was, records included, and all works.
    pub(super) fn over(&self, when: &str) -> Result {
        self.clean(when)?;
        self.before.wait_until_equal(&[], at_once()).context(when)?;
        self.clean(when)
    }

    /// All works, and nothing is left that could act.
    pub(super) fn harmless(&self, when: &str) -> Result {
        self.clean(when)?;
        self.before.wait_until_harmless(&[], at_once()).context(when)
    }

    /// What there is more than before.
    pub(super) fn more(&self) -> Result<Vec<String>> {
        let now = Inventory::take(&[])?;
        Ok(self.before.difference(&now).map_or_else(Vec::new, |difference| difference.new))
    }

    /// Like [`over`](Self::over), without a target.
    pub(super) fn over_without_target(&self, when: &str) -> Result {
        self.before.wait_until_equal(&[], at_once()).context(when)?;
        self.spared()
    }
}

/// The end of a run, by its exit code and what it says of it.
pub(super) fn ended(exit: &Exit, code: i32, verdict: &str) -> Result<String> {
    ensure!(exit.code == Some(code) && exit.stderr.is_empty(), "not exit {code}: {exit:?}");
    let summary = exit.event("summary")?;
    ensure!(summary.get("/verdict")? == verdict, "not {verdict}: {summary:?}");
    Ok(summary.get("/reason")?.as_str().context("no reason")?.to_owned())
}

/// How often a run's rules have fired.
pub(super) fn fired(exit: &Exit) -> Result<u64> {
    let summary = exit.event("summary")?;
    let rules = summary.get("/rules")?.as_array().context("no rules")?;
    Ok(rules.iter().filter_map(|rule| rule["fired"].as_u64()).sum())
}
