//! Clocks that never go back take their time to become right: who is told of it, who waits for it, and whom it does not
//! keep.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    NEEDS,
    scene::{PATIENCE, Scene},
};
use crate::{
    clocks::{Reading, Source},
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, Test, die_with_parent, program},
    life::scene::{id, records},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::a_stop_waits_until_it_has_settled", stop_waits).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::settles_though_nobody_reads", nobody_reads).needs(NEEDS).timeout(60).slow().waits(),
    Test::new("time::a_command_is_not_kept_by_what_settles", command_goes)
        .needs(NEEDS)
        .timeout(90)
        .slow()
        .waits(),
    Test::new("time::children_of_what_settles_never_go_back", children)
        .needs(CHILDREN)
        .timeout(90)
        .slow()
        .once()
        .waits(),
];

const CHILDREN: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3], Need::Program("python3")];

/// So far ahead that it takes longer to settle than an owner usually has to end.
const FAR: &str = "--offset 3s --clock monotonic";
const LONGER_THAN_AN_END: Duration = Duration::from_secs(5);
/// So far ahead that it takes longer than any test.
const FARTHER: [&str; 6] = ["time", "skew", "--offset", "5m", "--clock", "monotonic"];
/// What does not wait for that is over by then.
const SOON: Duration = Duration::from_secs(10);

fn goes_on(readings: &[Reading]) -> Result {
    let back = readings.windows(2).filter(|pair| pair[1].ns < pair[0].ns).count();
    ensure!(back == 0 && readings.len() > 100, "of {} readings {back} went back", readings.len());
    Ok(())
}

/// It is not killed for want of patience.
fn stop_waits() -> Result {
    let mut scene = Scene::set()?;
    let (fault, armed) = scene.armed(FAR)?;
    let id = id(&armed)?;
    scene.target.begin_sample(Source::Monotonic, Duration::from_secs(12), Duration::from_millis(2))?;
    let asked = Instant::now();
    let stopped = Faultline::run(&["stop", id])?;
    let took = asked.elapsed();
    println!("stopped after {took:?}");
    ensure!(stopped.code == Some(0) && stopped.stderr.contains("become right within"), "{stopped:?}");
    ensure!(took > LONGER_THAN_AN_END, "it was right after {took:?}, which is a jump");
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(130), "{exit:?}");
    goes_on(&scene.target.end_sample()?)?;
    scene.over("stopped")?;
    // Asked twice it ends at once.
    let (fault, _) = scene.armed(FAR)?;
    fault.kill(Signal::SIGTERM)?;
    fault.wait_event("settling", PATIENCE)?;
    let asked = Instant::now();
    let stopped = Faultline::run(&["stop", "--all"])?;
    ensure!(stopped.code == Some(0) && asked.elapsed() < LONGER_THAN_AN_END, "{stopped:?}");
    ensure!(fault.wait(PATIENCE)?.code == Some(130) && records()?.is_empty(), "{:?}", records());
    scene.over("stopped twice")
}

fn nobody_reads() -> Result {
    let mut scene = Scene::set()?;
    let mut command = Command::new(binary()?);
    command.args(["time", "skew", "--json", "--offset", "500ms", "--clock", "monotonic", "--cgroup"]);
    command.arg(scene.cgroup.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    die_with_parent(&mut command);
    let mut fault = command.spawn().context("faultline")?;
    let mut stdout = BufReader::new(fault.stdout.take().context("its output")?);
    let mut line = String::new();
    while !line.contains("\"armed\"") {
        line.clear();
        ensure!(stdout.read_line(&mut line).context("read")? > 0, "it ended before it was armed");
    }
    scene.target.begin_sample(Source::Monotonic, Duration::from_secs(6), Duration::from_millis(2))?;
    drop(stdout);
    let status = fault.wait().context("wait")?;
    ensure!(status.code() == Some(4), "{status}");
    goes_on(&scene.target.end_sample()?)?;
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("afterwards")
}

/// Neither one that ends by itself nor one that ends because it is told to.
fn command_goes() -> Result {
    let mut scene = Scene::set()?;
    let run = |options: &[&str], script: &str| {
        Faultline::start(&[&FARTHER, options, &["--", "sh", "-c", script]].concat())
    };
    let begun = Instant::now();
    let exit = run(&["--for", "300ms"], "sleep 2; exit 7")?.wait(PATIENCE)?;
    let took = begun.elapsed();
    println!("a command that ended while its clock settled: {took:?}");
    ensure!(exit.code == Some(7) && exit.event("settling").is_ok(), "{exit:?}");
    ensure!(took < SOON, "it was kept for {took:?}");
    let fault = run(&[], "trap 'exit 9' TERM; echo '{\"event\": \"ready\"}'; while :; do sleep 0.1; done")?;
    fault.wait_event("ready", PATIENCE)?;
    let told = Instant::now();
    fault.kill(Signal::SIGTERM)?;
    let exit = fault.wait(PATIENCE)?;
    println!("a command that was told to end: {:?}", told.elapsed());
    ensure!(exit.code == Some(9) && told.elapsed() < SOON, "after {:?}: {exit:?}", told.elapsed());
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("afterwards")
}

/// Forks all the time; each child looks at its clock for a while, and says if it went back. Ends with standard input.
const FORKING: &str = "
import os, select, sys, time
children = backwards = 0
def reap(flags):
    global backwards
    try:
        while (done := os.waitpid(-1, flags))[0]:
            backwards += done[1] != 0
    except ChildProcessError:
        pass
while not select.select([sys.stdin], [], [], 0.004)[0]:
    if os.fork() == 0:
        last, end = time.monotonic_ns(), time.monotonic_ns() + 600_000_000
        while last < end:
            now = time.monotonic_ns()
            if now < last:
                os._exit(1)
            last = now
            time.sleep(0.002)
        os._exit(0)
    children += 1
    reap(os.WNOHANG)
reap(0)
print(children, backwards)
";

/// A child has what its parent was told before it was forked, and is found only later.
fn children() -> Result {
    let mut scene = Scene::set()?;
    let mut python = Command::new(program("python3").context("no program python3")?);
    python.args(["-c", FORKING]).stdin(Stdio::piped()).stdout(Stdio::piped());
    die_with_parent(&mut python);
    scene.cgroup.admit(&mut python)?;
    let mut parent = python.spawn().context("python3")?;
    for round in 0..3 {
        let (fault, _) = scene.armed("--rate 1.4 --clock monotonic")?;
        fault.wait_event("progress", PATIENCE)?;
        fault.kill(Signal::SIGINT)?;
        let exit = fault.wait(PATIENCE)?;
        ensure!(exit.code == Some(130), "round {round}: {exit:?}");
    }
    drop(parent.stdin.take());
    let said = parent.wait_with_output().context("python3")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    println!("children, and those whose clock went back: {said}");
    let (children, backwards) = said.trim().split_once(' ').context("what it says")?;
    let children: u32 = children.parse().context("children")?;
    ensure!(children > 100 && backwards == "0", "of {children} children the clocks of {backwards} went back");
    scene.over("afterwards")
}
