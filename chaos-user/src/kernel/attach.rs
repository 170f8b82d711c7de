//! Attaches the programs to an interface, by the first mechanism of the table that works.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::programs::ProgramFd;
use aya_obj::generated::{BPF_F_BEFORE, XDP_FLAGS_DRV_MODE, bpf_attach_type};
use chaos_ebpf::abi::{Direction, program};

use super::{
    Error, Result,
    change::{self, Change, Ledger},
    filter,
    mechanism::{Fault, Mechanism, common},
    netlink::Netlink,
    programs::Programs,
    sys::{self, Target},
};
use crate::{
    host::{Demands, Use},
    spec::shown,
    target::Device,
};

/// A program on an interface.
#[derive(Debug)]
pub struct Attachment {
    /// Which packets it sees.
    pub direction: Direction,
    /// By what it is held there.
    pub mechanism: Mechanism,
    /// Why by that and not by a cheaper one.
    pub why: String,
    /// The kernel's number of the program.
    pub program: u32,
    hold: Hold,
}

/// What keeps a program attached.
#[derive(Debug)]
enum Hold {
    /// Closed by the kernel with its owner, however that ends. With its number.
    Link(OwnedFd, u32),
    /// On this interface, until it is removed.
    Filter(u32),
}

impl Attachment {
    /// Attaches the program for one direction.
    ///
    /// # Errors
    ///
    /// What was said of the last mechanism that was tried.
    pub fn new(
        programs: &mut Programs,
        device: &Device,
        faults: &[Fault],
        direction: Direction,
        ledger: &mut dyn Ledger,
    ) -> Result<Self> {
        let mut refusals: Vec<String> = Vec::new();
        let mut last = None;
        for mechanism in common(faults, direction) {
            match hold(programs, device, direction, mechanism, ledger) {
                Ok((program, hold)) => {
                    let why = match &refusals[..] {
                        [] => "the first choice, and it works here".into(),
                        refusals => refusals.join("; "),
                    };
                    return Ok(Self { direction, mechanism, why, program, hold });
                }
                Err(error) => {
                    refusals.push(refusal(mechanism, device, &error));
                    last = Some(error);
                }
            }
        }
        let nothing = || Error::new("look-up", "a mechanism", io::ErrorKind::Unsupported.into());
        Err(last.unwrap_or_else(nothing))
    }

    /// Attaches the programs of `connect(2)` to a cgroup, for IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn to_cgroup(programs: &mut Programs, cgroup: &Path) -> Result<[Self; 2]> {
        let folder = File::open(cgroup).map_err(|source| Error::new("open", shown::name(cgroup), source))?;
        let [v4, v6] = program::CONNECT;
        let (folder, mechanism) = (folder.as_fd(), Mechanism::CgroupConnect);
        let of_v4 = bpf_attach_type::BPF_CGROUP_INET4_CONNECT;
        let of_v6 = bpf_attach_type::BPF_CGROUP_INET6_CONNECT;
        Ok([
            Self::by_cgroup(programs.connect(v4)?, folder, of_v4, mechanism)?,
            Self::by_cgroup(programs.connect(v6)?, folder, of_v6, mechanism)?,
        ])
    }

    /// Attaches the program of new sockets to a cgroup.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of_sockets(programs: &mut Programs, cgroup: &Path) -> Result<Self> {
        let folder = File::open(cgroup).map_err(|source| Error::new("open", shown::name(cgroup), source))?;
        let hook = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE;
        Self::by_cgroup(programs.socket()?, folder.as_fd(), hook, Mechanism::CgroupSock)
    }

    fn by_cgroup(
        program: &ProgramFd,
        folder: BorrowedFd<'_>,
        hook: bpf_attach_type,
        mechanism: Mechanism,
    ) -> Result<Self> {
        let link = sys::link(program.as_fd(), Target::File(folder), hook, 0)?;
        let info = sys::link_info(link.as_fd())?;
        Ok(Self {
            direction: Direction::Connect,
            mechanism,
            why: "the only choice, and it works here".into(),
            program: info.program,
            hold: Hold::Link(link, info.id),
        })
    }

    /// The link's number, if a link holds it.
    #[must_use]
    pub fn link(&self) -> Option<u32> {
        match &self.hold {
            Hold::Link(_, id) => Some(*id),
            Hold::Filter(_) => None,
        }
    }

    /// Whether it is still there: it goes with its interface, or its cgroup.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn alive(&self) -> Result<bool> {
        match &self.hold {
            Hold::Link(link, _) => Ok(sys::link_info(link.as_fd())?.ifindex != 0),
            Hold::Filter(ifindex) => {
                let found = filter::find(&mut Netlink::open()?, *ifindex, self.direction, self.program)?;
                Ok(found.is_some())
            }
        }
    }
}

