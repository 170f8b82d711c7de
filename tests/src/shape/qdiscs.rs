//! What was on the interface before: nothing of it is touched, or it comes back as it was.

use std::process::Command;

use nix::sys::signal::Signal;

use super::{Flows, PATIENCE, PORT, Way, arm, end, lab};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{is_gate, program, rounds},
    lab::{Family, Lab, NEAR_DEVICE},
};

/// What somebody may have set up, in `tc`'s words.
const SETUPS: &[(&str, &[&str])] = &[
    ("fq", &["qdisc add dev DEV root handle 7: fq limit 5000 flow_limit 50"]),
    ("fq_codel", &["qdisc add dev DEV root handle 8: fq_codel limit 1000 target 7ms"]),
    (
        "htb",
        &[
            "qdisc add dev DEV root handle 1: htb default 20",
            "class add dev DEV parent 1: classid 1:10 htb rate 100mbit ceil 1gbit",
            "class add dev DEV parent 1: classid 1:20 htb rate 1gbit",
            "qdisc add dev DEV parent 1:10 handle 10: pfifo limit 50",
            "filter add dev DEV parent 1: protocol ip prio 5 matchall classid 1:20",
        ],
    ),
    ("netem", &["qdisc add dev DEV root handle 9: netem delay 1ms 200us limit 900"]),
];

/// Before, during, after a normal end, and after SIGKILL.
pub(super) fn left_alone() -> Result {
    let lab = lab()?;
    for (number, (name, commands)) in SETUPS.iter().enumerate() {
        let made =
            commands.iter().try_for_each(|command| tc(&lab, &command.replace("DEV", NEAR_DEVICE)).map(drop));
        if let Err(failure) = made {
            // fq is what the test needs; of the others a kernel may lack some.
            ensure!(*name != "fq" && failure.to_string().contains("unknown"), "{failure}");
            println!("{name} is not had here: {failure}");
            continue;
        }
        let before = listing(&lab)?;
        ensure!(before.contains(name), "{name} is not there: {before}");
        let flows = Flows::open(&lab, Way::Out, Family::V4)?;
        let same = |when: &str| {
            let now = listing(&lab)?;
            ensure!(now == before, "{name} {when}:\n{before}\n{now}");
            Ok(())
        };
        // In the gate, either end with half of them.
        let ends = [number % 2 == 1, number % 2 == 0];
        for kill in ends.into_iter().take(if is_gate() { 1 } else { 2 }) {
            let fault = arm(&lab, &format!("delay 20ms loss 0.1% --direction both --port {PORT} --exact"))?;
            same("during")?;
            flows.target.run(super::few())?;
            if kill {
                fault.kill(Signal::SIGKILL)?;
                fault.wait(PATIENCE)?;
                let swept = Faultline::run(&["sweep"])?;
                ensure!(swept.code == Some(0), "{swept:?}");
                same("after SIGKILL")?;
            } else {
                end(&fault)?;
                same("after its end")?;
            }
        }
        tc(&lab, &format!("qdisc del dev {NEAR_DEVICE} root"))?;
    }
    Ok(())
}

/// `ethtool -k` before, during and after, with two owners, and killed.
pub(super) fn offloads() -> Result {
    let lab = lab()?;
    // Whatever somebody has switched off stays so.
    run(&lab, "ethtool", &["-K", NEAR_DEVICE, "tx-udp-segmentation", "off"])?;
    let before = features(&lab)?;
    ensure!(before.contains("generic-segmentation-offload: on"), "{before}");
    let off = |when: &str| {
        let now = features(&lab)?;
        let is_off = |name: &str| now.contains(&format!("{name}: off"));
        let all = ["generic-segmentation-offload", "tx-tcp-segmentation", "generic-receive-offload"];
        ensure!(all.into_iter().all(is_off), "{when}: {now}");
        Ok(())
    };
    let back = |when: &str| {
        let now = features(&lab)?;
        ensure!(now == before, "{when}: {}", difference(&before, &now));
        Ok(())
    };
    let fault = arm(&lab, "loss 1%")?;
    back("without --exact")?;
    end(&fault)?;
    // By default where the packet is what it is about.
    let fault = arm(&lab, "duplicate 1%")?;
    off("duplicate")?;
    end(&fault)?;
    back("after its end")?;
    let one = arm(&lab, "loss 1% --exact")?;
    let other = arm(&lab, "loss 1% --exact")?;
    end(&one)?;
    off("one of two has ended")?;
    end(&other)?;
    back("both have ended")?;
    for _ in 0..rounds(10) {
        let both = [arm(&lab, "loss 1% --exact")?, arm(&lab, "loss 1% --exact")?];
        both.iter().try_for_each(|fault| fault.kill(Signal::SIGINT))?;
        for fault in &both {
            ensure!(fault.wait(PATIENCE)?.code == Some(130), "it did not end in order");
        }
        back("both have ended at once")?;
    }
    let fault = arm(&lab, "loss 1% --exact")?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(PATIENCE)?;
    let swept = Faultline::run(&["sweep"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    back("after SIGKILL and sweep")
}

fn listing(lab: &Lab) -> Result<String> {
    let mut all = String::new();
    for what in ["qdisc", "class", "filter"] {
        all += &run(lab, "tc", &["-d", what, "show", "dev", NEAR_DEVICE])?;
    }
    // Below 6.6 our filters hang on a clsact, which is nobody's queue.
    let lines = all.lines().filter(|line| !line.contains("clsact"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn features(lab: &Lab) -> Result<String> {
    run(lab, "ethtool", &["-k", NEAR_DEVICE])
}

fn difference(before: &str, now: &str) -> String {
    let changed = now.lines().zip(before.lines()).filter(|(now, before)| now != before);
    changed.map(|(now, before)| format!("{before} -> {now}; ")).collect()
}

fn tc(lab: &Lab, words: &str) -> Result<String> {
    run(lab, "tc", &words.split(' ').collect::<Vec<_>>())
}

/// Runs a program in `near`.
fn run(lab: &Lab, name: &str, arguments: &[&str]) -> Result<String> {
    let path = program(name).context(format_args!("{name} is not installed"))?;
    let output = lab.near.run(|| Command::new(path).args(arguments).output().context(name))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("{name} {}: {error}", arguments.join(" "))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
