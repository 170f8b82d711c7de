//! Packet loss, from the command line to the packet: which are lost, how many, and that nobody else's are.
//!
//! Seeds are fixed, and where packets are sent from one CPU their fates are a function of seed, rule and CPU:
//! those tests pass always or never on a given CPU, and counts are compared with what `stats::acceptance` allows on any.

mod background;
mod conversation;
mod features;
mod frame;
mod load;
mod matrix;
mod owner;
mod rates;
mod repeat;
mod select;
mod shapes;
mod tcp;
mod window;

pub(crate) use features::verified;
use std::time::Duration;

use chaos_user::spec::{Chance, Impairments, Loss, Percent};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Faultline, RuleCounters},
    harness::{Need, Test},
    lab::{Lab, NEAR_DEVICE, Netns, Options, Route},
    traffic::{Pin, Received, Udp},
};

/// The tests of the files below. The slow ones are left out under emulation: they send so much, or compare rates so
/// closely, that there they would take minutes or measure the emulator.
pub(crate) const TESTS: &[Test] = &[
    needing_xdp("loss::rates_in_by_xdp", rates::received).timeout(60).slow(),
    needing_bpf("loss::rates_out_by_tc", rates::sent).timeout(60).slow(),
    needing_bpf("loss::same_seed_same_packets", repeat::same_seed).slow(),
    needing_bpf("loss::every_protocol_in", matrix::received).waits(),
    needing_bpf("loss::every_protocol_out", matrix::sent).waits(),
    needing_xdp("loss::selectors", select::rows).timeout(180).slow().waits(),
    needing_xdp("loss::selectors_of_64_rules", select::all_at_once),
    needing_xdp("loss::rules_count_apart", select::nested),
    needing_xdp("loss::both_is_the_conversation", conversation::both),
    needing_bpf("loss::both_hits_replies_of_real_traffic", conversation::tcp_and_echo),
    needing_bpf("loss::netns_of_a_process", conversation::netns_of_a_process),
    needing_bpf("loss::windows", window::rows).slow(),
    needing_xdp("loss::packet_shapes", shapes::rows).waits(),
    needing_bpf("loss::fragments_of_datagrams", shapes::fragments).slow(),
    needing_bpf("loss::tcp_feels_a_lossy_wire", tcp::like_a_wire).timeout(60).slow(),
    needing_bpf("loss::udp_sender_is_told_nothing", tcp::udp_is_told_nothing),
    needing_bpf("loss::super_packets_are_told", tcp::super_packets).slow().waits(),
    needing_xdp("loss::background_of_each_kind", background::of_each_kind).waits(),
    needing_xdp("loss::background_alone_is_told", background::alone_is_told).timeout(90).waits(),
    needing_bpf("load::each_feature_and_all", features::alone).timeout(120).waits(),
    needing_bpf("load::pairs_of_features", features::pairs).timeout(120).waits(),
    needing_bpf("load::some_shapes", load::some_shapes).timeout(60).waits(),
    needing_bpf("load::every_shape", load::every_shape).timeout(120).slow().waits(),
    needing_xdp("loss::an_owner_that_runs_shields_nobody", owner::shields_nobody).needs(&[
        Need::Root,
        Need::Btf,
        Need::XdpNative,
        Need::Tcx,
    ]),
];

const fn needing_bpf(name: &'static str, run: fn() -> Result) -> Test {
    Test::new(name, run).needs(&[Need::Root, Need::Btf])
}

const fn needing_xdp(name: &'static str, run: fn() -> Result) -> Test {
    Test::new(name, run).needs(&[Need::Root, Need::Btf, Need::XdpNative])
}

const PATIENCE: Duration = Duration::from_secs(30);
/// Of the tests that do not ask for one.
const SEED: u64 = 1;
/// The port of the flow that is aimed at, and that of the bystander.
const PORT: u16 = 5000;
const BYSTANDER_PORT: u16 = 5001;

/// Where a fault sits: on what the interface receives, or on what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::In, Self::Out];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    pub(crate) fn route(self, lab: &Lab, family: crate::lab::Family) -> Route<'_> {
        match self {
            Self::In => lab.inward(family),
            Self::Out => lab.outward(family),
        }
    }
}

/// Two hosts and one aside, each packet one on the wire.
fn lab() -> Result<Lab> {
    Lab::with(Options { wire_packets: true, side: true })
}

/// Arms faults, each as after `faultline net` or `--and`, on `near`'s end of the first wire.
fn arm(lab: &Lab, seed: u64, faults: &[String]) -> Result<Faultline> {
    arm_at(&lab.near, NEAR_DEVICE, seed, faults)
}

fn arm_at(netns: &Netns, device: &str, seed: u64, faults: &[String]) -> Result<Faultline> {
    let arguments = arguments(device, seed, faults);
    let faultline = Faultline::start_in(netns, &words(&arguments))?;
    faultline.wait_event("armed", PATIENCE)?;
    Ok(faultline)
}

fn arguments(device: &str, seed: u64, faults: &[String]) -> String {
    let (first, further) = faults.split_first().map_or(("loss 0%", &[][..]), |(first, more)| (first, more));
    let further: String = further.iter().map(|fault| format!(" --and {fault}")).collect();
    format!("net {first} --dev {device} --seed {seed}{further}")
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Ends faults and returns what their rules counted.
fn end(faultline: &Faultline) -> Result<Vec<RuleCounters>> {
    let exit = faultline.interrupt()?;
    ensure!(exit.code == Some(130), "exit {:?}, not 130; stderr: {}", exit.code, exit.stderr);
    exit.event("summary")?.rules()
}

/// Keeps the test on the first CPU it may run on, so that every packet's fate is that CPU's.
fn first_cpu() -> Result<(usize, Pin)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("no CPU")?;
    Ok((cpu, Pin::to(cpu)?))
}

/// For rules that are loaded without the command.
fn everything_lost() -> Impairments {
    let loss = Loss::Random(Chance { percent: Percent::ALL, correlation: Percent::NONE });
    Impairments { loss: Some(loss), ..Impairments::default() }
}

/// A UDP flow that nothing may happen to.
fn all_arrive(what: &str, flow: &mut Udp, count: u32) -> Result {
    let record = flow.burst(count, PATIENCE)?;
    ensure!(record.refused.is_empty(), "{what}: refused {:?}", record.refused);
    whole(what, &record.received[0])
}

/// Everything came, once, and in order.
fn whole(what: &str, received: &Received) -> Result {
    let Received { duplicates, reordered, foreign, .. } = received;
    ensure!(received.lost() == 0, "{what}: lost {:?}", received.missing());
    ensure!(
        (*duplicates, *reordered, *foreign) == (0, 0, 0),
        "{what}: {duplicates} twice, {reordered} out of order, {foreign} not ours"
    );
    Ok(())
}
