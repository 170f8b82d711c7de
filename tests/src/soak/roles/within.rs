//! Executes a program that sees other processes, mounts, networks or cgroups than everybody else here.

use std::{ffi::CString, process};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigHandler, Signal, raise, signal},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, execvp, fork},
};

use crate::error::{Context, Failure, Result};

const NONE: Option<&str> = None;
/// Where everybody has their cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Executes `words` in a namespace of that kind; ends as they do.
pub(super) fn run(namespace: &str, words: &[String]) -> Result {
    match namespace {
        "pid" => in_pid(words),
        "mount" => {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make / private")?;
            mount(Some("tmpfs"), CGROUPS, Some("tmpfs"), MsFlags::empty(), NONE).context(CGROUPS)?;
            execute(words)
        }
        "network" => {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            execute(words)
        }
        "cgroup" => {
            unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare(CLONE_NEWCGROUP)")?;
            execute(words)
        }
        other => Err(Failure::new(format!("there is no namespace {other}"))),
    }
}

fn in_pid(words: &[String]) -> Result {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWPID)")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make / private")?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL).context("prctl")?;
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("mount on /proc")?;
            execute(words)
        }
        ForkResult::Parent { child } => match waitpid(child, None).context("waitpid")? {
            WaitStatus::Exited(_, code) => process::exit(code),
            WaitStatus::Signaled(_, by, _) => {
                // SAFETY: the default runs no code of ours.
                let _ = unsafe { signal(by, SigHandler::SigDfl) };
                raise(by).context("raise")
            }
            other => Err(Failure::new(format!("waitpid: {other:?}"))),
        },
    }
}

fn execute(words: &[String]) -> Result {
    let words: Vec<CString> = words
        .iter()
        .map(|word| CString::new(word.as_str()).context("a word with a NUL in it"))
        .collect::<Result<_>>()?;
    let program = words.first().context("nothing to execute")?;
    match execvp(program, &words) {
        Err(errno) => Err(Failure::new(format!("{}: {errno}", program.to_string_lossy()))),
        Ok(never) => match never {},
    }
}
