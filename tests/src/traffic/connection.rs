//! A TCP connection by both its ends.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    ensure,
    error::{Context, Result},
};

/// A connection that stands.
#[derive(Debug)]
pub struct Connection {
    /// The end that asked for it.
    pub client: TcpStream,
    /// The other.
    pub server: TcpStream,
}

/// What is said on a connection is heard at once, or not at all.
const SOON: Duration = Duration::from_millis(300);

/// How long a listener takes to hear of one, in milliseconds; much longer than anywhere, for it is rarely waited for.
const LONGEST: u16 = 2000;

impl Connection {
    /// One to this listener; `connect` asks for it, from wherever that is to come.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open(
        listener: &TcpListener,
        connect: impl FnOnce(SocketAddr) -> Result<TcpStream>,
    ) -> Result<Self> {
        let client = connect(listener.local_addr().context("getsockname")?)?;
        // It may stand for the client alone.
        let mut come = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        ensure!(
            poll(&mut come, PollTimeout::from(LONGEST)).context("poll")? == 1,
            "the listener hears of no connection"
        );
        Ok(Self { client, server: listener.accept().context("accept")?.0 })
    }

    /// Asks for one from here.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn connect(at: SocketAddr) -> Result<TcpStream> {
        TcpStream::connect(at).context("connect")
    }

    /// Whether what is said on one side is heard on the other soon.
    ///
    /// # Errors
    ///
    /// The kernel's, also where the connection is broken.
    pub fn works(&mut self) -> Result<bool> {
        self.server.set_read_timeout(Some(SOON)).context("SO_RCVTIMEO")?;
        self.client.write_all(b"?").context("send")?;
        Ok(self.server.read(&mut [0; 1]).is_ok())
    }

    /// What an end hears next within this time: how many bytes, or the error.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn hears(mut end: &TcpStream, longest: Duration) -> Result<io::Result<usize>> {
        end.set_read_timeout(Some(longest)).context("SO_RCVTIMEO")?;
        Ok(end.read(&mut [0; 64]))
    }
}
