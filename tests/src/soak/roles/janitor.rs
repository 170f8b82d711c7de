//! Takes away what a scene has in file systems once whoever set it has ended, however that was.

use std::{
    fs, io,
    io::Read,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::error::Result;

/// The children of those that ended are killed by the kernel, which takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for the end of standard input, which is that of whoever holds the other end, and removes these.
pub(super) fn run(paths: &[String]) -> Result {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let deadline = Instant::now() + PATIENCE;
    for path in paths.iter().map(Path::new) {
        while path.exists() && Instant::now() < deadline {
            if path.join("cgroup.procs").exists() {
                remove_cgroup(path);
            } else {
                let _ = fs::remove_dir_all(path);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// As much of it as can be removed now. Whoever is in there is of a scene that is no more.
fn remove_cgroup(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for process in processes.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
    let _ = fs::remove_dir(path);
}
