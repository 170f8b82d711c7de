//! Who is hit, beside somebody of almost the same name.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path, process, time::Duration};

use chaos_user::kernel::mechanism::Mechanism;
use nix::mount::{MsFlags, mount};

use super::{BPF, PATIENCE, cgroups::Home};
use crate::{
    cgroup::Cgroup,
    clocks::{Clock, Image},
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test, patience},
    lab::{Family, Lab, NEAR_DEVICE},
    traffic::probe::{Pace, Probe},
};

const CLOCKS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::Mechanism(Mechanism::VdsoPatch)];

pub(super) const TESTS: &[Test] = &[
    Test::new("names::whose_packets_are_hit", whose_packets).needs(BPF).timeout(90).waits(),
    Test::new("names::which_namespace_is_hit", which_namespace).needs(BPF).timeout(90).waits(),
    Test::new("names::whose_clocks_are_hit", whose_clocks).needs(CLOCKS).timeout(90).waits(),
];

const NONE: Option<&str> = None;

/// What is aimed at, and a bystander whose name differs by a byte, or by one that cannot be typed.
const PAIRS: &[(&str, &[u8])] = &[
    ("a\u{fffd}", b"a\xff"),
    ("a\u{202e}", "a\u{202d}".as_bytes()),
    ("a\\012b", b"a\\013b"),
    ("a ", b"a"),
    ("a\u{1b}[2J", b"a\x1a[2J"),
];

/// The packets of one are lost, and none of the other's, whether it is named by its path or as a unit.
fn whose_packets() -> Result {
    let lab = Lab::new()?;
    let place = lab.near.path().display().to_string();
    for (name, bystander) in PAIRS {
        let above = Cgroup::new()?;
        let unit = format!("fl-{}-{name}.service", process::id());
        let home = |name: &[u8]| {
            let name = [format!("fl-{}-", process::id()).as_bytes(), name, b".service"].concat();
            Home::new(&above, &name, &lab)?.context("refused")
        };
        let (target, bystander) = (home(name.as_bytes())?, home(bystander)?);
        let open =
            |home: &Home, port| home.cgroup.run(|| Probe::open(lab.outward(Family::V4), port, port + 1_000));
        let (hit, spared) = (open(&target, 4_000)?, open(&bystander, 4_001)?);
        let path = target.cgroup.path().to_str().context("it can be typed")?;
        for whom in [["--cgroup", path], ["--unit", &unit]] {
            let words =
                [&["net", "loss", "100%", "--dev", NEAR_DEVICE, "--netns", &place][..], &whom].concat();
            loses(&words, &hit, &spared)?;
        }
    }
    Ok(())
}

/// The packets of one network namespace are lost, and none of that which has almost its name.
fn which_namespace() -> Result {
    let (lab, other) = (Lab::new()?, Lab::new()?);
    let open = |lab: &Lab, port| Probe::open(lab.outward(Family::V4), port, port + 1_000);
    let (hit, spared) = (open(&lab, 4_000)?, open(&other, 4_001)?);
    fs::create_dir_all("/run/netns").context("/run/netns")?;
    let bind = |lab: &Lab, name: &[u8]| {
        let named = Path::new("/run/netns").join(OsStr::from_bytes(name));
        fs::write(&named, "").context(named.display())?;
        mount(Some(&lab.near.path()), &named, NONE, MsFlags::MS_BIND, NONE).context("bind")
    };
    for (target, bystander) in PAIRS {
        bind(&lab, target.as_bytes())?;
        bind(&other, bystander)?;
        loses(&["net", "loss", "100%", "--dev", NEAR_DEVICE, "--netns", target], &hit, &spared)?;
    }
    Ok(())
}

/// Fails unless all that one sends is lost under this fault, none of it afterwards, and nothing of the other's.
fn loses(words: &[&str], hit: &Probe, spared: &Probe) -> Result {
    let fault = Faultline::start(words)?;
    fault.wait_event("armed", PATIENCE)?;
    let counts = [came(hit)?, came(spared)?];
    fault.end()?;
    ensure!(counts == [0, 20], "{words:?}: {counts:?} of 20 came");
    ensure!(came(hit)? == 20, "{words:?}: lost after it");
    Ok(())
}

/// How many of 20 packets came.
fn came(probe: &Probe) -> Result<usize> {
    let (interval, linger) = (Duration::from_millis(1), Duration::from_millis(300));
    Ok(probe.run(Pace { count: 20, interval, size: 64, linger })?.0.len())
}

/// The clock of one is wrong, and the other's right.
fn whose_clocks() -> Result {
    const SKEW: i64 = 3_600_000_000_000;
    const NEAR: i64 = 1_000_000;
    let soon = patience(Duration::from_secs(5));
    for (target, bystander) in PAIRS {
        let above = Cgroup::new()?;
        let (cgroup, beside) = (above.child(target)?, above.child(OsStr::from_bytes(bystander))?);
        let (mut clock, mut other) = (Clock::start(Some(&cgroup))?, Clock::start(Some(&beside))?);
        let path = cgroup.path().to_str().context("it can be typed")?;
        let fault = Faultline::start(&["time", "skew", "--offset", "1h", "--cgroup", path])?;
        fault.wait_event("armed", PATIENCE)?;
        clock.until(SKEW, soon).context(target)?;
        let ahead = other.ahead()?;
        ensure!(ahead.abs() < NEAR, "{target:?}: the bystander is {ahead} ns ahead");
        fault.end()?;
        clock.until(0, soon).context(target)?;
        let ahead = other.ahead()?;
        ensure!(ahead.abs() < NEAR, "{target:?}: the bystander is {ahead} ns ahead afterwards");
        Image::check_own(other.pid())?;
    }
    Ok(())
}
