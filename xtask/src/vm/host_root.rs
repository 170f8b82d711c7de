//! The host's root file system for a guest, read-only, by virtio-fs.
//!
//! The server sees a bind mount of `/` in a mount namespace of its own: without what is mounted below `/` (proc, sys,
//! other disks), read-only by the kernel's word, and gone with the server. The host's mounts are never touched.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

use super::process::Owned;

/// The socket's name in the run's folder.
pub(crate) const SOCKET: &str = "virtiofs.sock";

/// The server's log in the run's folder.
const LOG: &str = "virtiofsd.log";

/// Where distributions put the server: QEMU's own (up to QEMU 7) and the one in Rust. Neither is in the search path.
const SERVERS: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// A running server. The guest loses the file system when this is dropped.
#[derive(Debug)]
pub(crate) struct HostRoot {
    server: Owned,
    log: PathBuf,
}

impl HostRoot {
    /// Starts the server; the socket is ready for QEMU on return.
    pub(crate) fn serve(dir: &Path) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("sharing the host's root file system with a guest needs root");
        }
        let program = SERVERS.iter().find(|path| Path::new(path).is_file());
        let program =
            program.ok_or_else(|| anyhow!("virtiofsd is not installed (Debian 12: qemu-system-common)"))?;
        let view = dir.join("root");
        fs::create_dir_all(&view).with_context(|| format!("creating {}", view.display()))?;
        let socket = dir.join(SOCKET);
        // Bound here and passed on: there is no moment to wait for, and the server leaves no lock file in /run.
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let log = dir.join(LOG);
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("sharing {}", log.display()))?;
        let mut command = Command::new(program);
        command.arg("--fd=0").arg("-o").arg(format!("source={}", view.display()));
        // The default cache is dropped at every open: starting a program then takes four times as long. What the
        // host changes while a guest runs, the guest may not see.
        command.args(["-o", "sandbox=chroot", "-o", "cache=always", "-o", "log_level=warn"]);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::from(output)).stderr(Stdio::from(errors));
        see_root_at(&mut command, &view)?;
        Ok(Self { server: Owned::spawn(&mut command)?, log })
    }

    /// What went wrong, if the server has ended or complained.
    pub(crate) fn complaint(&mut self) -> Option<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let ended = self.server.try_wait().ok().flatten();
        let ended = ended.filter(|status| !status.success()).map(|status| format!("virtiofsd: {status}; "));
        let complaint = format!("{}{}", ended.unwrap_or_default(), log.trim());
        (!complaint.is_empty()).then_some(complaint)
    }
}

/// Gives the command a mount namespace of its own with the root file system, read-only, at `view`.
fn see_root_at(command: &mut Command, view: &Path) -> Result<()> {
    let view = CString::new(view.as_os_str().as_bytes()).context("a path with a NUL byte")?;
    // SAFETY: the closure runs between fork and exec and makes system calls on strings that exist already; it
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || enter_view(&view).map_err(io::Error::from));
    }
    Ok(())
}

fn enter_view(view: &CString) -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    let view = view.as_c_str();
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Without this, mounts made here would show up on the host.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    mount(Some("/"), view, NOTHING, MsFlags::MS_BIND, NOTHING)?;
    mount(NOTHING, view, NOTHING, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, NOTHING)
}
