//! What no fault hits unless it is asked to: the caller's own way in.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process,
    time::{Duration, Instant},
};

use chaos_ebpf::{
    abi::{self, protect},
    packet::protocol,
};

use crate::kernel::{
    Error, Result,
    process::{Stat, unless_gone},
    reach,
};

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What no fault hits unless it is asked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    /// The cloud's instance metadata, `169.254.169.254`.
    pub metadata: bool,
    /// Connections to the host itself, where these are refused: an interface's packets are those of `lo` only if that was
    /// asked for.
    pub loopback: bool,
    /// The SSH connection by which the caller is here.
    pub session: Option<SshSession>,
    /// A process that may not be asked whether it has one.
    pub unasked: Option<u32>,
}

impl Protected {
    /// All that there is to protect here, from faults that refuse connections or not.
    ///
    /// # Errors
    ///
    /// The kernel's, where it does not say by which way the caller is here.
    pub fn all(loopback: bool) -> Result<Self> {
        let mut unasked = None;
        let session = ssh_session(&mut unasked)?;
        Ok(Self { metadata: true, loopback, session, unasked })
    }

    /// Whether a connection is one of these.
    #[must_use]
    pub fn covers(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> bool {
        let is_session = |session: SshSession| {
            let SshSession { client, client_port, port } = session;
            protocol == protocol::TCP
                && remote == SocketAddr::new(client, client_port)
                && local.port() == port
        };
        self.metadata && remote.ip() == METADATA || self.session.is_some_and(is_session)
    }

    /// For the programs: [`protect`] bits, and the session.
    pub(crate) fn given(&self) -> (u32, abi::Session) {
        let metadata = if self.metadata { protect::METADATA } else { 0 };
        let loopback = if self.loopback { protect::LOOPBACK } else { 0 };
        let Some(SshSession { client, client_port, port }) = self.session else {
            return (metadata | loopback, abi::Session::default());
        };
        let mut octets = [0; 16];
        match client {
            IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => octets = address.octets(),
        }
        let mut remote = [0; 4];
        for (word, octets) in remote.iter_mut().zip(octets.chunks_exact(4)) {
            *word = octets.first_chunk().map_or(0, |octets| u32::from_ne_bytes(*octets));
        }
        let session =
            abi::Session { remote, remote_port: client_port, local_port: port, v6: client.is_ipv6().into() };
        (metadata | loopback | protect::SESSION, session)
    }
}

impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let session = self.session.map(|session| {
            let SshSession { client, client_port, port } = session;
            format!("the SSH session from {client} port {client_port} to port {port}")
        });
        let metadata = self.metadata.then(|| METADATA.to_string());
        let loopback = self.loopback.then(|| "connections to loopback".to_owned());
        f.write_str(&session.into_iter().chain(metadata).chain(loopback).collect::<Vec<_>>().join(" and "))?;
        match self.unasked.filter(|_| self.session.is_none()) {
            Some(process) => write!(f, " (whether process {process} has an SSH session may not be read)"),
            None => Ok(()),
        }
    }
}

/// The SSH connection by which somebody is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshSession {
    /// Where it comes from.
    pub client: IpAddr,
    /// Its port there.
    pub client_port: u16,
    /// The port here.
    pub port: u16,
}

/// The caller's SSH connection, if it has one: by the environment of this process, or of the one that started it and so
/// on, for `sudo` and `su` hide it.
fn ssh_session(unasked: &mut Option<u32>) -> Result<Option<SshSession>> {
    let mut process = process::id();
    while process > 1 {
        let stat = Stat::of_process(process);
        let stat = stat.map_err(|source| Error::new("read", format!("/proc/{process}/stat"), source))?;
        // One that has ended, or is not to be seen from here.
        let Some(Stat { parent, .. }) = stat else { break };
        match environment_of(process)? {
            Some(text) => {
                if let Some(session) = in_environment(&text) {
                    return Ok(Some(session));
                }
            }
            None => drop(unasked.get_or_insert(process)),
        }
        process = parent;
    }
    Ok(None)
}

/// The environment of a process, none if it has ended; nothing if it may not be known, or is not told in time: where it lies, and who
/// is asked for it, the process chooses.
fn environment_of(process: u32) -> Result<Option<Vec<u8>>> {
    const PATIENCE: Duration = Duration::from_millis(200);
    let path = format!("/proc/{process}/environ");
    let read = reach::each([path.clone()], Instant::now() + PATIENCE, || false, fs::read)?;
    match read.into_iter().flatten().next() {
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Some(read) => {
            let text = unless_gone(read).map_err(|source| Error::new("read", path, source))?;
            Ok(Some(text.unwrap_or_default()))
        }
        None => Ok(None),
    }
}

/// `SSH_CONNECTION=CLIENT PORT SERVER PORT`.
fn in_environment(environment: &[u8]) -> Option<SshSession> {
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(b"SSH_CONNECTION="))?;
    let words: Vec<&str> = std::str::from_utf8(value).ok()?.split(' ').collect();
    let [client, client_port, _, port] = words[..] else { return None };
    let client: IpAddr = client.split('%').next()?.parse().ok()?;
    let (client_port, port) = (client_port.parse().ok()?, port.parse().ok()?);
    Some(SshSession { client: client.to_canonical(), client_port, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions() {
        let session =
            |text: &[u8]| in_environment(text).map(|it| (it.client.to_string(), it.client_port, it.port));
        let v4 = b"A=1\0SSH_CONNECTION=10.0.0.9 50000 10.0.0.1 22\0B=2\0";
        assert_eq!(session(v4), Some(("10.0.0.9".into(), 50_000, 22)));
        let v6 = b"SSH_CONNECTION=fe80::1%eth0 50000 fe80::2%eth0 2222";
        assert_eq!(session(v6), Some(("fe80::1".into(), 50_000, 2222)));
        for text in [&b""[..], b"SSH_CONNECTION=", b"XSSH_CONNECTION=1 2 3 4", b"SSH_CONNECTION=a 1 b 2"] {
            assert_eq!(session(text), None);
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let protected = Protected { metadata: true, unasked: Some(7), ..Protected::default() };
        let expected = "169.254.169.254 (whether process 7 has an SSH session may not be read)";
        assert_eq!(protected.to_string(), expected);
    }

    #[test]
    fn the_own_environment_is_found() {
        let found = environment_of(process::id()).expect("a thread").expect("its own");
        let is_there = |name: &str| found.split(|byte| *byte == 0).any(|it| it.starts_with(name.as_bytes()));
        assert!(std::env::vars().next().is_none_or(|(name, _)| is_there(&format!("{name}="))));
    }
}
