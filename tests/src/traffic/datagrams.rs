//! Sends numbered packets and records which of them arrived, whatever kind of packet it is.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use chaos_user::kernel::clock;

use super::{
    barrier::{BATCH, Barrier, Pin},
    monotonic_ns, sleep_until_ns,
    socket::{Inbox, send_many},
};
use crate::{
    ensure,
    error::{Failure, Result},
    lab::Netns,
};

/// The end of every packet: which transfer it belongs to, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The transfer, so that a late packet of an earlier one is not taken for one of this.
    pub run: u32,
    /// 0 for the first packet.
    pub sequence: u32,
}

const MAGIC: [u8; 4] = *b"flto";

impl Mark {
    /// Length of a mark in bytes.
    pub const LENGTH: usize = 12;

    /// The mark as it is in the packet.
    #[must_use]
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// The mark a packet ends with, if it does.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (magic, numbers) = packet.last_chunk::<{ Self::LENGTH }>()?.split_at(4);
        let number = |place: usize| numbers[place..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        (magic == MAGIC).then_some(Self { run: number(0)?, sequence: number(4)? })
    }
}

/// Which packets of a transfer came to one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// By sequence number.
    pub seen: Vec<bool>,
    /// Packets that came once more.
    pub duplicates: u32,
    /// Packets that came after a later one.
    pub reordered: u32,
    /// Packets that are not of this transfer.
    pub foreign: u32,
    latest: Option<u32>,
}

impl Received {
    fn take(&mut self, packet: &[u8], run: u32) {
        let place = Mark::of(packet).filter(|mark| mark.run == run).map(|mark| mark.sequence);
        let Some((sequence, seen)) = place.and_then(|n| Some((n, self.seen.get_mut(n as usize)?))) else {
            self.foreign += 1;
            return;
        };
        if std::mem::replace(seen, true) {
            self.duplicates += 1;
        }
        if self.latest.is_some_and(|latest| latest > sequence) {
            self.reordered += 1;
        }
        self.latest = self.latest.max(Some(sequence));
    }

    /// How many came, each counted once.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.seen.iter().filter(|seen| **seen).count() as u64
    }

    /// How many did not come.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.seen.len() as u64 - self.count()
    }

    /// The numbers of those that did not come.
    #[must_use]
    pub fn missing(&self) -> Vec<u32> {
        self.seen.iter().zip(0..).filter(|(seen, _)| !**seen).map(|(_, sequence)| sequence).collect()
    }
}

/// One transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// How many packets were sent, those the kernel refused included.
    pub sent: u64,
    /// Packets the sender was told had not been sent, and the errno it was told.
    pub refused: Vec<(u32, i32)>,
    /// When each packet was sent, in [`monotonic_ns`]; only of paced transfers.
    pub sent_at: Vec<u64>,
    /// The last tick by then, which is when it is for the programs: an emulated machine's come late.
    pub ticked_at: Vec<u64>,
    /// At each place where packets are counted, which came.
    pub received: Vec<Received>,
}

/// A way for numbered packets: where they are sent, and where they are counted.
#[derive(Debug)]
pub(super) struct Channel {
    sender: OwnedFd,
    taps: Vec<OwnedFd>,
    barrier: Barrier,
    /// One-way trips until the last tap.
    trips: u32,
    inbox: Inbox,
    run: u32,
    /// How long to wait for a packet that a fault may have delayed, after the last that came.
    linger: Duration,
}

impl Channel {
    /// Of packets sent from `netns` on a connected socket and counted at each of `taps`, `trips` away.
    pub(super) fn new(netns: &Netns, sender: OwnedFd, taps: Vec<OwnedFd>, trips: u32) -> Result<Self> {
        let inbox = Inbox::new(BATCH, 2048);
        let barrier = Barrier::new(netns)?;
        Ok(Self { sender, taps, barrier, trips, inbox, run: 0, linger: Duration::ZERO })
    }

    pub(super) fn set_linger(&mut self, linger: Duration) {
        self.linger = linger;
    }

    /// Sends `count` packets as fast as they are received.
    pub(super) fn burst(
        &mut self,
        count: u32,
        deadline: Duration,
        mut compose: impl FnMut(Mark) -> Vec<u8>,
    ) -> Result<Record> {
        let _pin = Pin::here()?;
        let deadline = Instant::now() + deadline;
        let mut record = self.begin(count);
        // Requests and their replies share the poll list.
        let batch = (BATCH as u32 / self.trips).max(1);
        while record.sent < u64::from(count) {
            ensure!(Instant::now() < deadline, "deadline passed after {} of {count} packets", record.sent);
            let first = record.sent as u32;
            let packets: Vec<Vec<u8>> = (first..count.min(first + batch))
                .map(|sequence| compose(Mark { run: self.run, sequence }))
                .collect();
            self.send(&packets, &mut record)?;
            self.collect(&mut record)?;
        }
        self.wait_for_stragglers(&mut record)?;
        Ok(record)
    }

