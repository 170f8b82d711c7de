//! A tc program without a link, for kernels before 6.6: a direct-action filter on `clsact`.
//!
//! Nothing closes such a filter with its owner. Without the owner's lease it does nothing but cost a few
//! nanoseconds.

use std::os::fd::BorrowedFd;

use chaos_ebpf::abi::Direction;

use super::{
    Result, gone,
    netlink::{BpfFilter, Direction as Side, Filter, Netlink},
};

fn side(direction: Direction) -> Side {
    match direction {
        Direction::In => Side::Ingress,
        Direction::Out | Direction::Connect | Direction::Call => Side::Egress,
    }
}

/// The filter that runs the program of this number, if it is there. An interface that is gone has none.
///
/// # Errors
///
/// The kernel's.
pub fn find(
    netlink: &mut Netlink,
    ifindex: u32,
    direction: Direction,
    program: u32,
) -> Result<Option<Filter>> {
    let filters = gone::is_nothing(netlink.filters(ifindex, side(direction)))?.unwrap_or_default();
    Ok(filters.into_iter().find(|filter| filter.program == Some(program)))
}

/// Puts a program before all others on an interface that has a `clsact`.
///
/// # Errors
///
/// The kernel's.
pub fn add(ifindex: u32, direction: Direction, program: BorrowedFd<'_>, name: &str) -> Result<()> {
    Netlink::open()?.add_bpf_filter(&BpfFilter {
        index: ifindex,
        direction: side(direction),
        // Before all that are there.
        priority: 0,
        handle: 0,
        program,
        name,
    })
}

/// Removes the filter that runs the program of this number, if it is there.
///
/// # Errors
///
/// The kernel's.
pub fn remove(ifindex: u32, direction: Direction, program: u32) -> Result<()> {
    let mut netlink = Netlink::open()?;
    if let Some(Filter { priority, handle, .. }) = find(&mut netlink, ifindex, direction, program)? {
        gone::is_nothing(netlink.delete_filter(ifindex, side(direction), priority, handle))?;
    }
    Ok(())
}

/// Whether the interface has a `clsact`.
///
/// # Errors
///
/// The kernel's.
pub fn has_clsact(netlink: &mut Netlink, ifindex: u32) -> Result<bool> {
    let qdiscs = gone::is_nothing(netlink.qdiscs(ifindex))?.unwrap_or_default();
    Ok(qdiscs.iter().any(|qdisc| qdisc.kind == "clsact"))
}

/// Removes the `clsact` if there is one with nothing on it.
///
/// # Errors
///
/// The kernel's.
pub fn remove_clsact(ifindex: u32) -> Result<()> {
    let mut netlink = Netlink::open()?;
    if !has_clsact(&mut netlink, ifindex)? {
        return Ok(());
    }
    for side in [Side::Ingress, Side::Egress] {
        if !netlink.filters(ifindex, side)?.is_empty() {
            return Ok(());
        }
    }
    gone::is_nothing(netlink.delete_clsact(ifindex)).map(drop)
}
