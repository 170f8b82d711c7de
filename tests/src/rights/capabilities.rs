//! Each capability that something takes is missing in turn, for every kind of fault: it is named, or nothing is amiss.

use std::thread;

use serde_json::Value;

use super::{
    confined::{in_user_namespace, keep},
    run_line,
};
use crate::{
    cgroup::{Cgroup, Inhabitant},
    ensure,
    error::{Context, Failure, Result},
    faultline::{Faultline, as_nobody},
    harness::{Need, Test},
    inventory::Inventory,
    lab::{Lab, NEAR_DEVICE},
    life::{
        killed::kill_with_its_guard,
        scene::{PATIENCE, at_once, records},
    },
};
use chaos_user::kernel::mechanism::Mechanism;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Btf,
    Need::Tcx,
    Need::CgroupConnect,
    Need::CgroupSock,
    Need::Mechanism(Mechanism::RawTracepoint),
    Need::Mechanism(Mechanism::VdsoPatch),
];

pub(super) const TESTS: &[Test] = &[
    Test::new("rights::each_that_is_missing", each_that_is_missing).needs(NEEDS).timeout(90).waits().slow(),
    Test::new("rights::of_a_user_namespace", of_a_user_namespace).needs(NEEDS).waits(),
    Test::new("rights::what_the_doctor_says", what_the_doctor_says).needs(NEEDS).timeout(60).waits(),
    Test::new("rights::what_a_sweep_takes", what_a_sweep_takes).needs(NEEDS).timeout(60).waits(),
];

