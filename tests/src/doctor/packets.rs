//! Real packets on a wire of our own: lost by programs, held back by qdiscs.

use std::{
    fs,
    net::UdpSocket,
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_func_id, bpf_prog_type,
};
use chaos_user::kernel::{
    netlink::{BpfFilter, Direction, Netlink, ROOT},
    probe::insn::Code,
    sys::{Target, link},
};

use super::load;
use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::program,
    lab::{Family, Lab, NEAR_DEVICE, Netns},
    traffic::{PATIENCE, Udp},
};

const COUNT: u32 = 200;
const XDP_DROP: i32 = 1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;
/// What qdiscs are asked for.
const DELAY: Duration = Duration::from_millis(100);
const HANDLE: u32 = 0x10_0000;
/// Of `__sk_buff`: when to send the packet.
const TSTAMP: i16 = 152;

pub(super) fn xdp_native() -> Result {
    check_loss(Direction::Ingress, |lab| xdp(lab, XDP_FLAGS_DRV_MODE))
}

pub(super) fn xdp_generic() -> Result {
    check_loss(Direction::Ingress, |lab| xdp(lab, XDP_FLAGS_SKB_MODE))
}

pub(super) fn tcx() -> Result {
    check_loss(Direction::Ingress, |lab| tcx_link(lab, bpf_attach_type::BPF_TCX_INGRESS))?;
    check_loss(Direction::Egress, |lab| tcx_link(lab, bpf_attach_type::BPF_TCX_EGRESS))
}

pub(super) fn clsact() -> Result {
    for direction in [Direction::Ingress, Direction::Egress] {
        check_loss(direction, |lab| {
            Clsact::new(&lab.near, NEAR_DEVICE, direction, Code::default().exit(SHOT))
        })?;
    }
    Ok(())
}

/// `fq` alone holds nothing back; with a program that says when, it does.
pub(super) fn sch_fq() -> Result {
    let lab = Lab::new()?;
    let before = one_way(&lab)?;
    let qdisc = Qdisc::new(&lab.near, "fq", &[])?;
    let unstamped = one_way(&lab)?;
    let stamp = Code::default()
        .copy(6, 1)
        .call(bpf_func_id::BPF_FUNC_ktime_get_ns)
        .add(0, DELAY.as_nanos() as i32)
        .store_register(6, TSTAMP, 0)
        .exit(-1);
    let program = Clsact::new(&lab.near, NEAR_DEVICE, Direction::Egress, stamp)?;
    let during = one_way(&lab)?;
    drop(program);
    drop(qdisc);
    check_delay(&[before, unstamped], during, one_way(&lab)?)
}

pub(super) fn sch_netem() -> Result {
    /// A tick of netem's is 64 ns.
    const LATENCY: u32 = (DELAY.as_nanos() / 64) as u32;
    let lab = Lab::new()?;
    let before = one_way(&lab)?;
    // `struct tc_netem_qopt`: latency, limit, loss, gap, duplicate, jitter.
    let options: Vec<u8> =
        [LATENCY, 1000, 0, 0, 0, 0].iter().flat_map(|number| number.to_ne_bytes()).collect();
    let qdisc = Qdisc::new(&lab.near, "netem", &options)?;
    let during = one_way(&lab)?;
    drop(qdisc);
    check_delay(&[before], during, one_way(&lab)?)
}

/// Packets that arrive take the way through the interface, where they can be lost as if they were leaving.
pub(super) fn ifb() -> Result {
    const NAME: &str = "fl-ifb";
    let lab = Lab::new()?;
    let mut flow = Udp::open(lab.inward(Family::V4), 4000, 5000)?;
    let mut lost = || lost(&mut flow);
    let before = lost()?;
    let mut netlink = lab.near.netlink()?;
    netlink.add_link(NAME, "ifb")?;
    let index = lab.near.index(NAME)?;
    netlink.set_up(index, true)?;
    let redirected = redirect(&lab.near, NAME)?;
    let through = lost()?;
    let shot = Clsact::new(&lab.near, NAME, Direction::Egress, Code::default().exit(SHOT))?;
    let shot_there = lost()?;
    drop(redirected);
    let past = lost()?;
    drop(shot);
    netlink.delete_link(index)?;
    let seen = [before, through, shot_there, past, lost()?];
    ensure!(
        seen == [0, 0, COUNT.into(), 0, 0],
        "of {COUNT} lost {seen:?}: before, through ifb, shot in ifb, past ifb, after"
    );
    Ok(())
}

/// Sends what arrives at near's interface to another. Before Linux 6.4 ifb drops what a program redirects to it, and
/// takes what the action `mirred` does.
fn redirect(netns: &Netns, to: &str) -> Result<Clsact> {
    let index = netns.index(to)?.cast_signed();
    let code =
        Code::default().set(1, index).set(2, 0).call(bpf_func_id::BPF_FUNC_redirect).exit_with_result();
    if since_6_4()? {
        return Clsact::new(netns, NEAR_DEVICE, Direction::Ingress, code);
    }
    let held = Clsact::empty(netns, NEAR_DEVICE)?;
    let words = ["filter", "add", "dev", NEAR_DEVICE, "ingress", "matchall", "action", "mirred", "egress"];
    let mut tc = Command::new(program("tc").context("no program tc")?);
    tc.args(words).args(["redirect", "dev", to]);
    let status = netns.run(|| tc.status().context("tc"))?;
    ensure!(status.success(), "tc: {status}");
    Ok(held)
}

