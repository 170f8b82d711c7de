//! What packets go through: XDP, tc and qdiscs, on a veth pair in a network namespace that nobody else sees.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_prog_type};
use nix::sched::{CloneFlags, unshare};

use super::{Answer, M, Refusal, insn::Code, sentence};
use crate::host::Use;
use crate::kernel::{
    Error, Result,
    netlink::{BpfFilter, Direction, Netlink, ROOT, Veth},
    sys::{self, Program, Target},
};

const MECHANISMS: [M; 7] = [M::XdpNative, M::XdpGeneric, M::Tcx, M::Clsact, M::SchFq, M::SchNetem, M::Ifb];
const XDP_PASS: i32 = 2;
/// `TC_ACT_UNSPEC`: whoever comes next decides.
const UNSPEC: i32 = -1;
/// Handle of a qdisc to try.
const HANDLE: u32 = 0x10_0000;

/// All of them. For a thread that ends with it: it moves to another network namespace.
pub(super) fn probe() -> Vec<(M, Answer)> {
    let mut lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => {
            let untried = || Err(Refusal::Untried(format!("not tried: {}", sentence(&error))));
            return MECHANISMS.into_iter().map(|mechanism| (mechanism, untried())).collect();
        }
    };
    let native = if lab.is_veth {
        let native = lab.xdp(XDP_FLAGS_DRV_MODE).map_err(Refusal::from);
        native.map(|()| Some("tried on veth; each driver of real hardware decides for itself".into()))
    } else {
        let cause = format!("not tried: making a veth pair takes {}", Use::Interfaces.takes());
        Err(Refusal::Untried(cause))
    };
    vec![
        (M::XdpNative, native),
        (M::XdpGeneric, answer(lab.xdp(XDP_FLAGS_SKB_MODE))),
        (M::Tcx, answer(lab.tcx())),
        (M::Clsact, answer(lab.clsact())),
        (M::SchFq, answer(lab.qdisc("fq", &[]))),
        (M::SchNetem, answer(lab.qdisc("netem", &netem_options()))),
        (M::Ifb, answer(lab.netlink.add_link("doctor_ifb", "ifb"))),
    ]
}

fn answer(result: Result<()>) -> Answer {
    result.map(|()| None).map_err(Refusal::from)
}

struct Lab {
    netlink: Netlink,
    index: u32,
    is_veth: bool,
}

/// The loopback interface, which every network namespace begins with.
const LOOPBACK: u32 = 1;

impl Lab {
    fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Error::new("unshare(CLONE_NEWNET)", "a network namespace to try things in", errno.into())
        })?;
        let mut netlink = Netlink::open()?;
        if !Use::Interfaces.is_allowed() {
            // Links do without the right to change interfaces.
            return Ok(Self { netlink, index: LOOPBACK, is_veth: false });
        }
        netlink.add_veth(&Veth::new("doctor", "doctor_peer"))?;
        let index = netlink.link_by_name("doctor")?.map_or(0, |link| link.index);
        Ok(Self { netlink, index, is_veth: true })
    }

    fn xdp(&self, mode: u32) -> Result<()> {
        let kind = bpf_prog_type::BPF_PROG_TYPE_XDP;
        let program = load("doctor_xdp", kind, XDP_PASS)?;
        sys::link(program.as_fd(), Target::Interface(self.index), bpf_attach_type::BPF_XDP, mode).map(drop)
    }

    fn tcx(&self) -> Result<()> {
        let program = classifier()?;
        for hook in [bpf_attach_type::BPF_TCX_INGRESS, bpf_attach_type::BPF_TCX_EGRESS] {
            sys::link(program.as_fd(), Target::Interface(self.index), hook, 0)?;
        }
        Ok(())
    }

    fn clsact(&mut self) -> Result<()> {
        let program = classifier()?;
        self.netlink.add_clsact(self.index)?;
        let attach = |direction| BpfFilter {
            index: self.index,
            direction,
            priority: 1,
            handle: 1,
            program: program.as_fd(),
            name: "doctor",
        };
        self.netlink.add_bpf_filter(&attach(Direction::Ingress))?;
        self.netlink.add_bpf_filter(&attach(Direction::Egress))?;
        self.netlink.delete_clsact(self.index)
    }

    fn qdisc(&mut self, kind: &str, options: &[u8]) -> Result<()> {
        self.netlink.add_qdisc(self.index, ROOT, HANDLE, kind, options)?;
        self.netlink.delete_qdisc(self.index, ROOT, HANDLE)
    }
}

fn classifier() -> Result<OwnedFd> {
    load("doctor_tc", bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, UNSPEC)
}

/// A program that always gives the same verdict.
fn load(name: &str, kind: bpf_prog_type, verdict: i32) -> Result<OwnedFd> {
    let code = Code::default().exit(verdict);
    sys::load(&Program {
        name,
        kind,
        attach: None,
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })
}

/// `struct tc_netem_qopt`, without which there is no netem: latency, limit, loss, gap, duplicate, jitter.
fn netem_options() -> Vec<u8> {
    [0_u32, 1000, 0, 0, 0, 0].iter().flat_map(|number| number.to_ne_bytes()).collect()
}