    /// Sends `count` packets, one each `interval`, and notes when.
    pub(super) fn paced(
        &mut self,
        count: u32,
        interval: Duration,
        mut compose: impl FnMut(Mark) -> Vec<u8>,
    ) -> Result<Record> {
        let _pin = Pin::here()?;
        let mut record = self.begin(count);
        let start = monotonic_ns();
        for sequence in 0..count {
            sleep_until_ns(start + u64::from(sequence) * interval.as_nanos() as u64);
            let packet = compose(Mark { run: self.run, sequence });
            record.sent_at.push(monotonic_ns());
            record.ticked_at.push(clock::monotonic());
            self.send(&[packet], &mut record)?;
            self.collect(&mut record)?;
        }
        self.wait_for_stragglers(&mut record)?;
        Ok(record)
    }

    fn begin(&mut self, count: u32) -> Record {
        // Of the whole process: two flows may share a tap's address.
        static RUNS: AtomicU32 = AtomicU32::new(1);
        self.run = RUNS.fetch_add(1, Ordering::Relaxed);
        let received = Received { seen: vec![false; count as usize], ..Received::default() };
        Record { received: vec![received; self.taps.len()], ..Record::default() }
    }

    fn send(&self, packets: &[Vec<u8>], record: &mut Record) -> Result {
        let mut rest = packets;
        while !rest.is_empty() {
            let (sent, error) = send_many(self.sender.as_fd(), rest);
            record.sent += sent as u64;
            rest = &rest[sent..];
            let Some(errno) = error.as_ref().and_then(io::Error::raw_os_error) else { continue };
            match errno {
                libc::EINTR => {}
                // What a fault may tell the sender; the packet is gone.
                libc::EPERM | libc::ENOBUFS | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETDOWN => {
                    record.refused.push((record.sent as u32, errno));
                    record.sent += 1;
                    rest = &rest[1..];
                }
                _ => return Err(Failure::new(format!("sendmmsg: {}", io::Error::from_raw_os_error(errno)))),
            }
        }
        Ok(())
    }

    fn collect(&mut self, record: &mut Record) -> Result {
        // One round more than trips: what the last trip queued behind the datagram is then before the next.
        self.barrier.wait(self.trips + 1)?;
        self.drain(record)
    }

    fn drain(&mut self, record: &mut Record) -> Result {
        let Self { taps, inbox, run, .. } = self;
        for (tap, received) in taps.iter().zip(&mut record.received) {
            inbox.drain(tap.as_fd(), |packet| received.take(packet, *run))?;
        }
        Ok(())
    }

    /// With a fault that delays: until all is there, or nothing has come for as long as the user said.
    fn wait_for_stragglers(&mut self, record: &mut Record) -> Result {
        let arrived = |record: &Record| record.received.iter().map(Received::count).sum::<u64>();
        let all = record.sent * record.received.len() as u64;
        let (mut before, mut last) = (arrived(record), Instant::now());
        while before < all && last.elapsed() < self.linger {
            sleep_until_ns(monotonic_ns() + 1_000_000);
            self.drain(record)?;
            if arrived(record) > before {
                (before, last) = (arrived(record), Instant::now());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_at_the_end_only() {
        let mark = Mark { run: 7, sequence: 0x0102_0304 };
        let packet = [vec![0xaa; 20], mark.bytes().to_vec()].concat();
        assert_eq!(Mark::of(&packet), Some(mark));
        assert_eq!(Mark::of(&packet[..31]), None);
        assert_eq!(Mark::of(&[packet, vec![0]].concat()), None);
        assert_eq!(Mark::of(&[]), None);
    }

    #[test]
    fn received_packets_are_told_apart() {
        let mut received = Received { seen: vec![false; 4], ..Received::default() };
        let packet = |run, sequence| Mark { run, sequence }.bytes();
        for (run, sequence) in [(1, 0), (1, 3), (1, 2), (1, 2), (2, 1), (1, 4)] {
            received.take(&packet(run, sequence), 1);
        }
        assert_eq!(received.missing(), [1]);
        assert_eq!((received.count(), received.lost()), (3, 1));
        assert_eq!((received.duplicates, received.reordered, received.foreign), (1, 2, 2));
    }
}
