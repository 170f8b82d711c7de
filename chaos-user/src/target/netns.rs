//! Network namespaces.

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sched::{CloneFlags, setns};

use crate::{
    host::rights,
    kernel,
    spec::{FileError, Invalid, open_file, parse_pid},
};

/// The calling thread's.
pub(super) const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace as it is named: `ip netns`'s NAME, a path, or `pid:N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    text: String,
    path: PathBuf,
}

/// A network namespace that cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot enter network namespace {name}: {call} {}: {source}{}; write a name that `ip netns` lists, the path \
     of one, or pid:N",
    path.display(), rights::hint(call, &path.to_string_lossy(), source)
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
        Ok(Self { text: text.into(), path })
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
        Self { text: format!("pid:{process}"), path: format!("/proc/{process}/ns/net").into() }
    }

    /// Its inode number, which is how the kernel tells namespaces apart.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        let stat = std::fs::metadata(&self.path);
        Ok(stat.map_err(|source| self.error("stat", &self.path, source))?.ino())
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

/// The inode number of the calling thread's network namespace, which is how the kernel tells them apart.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn current() -> kernel::Result<u64> {
    let stat = std::fs::metadata(OWN);
    Ok(stat.map_err(|source| kernel::Error::new("stat", OWN, source))?.ino())
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
}
