//! Attaches the programs to an interface, by links that the kernel closes with their owner.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, bpf_attach_type};
use chaos_ebpf::abi::Direction;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    programs::Programs,
    sys::{self, Target},
};
use crate::target::Device;

/// Where a program sits in a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// In the driver, before there is a socket buffer.
    XdpNative,
    /// tc, by a link (Linux 6.6).
    Tcx,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::XdpNative => "XDP (native)",
            Self::Tcx => "tc (tcx)",
        })
    }
}

/// A program on an interface. It is gone when this is dropped, however its owner ends.
#[derive(Debug)]
pub struct Attachment {
    /// Which packets it sees.
    pub direction: Direction,
    /// Where.
    pub hook: Hook,
    /// Why there and not at a cheaper hook.
    pub why: String,
    /// The kernel's number of the program.
    pub program: u32,
    /// The kernel's number of the link.
    pub id: u32,
    link: OwnedFd,
}

impl Attachment {
    /// Attaches the program for one direction at the cheapest hook that can do it.
    ///
    /// # Errors
    ///
    /// The kernel's answer for the last hook there is.
    pub fn new(programs: &mut Programs, device: &Device, direction: Direction) -> Result<Self> {
        let refused = match direction {
            Direction::Out => None,
            Direction::In => match native_xdp(programs, device) {
                Ok(link) => {
                    let why = "the cheapest hook: the driver runs XDP itself";
                    return Self::linked(direction, Hook::XdpNative, why.into(), link);
                }
                Err(error) => Some(error),
            },
        };
        let attach = match direction {
            Direction::In => bpf_attach_type::BPF_TCX_INGRESS,
            Direction::Out => bpf_attach_type::BPF_TCX_EGRESS,
        };
        let program = programs.tc(direction)?.as_fd();
        let link = sys::link(program, Target::Interface(device.ifindex), attach, 0)?;
        let why = refused.unwrap_or_else(|| "what is sent passes no earlier hook".into());
        Self::linked(direction, Hook::Tcx, why, link)
    }

    fn linked(direction: Direction, hook: Hook, why: String, link: OwnedFd) -> Result<Self> {
        let info = sys::link_info(link.as_fd())?;
        Ok(Self { direction, hook, why, program: info.program, id: info.id, link })
    }

    /// Whether the interface is still there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn alive(&self) -> Result<bool> {
        Ok(sys::link_info(self.link.as_fd())?.ifindex != 0)
    }

    /// The link.
    #[must_use]
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// A link, or why there is none.
///
/// Without `XDP_FLAGS_DRV_MODE` the kernel would run the program after it has made a socket buffer, which
/// costs more than tc does; without a link (netlink's way) it would outlive a crash.
fn native_xdp(programs: &mut Programs, device: &Device) -> std::result::Result<OwnedFd, String> {
    if device.link_header == 0 {
        return Err(format!("no XDP on {}: its packets have no Ethernet header", device.name));
    }
    let attach = |programs: &mut Programs| -> Result<OwnedFd> {
        let program = programs.xdp()?.as_fd();
        sys::link(program, Target::Interface(device.ifindex), bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE)
    };
    attach(programs).map_err(|error: Error| match error.errno() {
        libc::EBUSY => format!("no XDP on {}: another XDP program is there", device.name),
        libc::EOPNOTSUPP => format!("no XDP on {}: its driver does not run it", device.name),
        _ => format!("no XDP on {}: {error}", device.name),
    })
}