/// By their numbers.
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const KNOWN: [(u32, &str); 6] = [
    (DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    (NET_ADMIN, "CAP_NET_ADMIN"),
    (NET_RAW, "CAP_NET_RAW"),
    (SYS_PTRACE, "CAP_SYS_PTRACE"),
    (SYS_ADMIN, "CAP_SYS_ADMIN"),
];

/// What the agent's pod has.
const FOUR: [u32; 4] = [SYS_ADMIN, SYS_PTRACE, NET_ADMIN, NET_RAW];

/// A command, and what it takes: of each group one.
type Row = (&'static str, &'static [&'static [u32]]);

/// With the target's names for `@`, `^` and `~`: its cgroup, a process of root's and one of nobody's.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("net loss 10% --dev to-far --direction both", &[&[SYS_ADMIN]]),
    ("net loss 10% --dev to-far --cgroup @", &[&[SYS_ADMIN], &[SYS_PTRACE]]),
    ("net loss 10% --dev to-far --pid ~", &[&[SYS_ADMIN], &[SYS_PTRACE], &[DAC_READ_SEARCH, DAC_OVERRIDE]]),
    ("net refuse --cgroup @", &[&[SYS_ADMIN], &[SYS_PTRACE]]),
    ("net duplicate 10% --dev to-far", &[&[SYS_ADMIN], &[NET_ADMIN]]),
    ("net reset --dev to-far", &[&[SYS_ADMIN], &[NET_RAW]]),
    ("net dns nxdomain --dev to-far", &[&[SYS_ADMIN]]),
    ("io delay 1ms --cgroup @", &[&[SYS_ADMIN]]),
    ("io delay 1ms --pid ^ --path /etc", &[&[SYS_ADMIN], &[SYS_PTRACE]]),
    ("sys delay getppid 1ms --pid ~", &[&[SYS_ADMIN]]),
    ("time skew --offset 1h --pid ^", &[&[SYS_ADMIN], &[SYS_PTRACE]]),
    ("time skew --offset 1h --pid ~", &[&[SYS_ADMIN], &[SYS_PTRACE], &[DAC_OVERRIDE]]),
    ("sweep", &[&[SYS_ADMIN]]),
];

/// Whom the commands are aimed at: two processes that could not be looked at by one that may less than they.
struct Scene {
    lab: Lab,
    cgroup: Cgroup,
    root: Inhabitant,
    nobody: Inhabitant,
}

impl Scene {
    fn set() -> Result<Self> {
        let (lab, cgroup) = (Lab::new()?, Cgroup::new()?);
        let root = cgroup.inhabit_in(&lab.near, |_| {})?;
        let nobody = cgroup.inhabit_in(&lab.near, as_nobody)?;
        Ok(Self { lab, cgroup, root, nobody })
    }

    fn line(&self, line: &str) -> String {
        let cgroup = self.cgroup.path().display().to_string();
        let (root, nobody) = (self.root.pid().to_string(), self.nobody.pid().to_string());
        let time = if line == "sweep" { "" } else { " --for 20ms" };
        // What comes after a command's first words is of its own.
        format!("{line}{time}").replace('@', &cgroup).replace('^', &root).replace('~', &nobody)
    }
}

fn each_that_is_missing() -> Result {
    let scene = Scene::set()?;
    let before = Inventory::settled(&[&scene.lab.near])?;
    ensure!(ROWS.iter().any(|(line, _)| line.contains(NEAR_DEVICE)), "the rows are of another device");
    let all = KNOWN.map(|(number, _)| number);
    let without = |one: u32| all.into_iter().filter(move |number| *number != one).collect::<Vec<_>>();
    // Each of them is missing for each of the rows. Those that nothing takes are missing everywhere.
    let cases = [without(SYS_ADMIN), without(SYS_PTRACE), vec![SYS_ADMIN, SYS_PTRACE], FOUR.to_vec()];
    for kept in &cases {
        // Side by side: each of them waits for the kernel most of its time.
        let done: Result<Vec<()>> = thread::scope(|scope| {
            let scene = &scene;
            let runs = ROWS.iter().map(|row| scope.spawn(move || is_as_said(scene, row, kept)));
            let runs: Vec<_> = runs.collect();
            runs.into_iter()
                .map(|run| run.join().unwrap_or_else(|_| Err(Failure::new("it panicked"))))
                .collect()
        });
        done?;
        ensure!(records()?.is_empty(), "{kept:?}: left {:?}", records());
    }
    before.wait_until_equal(&[&scene.lab.near], at_once())
}

/// Refused by the name of what is missing, or as ever.
fn is_as_said(scene: &Scene, (line, takes): &Row, kept: &[u32]) -> Result {
    let line = scene.line(line);
    let exit = run_line(&line, |command| {
        scene.lab.near.home_of(command);
        keep(command, |number| kept.contains(&number));
    })?;
    let missing = takes.iter().find(|group| !group.iter().any(|number| kept.contains(number)));
    let Some(missing) = missing else {
        // It has hit something, which one beside it may have set off, or nothing.
        ensure!(matches!(exit.code, Some(0 | 5)), "{line} with {kept:?}: {exit:?}");
        return Ok(());
    };
    let name = KNOWN.iter().find(|(number, _)| *number == missing[0]).map_or("?", |(_, name)| *name);
    let is_named = exit.stderr.contains(&format!("needs {name} to "))
        && exit.stderr.contains("securityContext.capabilities.add");
    ensure!(
        exit.code == Some(3) && is_named && exit.stderr.lines().count() == 1 && exit.stderr.len() < 400,
        "{line} with {kept:?}: not refused for want of {name}: {exit:?}"
    );
    Ok(())
}

/// All capabilities there are, over nothing.
fn of_a_user_namespace() -> Result {
    let before = Inventory::take(&[])?;
    for line in
        ["net loss 1% --dev lo --for 20ms", "io delay 1ms --pid 2 --for 20ms", "ps", "sweep", "stop --all"]
    {
        let exit = run_line(line, in_user_namespace)?;
        let is_named = exit.stderr.contains("user namespace") && exit.stderr.contains("hostUsers: true");
        ensure!(exit.code == Some(3) && is_named && exit.stderr.lines().count() == 1, "{line}: {exit:?}");
    }
    let exit = run_line("doctor", in_user_namespace)?;
    ensure!(exit.code == Some(3) && exit.stdout.contains("user namespace"), "{exit:?}");
    ensure!(records()?.is_empty(), "left {:?}", records());
    before.wait_until_equal(&[], at_once())
}

fn doctor(kept: Option<&[u32]>) -> Result<Value> {
    let exit = run_line("doctor --json", |command| {
        if let Some(kept) = kept {
            keep(command, |number| kept.contains(&number));
        }
    })?;
    serde_json::from_str(&exit.stdout).context(format_args!("{exit:?}"))
}

/// With what the agent's pod has the same as with everything, because the faults do without the rest; without a right, what takes
/// it is missing, and the rest is not.
fn what_the_doctor_says() -> Result {
    // Who may make none looks at what there is.
    let _cgroup = Cgroup::new()?;
    let before = Inventory::settled(&[])?;
    let whole = doctor(None)?;
    let four = doctor(Some(&FOUR))?;
    for list in ["mechanisms", "faults"] {
        let states = |report: &Value| -> Vec<(Value, Value)> {
            let all = report[list].as_array().into_iter().flatten();
            all.map(|one| (one["mechanism"].clone(), one["state"].clone())).collect()
        };
        ensure!(states(&whole) == states(&four), "{list}: {}\nnot as {}", four[list], whole[list]);
    }
    let missing = |report: &Value| -> Vec<String> {
        let all = report["missing_rights"].as_array().into_iter().flatten();
        all.filter_map(|right| right["capability"].as_str().map(str::to_owned)).collect()
    };
    ensure!(missing(&whole).is_empty(), "{}", whole["missing_rights"]);
    let named = missing(&four);
    ensure!(
        named.contains(&"CAP_DAC_OVERRIDE".into()) && !named.contains(&"CAP_NET_RAW".into()),
        "{named:?}"
    );
    let two = doctor(Some(&[SYS_ADMIN, SYS_PTRACE]))?;
    let of = |fault: &str| two["faults"].as_array().into_iter().flatten().find(|one| one["fault"] == fault);
    let (loss, reset, skew) = (of("loss"), of("reset"), of("time_skew"));
    let is_there = |fault: Option<&Value>| fault.is_some_and(|fault| !fault["mechanism"].is_null());
    ensure!(two["ready"] == whole["ready"] && is_there(loss) && is_there(skew), "{two}");
    ensure!(
        reset.is_some_and(|it| it["rights"][0] == "CAP_NET_RAW" && it["mechanism"].is_null()),
        "{reset:?}"
    );
    let exit = run_line("doctor", |command| keep(command, |number| number != SYS_ADMIN))?;
    ensure!(exit.code == Some(3) && exit.stdout.contains("needs CAP_SYS_ADMIN to"), "{exit:?}");
    let text = run_line("doctor", |command| keep(command, |number| FOUR.contains(&number)))?;
    ensure!(text.stdout.contains("rights: no CAP_DAC_OVERRIDE, which it takes to"), "{text:?}");
    before.wait_until_equal(&[], at_once())
}

/// What a dead owner has left of clocks is not said to be gone by who may not look at them.
fn what_a_sweep_takes() -> Result {
    let before = Inventory::settled(&[])?;
    let cgroup = Cgroup::new()?;
    let target = cgroup.inhabit(|_| {})?;
    let pid = target.pid().to_string();
    let fault = Faultline::start(&["time", "skew", "--offset", "1h", "--pid", &pid])?;
    fault.wait_event("armed", PATIENCE)?;
    let record = records()?;
    kill_with_its_guard(&fault)?;
    let exit = run_line("sweep", |command| keep(command, |number| number != SYS_PTRACE))?;
    ensure!(exit.code == Some(6) && exit.stderr.contains("CAP_SYS_PTRACE"), "{exit:?}");
    ensure!(records()? == record, "its record is gone: {:?}", records());
    let exit = run_line("sweep", |_| {})?;
    ensure!(exit.code == Some(0) && records()?.is_empty(), "{exit:?}");
    drop(target);
    before.wait_until_equal(&[], at_once())
}
