//! What tests need of the machine, found out by doing it.

use std::{env, fmt, fs, os::fd::AsFd, os::unix::fs::PermissionsExt};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use chaos_user::kernel::{
    netlink::{ROOT, Veth},
    sys::{Program, Target, link, load},
};

use crate::{
    error::Result,
    lab::{Netns, Verdict, attach_xdp, returning},
};

const PROBE: &str = "probe";

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// To be root.
    Root,
    /// BTF of the running kernel.
    Btf,
    /// tc programs held by links, from Linux 6.6.
    Tcx,
    /// tc programs on the `clsact` qdisc.
    Clsact,
    /// XDP in veth's driver.
    XdpNative,
    /// The `fq` qdisc.
    SchFq,
    /// A cgroup v2 tree.
    CgroupV2,
    /// A program in `PATH`.
    Program(&'static str),
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Root => "root",
            Self::Btf => "btf",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "xdp_native",
            Self::SchFq => "sch_fq",
            Self::CgroupV2 => "cgroup_v2",
            Self::Program(name) => return write!(formatter, "program:{name}"),
        };
        formatter.write_str(name)
    }
}

/// Whether a need is met; if not, why.
pub(super) fn have(need: &Need) -> std::result::Result<(), String> {
    let tried = |result: Result| result.map_err(|error| error.to_string());
    match need {
        Need::Root => require(nix::unistd::geteuid().is_root(), "not root"),
        Need::Btf => {
            let length = fs::metadata("/sys/kernel/btf/vmlinux").map_or(0, |file| file.len());
            require(length > 0, "no /sys/kernel/btf/vmlinux")
        }
        Need::Tcx => tried(on_loopback(tcx)),
        Need::Clsact => tried(on_loopback(|netns| Ok(netns.netlink()?.add_clsact(1).map(drop)?))),
        Need::XdpNative => tried(on_veth(|netns, _| attach_xdp(netns, PROBE, Verdict::Pass).map(drop))),
        Need::SchFq => {
            tried(on_veth(|netns, index| Ok(netns.netlink()?.add_qdisc(index, ROOT, 0, "fq", &[])?)))
        }
        Need::CgroupV2 => {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            let mounted = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
            require(mounted, "no cgroup2 file system is mounted")
        }
        Need::Program(name) => require(in_path(name), "not in PATH"),
    }
}

fn require(met: bool, otherwise: &str) -> std::result::Result<(), String> {
    if met { Ok(()) } else { Err(otherwise.into()) }
}

fn on_loopback(attempt: impl FnOnce(&Netns) -> Result) -> Result {
    attempt(&Netns::new()?)
}

fn on_veth(attempt: impl FnOnce(&Netns, u32) -> Result) -> Result {
    let netns = Netns::new()?;
    netns.netlink()?.add_veth(&Veth::new(PROBE, "probe-peer"))?;
    attempt(&netns, netns.index(PROBE)?)
}

fn tcx(netns: &Netns) -> Result {
    let attach = bpf_attach_type::BPF_TCX_INGRESS;
    let pass = returning(-1);
    let program = load(&Program {
        name: "probe_tcx",
        kind: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
        attach: None,
        attach_btf_id: 0,
        functions: None,
        flags: 0,
        instructions: &pass,
    })?;
    netns.run(|| Ok(link(program.as_fd(), Target::Interface(1), attach, 0).map(drop)?))
}

fn in_path(name: &str) -> bool {
    let executable = |file: std::path::PathBuf| {
        fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| executable(folder.join(name))))
}
