//! Shows the main job: the program does it all, so that nothing but it needs to be root.

use anyhow::Result;

use crate::{
    cargo::{as_root, build, run as run_command},
    setup,
};

/// `cargo xtask demo`.
///
/// # Errors
///
/// If something does not build, or the demonstration did not show what it should.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let folder = build(&["faultline", "fl-demo"])?;
    run_command(&mut as_root(&folder.join("fl-demo")))
}
