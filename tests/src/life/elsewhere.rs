//! Owners and what they changed as they are seen from other namespaces: what is not seen is not gone.

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::Signal,
};

use super::{
    journal::{EXACT, dead, dirty, features, swept},
    scene::{PATIENCE, Scene, at_once, id, ps, records},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline, binary},
    harness::{Need, Test, patience},
    lab::{NEAR_DEVICE, Netns},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::Program("unshare")];

pub(super) const TESTS: &[Test] = &[
    Test::new("elsewhere::what_is_not_seen_is_kept", not_seen).needs(NEEDS).waits(),
    Test::new("elsewhere::what_is_seen_is_put_back", seen).needs(NEEDS).waits(),
    Test::new("elsewhere::an_interface_that_has_moved", moved).needs(NEEDS).waits(),
    Test::new("elsewhere::owners_of_other_pid_namespaces", owners).needs(NEEDS).waits(),
    Test::new("elsewhere::all_are_tried", all_are_tried).needs(NEEDS).waits(),
];

/// Processes of its own, and a `/proc` of these.
pub(crate) const PIDS: &[&str] = &["--pid", "--fork", "--kill-child", "--mount-proc"];
const MOUNTS: &[&str] = &["--mount"];
const CGROUPS: &[&str] = &["--cgroup"];
const NETWORK: &[&str] = &["--net"];

/// Runs a command in namespaces of its own, with the records of here.
pub(crate) fn apart(namespaces: &[&str], arguments: &[&str]) -> Result<Exit> {
    let binary = binary()?;
    let binary = binary.to_str().context("its path")?;
    let all = [namespaces, &["--", binary], arguments].concat();
    Faultline::run_binary(Path::new("unshare"), &all, |_| ())
}

/// From where its network namespace cannot be seen.
fn not_seen() -> Result {
    let mut scene = Scene::set()?;
    let (record, before) = dead(&scene)?;
    let text = fs::read_to_string(&record).context("read")?;
    for command in [&["sweep"][..], &["ps"], &["stop", "--all"]] {
        let exit = apart(PIDS, command)?;
        dirty(command, &exit, &["offloads of interface to-far were not found", "on the host", "ethtool -K"])?;
        ensure!(fs::read_to_string(&record).context("read")? == text, "{command:?}: it was changed");
    }
    swept(&record)?;
    ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "not as before");
    scene.over("afterwards")
}

/// From where it can be, though it is not the owner's place either.
fn seen() -> Result {
    let mut scene = Scene::set()?;
    for namespaces in [MOUNTS, CGROUPS, NETWORK] {
        let (record, before) = dead(&scene)?;
        let exit = apart(namespaces, &["sweep"])?;
        ensure!(exit.code == Some(0) && exit.stdout.starts_with("removed"), "{namespaces:?}: {exit:?}");
        ensure!(!record.exists(), "{namespaces:?}: its record is left");
        ensure!(features(&scene.lab.near, NEAR_DEVICE)? == before, "{namespaces:?}: not as before");
    }
    scene.over("afterwards")
}

/// Its offloads are put back where it is now, by its owner and by who comes after that was killed; also when another
/// interface has its number and its name where it was.
fn moved() -> Result {
    let nothing = crate::inventory::Inventory::take(&[])?;
    for (killed, replaced) in [(false, false), (true, false), (true, true), (false, true)] {
        let when = format!("killed {killed}, replaced {replaced}");
        let scene = Scene::set()?;
        let before = features(&scene.lab.near, NEAR_DEVICE)?;
        let there = Netns::new()?;
        let (fault, _) = scene.armed(&EXACT)?;
        if killed {
            fault.kill(Signal::SIGKILL)?;
        }
        let index = scene.lab.near.index(NEAR_DEVICE)?;
        scene.lab.near.netlink()?.set_netns(index, there.as_fd())?;
        if replaced {
            let index = index.to_string();
            let other = ["link", "add", "name", NEAR_DEVICE, "index", &index, "type", "veth"];
            let mut ip = Command::new("ip");
            ip.args(other);
            scene.lab.near.home_of(&mut ip);
            ensure!(ip.status().context("ip")?.success(), "no other interface");
        }
        let exit = fault.wait(PATIENCE)?;
        if killed {
            let exit = Faultline::run(&["sweep"])?;
            ensure!(exit.code == Some(0) && exit.stdout.starts_with("removed"), "{when}: {exit:?}");
        } else {
            ensure!(exit.code == Some(4) && exit.stderr.is_empty(), "{when}: {exit:?}");
            let reason = exit.event("summary")?.get("/reason")?.to_string();
            // Below Linux 6.6 its filter goes when it is moved.
            ensure!(reason.contains("moved") || reason.contains("is gone"), "{when}: {reason}");
        }
        let after = features(&there, NEAR_DEVICE)?;
        ensure!(after == before, "{when}: before {before:?}, after {after:?}");
        ensure!(records()?.is_empty(), "{when}: left {:?}", records());
    }
    nothing.wait_until_equal(&[], at_once())
}

