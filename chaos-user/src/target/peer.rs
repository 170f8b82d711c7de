//! The addresses of peers.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{CgroupError, Netns, NetnsError, Target};
use crate::{
    fault::net::Addresses,
    kernel::{self, netlink::Netlink},
    spec::{FileError, Peer, read_file, shown},
};

/// A file of a million addresses has room in this.
const LARGEST: u64 = 16 << 20;

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
    #[error("{}: {source}", shown::name(path))]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: FileError,
    },
    /// A line of it that means nothing.
    #[error("{}:{line}: {said}", shown::name(path))]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        said: String,
    },
    /// A peer in it without addresses.
    #[error("{}:{line}: {error}", shown::name(path))]
    Listed {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why it has none.
        error: Box<Self>,
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

impl PeerError {
    /// Whether what was typed, or stands in a file that was named, means nothing on any machine.
    #[must_use]
    pub fn is_of_words(&self) -> bool {
        match self {
            Self::File { .. } | Self::Line { .. } => true,
            Self::Listed { error, .. } => error.is_of_words(),
            Self::Name { .. }
            | Self::Nowhere { .. }
            | Self::Here { .. }
            | Self::Processes(_)
            | Self::Netns(_)
            | Self::Kernel(_) => false,
        }
    }
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
        Peer::File(path) => listed(path, here)?,
        Peer::Processes(owner) => {
            let netns = Netns::of_process(Target::find(owner)?.network(owner)?).known()?;
            if netns.inode()? == here {
                return Err(PeerError::Here { peer: peer.clone() });
            }
            only(own_addresses(&netns)?)
        }
    };
    if found.networks.is_empty() { Err(PeerError::Nowhere { peer: peer.clone() }) } else { Ok(found) }
}

/// Those of all peers in a file.
fn listed(path: &Path, here: u64) -> Result<Addresses, PeerError> {
    let text = read_file(path, LARGEST).map_err(|source| PeerError::File { path: path.into(), source })?;
    let mut all = Addresses::default();
    for (line, text) in (1..).zip(text.lines()) {
        let word = text.split('#').next().unwrap_or_default().trim();
        if word.is_empty() {
            continue;
        }
        let wrong = |said: String| PeerError::Line { path: path.into(), line, said };
        match word.parse().map_err(|error| wrong(format!("'{}': {error}", word.escape_debug())))? {
            Peer::File(_) => return Err(wrong("a file cannot name another".into())),
            peer => {
                let nowhere = |error| PeerError::Listed { path: path.into(), line, error: Box::new(error) };
                all.extend([addresses(&peer, here).map_err(nowhere)?]);
            }
        }
    }
    Ok(all)
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
