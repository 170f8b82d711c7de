//! Mounts by any name, of file systems and of network namespaces.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process,
};

use nix::mount::{MsFlags, mount};

use super::{BPF, PATIENCE, names, said, step};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::Test,
    lab::Netns,
};

/// The nothing that `mount` takes.
const NONE: Option<&str> = None;

pub(super) const TESTS: &[Test] = &[Test::new("names::of_mounts", of_mounts).needs(BPF).timeout(120).waits()];

/// Mounts something of its own at each of these in a folder, with a file in it.
fn mount_all(folder: &str) -> Result<Vec<PathBuf>> {
    let mut points = Vec::new();
    for name in names(255) {
        let point = Path::new(folder).join(OsStr::from_bytes(&name));
        fs::create_dir_all(&point).context(point.display())?;
        mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), NONE).context(point.display())?;
        fs::write(point.join("file"), "content").context(point.display())?;
        points.push(point);
    }
    Ok(points)
}

/// File systems below a folder, by their paths; network namespaces, by their names; and all that reads what is mounted.
fn of_mounts() -> Result {
    let netns = Netns::new()?;
    let points = mount_all("/run/names/in")?;
    let beside = mount_all("/run/names/beside")?;
    fs::create_dir_all("/run/netns").context("/run/netns")?;
    for (number, point) in points.iter().enumerate().step_by(step()) {
        let format = if (number / step()).is_multiple_of(2) { " --json" } else { "" };
        said(&format!("io error EIO --ops read --plan{format} --path"), &[point.as_os_str().as_bytes()])?;
        let name = point.file_name().context("a point")?;
        let named = Path::new("/run/netns").join(name);
        fs::write(&named, "").context(named.display())?;
        mount(Some(&netns.path()), &named, NONE, MsFlags::MS_BIND, NONE).context("bind")?;
        let option = [b"--netns=", name.as_bytes()].concat();
        let plan = said("net loss 1% --dev lo --plan --json", &[&option])?;
        let inode = fs::metadata(&named).context(named.display())?.ino();
        let right = plan.plan().is_some_and(|plan| plan["netns"] == inode);
        // What cannot be typed is refused.
        let refused = name.to_str().is_none() && plan.code == Some(2);
        ensure!(right || refused, "{}: {:?} {}{}", plan.words, plan.code, plan.stdout, plan.stderr);
    }
    for command in ["ps", "ps --json", "sweep", "stop --all", "doctor", "doctor --json"] {
        let said = said(command, &[])?;
        ensure!(said.code == Some(0), "{command}: {:?} {}", said.code, said.stderr);
    }
    let own = process::id().to_string();
    let words = ["io", "error", "EIO", "--ops", "read", "--path", "/run/names/in", "--pid", &own];
    let fault = Faultline::start(&words)?;
    if let Err(failure) = fault.wait_event("armed", PATIENCE) {
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(3), "{failure}: {exit:?}");
        println!("calls cannot be made to fail here");
        return Ok(());
    }
    let read = |points: &[PathBuf]| -> Vec<Option<i32>> {
        let read =
            |point: &PathBuf| fs::read(point.join("file")).err().and_then(|error| error.raw_os_error());
        points.iter().map(read).collect()
    };
    let (hit, spared) = (read(&points), read(&beside));
    fault.end()?;
    for (errno, point) in hit.iter().zip(&points) {
        ensure!(*errno == Some(libc::EIO), "{errno:?} below {}", point.as_os_str().as_bytes().escape_ascii());
    }
    ensure!(spared.iter().all(Option::is_none), "beside it: {spared:?}");
    Ok(())
}
