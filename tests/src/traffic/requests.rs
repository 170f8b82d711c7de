//! TCP requests and responses on many connections at once, and the loss on the wire below them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    PATIENCE,
    barrier::{Barrier, Pin},
    socket,
    tcp_info::{TcpInfo, Wire},
};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::patience,
    lab::Route,
};

/// Every request and every response is this long.
const MESSAGE: usize = 64;
/// linux/tcp.h. A connection that sends little retries at the same pace instead of ever more slowly.
const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;

/// Connections on which small requests are answered by small responses, one at a time each.
#[derive(Debug)]
pub struct Requests {
    pairs: Vec<Pair>,
    barrier: Barrier,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// This many segments have been sent forward on all connections together, within a time.
    Segments(u64, Duration),
    /// This much time has passed.
    Elapsed(Duration),
}

/// One phase.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exchange {
    /// Requests answered.
    pub answered: u64,
    /// Segments from the client to the server.
    pub forward: Wire,
    /// Segments from the server to the client.
    pub backward: Wire,
    /// Segments that were sent again, by either end.
    pub retransmits: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Both ends of a connection.
#[derive(Debug)]
struct Pair {
    client: End,
    server: End,
    answered: u64,
    /// Whether a request is under way.
    busy: bool,
}

#[derive(Debug)]
struct End {
    stream: TcpStream,
    /// How much of the message being received is there.
    have: usize,
}

/// The counters of all sockets at one moment at which nothing was on its way.
type Snapshot = Vec<(TcpInfo, TcpInfo)>;

impl Requests {
    /// Connects `connections` times to `port`.
    ///
    /// # Errors
    ///
    /// The kernel's, also that no connection could be made.
    pub fn open(route: Route<'_>, port: u16, connections: usize) -> Result<Self> {
        let Route { from, to, source, target } = route;
        let listener =
            to.run(|| TcpListener::bind((target, port)).context(format_args!("listen on {port}")))?;
        let pairs = from.run(|| {
            (0..connections).map(|_| Pair::connect(source, (target, port).into(), &listener)).collect()
        })?;
        Ok(Self { pairs, barrier: Barrier::new(from)? })
    }

    /// Exchanges requests and responses until told.
    ///
    /// # Errors
    ///
    /// The kernel's, or if the segments asked for take too long.
    pub fn run(&mut self, until: Until) -> Result<Exchange> {
        let _pin = Pin::here()?;
        let start = Instant::now();
        let before = self.snapshot()?;
        let answered_before = self.answered();
        match until {
            Until::Elapsed(time) => self.work(start + time)?,
            Until::Segments(wanted, patience) => {
                while sum(&before, &self.infos()?).forward.sent < wanted {
                    let passed = start.elapsed();
                    ensure!(passed < patience, "fewer than {wanted} segments in {patience:?}");
                    self.work(Instant::now() + Duration::from_millis(20).min(patience - passed))?;
                }
            }
        }
        let after = self.snapshot()?;
        Ok(Exchange {
            answered: self.answered() - answered_before,
            elapsed: start.elapsed(),
            ..sum(&before, &after)
        })
    }

    fn answered(&self) -> u64 {
        self.pairs.iter().map(|pair| pair.answered).sum()
    }

    fn work(&mut self, deadline: Instant) -> Result {
        loop {
            for pair in self.pairs.iter_mut().filter(|pair| !pair.busy) {
                pair.client.send()?;
                pair.busy = true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let ready = self.wait(left)?;
            for (pair, (client, server)) in self.pairs.iter_mut().zip(ready) {
                pair.step(client, server)?;
            }
        }
    }

    /// Which clients and which servers have something to read.
    fn wait(&self, time: Duration) -> Result<Vec<(bool, bool)>> {
        let ends = self.pairs.iter().flat_map(|pair| [&pair.client, &pair.server]);
        let mut polled: Vec<PollFd<'_>> =
            ends.map(|end| PollFd::new(end.stream.as_fd(), PollFlags::POLLIN)).collect();
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, time) {
            Err(nix::errno::Errno::EINTR) | Ok(_) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let ready = |polled: &PollFd<'_>| polled.any().unwrap_or(false);
        Ok(polled.chunks_exact(2).map(|pair| (ready(&pair[0]), ready(&pair[1]))).collect())
    }

    fn infos(&self) -> Result<Snapshot> {
        let both = |pair: &Pair| Ok((TcpInfo::of(&pair.client.stream)?, TcpInfo::of(&pair.server.stream)?));
        self.pairs.iter().map(both).collect()
    }

    /// Timers may send at any time, so the counters of the two ends agree only if none did while they were read
    /// and delivered.
    fn snapshot(&mut self) -> Result<Snapshot> {
        let deadline = Instant::now() + patience(PATIENCE);
        while Instant::now() < deadline {
            let before = self.infos()?;
            self.barrier.wait(2)?;
            let after = self.infos()?;
            if before == after {
                return Ok(after);
            }
        }
        Err(Failure::new(format!("the connections were not quiet for a moment in {PATIENCE:?}")))
    }
}

fn sum(before: &Snapshot, after: &Snapshot) -> Exchange {
    let mut exchange = Exchange::default();
    for ((client0, server0), (client, server)) in before.iter().zip(after) {
        let grown = |now: u32, then: u32| now.wrapping_sub(then);
        exchange.forward.add(
            grown(client.segments_out, client0.segments_out),
            grown(server.segments_in, server0.segments_in),
        );
        exchange.backward.add(
            grown(server.segments_out, server0.segments_out),
            grown(client.segments_in, client0.segments_in),
        );
        exchange.retransmits += u64::from(grown(client.retransmits, client0.retransmits))
            + u64::from(grown(server.retransmits, server0.retransmits));
    }
    exchange
}

impl Pair {
    fn connect(source: IpAddr, target: SocketAddr, listener: &TcpListener) -> Result<Self> {
        let client = TcpStream::connect_timeout(&target, PATIENCE)
            .context(format_args!("connect {source} to {target}"))?;
        let (server, _) = listener.accept().context("accept")?;
        Ok(Self { client: End::new(client)?, server: End::new(server)?, answered: 0, busy: false })
    }

    fn step(&mut self, client_ready: bool, server_ready: bool) -> Result {
        if server_ready && self.server.receive()? {
            self.server.send()?;
        }
        if client_ready && self.client.receive()? {
            self.answered += 1;
            self.busy = false;
        }
        Ok(())
    }
}

impl End {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        let fd = stream.as_fd();
        socket::set(fd, libc::IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &1_i32, "TCP_THIN_LINEAR_TIMEOUTS")?;
        Ok(Self { stream, have: 0 })
    }

    /// One message, which always fits: there is never more than one on its way.
    fn send(&mut self) -> Result {
        let sent = self.stream.write(&[0x5a; MESSAGE]).context("TCP send")?;
        ensure!(sent == MESSAGE, "TCP took {sent} of {MESSAGE} bytes");
        Ok(())
    }

    /// Reads what is there; true once a whole message is.
    fn receive(&mut self) -> Result<bool> {
        match self.stream.read(&mut [0; MESSAGE][self.have..]) {
            Ok(0) => Err(Failure::new("the peer closed the connection")),
            Ok(length) => {
                self.have = (self.have + length) % MESSAGE;
                Ok(self.have == 0)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error).context("TCP receive"),
        }
    }
}
