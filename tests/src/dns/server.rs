//! A name server that has an address for every name, and queries for it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Context, Result},
    lab::Netns,
};

pub(super) const PORT: u16 = 53;
pub(super) const A: u16 = 1;
pub(super) const AAAA: u16 = 28;
/// What every name has.
pub(super) const ADDRESS: &str = "10.9.9.9";
const ADDRESS4: [u8; 4] = [10, 9, 9, 9];

/// It ends with the process.
pub(super) struct Server(Arc<AtomicU64>);

impl Server {
    pub(super) fn start(netns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let count = Arc::new(AtomicU64::new(0));
        for address in addresses.iter().copied() {
            let udp = netns.run(|| UdpSocket::bind((address, PORT)).context("bind"))?;
            let tcp = netns.run(|| TcpListener::bind((address, PORT)).context("listen"))?;
            let counted = Arc::clone(&count);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = udp.send_to(&answer(&buffer[..length]), client);
                }
            });
            let counted = Arc::clone(&count);
            thread::spawn(move || {
                for mut client in tcp.incoming().flatten() {
                    let counted = Arc::clone(&counted);
                    // A query that is lost keeps the others from nothing.
                    thread::spawn(move || {
                        let Ok(query) = receive(&mut client) else { return };
                        counted.fetch_add(1, Ordering::SeqCst);
                        let _ = client.write_all(&with_length(&answer(&query)));
                    });
                }
            });
        }
        Ok(Self(count))
    }

    /// How many queries have come.
    pub(super) fn asked(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn receive(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn with_length(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// With one record; what is no query comes back as it is.
fn answer(query: &[u8]) -> Vec<u8> {
    let Some(end) = question_end(query).filter(|_| query[2] & 0xf8 == 0) else { return query.to_vec() };
    let record: &[u8] = match u16::from_be_bytes([query[end - 4], query[end - 3]]) {
        A => &ADDRESS4,
        AAAA => &[0xfd; 16],
        _ => &[],
    };
    let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], &query[12..end]].concat();
    // The name of the question; its type, class and 60 s.
    answer
        .extend([&[0xc0, 12], &query[end - 4..end], &[0, 0, 0, 60, 0, record.len() as u8], record].concat());
    answer
}

fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return (at + 5 <= message.len()).then_some(at + 5),
            label => at += label + 1,
        }
    }
}

/// A query as resolvers send it.
pub(super) fn query(id: u16, name: &str, record: u16) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0x20, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([&[0], &record.to_be_bytes()[..], &[0, 1]].concat());
    message
}

/// What came of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Records.
    Records,
    /// An answer without, with this RCODE.
    Without(u8),
    /// No answer in time.
    Nothing,
    /// The connection was reset.
    Reset,
}

/// Who asks, over UDP and TCP.
pub(super) struct Client {
    udp: UdpSocket,
    server: SocketAddr,
    patience: Duration,
}

impl Client {
    /// Made wherever the caller is, in this network namespace.
    pub(super) fn new(netns: &Netns, server: IpAddr, patience: Duration) -> Result<Self> {
        let server = SocketAddr::new(server, PORT);
        let udp = netns.run(|| {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let udp = UdpSocket::bind(any).context("bind")?;
            udp.connect(server).context("connect")?;
            Ok(udp)
        })?;
        udp.set_read_timeout(Some(patience)).context("SO_RCVTIMEO")?;
        Ok(Self { udp, server, patience })
    }

    /// Sends this, and what comes back within the time.
    pub(super) fn exchange(&self, message: &[u8]) -> Result<Option<Vec<u8>>> {
        self.udp.send(message).context("send")?;
        let deadline = Instant::now() + self.patience;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            // What comes late belongs to an earlier one.
            match self.udp.recv(&mut buffer) {
                Ok(length) if buffer[..2] == message[..2] => return Ok(Some(buffer[..length].to_vec())),
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    pub(super) fn ask(&self, name: &str, record: u16) -> Result<Outcome> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let query = query(IDS.fetch_add(1, Ordering::Relaxed) as u16, name, record);
        outcome(&query, self.exchange(&query)?)
    }

    /// The same over TCP, on a connection of its own, with the query in one segment.
    pub(super) fn ask_by_tcp(&self, netns: &Netns, name: &str) -> Result<Outcome> {
        let query = query(7, name, A);
        let mut stream = netns.run(|| TcpStream::connect(self.server).context("connect"))?;
        stream.set_read_timeout(Some(self.patience)).context("SO_RCVTIMEO")?;
        stream.write_all(&with_length(&query)).context("send")?;
        match receive(&mut stream) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Outcome::Reset),
            received => outcome(&query, received.ok()),
        }
    }
}

/// An answer must repeat the question, and say that it is one.
fn outcome(query: &[u8], answer: Option<Vec<u8>>) -> Result<Outcome> {
    let Some(answer) = answer else { return Ok(Outcome::Nothing) };
    let end = question_end(query).context("no question")?;
    let right = answer.len() >= end && answer[2] & 0xf9 == 0x81 && answer[12..end] == query[12..end];
    crate::ensure!(right, "no answer to {query:?}: {answer:?}");
    let records = u16::from_be_bytes([answer[6], answer[7]]);
    Ok(if records == 0 { Outcome::Without(answer[3] & 0xf) } else { Outcome::Records })
}
