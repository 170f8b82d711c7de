//! `--direction both`, and other ways to say where.

use std::os::unix::fs::MetadataExt;

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pause},
};

use super::{BYSTANDER_PORT, PATIENCE, PORT, SEED, Way, all_arrive, arm, end, frame, lab, whole};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::patience,
    lab::{Family, NEAR_DEVICE, Netns},
    stats::acceptance,
    traffic::{Echo, Requests, Udp, requests::Until},
};

/// With `--to 10.2.0.1 --port 80 --direction both`: what goes there and what comes from there, and nothing else.
pub(super) fn both() -> Result {
    /// Way, packet, whether it is hit.
    const ROWS: &[(Way, &str, bool)] = &[
        (Way::Out, "udp 10.1.0.1 1000 10.2.0.1 80", true),
        (Way::In, "udp 10.2.0.1 80 10.1.0.1 1000", true),
        (Way::Out, "tcp 10.1.0.1 1000 10.2.0.1 80", true),
        (Way::In, "tcp 10.2.0.1 80 10.1.0.1 1000", true),
        // The same words the other way round are another conversation: one with our own port 80.
        (Way::In, "udp 10.1.0.1 1000 10.2.0.1 80", false),
        (Way::Out, "udp 10.2.0.1 80 10.1.0.1 1000", false),
        // Another port, another host.
        (Way::Out, "udp 10.1.0.1 1000 10.2.0.1 81", false),
        (Way::In, "udp 10.2.0.1 81 10.1.0.1 1000", false),
        (Way::Out, "udp 10.1.0.1 1000 10.2.0.2 80", false),
        (Way::In, "udp 10.2.0.2 80 10.1.0.1 1000", false),
        // Of the second rule, which names all four ends.
        (Way::Out, "udp fd01::1 1000 fd02::1 80", true),
        (Way::In, "udp fd02::1 80 fd01::1 1000", true),
        (Way::Out, "udp fd01::1 1001 fd02::1 80", false),
        (Way::In, "udp fd02::1 80 fd01::2 1000", false),
    ];
    let lab = lab()?;
    let mut wires = Vec::new();
    for way in Way::BOTH {
        wires.push((way, frame::open(&lab, way)?));
    }
    let mut lost = || -> Result<Vec<bool>> {
        let mut lost = Vec::new();
        for (way, text, _) in ROWS {
            let wire = wires.iter_mut().find(|(of, _)| of == way).map(|(_, wire)| wire);
            lost.push(wire.context("no wire")?.send(&[frame::written(text)?])? == [0]);
        }
        Ok(lost)
    };
    ensure!(!lost()?.contains(&true), "lost some before");
    let faults = [
        "loss 100% --direction both --to 10.2.0.1 --port 80".into(),
        "loss 100% --direction both --from fd01::1 --sport 1000 --to fd02::/64 --port 80".into(),
    ];
    let faultline = arm(&lab, SEED, &faults)?;
    let during = lost()?;
    let rules = end(&faultline)?;
    for ((way, text, hit), lost) in ROWS.iter().zip(during) {
        ensure!(lost == *hit, "{way:?}: {text} {}", if lost { "was lost" } else { "got through" });
    }
    let counted: Vec<_> = rules.iter().map(|rule| (&*rule.direction, rule.fired.packets)).collect();
    ensure!(counted == [("in", 2), ("out", 2), ("in", 1), ("out", 1)], "{counted:?}");
    ensure!(!lost()?.contains(&true), "lost some after");
    Ok(())
}

