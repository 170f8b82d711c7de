//! What the kernel has counted on one TCP socket.

use std::{
    net::TcpStream,
    os::fd::{AsRawFd, RawFd},
};

use crate::error::{Failure, Result, check};

/// The fields of `struct tcp_info` (linux/tcp.h) that are asked for here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Segments sent and not yet acknowledged.
    pub unacked: u32,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// Segments sent: data, acknowledgements and all that was sent again.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
}

impl TcpInfo {
    /// Of a connected socket.
    ///
    /// # Errors
    ///
    /// The kernel's, or if it is older than 4.6.
    pub fn of(socket: &TcpStream) -> Result<Self> {
        Self::of_fd(socket.as_raw_fd())
    }

    fn of_fd(fd: RawFd) -> Result<Self> {
        let mut bytes = [0_u8; 256];
        let mut length = bytes.len() as libc::socklen_t;
        // SAFETY: writes at most `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        check(result.into(), "getsockopt(TCP_INFO)")?;
        let number = |offset: usize| {
            bytes[..length as usize]
                .get(offset..)
                .and_then(<[u8]>::first_chunk)
                .map(|number| u32::from_ne_bytes(*number))
                .ok_or_else(|| Failure::new(format!("TCP_INFO of {length} bytes has nothing at {offset}")))
        };
        Ok(Self {
            unacked: number(24)?,
            retransmits: number(100)?,
            segments_out: number(136)?,
            segments_in: number(140)?,
        })
    }
}

/// Segments of one direction, on the wire: all that one end sent, and what of it came to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Sent, retransmissions and acknowledgements included.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Wire {
    /// What was lost on the way.
    #[must_use]
    pub fn lost(self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    pub(super) fn add(&mut self, sent: u32, received: u32) {
        self.sent += u64::from(sent);
        self.received += u64::from(received);
    }
}
