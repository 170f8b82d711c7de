//! Measures what a decision costs.

use anyhow::Result;

use crate::{
    cargo::{as_root, build, run as run_command},
    setup,
};

/// `cargo xtask bench`.
///
/// # Errors
///
/// If something does not build or cannot be measured.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let folder = build(&["fl-bench"])?;
    run_command(&mut as_root(&folder.join("fl-bench")))
}
