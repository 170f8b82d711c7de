//! A tc program without a link, for kernels before 6.6: a direct-action filter on `clsact`.
//!
//! Nothing closes such a filter with its owner. Without the owner's lease it does nothing but cost a few
//! nanoseconds, and its [`Trace`] says enough to remove it later, from whichever process does.

use std::os::fd::BorrowedFd;

use chaos_ebpf::abi::Direction;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    netlink::{BpfFilter, Direction as Side, Filter as Listed, Netlink},
};

/// What must be removed, to be written down before it is made. The program's number is never given again, so
/// nobody else's filter can be taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The interface's number, in the network namespace that the caller has to enter.
    pub ifindex: u32,
    /// Which side of it.
    pub direction: Direction,
    /// The program's number.
    pub program: u32,
    /// Whether the `clsact` was made for the filter.
    pub clsact: bool,
}

/// A filter that is there until it is dropped.
#[derive(Debug)]
pub struct Filter {
    trace: Trace,
}

fn side(direction: Direction) -> Side {
    match direction {
        Direction::In => Side::Ingress,
        Direction::Out => Side::Egress,
    }
}

impl Trace {
    /// What is going to be done. Nothing is changed yet.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn plan(ifindex: u32, direction: Direction, program: u32) -> Result<Self> {
        let clsact = !has_clsact(&mut Netlink::open()?, ifindex)?;
        Ok(Self { ifindex, direction, program, clsact })
    }

    /// Whether the filter is there. An interface that is gone has none.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_there(&self) -> Result<bool> {
        Ok(self.find(&mut Netlink::open()?)?.is_some())
    }

    fn find(&self, netlink: &mut Netlink) -> Result<Option<Listed>> {
        match netlink.filters(self.ifindex, side(self.direction)) {
            Ok(filters) => Ok(filters.into_iter().find(|filter| filter.program == Some(self.program))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the filter if it is there, and the `clsact` if it was made for it and nobody else uses it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn remove(&self) -> Result<()> {
        let mut netlink = Netlink::open()?;
        if let Some(Listed { priority, handle, .. }) = self.find(&mut netlink)? {
            gone_is_fine(netlink.delete_filter(self.ifindex, side(self.direction), priority, handle))?;
        }
        if self.clsact && self.is_unused(&mut netlink)? {
            gone_is_fine(netlink.delete_clsact(self.ifindex))?;
        }
        Ok(())
    }

    /// Whether there is a `clsact` with nothing on it.
    fn is_unused(&self, netlink: &mut Netlink) -> Result<bool> {
        if !has_clsact(netlink, self.ifindex)? {
            return Ok(false);
        }
        for side in [Side::Ingress, Side::Egress] {
            if !netlink.filters(self.ifindex, side)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Filter {
    /// Makes what was planned.
    ///
    /// # Errors
    ///
    /// The kernel's; what was made until then is removed.
    pub fn add(trace: Trace, program: BorrowedFd<'_>, name: &str) -> Result<Self> {
        let mut netlink = Netlink::open()?;
        // From here on `drop` removes what there is.
        let filter = Self { trace };
        netlink.add_clsact(trace.ifindex)?;
        netlink.add_bpf_filter(&BpfFilter {
            index: trace.ifindex,
            direction: side(trace.direction),
            // Before all that are there, as a tcx program would be.
            priority: 0,
            handle: 0,
            program,
            name,
        })?;
        Ok(filter)
    }

    /// What must be removed.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // What cannot be removed is in the journal; the owner's last step looks whether it is there, and says so.
        let _ = self.trace.remove();
    }
}

fn has_clsact(netlink: &mut Netlink, ifindex: u32) -> Result<bool> {
    match netlink.qdiscs(ifindex) {
        Ok(qdiscs) => Ok(qdiscs.iter().any(|qdisc| qdisc.kind == "clsact")),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// No such interface, or no `clsact` on it.
fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), libc::ENODEV | libc::ENOENT | libc::EINVAL)
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}
