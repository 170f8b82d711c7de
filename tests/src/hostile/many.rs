//! Many of them at once: nobody who is behind them waits for each.

use nix::sys::signal::Signal;

use super::{
    ANYWHERE,
    program::{Hostile, LIMIT, armed, ended, names_one, swept, swept_beside},
};
use crate::{
    ensure,
    error::{Context, Result},
    harness::{Test, is_emulated, patience},
    time::{processes::SKEW, scene::Scene},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("hostile::many_stuck_keep_nobody", many_stuck).needs(ANYWHERE).timeout(120)];

const PROGRAMS: u32 = 10;

/// Sixty are there when the run begins, and as many come later; programs that begin then are met as if they were not there.
fn many_stuck() -> Result {
    let all = vec!["exec"; if is_emulated() { 20 } else { 60 }];
    let mut scene = Scene::set()?;
    let early = Hostile::stuck(&scene.cgroup, &all)?;
    let fault = armed(&scene)?;
    scene.target.until(SKEW, patience(LIMIT))?;
    let late = Hostile::stuck(&scene.cgroup, &all)?;
    for number in 0..PROGRAMS {
        scene.target.exec().context(format_args!("program {number}"))?;
        scene.target.until(SKEW, patience(LIMIT)).context(format_args!("program {number}"))?;
    }
    scene.skewed(SKEW, "beside all of them")?;
    let stuck = [early.children("exec"), late.children("exec")].concat();
    let exit = ended(&fault, Signal::SIGINT)?;
    let is_said = exit.code == Some(6) && names_one(&exit.stderr, &stuck);
    ensure!(exit.code == Some(130) || is_said, "{exit:?}");
    scene.target.until(0, patience(LIMIT))?;
    swept_beside(&stuck)?;
    scene.right("ended")?;
    drop((early, late));
    swept()?;
    scene.over("they are gone")
}
