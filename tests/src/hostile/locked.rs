//! One whose memory nobody can look at: whoever tries waits for as long as it likes.

use nix::sys::signal::Signal;

use super::{
    FUSE,
    program::{Hostile, LIMIT, armed, ended, names_one, run, swept, swept_beside},
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::{Test, patience},
    time::{processes::SKEW, scene::Scene},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("hostile::locked_memory_beside_the_target", beside).needs(FUSE).timeout(90),
    Test::new("hostile::locked_memory_in_the_target", within).needs(FUSE).timeout(90),
];

fn beside() -> Result {
    around(|scene| &scene.beside)
}

fn within() -> Result {
    around(|scene| &scene.cgroup)
}

/// Whether it has what was changed cannot be known: that is said, the record stays, and all others are as they should be.
fn around(place: fn(&Scene) -> &Cgroup) -> Result {
    let mut scene = Scene::set()?;
    let hostile = Hostile::stuck(place(&scene), &["locked"])?;
    let locked = [hostile.child("locked")?];
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let fault = armed(&scene)?;
        scene.target.until(SKEW, patience(LIMIT))?;
        scene.skewed(SKEW, "armed")?;
        let listed = run(&["ps"])?;
        ensure!(listed.code == Some(0), "{listed:?}");
        let exit = ended(&fault, signal)?;
        let is_killed = exit.signal == Some(Signal::SIGKILL as i32);
        let is_said = exit.code == Some(6) && names_one(&exit.stderr, &locked);
        ensure!(is_killed || is_said, "{signal}: {exit:?}");
        scene.target.until(0, patience(LIMIT)).context(signal)?;
        ensure!(
            swept_beside(&locked).context(signal)?,
            "{signal}: swept, though {locked:?} was not looked at"
        );
        scene.right("ended")?;
    }
    drop(hostile);
    swept()?;
    scene.over("it is gone")
}
