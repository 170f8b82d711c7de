//! Permanent neighbour entries: who is where is known from the start, and no ARP or neighbour discovery packet
//! is ever sent that a fault could hit or a counter could count.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::error::{Failure, Result, check};

const REQUEST_ACK_CREATE_REPLACE: u16 =
    (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// Adds an entry to the calling thread's network namespace.
pub(super) fn add_permanent(index: u32, address: IpAddr, link_address: &[u8]) -> Result {
    let object = format!("neighbour {address} on interface {index}");
    // SAFETY: takes no pointers.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    check(fd.into(), "socket(AF_NETLINK)")?;
    // SAFETY: a new fd, which nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = message(index, address, link_address);
    // SAFETY: the request is as long as it says. An unbound netlink socket sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    check(sent as i64, &object)?;
    let mut answer = [0_u8; 512];
    // SAFETY: writes at most the answer's length.
    let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    check(length as i64, &object)?;
    // `struct nlmsghdr`, then the negative errno of `struct nlmsgerr`.
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        errno => Err(Failure::new(format!("{object}: {}", std::io::Error::from_raw_os_error(-errno)))),
    }
}

/// `struct nlmsghdr`, `struct ndmsg` and two attributes.
fn message(index: u32, address: IpAddr, link_address: &[u8]) -> Vec<u8> {
    let (family, destination) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![family as u8, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    for (kind, value) in [(NDA_DST, destination.as_slice()), (NDA_LLADDR, link_address)] {
        body.extend((value.len() as u16 + 4).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWNEIGH.to_ne_bytes());
    message.extend(REQUEST_ACK_CREATE_REPLACE.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}
