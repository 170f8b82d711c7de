//! Every operation on sockets: the target's fail as asked, those of others work.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use nix::errno::Errno;

use super::{
    fault::Fault,
    operator::{Operator, Pair, errno},
};
use crate::{
    ensure,
    error::{Context, Result},
    inventory::Inventory,
};

/// One call, and the operation it is.
struct Case {
    op: &'static str,
    call: &'static str,
    run: fn(&Sockets<'_>) -> Result<i64>,
}

const INET: u64 = libc::AF_INET as u64;
const STREAM: u64 = libc::SOCK_STREAM as u64;
const DATAGRAM: u64 = libc::SOCK_DGRAM as u64;
const NOW: u64 = libc::MSG_DONTWAIT as u64;
const ADDRESS_LENGTH: u64 = 16;

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { op: "create", call: "socket", run: |s| s.opens(libc::SYS_socket, &[INET, STREAM, 0]) },
    Case { op: "create", call: "socket AF_UNIX", run: |s| s.opens(libc::SYS_socket, &[libc::AF_UNIX as u64, STREAM, 0]) },
    Case { op: "bind", call: "bind", run: |s| s.call(libc::SYS_bind, &[s.unbound, s.address(0)?, ADDRESS_LENGTH]) },
    Case { op: "listen", call: "listen", run: |s| s.call(libc::SYS_listen, &[s.bound, 1]) },
    Case { op: "accept", call: "accept4", run: |s| s.opens(libc::SYS_accept4, &[s.listening, 0, 0, 0]) },
    Case { op: "connect", call: "connect", run: |s| s.call(libc::SYS_connect, &[s.unconnected, s.address(s.port()?)?, ADDRESS_LENGTH]) },
    Case { op: "sendmsg", call: "sendto", run: |s| s.call(libc::SYS_sendto, &[s.connected, s.operator.bytes(0, b"said")?, 4, 0, 0, 0]) },
    Case { op: "sendmsg", call: "write", run: |s| s.call(libc::SYS_write, &[s.connected, s.operator.bytes(0, b"said")?, 4]) },
    Case { op: "recvmsg", call: "recvfrom", run: |s| s.call(libc::SYS_recvfrom, &[s.connected, s.operator.buffer(0), 100, NOW, 0, 0]) },
    Case { op: "recvmsg", call: "read", run: |s| s.call(libc::SYS_read, &[s.connected, s.operator.buffer(0), 100]) },
];

/// What somebody has open before the fault, so that each operation alone can fail.
struct Sockets<'a> {
    operator: &'a Operator,
    unbound: u64,
    bound: u64,
    /// Somebody has connected to it already.
    listening: u64,
    unconnected: u64,
    /// Datagrams wait in it.
    connected: u64,
    server: TcpListener,
    _client: TcpStream,
    _peer: UdpSocket,
}

impl<'a> Sockets<'a> {
    fn new(operator: &'a Operator) -> Result<Self> {
        let socket = |kind| operator.must("socket", libc::SYS_socket, &[INET, kind, 0]);
        let [unbound, bound, listening, unconnected] =
            [socket(STREAM)?, socket(STREAM)?, socket(STREAM)?, socket(STREAM)?];
        let connected = socket(DATAGRAM)?;
        let peer = UdpSocket::bind("127.0.0.1:0").context("bind")?;
        let port = peer.local_addr().context("getsockname")?.port();
        let at = operator.bytes(0, &address(port))?;
        operator.must("connect", libc::SYS_connect, &[connected, at, ADDRESS_LENGTH])?;
        for fd in [bound, listening] {
            let at = operator.bytes(0, &address(0))?;
            operator.must("bind", libc::SYS_bind, &[fd, at, ADDRESS_LENGTH])?;
        }
        operator.must("listen", libc::SYS_listen, &[listening, 8])?;
        let client = TcpStream::connect(address_of(operator, listening)?).context("connect")?;
        for _ in 0..2 {
            peer.send_to(b"heard", address_of(operator, connected)?).context("send")?;
        }
        let server = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let (_client, _peer) = (client, peer);
        Ok(Self { operator, unbound, bound, listening, unconnected, connected, server, _client, _peer })
    }

    fn call(&self, number: i64, arguments: &[u64]) -> Result<i64> {
        self.operator.call(number, arguments)
    }

