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
const OWN: &str = "/proc/thread-self/ns/net";

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

/// Does something in the network namespace of this inode number, wherever it can be found: the caller's own, a
/// named one, or that of a process. `None` if it is nowhere, which is to say that it is gone.
///
/// # Errors
///
/// If it is found and cannot be entered.
pub fn within<T: Send>(inode: u64, action: impl FnOnce() -> T + Send) -> io::Result<Option<T>> {
    if current()? == inode {
        return Ok(Some(action()));
    }
    let Some(namespace) = find(inode)? else { return Ok(None) };
    // A thread of its own, so that the caller stays where it is.
    let entered = std::thread::scope(|scope| {
        let run = || setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| action());
        scope.spawn(run).join()
    });
    match entered {
        Ok(result) => Ok(Some(result?)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn find(inode: u64) -> io::Result<Option<File>> {
    let listed = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = listed("/run/netns".into()).map(|entry| entry.path());
    // A namespace may also be held by nothing but an fd.
    let of_process = |process: PathBuf| {
        let held = listed(process.join("fd")).map(|fd| fd.path());
        std::iter::once(process.join("ns/net")).chain(held.filter(move |fd| is_netns(fd, inode)))
    };
    let of_processes = listed("/proc".into()).flat_map(|entry| of_process(entry.path()));
    for path in named.chain(of_processes) {
        // Processes end meanwhile, and other things lie in /proc; neither is what is looked for.
        let Ok(file) = File::open(path) else { continue };
        if file.metadata()?.ino() == inode {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Whether an fd is of this network namespace; looked at before it is opened, which has effects on other files.
fn is_netns(fd: &Path, inode: u64) -> bool {
    std::fs::read_link(fd).is_ok_and(|target| target.as_os_str() == format!("net:[{inode}]").as_str())
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
