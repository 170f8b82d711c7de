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

/// A network namespace as it is named: `ip netns`'s NAME, a path, or `pid:N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    text: String,
    path: PathBuf,
}

/// A network namespace that cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {name} ({}): {call}: {source}", path.display())]
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
    /// Moves the calling thread into it.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if there is no such namespace or the caller may not enter it.
    pub fn enter(&self) -> Result<(), NetnsError> {
        let error =
            |call, source| NetnsError { name: self.text.clone(), path: self.path.clone(), call, source };
        let namespace = File::open(&self.path).map_err(|source| error("open", source))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| error("setns(CLONE_NEWNET)", errno.into()))
    }
}

/// The inode number of the calling thread's network namespace, which is how the kernel tells them apart.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn current() -> io::Result<u64> {
    Ok(File::open("/proc/thread-self/ns/net")?.metadata()?.ino())
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
