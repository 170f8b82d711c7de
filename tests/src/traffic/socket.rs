//! The socket calls that the standard library has no name for.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use nix::sys::socket::SockaddrStorage;

use crate::error::{Context, Result, check};

/// A new socket of the calling thread's network namespace.
pub(super) fn open(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd.into(), format_args!("socket({domain}, {kind}, {protocol})"))?;
    // SAFETY: a new fd, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option to any plain value: an integer, or the bytes a protocol asks for.
pub(super) fn set<T: Copy>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T, name: &str) -> Result {
    // SAFETY: reads the value, which is as long as its type says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result.into(), format_args!("setsockopt({name})")).map(drop)
}

/// Sets a textual option.
pub(super) fn set_text(socket: BorrowedFd<'_>, level: i32, option: i32, text: &str, name: &str) -> Result {
    // SAFETY: reads the text, whose length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            text.as_ptr().cast(),
            text.len() as libc::socklen_t,
        )
    };
    check(result.into(), format_args!("setsockopt({name}, {text})")).map(drop)
}

/// Room for what one batch can bring, whatever `net.core.rmem_max` says.
pub(super) fn enlarge(socket: BorrowedFd<'_>) -> Result {
    const BYTES: i32 = 4 << 20;
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BYTES, "SO_RCVBUFFORCE")
}

/// Binds a socket to an address; port 0 for raw sockets.
pub(super) fn bind(socket: BorrowedFd<'_>, address: IpAddr) -> Result {
    let storage = SockaddrStorage::from(SocketAddr::new(address, 0));
    nix::sys::socket::bind(socket.as_raw_fd(), &storage).context(format_args!("bind {address}"))
}

/// Connects a socket to an address; port 0 for raw sockets.
pub(super) fn connect(socket: BorrowedFd<'_>, address: IpAddr) -> Result {
    let storage = SockaddrStorage::from(SocketAddr::new(address, 0));
    nix::sys::socket::connect(socket.as_raw_fd(), &storage).context(format_args!("connect {address}"))
}

/// Sends packets on a connected socket: how many the kernel took before it refused one, and why it did.
pub(super) fn send_many(socket: BorrowedFd<'_>, packets: &[Vec<u8>]) -> (usize, Option<io::Error>) {
    let mut parts: Vec<libc::iovec> = packets
        .iter()
        .map(|packet| libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
    // SAFETY: the messages point to `parts` and these to `packets`, all alive; the kernel only reads the bytes.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as libc::c_uint, 0)
    };
    if sent < 0 { (0, Some(io::Error::last_os_error())) } else { (sent as usize, None) }
}

/// Buffers for receiving many packets in one call.
#[derive(Debug)]
pub(super) struct Inbox {
    buffers: Vec<Vec<u8>>,
}

impl Inbox {
    /// For `count` packets a call, each up to `size` bytes.
    pub(super) fn new(count: usize, size: usize) -> Self {
        Self { buffers: vec![vec![0; size]; count] }
    }

    /// Hands over every packet that is there now, without waiting.
    pub(super) fn drain(&mut self, socket: BorrowedFd<'_>, mut take: impl FnMut(&[u8])) -> Result {
        loop {
            let mut parts: Vec<libc::iovec> = self
                .buffers
                .iter_mut()
                .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
            // SAFETY: the messages point to `parts` and these to the buffers, all alive and as long as they say.
            let received = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    messages.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            if received < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    // An ICMP error about an earlier packet; reported once, and the packet counts as lost anyway.
                    Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EINTR) => continue,
                    _ => return Err(error).context("recvmmsg"),
                }
            }
            let received = received as usize;
            for (buffer, message) in self.buffers.iter().zip(&messages[..received]) {
                take(&buffer[..(message.msg_len as usize).min(buffer.len())]);
            }
            if received < self.buffers.len() {
                return Ok(());
            }
        }
    }
}

fn message(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: integers and pointers only, for which zero means absent; musl and glibc differ in private padding.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = part;
    message.msg_hdr.msg_iovlen = 1;
    message
}
