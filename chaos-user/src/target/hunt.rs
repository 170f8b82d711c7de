//! Looking for network namespaces wherever one can be: only what was looked for everywhere can be said to be gone.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::netns::{OWN, current};
use crate::host::Use;
use crate::kernel::{self, Error, own_thread};

/// What looking for something in network namespaces has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought<T> {
    /// It was there.
    Found(T),
    /// It was nowhere that can be seen from here.
    Nowhere,
    /// It was nowhere that could be looked at, and this could not.
    Hidden(String),
}

impl<T, E> Sought<Result<T, E>> {
    /// What was found, if it is no error.
    ///
    /// # Errors
    ///
    /// That.
    pub fn transpose(self) -> Result<Sought<T>, E> {
        match self {
            Self::Found(found) => found.map(Sought::Found),
            Self::Nowhere => Ok(Sought::Nowhere),
            Self::Hidden(what) => Ok(Sought::Hidden(what)),
        }
    }
}

/// Does something in the network namespace of this inode number, wherever that can be found.
///
/// # Errors
///
/// If it is found and cannot be entered.
pub fn within<T: Send>(inode: u64, action: impl FnOnce() -> T + Send) -> kernel::Result<Sought<T>> {
    if current()? == inode {
        return Ok(Sought::Found(action()));
    }
    let mut action = Some(action);
    let found = Hunt::new(|there| there == inode).all(|namespace| Some(inside(namespace, action.take()?)));
    found.transpose()
}

/// Does something in one network namespace after the other, but for that of this inode number, until it has an answer.
///
/// # Errors
///
/// If one cannot be entered.
pub fn in_others<T: Send>(but: u64, action: impl Fn() -> Option<T> + Sync) -> kernel::Result<Sought<T>> {
    Hunt::new(|there| there != but).all(|namespace| inside(namespace, &action).transpose()).transpose()
}

/// In a thread of its own, so that the caller stays where it is.
fn inside<T: Send>(namespace: File, action: impl FnOnce() -> T + Send) -> kernel::Result<T> {
    let run = || setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| action());
    let entered = own_thread::run(run).map_err(|source| Error::new("clone", "a thread", source))?;
    entered.map_err(|errno| Error::new("setns(CLONE_NEWNET)", "a network namespace", errno.into()))
}

/// Goes through all places where a network namespace can be found: each is visited once.
///
/// There are processes that the kernel keeps even from who may trace all, for they may do more. Of these it is looked which
/// network they are in, by what everybody may see; what else they have open is not known to anybody but them.
struct Hunt<W> {
    wanted: W,
    known: HashSet<u64>,
    hidden: Option<String>,
    /// What everybody sees of the network namespaces of those that could be looked at.
    seen: HashSet<u64>,
    /// Those that could not, and what everybody sees of theirs.
    kept: Vec<(PathBuf, u64)>,
    may_trace: bool,
}

impl<W: Fn(u64) -> bool> Hunt<W> {
    fn new(wanted: W) -> Self {
        let seen = face(Path::new("/proc/thread-self")).into_iter().collect();
        let may_trace = Use::Processes.is_allowed();
        Self { wanted, known: HashSet::new(), hidden: None, seen, kept: Vec::new(), may_trace }
    }

    fn all<T>(mut self, mut visit: impl FnMut(File) -> Option<T>) -> Sought<T> {
        let places = [Self::near, Self::processes, Self::mounts, Self::sockets];
        for place in places {
            if let Some(found) = place(&mut self, &mut visit) {
                return Sought::Found(found);
            }
        }
        let strange = self.kept.iter().find(|(_, face)| !self.seen.contains(face));
        let strange = strange.map(|(process, _)| format!("{} may not be looked at", process.display()));
        self.hidden.or(strange).map_or(Sought::Nowhere, Sought::Hidden)
    }

