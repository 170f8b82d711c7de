//! Certificates, whose verification depends on the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::server::World;
use crate::{
    ensure,
    error::{Context, Result},
};

/// A certificate made here is good now, and neither before nor after its days.
pub(super) fn verifies() -> Result {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let world = World::enter()?;
    let mut request = world.command("openssl", "nobody")?;
    request.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    request.args(["-subj", "/CN=faultline.test", "-days", "2", "-keyout", "key", "-out", "certificate"]);
    world.run(&mut request)?;
    let verify = |more: &[&str]| {
        let mut verify = world.command("openssl", "nobody")?;
        world.run(verify.args(["verify", "-CAfile", "certificate"]).args(more).arg("certificate"))
    };
    let answer = verify(&[])?;
    ensure!(answer.trim() == "certificate: OK", "{answer:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("before 1970")?;
    for (time, words) in [(now - DAY, "is not yet valid"), (now + 3 * DAY, "has expired")] {
        let answer = verify(&["-attime", &time.as_secs().to_string()]);
        let refused = answer.as_ref().err().is_some_and(|failure| failure.to_string().contains(words));
        ensure!(refused, "at {} s: {answer:?}, not {words:?}", time.as_secs());
    }
    Ok(())
}
