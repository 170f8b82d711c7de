//! A network namespace without a name.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    panic,
    path::PathBuf,
    process::{self, Command},
    thread,
};

use chaos_user::kernel::netlink::Netlink;
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Context, Result};

/// A network namespace that only this process's file descriptor keeps: it goes with the process, however that ends.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// An empty one, its loopback up.
    ///
    /// # Errors
    ///
    /// The kernel's, `EPERM` without root.
    pub fn new() -> Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            File::open("/proc/thread-self/ns/net").context("open /proc/thread-self/ns/net")
        };
        let netns = Self { file: joined(thread::spawn(make).join())? };
        let mut netlink = netns.netlink()?;
        let loopback = netlink.link_by_name("lo")?.context("a new network namespace has no lo")?;
        netlink.set_up(loopback.index, true)?;
        Ok(netns)
    }

    /// A path that leads another process here for as long as this one lives, as in `--netns PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()))
    }

    /// Runs `action` in here, in a thread of its own. Sockets it makes stay here wherever they are used.
    ///
    /// # Errors
    ///
    /// The action's, or the kernel's on entering.
    ///
    /// # Panics
    ///
    /// If the action does.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter_and_run = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).context("setns(CLONE_NEWNET)")?;
            action()
        };
        thread::scope(|scope| joined(scope.spawn(enter_and_run).join()))
    }

    /// Has a process be started in it.
    pub fn home_of(&self, command: &mut Command) {
        let path = self.path();
        let enter = move || {
            let netns = File::open(&path)?;
            Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
        };
        // SAFETY: between fork and exec this opens a file and makes one more system call.
        unsafe { command.pre_exec(enter) };
    }

    /// An rtnetlink connection to it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn netlink(&self) -> Result<Netlink> {
        Ok(Netlink::open_in(self.as_fd())?)
    }

    /// The number of its interface `name`.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn index(&self, name: &str) -> Result<u32> {
        Ok(self.netlink()?.link_by_name(name)?.context(format_args!("no interface {name}"))?.index)
    }

    /// Removes its interface `name`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn delete_interface(&self, name: &str) -> Result {
        let index = self.index(name)?;
        Ok(self.netlink()?.delete_link(index)?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|payload| panic::resume_unwind(payload))
}