    /// The caller's own, and those that have a name here.
    fn near<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
        let mut all = std::iter::once(PathBuf::from(OWN)).chain(named);
        all.find_map(|path| self.look(&path, visit))
    }

    /// Those in which a thread is, and those that one has open.
    fn processes<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        for process in processes() {
            if let Some(face) = face(&process) {
                match fs::metadata(process.join("ns/net")) {
                    Ok(_) => drop(self.seen.insert(face)),
                    Err(error) if self.may_trace && is_forbidden(&error) => {
                        self.kept.push((process, face));
                        continue;
                    }
                    Err(_) => {}
                }
            }
            let threads = self.list(&process.join("task"));
            for thread in threads {
                if let Some(found) = self.look(&thread.join("ns/net"), visit) {
                    return Some(found);
                }
            }
            for file in self.list(&process.join("fd")) {
                // Looked at before it is opened, which has effects on other files.
                let is_netns =
                    fs::read_link(&file).is_ok_and(|target| target.to_string_lossy().starts_with("net:["));
                if let Some(found) = is_netns.then(|| self.look(&file, visit)).flatten() {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Those that are mounted anywhere, in whatever mount namespace.
    fn mounts<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        let mut seen = HashSet::new();
        for process in processes() {
            let Some(namespace) = self.inode(&process.join("ns/mnt")) else { continue };
            if !seen.insert(namespace) {
                continue;
            }
            let Some(text) = self.note(&process, fs::read_to_string(process.join("mountinfo"))) else {
                continue;
            };
            for place in mounted(&text) {
                let path = process.join("root").join(place.trim_start_matches('/'));
                if let Some(found) = self.look(&path, visit) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Those that nothing but a socket keeps.
    fn sockets<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        for process in processes() {
            for file in self.list(&process.join("fd")) {
                let is_socket =
                    fs::read_link(&file).is_ok_and(|target| target.to_string_lossy().starts_with("socket:["));
                if !is_socket {
                    continue;
                }
                let namespace = self.note(&file, of_socket(&process, &file)).flatten();
                if let Some(found) = namespace.and_then(|namespace| self.visit(namespace, visit)) {
                    return Some(found);
                }
            }
        }
        None
    }

    fn list(&mut self, folder: &Path) -> Vec<PathBuf> {
        let entries = self.note(folder, fs::read_dir(folder));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    fn inode(&mut self, path: &Path) -> Option<u64> {
        self.note(path, fs::metadata(path)).map(|file| file.ino())
    }

    fn look<T>(&mut self, path: &Path, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        // Known without being opened, as most are.
        let inode = self.inode(path)?;
        if self.known.contains(&inode) || !(self.wanted)(inode) {
            return None;
        }
        let file = self.note(path, File::open(path))?;
        self.visit(file, visit)
    }

    fn visit<T>(&mut self, namespace: File, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        let inode = namespace.metadata().ok()?.ino();
        if !(self.wanted)(inode) || !self.known.insert(inode) {
            return None;
        }
        visit(namespace)
    }

    /// Processes end meanwhile, and what they had with them; who may not look has not seen.
    fn note<T>(&mut self, path: &Path, done: io::Result<T>) -> Option<T> {
        if let Err(error) = done.as_ref()
            && is_forbidden(error)
            && self.hidden.is_none()
            && !self.kept.iter().any(|(process, _)| path.starts_with(process))
        {
            self.hidden = Some(format!("{}: {error}", path.display()));
        }
        done.ok()
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What everybody sees of the network namespace that a process is in: the number of a file that each has one of.
fn face(process: &Path) -> Option<u64> {
    fs::metadata(process.join("net/dev")).ok().map(|file| file.ino())
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_number = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    entries.filter(move |entry| is_number(&entry.file_name())).map(|entry| entry.path())
}

/// Where network namespaces are mounted, in the text of a `mountinfo`: the fourth word is what of the file system, the fifth
/// where.
fn mounted(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(3);
        let (root, place) = (words.next()?, words.next()?);
        root.starts_with("net:[").then(|| unescaped(place))
    })
}

/// `\040` is a space.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                whole.push(char::from(byte));
                whole.push_str(&part[3..]);
            }
            None => whole.push_str(part),
        }
    }
    whole
}

/// The network namespace of another process's socket; nothing if that is gone.
fn of_socket(process: &Path, file: &Path) -> io::Result<Option<File>> {
    /// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/sockios.h>
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    let number = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
    let (Some(process), Some(file)) = (number(process), number(file)) else { return Ok(None) };
    let owned = |fd: i64| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new fd, which nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: two integers.
    let handle = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    // SAFETY: three integers.
    let socket = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, handle.as_raw_fd(), file, 0) })?;
    // SAFETY: an integer, and no memory.
    let namespace = owned(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }))?;
    Ok(Some(File::from(namespace)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces() {
        let text = "29 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    31 29 0:4 net:[4026532281] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw\n\
                    32 29 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw\n";
        assert_eq!(mounted(text).collect::<Vec<_>>(), ["/run/netns/a b"]);
    }

    #[test]
    fn each_has_a_face_of_its_own() {
        let faces = || ["/proc/self", "/proc/thread-self"].map(|path| face(Path::new(path)).expect("/proc"));
        let here = faces();
        assert_eq!(here[0], here[1]);
        let there = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).ok()?;
            face(Path::new("/proc/thread-self"))
        });
        // Not everybody may make one.
        if let Some(there) = there.join().expect("a thread") {
            assert_ne!(there, here[1]);
        }
    }

    #[test]
    fn the_own_one_is_found() {
        let own = current().expect("/proc");
        assert!(matches!(within(own, || 7), Ok(Sought::Found(7))));
    }
}
