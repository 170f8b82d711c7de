//! In a container: a run that changes what has to be put back is refused unless its record outlives the container, and one that
//! does not says that nobody else sees it.

use std::{fs, path::Path};

use nix::mount::{MsFlags, mount, umount};

use super::{confined::in_pid_namespace, run_line};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Exit,
    harness::{Need, RECORDS, Test},
    inventory::Inventory,
    lab::Lab,
    life::{environment, scene::at_once},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] =
    &[Test::new("rights::a_run_of_the_containers_own", own_run).needs(NEEDS).timeout(60).waits()];

/// The nothing that `mount` takes.
const NONE: Option<&str> = None;

/// Links hold the one, and offloads are off for the other.
/// By XDP, for which there are links on each kernel.
const HELD: &str = "net loss 1% --direction in --dev to-far --for 20ms";
const CHANGES: &str = "net duplicate 1% --dev to-far --for 20ms";

fn own_run() -> Result {
    let lab = Lab::new()?;
    let before = Inventory::settled(&[&lab.near])?;
    let root = Path::new("/run/root");
    fs::create_dir(root).context("mkdir")?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), NONE).context("a root")?;
    environment::fill_root(root, &["run", "proc"])?;
    fs::create_dir(root.join("proc")).context("mkdir")?;
    let records = root.join("run/faultline");
    fs::create_dir_all(&records).context("mkdir")?;
    let inside = |line: &str, is_meant: bool| {
        let mut made = Ok(());
        let exit = run_line(line, |command| {
            lab.near.home_of(command);
            made = in_pid_namespace(command, Some(root));
            if is_meant {
                command.env("FAULTLINE_RUN", "own");
            }
        });
        made.and(exit)
    };
    let ended = |exit: Exit, what: &str| {
        let left = fs::read_dir(&records).context("ls")?.count();
        ensure!(exit.code == Some(5) && left == 0, "{what}: {exit:?}, {left} left");
        Ok::<_, crate::error::Failure>(exit.stderr)
    };

    let refused = inside(CHANGES, false)?;
    let names = ["hostPath /run/faultline", "-v /run/faultline:/run/faultline", "container's own root"];
    let is_named = names.iter().all(|part| refused.stderr.contains(part));
    ensure!(refused.code == Some(3) && is_named && refused.stderr.lines().count() == 1, "{refused:?}");
    ensure!(fs::read_dir(&records).context("ls")?.next().is_none(), "a record was begun");
    let told = ended(inside(HELD, false)?, "held by links")?;
    ensure!(names.iter().all(|part| told.contains(part)) && told.lines().count() == 1, "{told}");
    for line in [HELD, CHANGES] {
        let told = ended(inside(line, true)?, line)?;
        ensure!(told.is_empty(), "{line}, of its own on purpose: {told}");
    }
    // The host's, which for this is the test's, that lies on a tmpfs.
    mount(Some(RECORDS), &records, NONE, MsFlags::MS_BIND, NONE).context("bind")?;
    for line in [HELD, CHANGES] {
        let told = ended(inside(line, false)?, line)?;
        ensure!(told.is_empty(), "{line}, with the host's: {told}");
    }
    umount(&records).context("umount")?;
    // Some tmpfs, which may be the host's as well as not.
    mount(Some("tmpfs"), &records, Some("tmpfs"), MsFlags::empty(), Some("mode=0700")).context("a tmpfs")?;
    let told = ended(inside(CHANGES, false)?, "a tmpfs")?;
    ensure!(told.contains("cannot be told") && told.lines().count() == 1, "{told}");
    environment::fresh_run()?;
    before.wait_until_equal(&[&lab.near], at_once())
}
