//! Knowing that the kernel is done with what was sent.

use std::net::UdpSocket;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::PATIENCE;
use crate::{
    error::{Context, Result},
    lab::Netns,
};

/// Keeps the thread on one CPU until dropped.
#[derive(Debug)]
pub struct Pin {
    before: CpuSet,
}

impl Pin {
    /// On the CPU it runs on now.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn here() -> Result<Self> {
        Self::to(sched_getcpu().context("getcpu")?)
    }

    /// On this CPU.
    ///
    /// # Errors
    ///
    /// The kernel's, `EINVAL` if there is no such CPU.
    pub fn to(cpu: usize) -> Result<Self> {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).context("sched_getaffinity")?;
        let mut one = CpuSet::new();
        one.set(cpu).context("CPU_SET")?;
        sched_setaffinity(this, &one).context(format_args!("sched_setaffinity to CPU {cpu}"))?;
        Ok(Self { before })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // A CPU that went meanwhile leaves the thread where the kernel put it, which is as good.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// A datagram to ourselves over loopback, which waits its turn behind what this CPU has queued already.
///
/// veth and loopback hand packets to the CPU's NAPI poll list, which is served first come, first served, 64
/// packets at a time (`net_rx_action` and `process_backlog` in net/core/dev.c). So if not more than 64 packets
/// went out before from this CPU, they have been through every hook of a one-way trip once the datagram is
/// back; each further round covers one more trip (a reply, say).
#[derive(Debug)]
pub(super) struct Barrier {
    socket: UdpSocket,
    count: u64,
}

/// How many packets may go out between two barriers.
pub(super) const BATCH: usize = 64;

impl Barrier {
    /// Of packets sent from `netns`.
    pub(super) fn new(netns: &Netns) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0").context("bind 127.0.0.1"))?;
        socket.connect(socket.local_addr().context("getsockname")?).context("connect to itself")?;
        socket.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
        Ok(Self { socket, count: 0 })
    }

    /// Waits until everything this thread has sent since it is [pinned](Pin) has arrived or is lost.
    pub(super) fn wait(&mut self, rounds: u32) -> Result {
        for _ in 0..rounds {
            self.count += 1;
            self.socket.send(&self.count.to_ne_bytes()).context("barrier: send on loopback")?;
            let mut answer = [0; 8];
            while u64::from_ne_bytes(answer) != self.count {
                self.socket.recv(&mut answer).context("barrier: receive on loopback")?;
            }
        }
        Ok(())
    }
}