/// The near end's network namespace under a name, which is the same in all pid namespaces.
struct Named;

impl Named {
    const FOLDER: &str = "/run/netns";
    const PATH: &str = "/run/netns/near";

    fn new(scene: &Scene) -> Result<Self> {
        fs::create_dir(Self::FOLDER).context(Self::FOLDER)?;
        fs::write(Self::PATH, "").context(Self::PATH)?;
        let none: Option<&str> = None;
        mount(Some(&scene.lab.near.path()), Self::PATH, none, MsFlags::MS_BIND, none).context("bind")?;
        Ok(Self)
    }

    fn end(self) -> Result {
        umount(Self::PATH).context("umount")?;
        fs::remove_file(Self::PATH).context(Self::PATH)?;
        fs::remove_dir(Self::FOLDER).context(Self::FOLDER)
    }
}

/// Found by its lock, asked to end, and not taken for whoever has its number here.
fn owners() -> Result {
    let mut scene = Scene::set()?;
    let named = Named::new(&scene)?;
    let program = binary()?;
    let loss = ["net", "loss", "100%", "--proto", "udp", "--dev", NEAR_DEVICE, "--netns", "near", "--json"];
    let all = [PIDS, &["--", program.to_str().context("its path")?], &loss].concat();
    let fault = Faultline::start_binary(Path::new("unshare"), &all)?;
    fault.wait_event("armed", PATIENCE)?;
    scene.loses((100, 0), "while it is armed")?;
    let listed = ps()?;
    ensure!(listed.len() == 1, "{listed:?}");
    let pid = listed[0]["pid"].as_i64().context("no pid")?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).context("its name")?;
    ensure!(name == "faultline\n", "process {pid} is {name}, not its owner");
    let begin = Instant::now();
    let exit = Faultline::run(&["stop", "--all"])?;
    ensure!(exit.code == Some(0) && exit.stdout.ends_with("nothing of it is left\n"), "{exit:?}");
    ensure!(begin.elapsed() < patience(Duration::from_secs(4)), "it was not asked, but killed");
    ensure!(fault.wait(PATIENCE)?.code == Some(130), "it did not end by itself");
    named.end()?;
    scene.over("afterwards")
}

/// The first cannot be reached from there, which is told at the end; the second is stopped all the same.
fn all_are_tried() -> Result {
    let mut scene = Scene::set()?;
    let (first, armed) = scene.armed(&["100%", "--proto", "udp"])?;
    let unreachable = id(&armed)?;
    // Whichever comes first by its id: an owner beside the command that stops it, in the same pid namespace.
    let script = r#""$0" net loss 1% --dev to-far --netns "$1" --json > /run/second &
        until grep -q armed /run/second; do sleep 0.01; done
        "$0" stop --all; code=$?; wait; exit $code"#;
    let named = Named::new(&scene)?;
    let binary = binary()?;
    let words = ["--", "sh", "-c", script, binary.to_str().context("its path")?, "near"];
    let all = [PIDS, &words].concat();
    let exit = Faultline::run_binary(Path::new("unshare"), &all, |_| ())?;
    ensure!(exit.code == Some(6) && exit.stderr.contains(unreachable), "{exit:?}");
    ensure!(exit.stderr.contains("its owner lives and is not seen here"), "{exit:?}");
    let stopped = exit.stdout.lines().filter(|line| line.ends_with("nothing of it is left")).count();
    ensure!(stopped == 1 && !exit.stdout.contains(&format!("stopped {unreachable}")), "{exit:?}");
    scene.loses((100, 0), "the first is still armed")?;
    ensure!(first.interrupt()?.code == Some(130), "it did not end");
    named.end()?;
    fs::remove_file("/run/second").context("rm")?;
    scene.over("afterwards")
}
