//! Processes whose kin has what they have.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::program::{Hostile, LIMIT, armed, ended, swept};
use crate::{
    clocks::Image,
    ensure,
    error::{Context, Result},
    harness::{Test, patience},
    life::scene::records,
    time::{NEEDS, scene::Scene},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("hostile::children_of_another_time", || is_undone("times", "child")).needs(NEEDS).timeout(120),
    Test::new("hostile::threads_that_outlive_the_first", || is_undone("headless", "thread"))
        .needs(NEEDS)
        .timeout(120),
];

/// What a thread of it has is changed, and is as it was when the run has ended, in order or not.
fn is_undone(words: &str, kin: &str) -> Result {
    let mut scene = Scene::set()?;
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut hostile = Hostile::start(&scene.cgroup, &[words])?;
        let fault = armed(&scene)?;
        let end = Instant::now() + patience(LIMIT);
        while Image::check_own(hostile.pid()).is_ok() {
            ensure!(Instant::now() < end, "its vDSO is not changed");
            std::thread::yield_now();
        }
        let other = hostile.go(kin)?;
        ensure!(Image::check_own(other).is_err(), "{kin} {other} has nothing of it");
        let exit = ended(&fault, signal)?;
        ensure!(exit.code == Some(130) || exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
        swept()?;
        Image::check_own(other).context(format_args!("{kin} {other} after {signal}"))?;
        ensure!(records()?.is_empty(), "left {:?}", records());
        ensure!(hostile.is_running()?, "it has ended");
        drop(hostile);
        scene.over("afterwards")?;
    }
    Ok(())
}
