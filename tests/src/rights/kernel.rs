//! A kernel that is too old, as every command says by itself: one that calls itself so, for a process that asks it to.

use std::{os::unix::process::CommandExt, process::Command};

use super::run_line;
use crate::{
    ensure,
    error::Result,
    harness::{Need, Test},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("rights::of_an_older_kernel", of_an_older_kernel).needs(&[Need::Root])];

/// One of each command and each family.
const LINES: &[&str] = &[
    "net loss 1% --dev lo",
    "net loss 1% --dev lo --plan",
    "net refuse --pid 1",
    "io error EIO --path /tmp",
    "io slow 1mb/s --dev-block 7:0 --cgroup /x",
    "sys error getppid EPERM --pid 1",
    "mem error --pid 1",
    "fd error --pid 1",
    "fork error --pid 1",
    "sock error ECONNRESET --pid 1",
    "deny EACCES --path /tmp",
    "time skew --offset 1h --pid 1",
    "profile list",
    "ps",
    "stop --all",
    "sweep",
    "doctor",
    "doctor --json",
];

fn of_an_older_kernel() -> Result {
    for line in LINES {
        let exit = run_line(line, older)?;
        let said = exit.stderr.trim();
        ensure!(exit.code == Some(3) && exit.stdout.is_empty(), "{line}: {exit:?}");
        let wanted = "faultline: Linux 6.1 or newer is needed, and this is Linux 2.6.";
        ensure!(said.starts_with(wanted) && said.lines().count() == 1, "{line}: {said}");
    }
    let exit = run_line("--version", older)?;
    ensure!(exit.code == Some(0), "--version: {exit:?}");
    Ok(())
}

/// Has the kernel call itself 2.6, as `setarch --uname-2.6` does.
fn older(command: &mut Command) {
    // SAFETY: a system call with a number.
    unsafe {
        command.pre_exec(|| {
            let set = libc::personality(libc::UNAME26 as libc::c_ulong);
            if set < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
