//! Shows the main job: the program does it all, so that nothing but it needs to be root. What this machine's kernel
//! cannot do is shown in a guest.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cargo::{as_root, build, run as run_command},
    guests::Guests,
    setup,
};

const GUEST: &str = "6.12";
const DEADLINE: Duration = Duration::from_secs(120);
/// `fl-demo`'s exit code where the kernel lacks what a fault needs.
const CANNOT: i32 = 3;

/// `cargo xtask demo`.
///
/// # Errors
///
/// If something does not build, or the demonstration did not show what it should.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let demo = build(&["faultline", "fl-demo"])?.join("fl-demo");
    run_command(as_root(&demo).arg("loss"))?;
    println!();
    let status = as_root(&demo).arg("delay").status().with_context(|| format!("start {}", demo.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(CANNOT) => in_guest(),
        _ => bail!("fl-demo delay: {status}"),
    }
}

fn in_guest() -> Result<()> {
    println!(
        "this machine's kernel has no sch_fq, which delay needs: shown in a guest, Linux {GUEST} under QEMU"
    );
    setup::guest_tools()?;
    let guests = Guests::with(&[GUEST.to_owned()], &["faultline", "fl-demo"])?;
    let right = guests.hear("fl-demo delay", DEADLINE, &mut |_, line| println!("{line}"))?;
    ensure!(right, "the delay was not as asked");
    Ok(())
}
