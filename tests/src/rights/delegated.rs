//! Cgroups that others than root may make, and call as they like.

use std::{os::unix::fs::chown, process};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test},
};

pub(super) const TESTS: &[Test] = &[Test::new("rights::names_that_others_may_give", names)
    .needs(&[Need::Root, Need::Btf, Need::CgroupV2])
    .waits()];

/// What a plan is aimed at.
fn planned(words: &[&str]) -> Result<String> {
    let words = [&["net", "loss", "1%", "--dev", "lo", "--plan"], words].concat();
    let exit = Faultline::start(&words)?.wait(crate::life::scene::PATIENCE)?;
    ensure!(exit.code == Some(0), "{words:?}: {exit:?}");
    Ok(exit.event("plan")?.get("/targets")?.to_string())
}

/// Such a cgroup is neither taken for the one that is meant, nor in its way.
fn names() -> Result {
    const NOBODY: u32 = 65_534;
    let given = Cgroup::new()?;
    chown(given.path(), Some(NOBODY), Some(NOBODY)).context("chown")?;
    let unit = format!("fl-test-{}.service", process::id());
    let id = format!("fa11{:08x}{:052x}", process::id(), 0);
    let scope = format!("docker-{id}.scope");
    for (option, value, folder) in [
        ("--unit", &unit, &unit),
        ("--container", &id, &scope),
        ("--container", &id[..12].to_owned(), &scope),
    ] {
        let theirs = given.child(folder)?;
        let _they = theirs.inhabit(|_| {})?;
        let path = theirs.path().to_string_lossy().into_owned();
        let words = ["net", "loss", "1%", "--dev", "lo", option, value];
        Faultline::check_refused(&words, 3, &[option, &path, "others than root", "--cgroup"])?;
        let at = planned(&["--cgroup", &path])?;
        ensure!(at.contains(&path), "{option}: not {path}: {at}");
        let ours = Cgroup::named(folder)?;
        let _we = ours.inhabit(|_| {})?;
        let at = planned(&[option, value])?;
        ensure!(at.contains(&*ours.path().to_string_lossy()), "{option}: {at}");
        ensure!(!at.contains(&path), "{option}: {at}");
    }
    Ok(())
}
