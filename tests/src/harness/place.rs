//! Where a test's process runs: it sees the machine, but has mounts of its own, with its own `/run`.
//!
//! Other owners' records on this machine are nobody's business here, least of all that of `stop --all`, so that tests
//! can run side by side. The programs that are tested are found at one path, wherever the checkout lies and whoever may
//! look into it.

use std::{
    env,
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    error::{Context, Result},
    faultline::set_programs,
};

/// Where owners write.
pub(crate) const RECORDS: &str = "/run/faultline";

/// Where the programs are. Every system has this folder, for mounts like this one.
const PROGRAMS: &str = "/mnt";

/// The nothing that `mount` takes.
const NONE: Option<&str> = None;

/// Takes this process, which has one thread, there.
pub(crate) fn enter() -> Result {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make / private")?;
    let programs = programs_folder()?;
    // By descriptor, as the mounts to come may hide its path.
    let programs = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(&programs)
        .context(programs.display())?;
    own_run()?;
    let from = format!("/proc/self/fd/{}", programs.as_raw_fd());
    mount(Some(from.as_str()), PROGRAMS, NONE, MsFlags::MS_BIND, NONE)
        .context(format_args!("bind the programs on {PROGRAMS}"))?;
    set_programs(PathBuf::from(PROGRAMS));
    Ok(())
}

/// Mounts an empty `/run`, for this process and those it starts.
pub(crate) fn own_run() -> Result {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .context("mount on /run")?;
    // The first run makes it, and it stays.
    fs::create_dir(RECORDS).context(RECORDS)
}

/// The folder that this program lies in.
pub(crate) fn programs_folder() -> Result<PathBuf> {
    let executable = env::current_exe().context("readlink /proc/self/exe")?;
    Ok(executable.parent().unwrap_or(Path::new("/")).to_path_buf())
}