fn since_6_4() -> Result<bool> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(RELEASE).context(RELEASE)?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    Ok((numbers.next(), numbers.next()) >= (Some(6), Some(4)))
}

/// Everything that goes through near's interface in this direction is lost while what `attach` gives is held,
/// and nothing that goes in the other.
fn check_loss<T>(direction: Direction, attach: impl FnOnce(&Lab) -> Result<T>) -> Result {
    let lab = Lab::new()?;
    let (hit, spared) = match direction {
        Direction::Ingress => (lab.inward(Family::V4), lab.outward(Family::V4)),
        Direction::Egress => (lab.outward(Family::V4), lab.inward(Family::V4)),
    };
    let (mut hit, mut spared) = (Udp::open(hit, 4000, 5000)?, Udp::open(spared, 4001, 5001)?);
    let mut lost = || Ok::<_, Failure>([lost(&mut hit)?, lost(&mut spared)?]);
    let before = lost()?;
    let held = attach(&lab)?;
    let during = lost()?;
    drop(held);
    let seen = [before, during, lost()?];
    ensure!(
        seen == [[0, 0], [COUNT.into(), 0], [0, 0]],
        "{direction:?}: of {COUNT} lost before, during, after, there and the other way: {seen:?}"
    );
    Ok(())
}

/// How many of [`COUNT`] packets do not arrive.
fn lost(flow: &mut Udp) -> Result<u64> {
    Ok(flow.burst(COUNT, PATIENCE)?.received[0].lost())
}

fn check_delay(before: &[Duration], during: Duration, after: Duration) -> Result {
    println!("one way: {before:?}, asked for {DELAY:?} more {during:?}, after {after:?}");
    for undelayed in before.iter().chain([&after]) {
        ensure!(*undelayed < DELAY / 2, "{undelayed:?} one way without a delay");
    }
    ensure!((DELAY..2 * DELAY).contains(&during), "{during:?} one way with a delay of {DELAY:?}");
    Ok(())
}

/// How long the fastest of a few packets takes from near to far.
fn one_way(lab: &Lab) -> Result<Duration> {
    let route = lab.outward(Family::V4);
    let bind = |address| UdpSocket::bind((address, 0)).context(format_args!("bind {address}"));
    let receiver = route.to.run(|| bind(route.target))?;
    let sender = route.from.run(|| bind(route.source))?;
    let target = receiver.local_addr().context("getsockname")?;
    receiver.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    let mut fastest = PATIENCE;
    for _ in 0..5 {
        let start = Instant::now();
        sender.send_to(b"one way", target).context("send")?;
        receiver.recv(&mut [0; 16]).context("receive")?;
        fastest = fastest.min(start.elapsed());
    }
    Ok(fastest)
}

fn xdp(lab: &Lab, mode: u32) -> Result<OwnedFd> {
    let program = load(bpf_prog_type::BPF_PROG_TYPE_XDP, None, 0, &Code::default().exit(XDP_DROP))?;
    link_near(lab, &program, bpf_attach_type::BPF_XDP, mode)
}

fn tcx_link(lab: &Lab, hook: bpf_attach_type) -> Result<OwnedFd> {
    let program = load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None, 0, &Code::default().exit(SHOT))?;
    link_near(lab, &program, hook, 0)
}

fn link_near(lab: &Lab, program: &OwnedFd, hook: bpf_attach_type, flags: u32) -> Result<OwnedFd> {
    let target = Target::Interface(lab.near.index(NEAR_DEVICE)?);
    lab.near.run(|| Ok(link(program.as_fd(), target, hook, flags)?))
}

/// A `clsact` qdisc and what is on it, until dropped.
struct Clsact {
    netlink: Netlink,
    index: u32,
}

impl Clsact {
    fn new(netns: &Netns, device: &str, direction: Direction, code: Code) -> Result<Self> {
        let program = load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None, 0, &code)?;
        let mut clsact = Self::empty(netns, device)?;
        let (index, priority, handle, name) = (clsact.index, 1, 1, "fl-test");
        let program = program.as_fd();
        clsact.netlink.add_bpf_filter(&BpfFilter { index, direction, priority, handle, program, name })?;
        Ok(clsact)
    }

    fn empty(netns: &Netns, device: &str) -> Result<Self> {
        let (mut netlink, index) = (netns.netlink()?, netns.index(device)?);
        netlink.add_clsact(index)?;
        Ok(Self { netlink, index })
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        // If not now, then with the namespace.
        let _ = self.netlink.delete_clsact(self.index);
    }
}

/// The root qdisc of near's interface, until dropped.
struct Qdisc {
    netlink: Netlink,
    index: u32,
}

impl Qdisc {
    fn new(netns: &Netns, kind: &str, options: &[u8]) -> Result<Self> {
        let (mut netlink, index) = (netns.netlink()?, netns.index(NEAR_DEVICE)?);
        netlink.add_qdisc(index, ROOT, HANDLE, kind, options)?;
        Ok(Self { netlink, index })
    }
}

impl Drop for Qdisc {
    fn drop(&mut self) {
        // If not now, then with the namespace.
        let _ = self.netlink.delete_qdisc(self.index, ROOT, HANDLE);
    }
}
