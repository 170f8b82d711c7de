//! One TCP connection that carries as much as it can.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use super::{
    PATIENCE,
    counters::Counters,
    socket,
    tcp_info::{TcpInfo, Wire},
};
use crate::{
    error::{Context, Failure, Result},
    lab::Route,
};

/// How a connection is used.
#[derive(Clone, Copy, Debug)]
pub struct Bulk<'a> {
    /// The port connected to.
    pub port: u16,
    /// How long data is sent.
    pub time: Duration,
    /// Congestion control; `reno` is there in every kernel.
    pub congestion: &'a str,
}

/// What it carried.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes the receiver read in time.
    pub bytes: u64,
    /// How long that was.
    pub elapsed: Duration,
    /// Segments the sender sent again.
    pub retransmits: u64,
    /// Data segments' way. The last ones may still be in flight.
    pub forward: Wire,
    /// Acknowledgements' way.
    pub backward: Wire,
    /// What the sender's network namespace counted meanwhile.
    pub counters: Counters,
}

impl Transfer {
    /// Bits per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }

    /// Retransmitted segments per segment sent.
    #[must_use]
    pub fn retransmit_rate(&self) -> f64 {
        self.retransmits as f64 / self.forward.sent.max(1) as f64
    }
}

impl Bulk<'_> {
    /// Connects, sends, and counts.
    ///
    /// # Errors
    ///
    /// The kernel's, also that no connection could be made.
    pub fn run(self, route: Route<'_>) -> Result<Transfer> {
        let (client, server) = self.connect(route)?;
        let counters = Counters::read(route.from)?;
        let before = (TcpInfo::of(&client)?, TcpInfo::of(&server)?);
        let start = Instant::now();
        let deadline = start + self.time;
        let bytes = thread::scope(|scope| {
            let sender = scope.spawn(|| send_until(&client, deadline));
            let bytes = receive_until(&server, deadline);
            sender.join().map_err(|_| Failure::new("the sending thread panicked"))??;
            bytes
        })?;
        let elapsed = start.elapsed();
        let after = (TcpInfo::of(&client)?, TcpInfo::of(&server)?);
        let counters = Counters::read(route.from)?.since(&counters);
        let grown = |now: u32, then: u32| now.wrapping_sub(then);
        let mut transfer = Transfer {
            bytes,
            elapsed,
            retransmits: grown(after.0.retransmits, before.0.retransmits).into(),
            forward: Wire::default(),
            backward: Wire::default(),
            counters,
        };
        let ((client0, server0), (client, server)) = (before, after);
        transfer.forward.add(
            grown(client.segments_out, client0.segments_out),
            grown(server.segments_in, server0.segments_in),
        );
        transfer.backward.add(
            grown(server.segments_out, server0.segments_out),
            grown(client.segments_in, client0.segments_in),
        );
        Ok(transfer)
    }

    fn connect(self, route: Route<'_>) -> Result<(TcpStream, TcpStream)> {
        let Route { from, to, target, .. } = route;
        let address = (target, self.port);
        let listener =
            to.run(|| TcpListener::bind(address).context(format_args!("listen on {address:?}")))?;
        let client = from.run(|| {
            TcpStream::connect_timeout(&address.into(), PATIENCE).context(format_args!("connect {address:?}"))
        })?;
        let (server, _) = listener.accept().context("accept")?;
        for end in [&client, &server] {
            let name = "TCP_CONGESTION";
            socket::set_text(end.as_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, self.congestion, name)?;
            // So that both threads look at the clock though nothing moves.
            end.set_read_timeout(Some(Duration::from_millis(10))).context("SO_RCVTIMEO")?;
            end.set_write_timeout(Some(Duration::from_millis(10))).context("SO_SNDTIMEO")?;
        }
        Ok((client, server))
    }
}

fn send_until(mut socket: &TcpStream, deadline: Instant) -> Result {
    let data = vec![0; 256 * 1024];
    while Instant::now() < deadline {
        match socket.write(&data) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("TCP send"),
        }
    }
    Ok(())
}

fn receive_until(mut socket: &TcpStream, deadline: Instant) -> Result<u64> {
    let mut data = vec![0; 256 * 1024];
    let mut bytes = 0;
    while Instant::now() < deadline {
        match socket.read(&mut data) {
            Ok(0) => return Err(Failure::new("the sender closed the connection")),
            Ok(length) => bytes += length as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("TCP receive"),
        }
    }
    Ok(bytes)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
