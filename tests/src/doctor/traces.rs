//! What a doctor could leave behind: programs, maps, interfaces, cgroups, mounts, files.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use chaos_user::kernel::{
    netlink::Netlink,
    sys::{self, Kind},
};

use crate::{
    cgroup,
    error::{Context, Failure, Result},
    harness::patience,
};

/// How the names of all that a doctor makes begin.
const NAMES: [&str; 2] = ["doctor", "faultline-probe"];
/// What a doctor could mount.
const FILE_SYSTEMS: [&str; 4] = ["tracefs", "securityfs", "cgroup2", "bpf"];
const MOUNTS: &str = "/proc/self/mountinfo";
const PINS: &str = "/sys/fs/bpf";
/// The kernel frees what nobody holds a little later.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listing, by names: another doctor may be at work.
pub(super) fn look() -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    let mut note = |kind: &str, name: &str| {
        if NAMES.iter().any(|start| name.starts_with(start)) {
            traces.insert(format!("{kind} {name}"));
        }
    };
    for id in sys::ids(Kind::Program)? {
        let Some(program) = sys::open(Kind::Program, id)? else { continue };
        note("program", &sys::program_info(program.as_fd())?.name);
    }
    for id in sys::ids(Kind::Map)? {
        let Some(map) = sys::open(Kind::Map, id)? else { continue };
        note("map", &sys::map_info(map.as_fd())?.1);
    }
    for link in Netlink::open()?.links()? {
        note("interface", &link.name);
    }
    for folder in cgroup::root().ok().as_deref().into_iter().chain([Path::new(PINS)]) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            note("file", &entry.file_name().to_string_lossy());
        }
    }
    let mounts = fs::read_to_string(MOUNTS).context(MOUNTS)?;
    let is_ours = |line: &&str| FILE_SYSTEMS.iter().any(|kind| line.contains(&format!(" - {kind} ")));
    traces.extend(mounts.lines().filter(is_ours).map(|line| format!("mount {line}")));
    Ok(traces)
}

/// Waits until nothing is there that was not there before.
pub(super) fn wait_for_nothing_new(before: &BTreeSet<String>) -> Result {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        let now = look()?;
        let new: Vec<&str> = now.difference(before).map(String::as_str).collect();
        if new.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("{PATIENCE:?} later there still is {}", new.join(", "))));
        }
        // There is no event to wait for; each look is a question of its own.
        thread::sleep(Duration::from_millis(20));
    }
}