fn hold(
    programs: &mut Programs,
    device: &Device,
    direction: Direction,
    mechanism: Mechanism,
    ledger: &mut dyn Ledger,
) -> Result<(u32, Hold)> {
    match mechanism {
        // Without XDP_FLAGS_DRV_MODE the kernel would run the program after it has made a socket buffer, which
        // costs more than tc does; without a link (netlink's way) it would outlive a crash.
        Mechanism::XdpNative if device.ethernet => {
            let program = programs.xdp()?.as_fd();
            linked(sys::link(program, interface(device), bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE)?)
        }
        Mechanism::Tcx => {
            let attach = match direction {
                Direction::In => bpf_attach_type::BPF_TCX_INGRESS,
                Direction::Out | Direction::Connect | Direction::Call => bpf_attach_type::BPF_TCX_EGRESS,
            };
            // Before all that are there: one of those may end the chain (TC_ACT_OK), or redirect.
            let program = programs.tc(direction)?.as_fd();
            linked(sys::link(program, interface(device), attach, BPF_F_BEFORE)?)
        }
        Mechanism::Clsact => filtered(programs, device, direction, ledger),
        _ => Err(Error::new("attach", mechanism.name(), io::ErrorKind::Unsupported.into())),
    }
}

fn interface(device: &Device) -> Target<'static> {
    Target::Interface(device.ifindex)
}

fn linked(link: OwnedFd) -> Result<(u32, Hold)> {
    let info = sys::link_info(link.as_fd())?;
    Ok((info.program, Hold::Link(link, info.id)))
}

fn filtered(
    programs: &mut Programs,
    device: &Device,
    direction: Direction,
    ledger: &mut dyn Ledger,
) -> Result<(u32, Hold)> {
    let name = match direction {
        Direction::In => program::TC_IN,
        Direction::Out | Direction::Connect | Direction::Call => program::TC_OUT,
    };
    let program = programs.tc(direction)?.as_fd();
    let id = sys::program_info(program)?.id;
    let ifindex = device.ifindex;
    // Nothing is written down that could not be put back.
    let demands = Demands { uses: vec![Use::Interfaces], changes: true };
    demands.check().map_err(|error| Error::new("attach", &device.name, io::Error::other(error)))?;
    let _held = ledger.hold().map_err(change::unwritten)?;
    change::clsact(ifindex, ledger)?;
    ledger.note(Change::Filter { ifindex, direction, program: id }).map_err(change::unwritten)?;
    filter::add(ifindex, direction, program, name)?;
    Ok((id, Hold::Filter(ifindex)))
}

/// Why a mechanism was passed over, for people.
fn refusal(mechanism: Mechanism, device: &Device, error: &Error) -> String {
    let Device { name, ethernet, .. } = device;
    match (mechanism, error.errno()) {
        (Mechanism::XdpNative, _) if !ethernet => format!("no XDP: {name} has no Ethernet header"),
        (Mechanism::XdpNative, libc::EBUSY) => format!("no XDP: another XDP program is on {name}"),
        (Mechanism::XdpNative, libc::EOPNOTSUPP) => format!("no XDP: the driver of {name} does not run it"),
        (Mechanism::Tcx, libc::EINVAL) => "no tcx: it needs Linux 6.6".into(),
        _ => format!("no {mechanism}: {error}"),
    }
}
