//! No room: no descriptors, no memory, and no space for the later lines of a record. The kernel itself says so here, again
//! and again from that moment on.

use std::fs;

use nix::{
    mount::{MsFlags, mount, umount},
    sys::{
        resource::{Resource, rlim_t},
        signal::Signal,
    },
};

use super::{
    FREED,
    scene::{Scene, Work},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline, limit_to},
    harness::{Need, RECORDS, Test, is_gate},
    life::{
        environment::one_sentence,
        scene::{PATIENCE, records},
    },
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2];

pub(super) const TESTS: &[Test] = &[
    Test::new("failing::no_descriptors", no_descriptors).needs(NEEDS).timeout(180).once().waits().slow(),
    Test::new("failing::no_memory", no_memory).needs(NEEDS).timeout(60).once().waits().slow(),
    Test::new("failing::run_is_full_later", full_later).needs(NEEDS).timeout(60).once().waits().slow(),
];

const RUNS: [(&str, Work); 2] = [
    (
        "net corrupt 50% --direction both --exact --dev DEVICE --netns NETNS --for 10ms --seed 1 --json",
        Work::Packets,
    ),
    ("time skew --offset +1h --cgroup CGROUP --for 10ms --json", Work::Clocks),
];

fn limited(words: &[String], resource: Resource, limit: rlim_t) -> Result<Exit> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Faultline::run_with(&words, |command| limit_to(command, resource, limit, Some(limit)))
}

fn is_usual(exit: &Exit) -> bool {
    matches!(exit.code, Some(0 | 5))
}

/// With each number of them, from those that it is given to those that it needs.
fn no_descriptors() -> Result {
    const MOST: rlim_t = 128;
    let step = if is_gate() { 5 } else { 1 };
    let scene = Scene::set(Work::Packets)?;
    let words = scene.words(RUNS[0].0);
    let (mut refused, mut enough) = (0, None);
    for limit in (3..MOST).step_by(step) {
        let exit = limited(&words, Resource::RLIMIT_NOFILE, limit)?;
        if is_usual(&exit) {
            enough = Some(limit);
            break;
        }
        unarmed(&exit, &["Too many open files"]).context(format_args!("{limit} descriptors"))?;
        scene.is_as_before(FREED).context(format_args!("{limit} descriptors"))?;
        refused += 1;
    }
    println!("refused with {refused} numbers of descriptors, enough are {enough:?}");
    ensure!(refused > 0 && enough.is_some(), "refused {refused} times, enough {enough:?}");
    scene.is_as_before(FREED)
}

/// Rust's allocator aborts: what is left then is what a killed owner leaves.
fn no_memory() -> Result {
    let step = if is_gate() { 6 } else { 1 };
    for (command, work) in RUNS {
        let scene = Scene::set(work)?;
        let words = scene.words(command);
        let mut aborted = 0;
        // With less, the C library does not come as far as main.
        for half_megabytes in (4..=64).step_by(step) {
            let exit = limited(&words, Resource::RLIMIT_DATA, half_megabytes << 19)?;
            let when = format!("{half_megabytes} half megabytes, {command}");
            if is_usual(&exit) {
                break;
            }
            if exit.signal == Some(Signal::SIGABRT as i32) {
                ensure!(exit.stderr.contains("memory allocation of"), "{when}: {exit:?}");
                let swept = Faultline::run(&["sweep"])?;
                ensure!(swept.code == Some(0), "{when}: {swept:?}");
                aborted += 1;
            } else {
                // For want of it there is no thread, either.
                unarmed(&exit, &[]).context(&when)?;
            }
            scene.is_as_before(FREED).context(&when)?;
        }
        println!("{command}: aborted with {aborted} amounts of memory");
        ensure!(aborted > 0, "{command}: there was always memory");
    }
    Ok(())
}

/// A record of one page, which is full when its second line is written, and when its third is.
fn full_later() -> Result {
    const PAGE: usize = 4096;
    let scene = Scene::set(Work::Packets)?;
    let [empty, one, two] = [(0, 0), (1, 0), (0, 1)].map(|(long, short)| lines(&scene, long, short));
    let (empty, one, two) = (empty?, one?, two?);
    let (long, short) = (one[0] - empty[0], two[0] - empty[0]);
    ensure!(empty.len() == 3 && short < empty[2], "lines of {empty:?} bytes, rules of {long} and {short}");
    for (line, fits) in [("the second", empty[0]), ("the third", empty[0] + empty[1])] {
        // A few bytes for numbers that have become longer.
        let room = PAGE - fits - 6;
        let long_rules = room / long;
        let short_rules = room % long / short;
        mount(Some("tmpfs"), RECORDS, Some("tmpfs"), MsFlags::empty(), Some("size=4k,mode=0700"))
            .context("mount")?;
        let words = words(&scene, long_rules, short_rules);
        let fault = Faultline::start(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let exit = fault.wait(PATIENCE)?;
        let left = records()?;
        umount(RECORDS).context("umount")?;
        unarmed(&exit, &["/run/faultline/", "No space left"])
            .context(format_args!("{line} line does not fit"))?;
        ensure!(left.is_empty(), "{line} line does not fit: left {left:?}");
        scene.is_as_before(FREED).context(line)?;
    }
    Ok(())
}

/// It ended before it was armed and said why. It is told what is prepared before that, so there may be an event.
fn unarmed(exit: &Exit, with: &[&str]) -> Result {
    let prepared = exit.events.iter().all(|event| event.kind == "prepared");
    ensure!(prepared, "it printed {:?}", exit.events);
    let quiet = Exit { events: Vec::new(), ..exit.clone() };
    one_sentence(&quiet, 3, with)
}

fn words(scene: &Scene, long: usize, short: usize) -> Vec<String> {
    let mut words = scene.words("net loss 10% --dev DEVICE --netns NETNS --for 5s --seed 1");
    let rules = [("--and loss 10% duplicate 10% 20%", long), ("--and loss 1%", short)];
    for (rule, count) in rules {
        (0..count).for_each(|_| words.extend(rule.split(' ').map(String::from)));
    }
    words
}

/// How long the lines of a record are with so many rules more.
fn lines(scene: &Scene, long: usize, short: usize) -> Result<Vec<usize>> {
    let words = words(scene, long, short);
    let fault = Faultline::start(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    fault.wait_event("armed", PATIENCE)?;
    let names = records()?;
    let name = names.first().context("no record")?;
    let record = fs::read_to_string(format!("{RECORDS}/{name}")).context(name)?;
    fault.end()?;
    Ok(record.lines().map(|line| line.len() + 1).collect())
}
