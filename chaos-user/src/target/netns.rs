//! Network namespaces.

use std::{
    convert::Infallible,
    fmt,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sched::{CloneFlags, setns};

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
    "cannot enter network namespace {name}: {call} {}: {source}; write a name that `ip netns` lists, the path \
     of one, or pid:N",
    path.display()
)]
pub struct NetnsError {
    name: String,
    path: PathBuf,
    call: &'static str,
    source: io::Error,
}

impl FromStr for Netns {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let path = match text.strip_prefix("pid:") {
            Some(pid) => Path::new("/proc").join(pid).join("ns/net"),
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
        let Ok(netns) = format!("pid:{process}").parse();
        netns
    }

    /// Its inode number, which is how the kernel tells namespaces apart.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        let error =
            |source| NetnsError { name: self.text.clone(), path: self.path.clone(), call: "stat", source };
        Ok(std::fs::metadata(&self.path).map_err(error)?.ino())
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace or the caller may not enter it.
    pub fn enter(&self) -> Result<Home, NetnsError> {
        let error = |call, path: &Path, source| {
            let (name, path) = (self.text.clone(), path.into());
            NetnsError { name, path, call, source }
        };
        let open = |path| File::open(path).map_err(|source| error("open", path, source));
        let (home, namespace) = (open(Path::new(OWN))?, open(&self.path)?);
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
        entered.map_err(|errno| error("setns(CLONE_NEWNET)", &self.path, errno.into()))?;
        Ok(Home(home))
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
pub fn current() -> io::Result<u64> {
    Ok(File::open(OWN)?.metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let path = |text: &str| match text.parse::<Netns>() {
            Ok(netns) => netns.path,
        };
        assert_eq!(path("blue"), Path::new("/run/netns/blue"));
        assert_eq!(path("/proc/7/fd/3"), Path::new("/proc/7/fd/3"));
        assert_eq!(path("pid:42"), Path::new("/proc/42/ns/net"));
    }
}
