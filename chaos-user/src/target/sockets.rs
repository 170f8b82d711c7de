//! Who has which connections.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use chaos_ebpf::packet::protocol;
use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState, UdpNetEntry},
    process::{FDTarget, Process, all_processes},
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
#[must_use]
pub fn names(processes: &[u32]) -> Vec<Named> {
    let of = |pid: &u32| Some(named(&Process::new(pid.cast_signed()).ok()?));
    processes.iter().filter_map(of).collect()
}

fn named(process: &Process) -> Named {
    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
    Named { pid: process.pid().cast_unsigned(), name }
}

/// The open TCP and UDP sockets of the calling thread's network namespace: those of these processes, or all.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn flows(of: Option<&[u32]>) -> ProcResult<Vec<Flow>> {
    let owners = owners(of)?;
    // A table that this kernel lacks, for IPv6 say, has nothing in it.
    let tcp = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flat_map(Result::unwrap_or_default);
    let udp = [procfs::net::udp(), procfs::net::udp6()].into_iter().flat_map(Result::unwrap_or_default);
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

/// IPv4 as such, also where it was in an IPv6 socket.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address,
        ip => SocketAddr::new(ip.to_canonical(), address.port()),
    }
}

/// The process of each socket, by the socket's inode number.
fn owners(of: Option<&[u32]>) -> ProcResult<BTreeMap<u64, Named>> {
    let processes: Vec<Process> = match of {
        Some(processes) => processes.iter().filter_map(|pid| Process::new(pid.cast_signed()).ok()).collect(),
        None => all_processes()?.flatten().collect(),
    };
    let mut owners = BTreeMap::new();
    for process in processes {
        // Processes end at any time.
        let Ok(files) = process.fd() else { continue };
        let name = named(&process);
        for file in files.flatten() {
            if let FDTarget::Socket(inode) = file.target {
                owners.insert(inode, name.clone());
            }
        }
    }
    Ok(owners)
}
