//! Cgroups by any name, and what is known by that of its cgroup.

use std::{collections::BTreeSet, ffi::OsStr, fs, os::unix::ffi::OsStrExt, process};

use super::{BPF, FAULTS, names, said, step};
use crate::{
    cgroup::{Cgroup, Inhabitant},
    ensure,
    error::{Context, Result},
    harness::Test,
    lab::Lab,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("names::of_cgroups", of_cgroups).needs(BPF).timeout(180).waits(),
    Test::new("names::of_containers_and_units", of_containers).needs(BPF).timeout(60).waits(),
];

/// A cgroup and somebody in it, who goes first.
pub(super) struct Home {
    pub(super) process: Inhabitant,
    pub(super) cgroup: Cgroup,
    name: Vec<u8>,
}

impl Home {
    /// None if the kernel refuses the name.
    pub(super) fn new(above: &Cgroup, name: &[u8], lab: &Lab) -> Result<Option<Self>> {
        let path = above.path().join(OsStr::from_bytes(name));
        match fs::create_dir(&path) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            made => made.and_then(|()| fs::remove_dir(&path)).context(path.display())?,
        }
        let cgroup = above.child(&path)?;
        let process = cgroup.inhabit(|command| lab.near.home_of(command))?;
        Ok(Some(Self { process, cgroup, name: name.to_vec() }))
    }

    pub(super) fn path(&self) -> &[u8] {
        self.cgroup.path().as_os_str().as_bytes()
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Side by side: each fault is planned for several and done to one.
fn of_cgroups() -> Result {
    let (lab, above) = (Lab::new()?, Cgroup::new()?);
    let mut homes = Vec::new();
    for name in names(255) {
        homes.extend(Home::new(&above, &name, &lab)?);
    }
    ensure!(homes.len() > 20, "the kernel has refused all but {}", homes.len());
    let mut planned = 0;
    for (number, home) in homes.iter().enumerate().step_by(step()) {
        let [fault, other] = [0, 5].map(|more| FAULTS[(number + more) % FAULTS.len()]);
        let plan = said(&format!("{fault} --plan --json --cgroup"), &[home.path()])?;
        if plan.hits_nobody_else(&home.name, &[home.pid()])? {
            planned += 1;
            let is_it = std::str::from_utf8(home.path()).map_or(true, |path| plan.target() == Ok(path));
            ensure!(is_it, "{}: it is called {:?}", plan.words, plan.target());
        }
        said(&format!("{other} --plan --cgroup"), &[home.path()])?;
    }
    ensure!(planned > 2, "only {planned} could be planned");
    let pids: Vec<u32> = homes.iter().map(Home::pid).collect();
    said("net loss 1% --plan --json --cgroup", &[above.path().as_os_str().as_bytes()])?.hits(&pids)?;
    let typed: Vec<&Home> = homes.iter().filter(|home| std::str::from_utf8(&home.name).is_ok()).collect();
    for (number, fault) in FAULTS.iter().enumerate() {
        let format = if number % 2 == 0 { " --json" } else { "" };
        let home = typed[number % typed.len()];
        let done = said(&format!("{fault} --for 20ms{format} --cgroup"), &[home.path()])?;
        ensure!(matches!(done.code, Some(0 | 3 | 5)), "{}: {}", done.words, done.stderr);
    }
    // One that is not there is not the one that looks like it.
    let gone = homes.iter().position(|home| home.name == "i\u{fffd}".as_bytes()).context("not there")?;
    let Home { process, cgroup, .. } = homes.swap_remove(gone);
    let path = cgroup.path().as_os_str().as_bytes().to_vec();
    drop((process, cgroup));
    let plan = said("net loss 1% --plan --json --cgroup", &[&path])?;
    ensure!(plan.code == Some(3) && plan.stderr.contains("no such cgroup"), "{}", plan.stderr);
    Ok(())
}

/// Among others of almost the same name, and in cgroups that differ by a byte.
fn of_containers() -> Result {
    let id = |first: &str| format!("{first}{:08x}{:052x}", process::id(), 0);
    let (lab, above) = (Lab::new()?, Cgroup::new()?);
    let home = |name: &[u8]| Home::new(&above, name, &lab)?.context("refused");
    let unit = format!("fl-names-{}\u{202e}", process::id());
    let rows = [("--container=", id("5eed"), "docker-", ".scope"), ("--unit=", unit.clone(), "", ".service")];
    for (option, asked, before, after) in rows {
        let whole = format!("{before}{asked}{after}");
        let right = home(whole.as_bytes())?;
        let mut others = Vec::new();
        for end in [&b" "[..], b"\xff", b"\x1b", b".d", "\u{202c}".as_bytes(), b"\\012"] {
            others.push(home(&[whole.as_bytes(), end].concat())?);
            let inside = [before.as_bytes(), &asked.as_bytes()[..asked.len() - 3], end, after.as_bytes()];
            others.push(home(&inside.concat())?);
        }
        for format in ["--json", "--include-protected"] {
            let plan =
                said(&format!("net loss 1% --plan {format}"), &[format!("{option}{asked}").as_bytes()])?;
            ensure!(plan.code == Some(0), "{}: {}", plan.words, plan.stderr);
            ensure!(format != "--json" || plan.hits(&[right.pid()])?, "{}", plan.words);
        }
    }
    // Whoever reads of one of these must be able to say which it is.
    let (one, other) = (above.child(OsStr::from_bytes(b"a\xff"))?, above.child("a\u{fffd}")?);
    let (alike, alone) = (id("5eee"), [id("5eef"), id("5ef0")]);
    let mut inside = Vec::new();
    let mut targets = BTreeSet::new();
    for (above, alone) in [&one, &other].into_iter().zip(&alone) {
        let [twin, only] = [&alike, alone].map(|id| format!("crio-{id}.scope"));
        inside.push(Home::new(above, twin.as_bytes(), &lab)?.context("refused")?);
        let only = Home::new(above, only.as_bytes(), &lab)?.context("refused")?;
        let plan = said("net loss 1% --plan --json --container", &[alone.as_bytes()])?;
        ensure!(plan.hits(&[only.pid()])?, "{}: {}", plan.words, plan.stderr);
        targets.insert(plan.target()?.replace(alone, ""));
        inside.push(only);
    }
    ensure!(targets.len() == 2, "two cgroups have one name: {targets:?}");
    let twins = said("net loss 1% --plan --json --container", &[alike.as_bytes()])?;
    ensure!(twins.code == Some(3) && twins.stderr.contains("ambiguous"), "{}", twins.stderr);
    let listed =
        twins.stderr.split_once("it could be ").and_then(|(_, rest)| rest.split_once("; write more"));
    let listed: BTreeSet<&str> = listed.context(&twins.stderr)?.0.split(", ").collect();
    ensure!(listed.len() == 2, "it could be either of one: {}", twins.stderr);
    drop(inside);
    Ok(())
}
