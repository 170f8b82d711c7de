//! Offers more than a wire carries, for the least work: packets go out and are taken in many at a time.

use std::{
    net::UdpSocket,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::{
    monotonic_ns, sleep_until_ns,
    socket::{Inbox, enlarge, send_many},
};
use crate::{
    error::{Context, Failure, Result},
    lab::Route,
};

/// A flow of datagrams that is counted and not looked at.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Payload in bytes.
    pub size: usize,
    /// Packets a second, as far as they can be sent.
    pub offered: f64,
    /// How long.
    pub time: Duration,
}

impl Flood {
    /// Sends, and returns how many packets had come by which [`monotonic_ns`] time.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn run(self, route: Route<'_>) -> Result<Vec<(u64, u64)>> {
        let Route { from, to, source, target } = route;
        let bind = |address| UdpSocket::bind((address, 0)).context(format_args!("bind UDP {address}"));
        let receiver = to.run(|| bind(target))?;
        enlarge(receiver.as_fd())?;
        let sender = from.run(|| bind(source))?;
        let address = receiver.local_addr().context("getsockname")?;
        sender.connect(address).context(format_args!("connect UDP {address}"))?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let counting = scope.spawn(|| count(&receiver, &over));
            let sent = self.send(&sender);
            over.store(true, Ordering::Relaxed);
            let counted = counting.join().map_err(|_| Failure::new("the receiving thread panicked"))?;
            sent.and(counted)
        })
    }

    fn send(self, sender: &UdpSocket) -> Result {
        const BATCH: usize = 16;
        let packets = vec![vec![0; self.size]; BATCH];
        let start = monotonic_ns();
        let end = start + self.time.as_nanos() as u64;
        let mut sent = 0;
        while monotonic_ns() < end {
            sleep_until_ns(start + (sent as f64 / self.offered * 1e9) as u64);
            // One that the kernel refuses was offered as well.
            let (taken, error) = send_many(sender.as_fd(), &packets);
            match error.as_ref().and_then(std::io::Error::raw_os_error) {
                None | Some(libc::ENOBUFS | libc::EINTR) => sent += taken.max(1),
                Some(_) => return Err(Failure::new(format!("sendmmsg: {error:?}"))),
            }
        }
        Ok(())
    }
}

fn count(receiver: &UdpSocket, over: &AtomicBool) -> Result<Vec<(u64, u64)>> {
    const PAUSE: u64 = 2_000_000;
    let mut inbox = Inbox::new(64, 2048);
    let (mut counts, mut count) = (Vec::new(), 0);
    while !over.load(Ordering::Relaxed) {
        sleep_until_ns(monotonic_ns() + PAUSE);
        inbox.drain(receiver.as_fd(), |_| count += 1)?;
        counts.push((monotonic_ns(), count));
    }
    Ok(counts)
}
