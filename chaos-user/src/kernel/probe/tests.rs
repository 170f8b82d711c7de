use std::{collections::BTreeSet, os::fd::AsFd, path::Path, process, thread::sleep, time::Duration};

use super::*;
use crate::kernel::{
    netlink::Netlink,
    sys::{self, Kind},
};

/// Programs and maps of probes that are still in the kernel. Others' objects may go while they are listed.
fn doctors_objects() -> BTreeSet<String> {
    let programs = sys::ids(Kind::Program).expect("root may list programs").into_iter().filter_map(|id| {
        let program = sys::open(Kind::Program, id).ok()??;
        Some(sys::program_info(program.as_fd()).ok()?.name)
    });
    let maps = sys::ids(Kind::Map).expect("root may list maps").into_iter().filter_map(|id| {
        let map = sys::open(Kind::Map, id).ok()??;
        Some(sys::map_info(map.as_fd()).ok()?.1)
    });
    programs.chain(maps).filter(|name| name.starts_with("doctor_")).collect()
}

fn interfaces() -> Vec<String> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).expect("anybody may list interfaces");
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("doctor")).collect()
}

#[test]
fn leaves_nothing_and_explains_everything() {
    let report = run();
    assert_eq!(report.mechanisms.len(), M::ALL.len());
    for finding in &report.mechanisms {
        let explained = finding.cause.is_some();
        assert_eq!(explained, finding.state != State::Available, "{finding:?}");
        assert!(finding.state != State::Missing || finding.remedy.is_some(), "{finding:?}");
    }
    assert_eq!(interfaces(), [""; 0]);
    if report.unprivileged.is_some() {
        assert!(!report.ready);
        println!("skipped: listing programs, maps and cgroups needs root");
        return;
    }
    if let Ok(Some(cgroups)) = mounts::find("cgroup2") {
        let ours = format!("faultline-probe-{}", process::id());
        assert!(!Path::new(&cgroups).join(ours).exists());
    }
    // The kernel frees them a little after their last fd, and another doctor may be at work beside this one.
    for _ in 0..50 {
        if doctors_objects().is_empty() {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    assert_eq!(doctors_objects(), BTreeSet::new(), "left in the kernel for 5 s");
}
