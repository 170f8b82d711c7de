//! Formatting and lints. With the flags of the build, so that both share what they need of other crates.

use anyhow::Result;

use crate::cargo::{cargo, run, statically};

/// `cargo fmt --check` and clippy, over the host's half and the eBPF half.
///
/// # Errors
///
/// If one of them finds anything.
pub(crate) fn run_all() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(statically("clippy").args(["--all-targets", "--locked", "--", "-D", "warnings"]))?;
    // The eBPF half, checked as a host program; BPF assembly is not stable yet.
    let mut clippy = cargo();
    clippy.env("RUSTC_BOOTSTRAP", "aya_ebpf,faultline_ebpf,calls_ebpf");
    clippy.args(["clippy", "--package", "chaos-ebpf", "--features", "kernel", "--locked"]);
    run(clippy.args(["--", "-D", "warnings", "-C", "panic=abort"]))
}
