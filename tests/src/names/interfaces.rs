//! Interfaces by any name.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use nix::sys::signal::Signal;

use super::{PATIENCE, names, said};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, program},
    inventory::Inventory,
    lab::Netns,
};

const IP: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::Program("ip")];

pub(super) const TESTS: &[Test] = &[
    Test::new("names::of_interfaces", of_interfaces).needs(IP).timeout(90).waits(),
    Test::new("names::of_the_only_interface", of_the_only_interface).needs(IP).waits(),
];

/// Makes an interface; false if the kernel or `ip` refuses its name.
fn add_interface(netns: &Netns, name: &[u8], peer: &str) -> Result<bool> {
    let mut ip = Command::new(program("ip").context("no program ip")?);
    ip.args(["link", "add", "name"])
        .arg(OsStr::from_bytes(name))
        .args(["type", "veth", "peer", "name", peer]);
    netns.home_of(&mut ip);
    Ok(ip.output().context("ip")?.status.success())
}

/// All in one namespace, by their names; then while a fault is on one, and when its owner was killed.
fn of_interfaces() -> Result {
    let netns = Netns::new()?;
    let place = format!("--netns={}", netns.path().display());
    let mut made = Vec::new();
    for (number, name) in names(15).into_iter().enumerate() {
        if add_interface(&netns, &name, &format!("peer{number}"))? {
            made.push(name);
        }
    }
    ensure!(made.len() > 8, "only {} names were taken", made.len());
    let mut typed = Vec::new();
    for name in &made {
        let option = [b"--dev=", &name[..]].concat();
        let plan = said("net loss 1% --exact --plan --json", &[place.as_bytes(), &option])?;
        said("net loss 1% --exact --plan", &[place.as_bytes(), &option])?;
        let Ok(text) = std::str::from_utf8(name) else {
            ensure!(plan.code == Some(2), "{}: {:?}", plan.words, plan.stdout);
            continue;
        };
        ensure!(plan.code == Some(0), "{}: {}", plan.words, plan.stderr);
        ensure!(plan.plan().is_some_and(|plan| plan["device"] == text), "{}: {}", plan.words, plan.stdout);
        typed.push(text);
    }
    let unknown = said("net loss 1% --dev none", &[place.as_bytes()])?;
    ensure!(unknown.code == Some(3) && unknown.stderr.contains("there are lo, "), "{}", unknown.stderr);
    let inventory = || Inventory::of_interfaces(&[&netns]);
    for name in typed.iter().step_by(4) {
        let (device, index) = (format!("--dev={name}"), netns.index(name)?);
        netns.netlink()?.set_up(index, true)?;
        let before = inventory()?;
        let fault = Faultline::start(&["net", "loss", "1%", "--exact", &place, &device])?;
        fault.wait_event("armed", PATIENCE)?;
        said("ps", &[])?;
        let listed = said("ps --json", &[])?;
        let right = matches!(&listed.lines[..], [it] if it["device"] == **name && it["ifindex"] == index);
        ensure!(right, "{name:?}, {index}: {}", listed.stdout);
        fault.kill(Signal::SIGKILL)?;
        fault.wait(PATIENCE)?;
        ensure!(before.difference(&inventory()?).is_some(), "{name:?}: its offloads are on");
        ensure!(said("sweep", &[])?.code == Some(0), "{name:?}: it was not swept");
        let left = before.difference(&inventory()?);
        ensure!(left.is_none(), "{name:?}: {left:?}");
        let done = said("net loss 1% --for 20ms", &[place.as_bytes(), device.as_bytes()])?;
        ensure!(matches!(done.code, Some(0 | 5)), "{}: {:?} {}", done.words, done.code, done.stderr);
    }
    Ok(())
}

/// The one that is up has a name that cannot be typed, and what it would be typed as is another's.
fn of_the_only_interface() -> Result {
    let (netns, cgroup) = (Netns::new()?, Cgroup::new()?);
    ensure!(add_interface(&netns, b"w\xff", "peer0")?, "it was not made");
    let links = netns.netlink()?.links()?;
    let known = |name: &str| ["lo", "peer0"].contains(&name);
    let index = links.iter().find(|link| !known(&link.name)).context("no interface")?.index;
    netns.netlink()?.set_up(index, true)?;
    ensure!(add_interface(&netns, "w\u{fffd}".as_bytes(), "peer1")?, "the other was not made");
    let process = cgroup.inhabit_in(&netns, |_| ())?;
    let path = cgroup.path().display().to_string();
    let fault = Faultline::start(&["net", "loss", "1%", "--cgroup", &path])?;
    fault.wait_event("armed", PATIENCE)?;
    let listed = said("ps --json", &[])?;
    let right = matches!(&listed.lines[..], [it] if it["ifindex"] == index);
    ensure!(right, "not interface {index}: {}", listed.stdout);
    fault.end()?;
    said("net loss 1% --plan --cgroup", &[path.as_bytes()])?;
    drop(process);
    Ok(())
}
