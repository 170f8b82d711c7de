//! Whole Ethernet frames, as no socket would send them.
//!
//! Each carries its number in its source address: what is behind it may be cut short or tagged, and the kernel
//! takes a tag out of a frame it receives. The destination is an address nobody has, so that no host takes a
//! frame for its own and answers it.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    barrier::{BATCH, Barrier, Pin},
    socket::{self, Inbox, send_many},
};
use crate::{
    ensure,
    error::{Context, Result, check},
    lab::Netns,
};

/// linux/if_packet.h, from Linux 4.20.
const PACKET_IGNORE_OUTGOING: i32 = 23;
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xff];
/// The part of a source address that no real one has here: locally administered, then ours.
const OURS: [u8; 2] = [0x02, 0xfa];

/// A way for frames: an interface they are sent at, and one at which those that get through are counted.
#[derive(Debug)]
pub struct Frames {
    sender: OwnedFd,
    tap: OwnedFd,
    barrier: Barrier,
    inbox: Inbox,
}

impl Frames {
    /// From one interface to the other. The tap sees what native XDP lets through, before tc does.
    ///
    /// # Errors
    ///
    /// The kernel's, `EPERM` without `CAP_NET_RAW`.
    pub fn open(from: (&Netns, &str), to: (&Netns, &str)) -> Result<Self> {
        let sender = packet_socket(from, 0)?;
        let tap = packet_socket(to, libc::ETH_P_ALL as u16)?;
        socket::set(tap.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32, "PACKET_IGNORE_OUTGOING")?;
        socket::enlarge(tap.as_fd())?;
        Ok(Self { sender, tap, barrier: Barrier::new(from.0)?, inbox: Inbox::new(BATCH, 2048) })
    }

    /// Sends frames, given from the `EtherType` on, and says of each how often it came out.
    ///
    /// # Errors
    ///
    /// The kernel's, also that it refused to send one.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<Vec<u32>> {
        let run = run();
        let _pin = Pin::here()?;
        let mut came = vec![0; frames.len()];
        let numbered: Vec<Vec<u8>> =
            (0_u16..).zip(frames).map(|(number, frame)| numbered(run, number, frame)).collect();
        for batch in numbered.chunks(BATCH) {
            let (sent, error) = send_many(self.sender.as_fd(), batch);
            ensure!(sent == batch.len(), "{sent} of {} frames sent, then {error:?}", batch.len());
            self.barrier.wait(2)?;
            self.inbox.drain(self.tap.as_fd(), |frame| {
                if let Some(count) = number(frame, run).and_then(|number| came.get_mut(number)) {
                    *count += 1;
                }
            })?;
        }
        Ok(came)
    }

    /// Sends a frame, given as to [`send`](Self::send), and says how long it took to come out, if it did in this time.
    ///
    /// # Errors
    ///
    /// As of [`send`](Self::send).
    pub fn time(&mut self, frame: &[u8], within: Duration) -> Result<Option<Duration>> {
        let run = run();
        let begun = Instant::now();
        let (sent, error) = send_many(self.sender.as_fd(), &[numbered(run, 0, frame)]);
        ensure!(sent == 1, "the frame is not sent: {error:?}");
        loop {
            let Some(left) = within.checked_sub(begun.elapsed()) else { return Ok(None) };
            let mut polled = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("poll")?;
            let mut came = false;
            self.inbox.drain(self.tap.as_fd(), |frame| came |= number(frame, run).is_some())?;
            if came {
                return Ok(Some(begun.elapsed()));
            }
        }
    }
}

/// That of one call.
fn run() -> [u8; 2] {
    static RUNS: AtomicU16 = AtomicU16::new(1);
    RUNS.fetch_add(1, Ordering::Relaxed).to_be_bytes()
}

fn numbered(run: [u8; 2], number: u16, frame: &[u8]) -> Vec<u8> {
    [&NOBODY, &OURS[..], &run, &number.to_be_bytes(), frame].concat()
}

fn number(frame: &[u8], run: [u8; 2]) -> Option<usize> {
    let [a, b, c, d, high, low] = *frame.get(6..)?.first_chunk()?;
    (a == OURS[0] && b == OURS[1] && [c, d] == run).then_some(u16::from_be_bytes([high, low]).into())
}

fn packet_socket((netns, device): (&Netns, &str), protocol: u16) -> Result<OwnedFd> {
    let index = netns.index(device)?;
    let fd = netns.run(|| socket::open(libc::AF_PACKET, libc::SOCK_RAW, 0))?;
    // SAFETY: integers only, for which zero means absent.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: reads the address, whose length is given.
    let result = unsafe {
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length)
    };
    check(result.into(), format_args!("bind AF_PACKET to {device}"))?;
    Ok(fd)
}
