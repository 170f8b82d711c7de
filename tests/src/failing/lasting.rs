//! What fails goes on failing, so that a start that fails cannot be taken back, or only in part: that is said, and recorded for the
//! next who looks.

use std::time::Duration;

use super::{Bench, DEADLINE, EXACT, FREED, Family, TCX, Work, scene::Scene, trace};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Test, is_gate},
    life::scene::records,
};

pub(super) const TESTS: &[Test] =
    &[Test::new("failing::from_some_moment_on", from_some_moment_on).needs(TCX).timeout(300).once()];

/// Whatever it says to the kernel by netlink, from each message on.
fn from_some_moment_on() -> Result {
    let scene = Scene::set(Work::Packets)?;
    let family = Family::run(Work::Packets, EXACT);
    let bench = Bench::new(&family, &scene)?;
    bench.list()?;
    let messages = trace::most(&bench.log()?, "sendto");
    // The later ones are those after which there is something to take back.
    let first = if is_gate() { messages / 2 } else { 1 };
    let mut left = 0;
    for message in first..=messages {
        let when = format!("from message {message} of {messages} on");
        left += u32::from(is_left(&bench, &scene, message).context(when)?);
    }
    println!("of {messages} moments something was left after {left}, which a sweep took back");
    ensure!(left > 0, "there was always all taken back by which nothing could be said to the kernel");
    Ok(())
}

/// Whether something was left, as it was said then.
fn is_left(bench: &Bench<'_>, scene: &Scene, message: u32) -> Result<bool> {
    let inject = format!("inject=sendto:error=ENOMEM:when={message}+");
    let exit = bench.start(&["-e", "trace=sendto", "-e", &inject])?.wait(DEADLINE)?;
    if trace::injected(&bench.log()?).is_empty() {
        // It had less to say than when it was listed.
        ensure!(matches!(exit.code, Some(0 | 5)), "nothing failed: {exit:?}");
        return Ok(false);
    }
    let is_left = scene.is_as_before(Duration::ZERO).is_err() && !records()?.is_empty();
    ensure!(exit.code == Some(6) || !is_left && matches!(exit.code, Some(3 | 4)), "{exit:?}");
    ensure!(exit.stderr.contains("Cannot allocate memory"), "{exit:?}");
    if exit.code == Some(6) {
        ensure!(exit.stderr.contains("faultline sweep"), "it does not say what to do: {exit:?}");
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0), "{swept:?}");
    }
    ensure!(records()?.is_empty(), "{exit:?} left {:?}", records());
    scene.is_as_before(FREED)?;
    Ok(is_left)
}