    fn opens(&self, number: i64, arguments: &[u64]) -> Result<i64> {
        let value = self.call(number, arguments)?;
        if errno(value) == 0 {
            self.operator.close(value as u64)?;
        }
        Ok(value)
    }

    fn address(&self, port: u16) -> Result<u64> {
        self.operator.bytes(0, &address(port))
    }

    fn port(&self) -> Result<u16> {
        Ok(self.server.local_addr().context("getsockname")?.port())
    }

    fn close(&self) -> Result {
        let Self { unbound, bound, listening, unconnected, connected, .. } = *self;
        [unbound, bound, listening, unconnected, connected].iter().try_for_each(|fd| self.operator.close(*fd))
    }

    /// What each call of these operations gives.
    fn all(&self, ops: &[&str]) -> Result<Vec<(&'static str, i32)>> {
        let cases = CASES.iter().filter(|case| ops.contains(&case.op));
        cases.map(|case| Ok((case.call, errno((case.run)(self).context(case.call)?)))).collect()
    }
}

/// A `sockaddr_in` of this host.
fn address(port: u16) -> [u8; ADDRESS_LENGTH as usize] {
    let mut address = [0; ADDRESS_LENGTH as usize];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

/// Where a socket is bound to.
fn address_of(operator: &Operator, fd: u64) -> Result<SocketAddr> {
    let length = operator.bytes(64, &(ADDRESS_LENGTH as u32).to_ne_bytes())?;
    operator.must("getsockname", libc::SYS_getsockname, &[fd, operator.buffer(0), length])?;
    let address = operator.read_back(0, 4);
    Ok(SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([address[2], address[3]]))))
}

fn all_ops() -> Vec<&'static str> {
    let mut ops: Vec<&str> = CASES.iter().map(|case| case.op).collect();
    ops.dedup();
    ops
}

/// All operations at once, and each alone, which leaves the others be.
pub(super) fn every_operation() -> Result {
    let before = Inventory::settled(&[])?;
    let pair = Pair::new()?;
    let ops = all_ops();
    let lists: Vec<Vec<&str>> = ops.iter().map(|op| vec![*op]).chain([ops.clone()]).collect();
    for (hit, errno) in lists.iter().zip([Errno::ECONNRESET, Errno::ENOBUFS].into_iter().cycle()) {
        calm("before", &pair, &ops)?;
        let [target, bystander] = [Sockets::new(&pair.target)?, Sockets::new(&pair.bystander)?];
        let fault = Fault::arm(&format!("sock error {errno:?} --ops {} {}", hit.join(","), pair.option()))?;
        let (said, beside) = (target.all(&ops)?, bystander.all(&ops)?);
        let counts = fault.end()?;
        println!("{hit:?} {errno:?}: {said:?} {counts:?}");
        let mut cases = CASES.iter().zip(&said).zip(&beside);
        let wrong = cases.find(|((case, (_, target)), (_, bystander))| {
            let expected = if hit.contains(&case.op) { errno as i32 } else { 0 };
            (*target, *bystander) != (expected, 0)
        });
        ensure!(wrong.is_none(), "{hit:?} {errno:?}: {:?}", wrong.map(|((_, said), beside)| (said, beside)));
        let fired = said.iter().filter(|(_, errno)| *errno != 0).count() as u64;
        ensure!(counts.fired == fired, "{hit:?}: {counts:?}, and {fired} calls failed");
        target.close()?;
        bystander.close()?;
    }
    calm("after", &pair, &ops)?;
    before.wait_until_equal(&[], Duration::from_secs(5))
}

fn calm(when: &str, pair: &Pair, ops: &[&str]) -> Result {
    for operator in [&pair.target, &pair.bystander] {
        let sockets = Sockets::new(operator)?;
        let said = sockets.all(ops)?;
        ensure!(said.iter().all(|(_, errno)| *errno == 0), "{when}: {said:?}");
        sockets.close()?;
    }
    Ok(())
}

/// Whether it can connect: for others who need one such call.
pub(super) fn connects(operator: &Operator) -> Result<i32> {
    let server = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let port = server.local_addr().context("getsockname")?.port();
    let socket = operator.must("socket", libc::SYS_socket, &[INET, STREAM, 0])?;
    let at = operator.bytes(0, &address(port))?;
    let connected = operator.call(libc::SYS_connect, &[socket, at, ADDRESS_LENGTH])?;
    operator.close(socket)?;
    Ok(errno(connected))
}
