//! Who has which connections.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
};

use chaos_ebpf::packet::protocol;
use procfs::{
    ProcError, ProcResult,
    net::{TcpNetEntry, TcpState, UdpNetEntry},
};

use crate::{
    host::{Use, rights},
    kernel::{
        Error, Result,
        process::{self, unless_gone},
    },
    spec::shown,
};

/// A process by what it is called.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Named {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// A connection, or a socket that waits for one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// This host's end.
    pub local: SocketAddr,
    /// The other; all zeros if there is none.
    pub remote: SocketAddr,
    /// Whose it is, as far as that can be seen.
    pub process: Option<Named>,
    /// Whether it is a connection that both ends know of.
    #[serde(skip)]
    pub stands: bool,
}

/// What these processes are called. Those that have ended meanwhile are left out.
///
/// # Errors
///
/// The kernel's.
pub fn names(processes: &[u32]) -> Result<Vec<Named>> {
    processes.iter().filter_map(|pid| named(*pid).transpose()).collect()
}

fn named(pid: u32) -> Result<Option<Named>> {
    let path = format!("/proc/{pid}/comm");
    let name = unless_gone(fs::read(&path)).map_err(|source| Error::new("read", path, source))?;
    let text = |name: &[u8]| shown::name(OsStr::from_bytes(name.strip_suffix(b"\n").unwrap_or(name)));
    Ok(name.map(|name| Named { pid, name: text(&name) }))
}

/// The open TCP and UDP sockets of the calling thread's network namespace: those of these processes, or all.
///
/// # Errors
///
/// The kernel's.
pub fn flows(of: Option<&[u32]>) -> Result<Vec<Flow>> {
    let owners = owners(of)?;
    let tcp = table("tcp", procfs::net::tcp())?.into_iter().chain(table("tcp6", procfs::net::tcp6())?);
    let udp = table("udp", procfs::net::udp())?.into_iter().chain(table("udp6", procfs::net::udp6())?);
    // A connection that nobody has any more only waits for its last packets.
    let tcp = tcp.filter(|entry| entry.state != TcpState::TimeWait).map(
        |TcpNetEntry { local_address, remote_address, inode, state, .. }| {
            let stands = !matches!(
                state,
                TcpState::Listen | TcpState::SynSent | TcpState::SynRecv | TcpState::NewSynRecv
            );
            (protocol::TCP, local_address, remote_address, inode, stands)
        },
    );
    let udp = udp.map(|UdpNetEntry { local_address, remote_address, inode, .. }| {
        (protocol::UDP, local_address, remote_address, inode, false)
    });
    let mut flows = Vec::new();
    for (protocol, local, remote, inode, stands) in tcp.chain(udp) {
        let process = owners.get(&inode).cloned();
        if of.is_none() || process.is_some() {
            flows.push(Flow { protocol, local: plain(local), remote: plain(remote), process, stands });
        }
    }
    flows.sort_by_key(|flow| (flow.protocol, flow.local, flow.remote));
    Ok(flows)
}

/// A table that this kernel lacks, for IPv6 say, has nothing in it.
fn table<T>(name: &str, read: ProcResult<Vec<T>>) -> Result<Vec<T>> {
    let error = |source| Err(Error::new("read", format!("/proc/net/{name}"), source));
    match read {
        Ok(entries) => Ok(entries),
        Err(ProcError::NotFound(_)) => Ok(Vec::new()),
        Err(ProcError::Io(source, _)) => error(source),
        Err(other) => error(io::Error::other(other)),
    }
}

/// IPv4 as such, also where it was in an IPv6 socket.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address,
        ip => SocketAddr::new(ip.to_canonical(), address.port()),
    }
}

/// The process of each socket, by the socket's inode number: of these processes, or of all that may be looked at.
fn owners(of: Option<&[u32]>) -> Result<BTreeMap<u64, Named>> {
    let error = |call, path: &str, source| Error::new(call, path, source);
    let all = match of {
        Some(_) => Vec::new(),
        None => process::numbers().map_err(|source| error("readdir", "/proc", source))?,
    };
    let mut owners = BTreeMap::new();
    for pid in of.unwrap_or(&all) {
        let path = format!("/proc/{pid}/fd");
        let sockets = match sockets(&path) {
            // There are processes that the kernel keeps even from who may trace all. Where all are asked for that is no error.
            Err(hidden) if rights::is_refusal(&hidden) && (of.is_none() || Use::Processes.is_allowed()) => {
                continue;
            }
            sockets => sockets.map_err(|source| error("readlink", &path, source))?,
        };
        if let (false, Some(name)) = (sockets.is_empty(), named(*pid)?) {
            owners.extend(sockets.into_iter().map(|inode| (inode, name.clone())));
        }
    }
    Ok(owners)
}

/// The inode numbers of the sockets that a process has open. Files are closed at any time, and so is all that an ending process has.
fn sockets(path: &str) -> io::Result<Vec<u64>> {
    let mut sockets = Vec::new();
    for file in unless_gone(fs::read_dir(path))?.into_iter().flatten() {
        let target = unless_gone(file.and_then(|file| fs::read_link(file.path())))?;
        sockets.extend(target.and_then(|target| socket(target.to_str()?)));
    }
    Ok(sockets)
}

/// The inode number of a socket, from what its descriptor leads to.
fn socket(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn the_own_one_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let local = listener.local_addr().expect("an address");
        let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = fs::read_link(link).expect("its link").to_str().and_then(socket).expect("an inode");
        let own = std::process::id();
        assert_eq!(owners(Some(&[own])).expect("a list")[&inode].pid, own);
        let found = flows(Some(&[own])).expect("a list");
        assert!(found.iter().any(|flow| flow.local == local && !flow.stands), "{found:?}");
        // Who is gone has none.
        assert!(flows(Some(&[u32::MAX >> 1])).expect("a list").is_empty());
    }
}