/// Real conversations: requests and answers, echo requests and replies. TCP's timers run on any CPU, so the seed does not
/// decide alone.
pub(super) fn tcp_and_echo() -> Result {
    const ASKED: f64 = 0.2;
    let lab = lab()?;
    let route = lab.outward(Family::V4);
    let mut requests = Requests::open(route, PORT, 32)?;
    let mut bystander = Requests::open(route, BYSTANDER_PORT, 4)?;
    // Somebody else's connection to our own port of that number.
    let mut inverse = Requests::open(lab.inward(Family::V4), PORT, 4)?;
    let mut echo = Echo::open(lab.outward(Family::V6), 1)?;
    let calm = |when: &str, requests: &mut Requests, echo: &mut Echo| -> Result {
        let record = echo.burst(500, PATIENCE)?;
        whole(&format!("{when}: requests"), &record.requests)?;
        whole(&format!("{when}: replies"), &record.replies)?;
        let exchange = requests.run(Until::Segments(1000, PATIENCE))?;
        let lost = (exchange.forward.lost(), exchange.backward.lost());
        ensure!(lost == (0, 0), "{when}: {exchange:?}");
        Ok(())
    };
    calm("before", &mut requests, &mut echo)?;
    let target = lab.outward(Family::V6).target;
    let faults = [
        format!("loss 20% --direction both --to {} --port {PORT}", route.target),
        format!("loss 20% --direction both --to {target} --proto icmp"),
    ];
    let faultline = arm(&lab, SEED, &faults)?;
    let exchange = requests.run(Until::Elapsed(std::time::Duration::from_millis(1500)))?;
    let record = echo.burst(4000, PATIENCE)?;
    for (name, bystander) in [("another port", &mut bystander), ("our own port", &mut inverse)] {
        let exchange = bystander.run(Until::Segments(1000, PATIENCE))?;
        let lost = (exchange.forward.lost(), exchange.backward.lost());
        ensure!(lost == (0, 0), "{name}: {exchange:?}");
    }
    let rules = end(&faultline)?;
    let within = |what: &str, lost: u64, sent: u64| -> Result {
        let expected = acceptance(sent, ASKED);
        ensure!(sent > 500 && expected.contains(&lost), "{what}: {lost} of {sent} lost, not {expected:?}");
        Ok(())
    };
    within("segments", exchange.forward.lost(), exchange.forward.sent)?;
    within("answering segments", exchange.backward.lost(), exchange.backward.sent)?;
    within("echo requests", record.requests.lost(), record.sent)?;
    within("echo replies", record.replies.lost() - record.requests.lost(), record.requests.count())?;
    let fired: Vec<u64> = rules.iter().map(|rule| rule.fired.packets).collect();
    let echoes = [record.replies.lost() - record.requests.lost(), record.requests.lost()];
    ensure!(fired[2..] == echoes, "echo: fired {fired:?}, lost replies and requests {echoes:?}");
    calm("after", &mut requests, &mut echo)
}

/// `--netns pid:N`: the namespace of a process.
pub(super) fn netns_of_a_process() -> Result {
    let lab = lab()?;
    let mut flow = Udp::open(lab.outward(Family::V4), 4000, PORT)?;
    let mut aside = Udp::open(lab.aside(Family::V4)?, 4000, PORT)?;
    all_arrive("before", &mut flow, 500)?;
    let process = Resident::of(&lab.near)?;
    let netns = format!("pid:{}", process.0);
    let faultline = Faultline::start(&["net", "loss", "100%", "--dev", NEAR_DEVICE, "--netns", &netns])?;
    faultline.wait_event("armed", PATIENCE)?;
    let record = flow.burst(500, PATIENCE)?;
    all_arrive("bystander", &mut aside, 500)?;
    // The process has served its purpose: the fault does not need it any more.
    drop(process);
    let later = flow.burst(500, PATIENCE)?;
    let rules = end(&faultline)?;
    let lost = [record.received[0].lost(), later.received[0].lost()];
    ensure!(lost == [500, 500], "lost {lost:?} of 500 with the process and 500 without");
    ensure!(rules[0].fired.packets == 1000, "{rules:?}");
    all_arrive("after", &mut flow, 500)
}

/// A process that does nothing but live in a namespace.
struct Resident(Pid);

impl Resident {
    fn of(netns: &Netns) -> Result<Self> {
        // SAFETY: the child makes two system calls and allocates nothing.
        let child = match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                let _ = setns(netns, CloneFlags::CLONE_NEWNET);
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => Self(child),
        };
        let inode = |path: &str| Ok::<_, crate::error::Failure>(std::fs::metadata(path).context(path)?.ino());
        let wanted = inode(&netns.path().to_string_lossy())?;
        let deadline = std::time::Instant::now() + patience(PATIENCE);
        while inode(&format!("/proc/{}/ns/net", child.0))? != wanted {
            ensure!(std::time::Instant::now() < deadline, "the child did not enter the namespace");
            std::thread::yield_now();
        }
        Ok(child)
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
