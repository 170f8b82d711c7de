//! A UDP stream.

use std::{net::UdpSocket, os::fd::AsFd, time::Duration};

use super::{
    datagrams::{Channel, Mark, Record},
    socket::enlarge,
};
use crate::{
    ensure,
    error::{Context, Result},
    lab::Route,
};

/// A UDP flow between two fixed ports.
#[derive(Debug)]
pub struct Udp {
    channel: Channel,
    size: usize,
}

impl Udp {
    /// A flow of 64-byte payloads.
    ///
    /// # Errors
    ///
    /// The kernel's, `EADDRINUSE` if a port is taken.
    pub fn open(route: Route<'_>, source_port: u16, port: u16) -> Result<Self> {
        let Route { from, to, source, target } = route;
        let bind = |address, port| {
            UdpSocket::bind((address, port)).context(format_args!("bind UDP {address} port {port}"))
        };
        let receiver = to.run(|| bind(target, port))?;
        enlarge(receiver.as_fd())?;
        let sender = from.run(|| bind(source, source_port))?;
        sender.connect((target, port)).context(format_args!("connect UDP {target} port {port}"))?;
        let channel = Channel::new(from, sender.into(), vec![receiver.into()], 1)?;
        Ok(Self { channel, size: 64 })
    }

    /// The same with payloads of `size` bytes: at least [`Mark::LENGTH`], at most what one packet holds.
    ///
    /// # Errors
    ///
    /// If the size is not one of these.
    pub fn with_size(mut self, size: usize) -> Result<Self> {
        ensure!((Mark::LENGTH..=1452).contains(&size), "UDP payload of {size} bytes: must be 12 to 1452");
        self.size = size;
        Ok(self)
    }

    /// The same, waiting at the end for packets that a fault holds back, `linger` after the last that came.
    #[must_use]
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.channel.set_linger(linger);
        self
    }

    /// Sends `count` packets as fast as they are received.
    ///
    /// # Errors
    ///
    /// The kernel's, or when `deadline` has passed before all are sent.
    pub fn burst(&mut self, count: u32, deadline: Duration) -> Result<Record> {
        let size = self.size;
        self.channel.burst(count, deadline, |mark| payload(mark, size))
    }

    /// Sends `count` packets, one each `interval`, and notes when.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn paced(&mut self, count: u32, interval: Duration) -> Result<Record> {
        let size = self.size;
        self.channel.paced(count, interval, |mark| payload(mark, size))
    }
}

fn payload(mark: Mark, size: usize) -> Vec<u8> {
    let mut payload = vec![0; size - Mark::LENGTH];
    payload.extend(mark.bytes());
    payload
}
