//! The addresses of peers.

use std::{
    fs, io,
    net::{IpAddr, ToSocketAddrs},
    path::PathBuf,
};

use ipnet::IpNet;

use super::{CgroupError, Netns, NetnsError, Target};
use crate::{
    fault::net::Addresses,
    kernel::{self, netlink::Netlink},
    spec::Peer,
};

/// A peer without addresses.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A name nobody knows.
    #[error("{name} does not resolve: {source}")]
    Name {
        /// The name.
        name: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A line of it that means nothing.
    #[error("{}:{line}: {said}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        said: String,
    },
    /// No address at all.
    #[error("{peer} has no address")]
    Nowhere {
        /// What was asked for.
        peer: Peer,
    },
    /// In the fault's own network.
    #[error(
        "{peer} is in the same network namespace as the fault; its packets do not pass an interface there"
    )]
    Here {
        /// What was asked for.
        peer: Peer,
    },
    /// Processes that are not there.
    #[error(transparent)]
    Processes(#[from] CgroupError),
    /// Their network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// All addresses and networks of a peer, at least one. `here` is the network namespace of the fault, by its inode.
///
/// # Errors
///
/// [`PeerError`].
pub fn addresses(peer: &Peer, here: u64) -> Result<Addresses, PeerError> {
    let only = |networks| Addresses { networks, names: Vec::new() };
    let found = match peer {
        Peer::Network(network) => only(vec![*network]),
        Peer::Name(name) => Addresses { networks: resolve(name)?, names: vec![name.clone()] },
        Peer::File(path) => {
            let text =
                fs::read_to_string(path).map_err(|source| PeerError::File { path: path.clone(), source })?;
            let mut all = Addresses::default();
            for (number, line) in (1..).zip(text.lines()) {
                let word = line.split('#').next().unwrap_or_default().trim();
                if word.is_empty() {
                    continue;
                }
                let wrong = |said: String| PeerError::Line { path: path.clone(), line: number, said };
                match word.parse().map_err(|error| wrong(format!("'{}': {error}", word.escape_debug())))? {
                    Peer::File(_) => return Err(wrong("a file cannot name another".into())),
                    listed => {
                        let found = addresses(&listed, here).map_err(|error| wrong(error.to_string()))?;
                        all.extend([found]);
                    }
                }
            }
            all
        }
        Peer::Processes(owner) => {
            let netns = Netns::of_process(Target::find(owner)?.network(owner)?);
            if netns.inode()? == here {
                return Err(PeerError::Here { peer: peer.clone() });
            }
            only(own_addresses(&netns)?)
        }
    };
    if found.networks.is_empty() { Err(PeerError::Nowhere { peer: peer.clone() }) } else { Ok(found) }
}

/// A and AAAA records, as this host's resolver knows them.
pub(super) fn resolve(name: &str) -> Result<Vec<IpNet>, PeerError> {
    let error = |source| PeerError::Name { name: name.into(), source };
    let found = (name, 0).to_socket_addrs().map_err(error)?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.into_iter().map(IpNet::from).collect())
}

/// Those of the interfaces of a network namespace that others can send to.
fn own_addresses(netns: &Netns) -> Result<Vec<IpNet>, PeerError> {
    let home = netns.enter()?;
    let found = Netlink::open().and_then(|mut netlink| netlink.addresses());
    home.go().map_err(|source| kernel::Error::new("setns(CLONE_NEWNET)", "back", source))?;
    let reachable = |address: &IpAddr| {
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !address.is_loopback() && !link_local
    };
    Ok(found?.into_iter().filter(reachable).map(IpNet::from).collect())
}
