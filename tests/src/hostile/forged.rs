//! Those whose vDSO is not as the kernel made it, or as it should be.

use nix::sys::signal::Signal;

use super::program::{Hostile, LIMIT, armed, ended, run, swept};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, patience},
    life::scene::records,
    time::{NEEDS, processes::SKEW, scene::Scene},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("hostile::forged_residues", forged_residues).needs(PLACEMENT).timeout(180)];

const PLACEMENT: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Placement];

/// What one makes of its own, of nobody else's.
const ITS_OWN: [&[&str]; 5] = [
    &["forged", "padding"],
    &["forged", "entry"],
    &["forged", "auxv"],
    &["forged", "moved"],
    // In this test's own `/run`.
    &["forged", "named", "/run/[vdso]"],
];
/// And of one whose clocks are wrong.
const ANOTHERS: [&str; 3] = ["copied", "auxv", "again"];

fn forged_residues() -> Result {
    let mut scene = Scene::set()?;
    for words in ITS_OWN {
        own(&mut scene, words).context(words.join(" "))?;
    }
    for kind in ANOTHERS {
        for is_within in [true, false] {
            for signal in [Signal::SIGINT, Signal::SIGKILL] {
                copied(&mut scene, kind, is_within, signal)
                    .context(format_args!("{kind}, {}, {signal}", place(is_within)))?;
            }
        }
    }
    scene.over("all are gone")
}

fn place(is_within: bool) -> &'static str {
    if is_within { "in the target" } else { "beside it" }
}

/// It is there before the run, and after, in the target.
fn own(scene: &mut Scene, words: &[&str]) -> Result {
    let mut hostile = Hostile::start(&scene.cgroup, words)?;
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let fault = armed(scene)?;
        skewed(scene, &fault)?;
        is_over(scene, &fault, signal).context(signal)?;
    }
    ensure!(hostile.is_running()?, "it has ended");
    drop(hostile);
    swept()?;
    scene.over("it is gone")
}

/// It comes while the run is there, with all that the target has of that.
fn copied(scene: &mut Scene, kind: &str, is_within: bool, signal: Signal) -> Result {
    let fault = armed(scene)?;
    skewed(scene, &fault)?;
    let cgroup = if is_within { &scene.cgroup } else { &scene.beside };
    let target = scene.target.pid().to_string();
    let mut hostile = Hostile::start(cgroup, &["forged", kind, &target])?;
    skewed(scene, &fault)?;
    is_over(scene, &fault, signal)?;
    ensure!(hostile.is_running()?, "it has ended");
    drop(hostile);
    swept()?;
    scene.over("it is gone")
}

/// Whoever is meant, and no command waits.
fn skewed(scene: &mut Scene, fault: &Faultline) -> Result {
    scene.target.until(SKEW, patience(LIMIT))?;
    scene.skewed(SKEW, "armed")?;
    let listed = run(&["ps"])?;
    let pid = fault.pid().to_string();
    ensure!(listed.code == Some(0) && listed.stdout.contains(&pid), "{listed:?}");
    Ok(())
}

/// Nothing is left that somebody else has not made, and so nothing is said to be.
fn is_over(scene: &mut Scene, fault: &Faultline, signal: Signal) -> Result {
    let exit = ended(fault, signal)?;
    let is_ended = exit.code == Some(130) || exit.signal == Some(Signal::SIGKILL as i32);
    ensure!(is_ended, "{exit:?}");
    if signal == Signal::SIGINT {
        ensure!(records()?.is_empty(), "left {:?}", records());
    }
    scene.target.until(0, patience(LIMIT))?;
    swept()?;
    scene.right("ended")
}
