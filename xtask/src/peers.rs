//! Measures what gets through a link to many peers, in a guest.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{guests::Guests, setup};

const KERNEL: &str = "6.12";

/// It takes some five minutes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(1500);

/// `cargo xtask peers`.
///
/// # Errors
///
/// If something does not build or cannot be measured.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    setup::guest_tools()?;
    let guests = Guests::with(&[KERNEL.to_owned()], &["faultline", "fl-peers"])?;
    let done = guests.hear("fl-peers", DEADLINE, &mut |_, line| println!("{line}"))?;
    ensure!(done, "it could not be measured");
    Ok(())
}
