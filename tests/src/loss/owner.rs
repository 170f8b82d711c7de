//! The injector's own packets are spared, and nobody else's on its account.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, bpf_attach_type};
use chaos_ebpf::abi::{Control, Direction, Window};
use chaos_user::{
    fault::{Match, Rule, Tables},
    kernel::{
        programs::{Environment, Programs},
        sys::{Target, link},
    },
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

use super::{PATIENCE, PORT, first_cpu, lab};
use crate::{
    ensure,
    error::{Context, Result},
    lab::{Family, Lab, NEAR_DEVICE},
    traffic::{Requests, requests::Until},
};

/// While the injector runs on a CPU, the kernel goes on there with what others have it do, and hands on what comes.
/// An injector that never sleeps shields none of what is received. Nothing is left to chance here.
pub(super) fn shields_nobody() -> Result {
    let lab = lab()?;
    // The injector to be gets the CPU of all traffic; what TCP sends again is sent by timers of that CPU.
    let (_, _pin) = first_cpu()?;
    let owner = Spinning::begin()?;
    let mut requests = Requests::open(lab.inward(Family::V4), PORT, 64)?;
    requests.run(Until::Segments(500, PATIENCE))?;
    let (programs, held) = attach(&lab, owner.0)?;
    let during = requests.run(Until::Elapsed(Duration::from_millis(1000)))?;
    let counters = programs.counters()?;
    drop(held);
    println!("{during:?}, {counters:?}");
    let (sent, received) = (during.forward.sent, during.forward.received);
    ensure!(sent >= 128, "{sent} segments sent by 64 connections: timers sent nothing again");
    ensure!(received == 0, "{received} of {sent} got through at 100 %");
    ensure!(during.backward.lost() == 0, "answers were lost: {during:?}");
    let fired = counters.rules[0].fired.packets;
    ensure!(fired >= sent, "{sent} lost, fired {fired}");
    let after = requests.run(Until::Segments(500, PATIENCE))?;
    ensure!(after.forward.lost() == 0, "after {after:?}");
    Ok(())
}

/// Without the `faultline` command, which sleeps nearly always.
fn attach(lab: &Lab, owner: Pid) -> Result<(Programs, OwnedFd)> {
    let rule = Rule {
        label: String::new(),
        direction: Direction::In,
        matches: Match { protocols: vec![6], ..Match::default() },
        window: Window::ALL,
        impairments: super::everything_lost(),
        spares: Vec::new(),
        names: Vec::new(),
    };
    let environment =
        Environment { owner_tgid: owner.as_raw().cast_unsigned(), ethernet: true, ..Environment::default() };
    let mut programs = Programs::load(&Tables::new(&[rule], 1), 1, environment)?;
    programs.set_control(Control { epoch: 1, not_before: 0, lease_until: u64::MAX })?;
    let target = Target::Interface(lab.near.index(NEAR_DEVICE)?);
    let program = programs.xdp()?.as_fd();
    let held = lab.near.run(|| Ok(link(program, target, bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE)?))?;
    Ok((programs, held))
}

/// A process that does nothing, all the time.
struct Spinning(Pid);

impl Spinning {
    fn begin() -> Result<Self> {
        // SAFETY: the child makes no call at all.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => loop {
                std::hint::spin_loop();
            },
            ForkResult::Parent { child } => Ok(Self(child)),
        }
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
