//! Measures one-way delays: UDP packets that carry when they were sent, and the kernel's word on when each came.

use std::{
    io::IoSliceMut,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};

use super::{Pin, monotonic_ns, sleep_until_ns, socket::enlarge};
use crate::{
    error::{Context, Failure, Result},
    lab::Route,
};

/// A flow of probes between two fixed ports.
#[derive(Debug)]
pub struct Probe {
    sender: UdpSocket,
    receiver: UdpSocket,
}

/// What is sent: how many, how often, how large, and how long to wait for what does not come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Packets.
    pub count: u32,
    /// Between two of them; nothing for as fast as can be.
    pub interval: Duration,
    /// Payload in bytes, at least 20.
    pub size: usize,
    /// After the last packet that came.
    pub linger: Duration,
}

/// A probe that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its place among those sent.
    pub sequence: u32,
    /// From its sending until the kernel took it in, in nanoseconds.
    pub delay: i64,
    /// From then until the program had it.
    pub handed_over: i64,
    /// When the kernel took it in, `CLOCK_REALTIME` nanoseconds.
    pub came: i64,
    /// Whether the payload is as it was sent.
    pub intact: bool,
}

const HEADER: usize = 20;
const MAGIC: [u8; 4] = *b"flpr";

impl Probe {
    /// A flow.
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
        setsockopt(&receiver, ReceiveTimestampns, &true).context("setsockopt(SO_TIMESTAMPNS)")?;
        let sender = from.run(|| bind(source, source_port))?;
        sender.connect((target, port)).context(format_args!("connect UDP {target} port {port}"))?;
        Ok(Self { sender, receiver })
    }

    /// Sends probes, and returns those that came in the order in which they did, and how many were sent.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn run(&self, pace: Pace) -> Result<(Vec<Arrival>, u32)> {
        static RUNS: AtomicU32 = AtomicU32::new(1);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let all_sent = OnceLock::new();
        thread::scope(|scope| {
            let receive = scope.spawn(|| self.receive(run, pace, &all_sent));
            let sent = self.send(run, pace);
            // On a machine that stands still this is later than its pace has it.
            all_sent.get_or_init(Instant::now);
            let arrivals = receive.join().map_err(|_| Failure::new("the receiving thread panicked"))??;
            Ok((arrivals, sent?))
        })
    }

    fn send(&self, run: u32, pace: Pace) -> Result<u32> {
        // Packets that go from one CPU do not overtake each other on another.
        let _pin = Pin::here()?;
        let start = monotonic_ns();
        let mut sent = 0;
        for sequence in 0..pace.count {
            if !pace.interval.is_zero() {
                sleep_until_ns(start + u64::from(sequence) * pace.interval.as_nanos() as u64);
            }
            let mut payload = Vec::with_capacity(pace.size);
            payload.extend(MAGIC);
            payload.extend(run.to_be_bytes());
            payload.extend(sequence.to_be_bytes());
            payload.extend(realtime()?.to_be_bytes());
            payload.resize(pace.size.max(HEADER), sequence as u8);
            match self.sender.send(&payload) {
                Ok(_) => sent += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        Ok(sent)
    }

    fn receive(&self, run: u32, pace: Pace, all_sent: &OnceLock<Instant>) -> Result<Vec<Arrival>> {
        self.receiver.set_read_timeout(Some(Duration::from_millis(20))).context("SO_RCVTIMEO")?;
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut last = Instant::now();
        loop {
            let mut buffer = [0; 2048];
            let mut control = nix::cmsg_space!(TimeSpec);
            let received = {
                let mut parts = [IoSliceMut::new(&mut buffer)];
                match recvmsg::<()>(
                    self.receiver.as_raw_fd(),
                    &mut parts,
                    Some(&mut control),
                    MsgFlags::empty(),
                ) {
                    Ok(message) => {
                        let time = message.cmsgs().context("recvmsg")?.find_map(|control| match control {
                            ControlMessageOwned::ScmTimestampns(time) => Some(time),
                            _ => None,
                        });
                        Some((message.bytes, time.context("no SO_TIMESTAMPNS")?))
                    }
                    Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => None,
                    Err(errno) => return Err(errno).context("recvmsg"),
                }
            };
            let had = realtime()?;
            if let Some((length, time)) = received {
                let came = nanoseconds(time);
                if let Some(arrival) = read(&buffer[..length], run, pace.size, came, had) {
                    arrivals.push(arrival);
                    last = Instant::now();
                }
                continue;
            }
            let Some(all_sent) = all_sent.get() else { continue };
            // Nothing came for a moment: what comes twice would have come by now as well.
            let all = arrivals.len() as u32 >= pace.count;
            if all || Instant::now() > last.max(*all_sent) + pace.linger {
                return Ok(arrivals);
            }
        }
    }
}

fn read(payload: &[u8], run: u32, size: usize, came: i64, had: i64) -> Option<Arrival> {
    let word = |place: usize| Some(u32::from_be_bytes(*payload.get(place..)?.first_chunk()?));
    // A corrupted number is nobody's packet, or one that comes twice; the payload behind is what is looked at.
    if payload.len() != size.max(HEADER) || word(4)? != run {
        return None;
    }
    let sequence = word(8)?;
    let sent = i64::from_be_bytes(*payload.get(12..)?.first_chunk()?);
    let intact = payload[..4] == MAGIC && payload[HEADER..].iter().all(|byte| *byte == sequence as u8);
    Some(Arrival { sequence, delay: came - sent, handed_over: had - came, came, intact })
}

fn realtime() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).context("clock_gettime")?;
    Ok(nanoseconds(time))
}

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}
