//! Child processes that never outlive this one.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

/// A child that is killed, and waited for, when its owner is dropped, and killed by the kernel when the *thread*
/// that started it ends, however it ends. So: start it from the thread that waits for it.
#[derive(Debug)]
pub(crate) struct Owned {
    child: Child,
    name: String,
}

impl Owned {
    /// Starts the command.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let parent = getpid();
        // SAFETY: the closure runs between fork and exec and makes two system calls; it neither allocates nor
        // takes a lock, and what it captures is a plain number.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // A parent that died before the line above will send no signal.
                if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
            });
        }
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name })
    }

    /// Its status, once it has ended.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.wait().map(drop)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Fails only for a child that was waited for already.
        let _ = self.kill();
    }
}
