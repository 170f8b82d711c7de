//! Network namespaces.

use std::{
    fmt,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use serde::{Deserialize, Serialize};

use crate::{
    host::rights,
    kernel,
    spec::{FileError, Invalid, open_file, parse_pid, shown},
};

/// The calling thread's.
pub(super) const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace as it is named: `ip netns`'s NAME, a path, or `pid:N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    text: String,
    path: PathBuf,
    /// Its inode number, once that is known: a process ends at any time, and another gets its number.
    known: Option<u64>,
}

/// A network namespace that cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot enter network namespace {name}: {call} {}: {source}{}; write a name that `ip netns` lists, the path \
     of one, or pid:N",
    shown::name(path), rights::hint(call, &path.to_string_lossy(), source)
)]
pub struct NetnsError {
    name: String,
    path: PathBuf,
    call: &'static str,
    source: io::Error,
}

impl FromStr for Netns {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::new("write a name that `ip netns` lists, the path of one, or pid:N"));
        }
        let path = match text.strip_prefix("pid:") {
            Some(pid) => return Ok(Self::of_process(parse_pid(pid)?)),
            // Joining an absolute path leaves it as it is.
            None if text.contains('/') => PathBuf::from(text),
            None => Path::new("/run/netns").join(text),
        };
        Ok(Self { text: text.into(), path, known: None })
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Netns {
    /// That of a process.
    #[must_use]
    pub fn of_process(process: u32) -> Self {
        Self { text: format!("pid:{process}"), path: format!("/proc/{process}/ns/net").into(), known: None }
    }

    /// Its inode number, which is how the kernel tells namespaces apart.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        if let Some(known) = self.known {
            return Ok(known);
        }
        let stat = std::fs::metadata(&self.path);
        Ok(stat.map_err(|source| self.error("stat", &self.path, source))?.ino())
    }

    /// The same, which is no other by the time that it is entered.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace.
    pub fn known(self) -> Result<Self, NetnsError> {
        Ok(Self { known: Some(self.inode()?), ..self })
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace or the caller may not enter it.
    pub fn enter(&self) -> Result<Home, NetnsError> {
        // To the kernel a namespace is a regular file.
        let open = |path| {
            open_file(path).map_err(|error| match error {
                FileError::Io(source) => self.error("open", path, source),
                other => self.error("open", path, io::Error::other(other)),
            })
        };
        let (home, namespace) = (open(Path::new(OWN))?, open(&self.path)?);
        let inode = namespace.metadata().map_err(|source| self.error("fstat", &self.path, source))?.ino();
        if self.known.is_some_and(|known| known != inode) {
            let ended = io::Error::other("whoever was in it has ended, and another has the number");
            return Err(self.error("open", &self.path, ended));
        }
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
        entered.map_err(|errno| self.error("setns(CLONE_NEWNET)", &self.path, errno.into()))?;
        Ok(Home(home))
    }

    fn error(&self, call: &'static str, path: &Path, source: io::Error) -> NetnsError {
        NetnsError { name: self.text.clone(), path: path.into(), call, source }
    }
}

/// Where the calling thread was before.
#[derive(Debug)]
pub struct Home(File);

impl Home {
    /// Goes back. A namespace lasts as long as a process is in it; links to its interfaces do not keep it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn go(self) -> io::Result<()> {
        Ok(setns(self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

/// A network namespace, told from all that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsId {
    /// Its inode number, by which people know it. Another may have it as soon as this one is gone.
    #[serde(rename = "netns")]
    pub inode: u64,
    /// What the kernel gives to no other before it starts again.
    #[serde(rename = "netns_cookie")]
    pub cookie: u64,
}

/// The calling thread's network namespace.
///
/// # Errors
///
/// If `/proc` is not mounted, or the kernel's.
pub fn current() -> kernel::Result<NetnsId> {
    let stat = std::fs::metadata(OWN);
    let inode = stat.map_err(|source| kernel::Error::new("stat", OWN, source))?.ino();
    Ok(NetnsId { inode, cookie: cookie()? })
}

fn cookie() -> kernel::Result<u64> {
    /// Since Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let error = |call| move |source| kernel::Error::new(call, "the own network namespace", source);
    let any = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| error("socket")(errno.into()))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: so many bytes are there to be written, and the length as well.
    let done = unsafe {
        let to = (&raw mut cookie).cast();
        libc::getsockopt(any.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut length)
    };
    if done != 0 {
        return Err(error("getsockopt(SO_NETNS_COOKIE)")(io::Error::last_os_error()));
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let path = |text: &str| text.parse::<Netns>().expect("a namespace").path;
        assert_eq!(path("blue"), Path::new("/run/netns/blue"));
        assert_eq!(path("/proc/7/fd/3"), Path::new("/proc/7/fd/3"));
        assert_eq!(path("pid:42"), Path::new("/proc/42/ns/net"));
        for text in ["", "pid:", "pid:x", "pid:0", "pid:-1"] {
            assert!(text.parse::<Netns>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_has_an_identity_of_its_own() {
        let here = current().expect("the own one");
        assert_eq!(current().expect("the own one"), here);
        let there = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).ok()?;
            current().ok()
        });
        // Not everybody may make one.
        if let Some(there) = there.join().expect("a thread") {
            assert!(there.inode != here.inode && there.cookie != here.cookie, "{there:?} {here:?}");
        }
    }
}
