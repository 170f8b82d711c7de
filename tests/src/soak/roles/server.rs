//! The other end of a wire: says whatever it is told back, by UDP and by TCP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use super::say;
use crate::error::{Context, Failure, Result};

/// Where datagrams go, questions as for names, and connections.
pub(super) const DATAGRAMS: u16 = 5000;
pub(super) const QUESTIONS: u16 = 53;
pub(super) const CONNECTIONS: u16 = 6000;

/// Longer than anybody here is silent on a connection that stands.
const SILENCE: Duration = Duration::from_secs(20);

/// Serves until it is killed.
pub(super) fn run() -> Result {
    for port in [DATAGRAMS, QUESTIONS] {
        let socket = UdpSocket::bind(("0.0.0.0", port)).context(format_args!("bind UDP {port}"))?;
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            loop {
                // What comes back of an earlier answer, and a peer that is gone, are no concern of the next.
                if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..length], from);
                }
            }
        });
    }
    let listener = TcpListener::bind(("0.0.0.0", CONNECTIONS)).context("bind TCP")?;
    say(format_args!("ready"))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || echo(stream));
    }
    Err(Failure::new("the listener has ended"))
}

fn echo(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    stream.set_nodelay(true).ok()?;
    let mut bytes = [0; 2048];
    loop {
        let length = stream.read(&mut bytes).ok().filter(|length| *length > 0)?;
        stream.write_all(&bytes[..length]).ok()?;
    }
}
