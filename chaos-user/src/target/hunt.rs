//! Looking for network namespaces wherever one can be: only what was looked for everywhere can be said to be gone.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sched::{CloneFlags, setns},
};

use super::netns::{NetnsId, OWN, current};
use crate::{
    host::{Use, mounts, mounts::identity},
    kernel::{self, Error, own_thread, reach},
    spec::shown,
};

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

/// Does something in this network namespace, wherever that can be found.
///
/// # Errors
///
/// If it is found and cannot be entered.
pub fn within<T: Send>(wanted: NetnsId, action: impl FnOnce() -> T + Send) -> kernel::Result<Sought<T>> {
    if current()? == wanted {
        return Ok(Sought::Found(action()));
    }
    let mut action = Some(action);
    let found = Hunt::new(|there| there == wanted.inode).all(|namespace| {
        let action = action.take()?;
        // Another may have its number by now.
        let done = || Ok::<_, Error>((current()? == wanted).then(action));
        inside(namespace, done).and_then(|done| done).transpose()
    });
    found.transpose()
}

/// Does something in one network namespace after the other, but for this one, until it has an answer.
///
/// # Errors
///
/// If one cannot be entered.
pub fn in_others<T: Send>(but: NetnsId, action: impl Fn() -> Option<T> + Sync) -> kernel::Result<Sought<T>> {
    let done = || Ok::<_, Error>((current()? != but).then(&action).flatten());
    let found = Hunt::new(|_| true).all(|namespace| inside(namespace, done).and_then(|it| it).transpose());
    found.transpose()
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
    /// How long those may take together that do not answer.
    patience: Duration,
}

impl<W: Fn(u64) -> bool> Hunt<W> {
    fn new(wanted: W) -> Self {
        let seen = face(Path::new("/proc/thread-self")).into_iter().collect();
        let may_trace = Use::Processes.is_allowed();
        let patience = Duration::from_millis(500);
        Self { wanted, known: HashSet::new(), hidden: None, seen, kept: Vec::new(), may_trace, patience }
    }

    fn all<T>(mut self, mut visit: impl FnMut(File) -> Option<T>) -> Sought<T> {
        let places = [Self::near, Self::processes, Self::mounts, Self::sockets];
        for place in places {
            if let Some(found) = place(&mut self, &mut visit) {
                return Sought::Found(found);
            }
        }
        let strange = self.kept.iter().find(|(_, face)| !self.seen.contains(face));
        let strange = strange.map(|(process, _)| format!("{} may not be looked at", shown::name(&process)));
        self.hidden.or(strange).map_or(Sought::Nowhere, Sought::Hidden)
    }

    /// The caller's own, and those that have a name here.
    fn near<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        let named = self.list(Path::new("/run/netns"));
        let mut all = std::iter::once(PathBuf::from(OWN)).chain(named);
        all.find_map(|path| self.look(&path, visit))
    }

    /// Those in which a thread is, and those that one has open.
    fn processes<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        for process in self.all_processes() {
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
                // Most are something else.
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
        for process in self.all_processes() {
            let Some(namespace) = self.inode(&process.join("ns/mnt")) else { continue };
            if !seen.insert(namespace) {
                continue;
            }
            let Some(all) = self.note(&process, mounts::of(&process)) else { continue };
            for mount in all {
                let Some(number) = mount.netns().filter(|number| !self.known.contains(number)) else {
                    continue;
                };
                if !(self.wanted)(number) {
                    continue;
                }
                let file = self.note(&mount.point, mounted(&process, &mount.point)).flatten();
                if let Some(found) = file.and_then(|file| self.visit(file, visit)) {
                    return Some(found);
                }
                // Another is mounted over it, or is there by now.
                if !self.known.contains(&number) {
                    let what = format!("{} of process {}", shown::name(&mount.point), shown::name(&process));
                    self.hidden.get_or_insert(format!("net:[{number}] at {what} is covered"));
                }
            }
        }
        None
    }

    /// Those that nothing but a socket keeps.
    fn sockets<T>(&mut self, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        for process in self.all_processes() {
            for file in self.list(&process.join("fd")) {
                let is_socket =
                    fs::read_link(&file).is_ok_and(|target| target.to_string_lossy().starts_with("socket:["));
                if !is_socket {
                    continue;
                }
                let Some(asked) = self.ask(&process, &file) else { break };
                let namespace = self.note(&file, asked).flatten();
                if let Some(found) = namespace.and_then(|namespace| self.visit(namespace, visit)) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// That of a socket; nothing if its process does not answer: the kernel has whoever asks for a file of another process wait for
    /// the end of an `execve`.
    fn ask(&mut self, process: &Path, file: &Path) -> Option<io::Result<Option<File>>> {
        let begun = Instant::now();
        let (of, socket) = (process.to_owned(), file.to_owned());
        let asked = reach::one(self.patience, move || of_socket(&of, &socket));
        self.patience = self.patience.saturating_sub(begun.elapsed());
        match asked {
            Ok(None) => {
                self.hidden.get_or_insert(format!("the sockets of {} do not answer", shown::name(&process)));
                None
            }
            Ok(Some(found)) => Some(found),
            Err(error) => Some(Err(error.source)),
        }
    }

    fn list(&mut self, folder: &Path) -> Vec<PathBuf> {
        let entries = self.note(folder, fs::read_dir(folder));
        entries.into_iter().flatten().filter_map(|entry| Some(self.note(folder, entry)?.path())).collect()
    }

    fn all_processes(&mut self) -> Vec<PathBuf> {
        let mut all = self.list(Path::new("/proc"));
        let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
        all.retain(|path| number(path).is_some());
        all
    }

    fn inode(&mut self, path: &Path) -> Option<u64> {
        self.note(path, identity(path)).map(|(_, inode)| inode)
    }

    fn look<T>(&mut self, path: &Path, visit: &mut dyn FnMut(File) -> Option<T>) -> Option<T> {
        // Known without being opened, as most are.
        let inode = self.inode(path)?;
        if self.known.contains(&inode) || !(self.wanted)(inode) {
            return None;
        }
        let file = self.note(path, namespace(path))?;
        self.visit(file?, visit)
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
            && !is_gone(error)
            && self.hidden.is_none()
            && !self.kept.iter().any(|(process, _)| path.starts_with(process))
        {
            self.hidden = Some(format!("{}: {error}", shown::name(&path)));
        }
        done.ok()
    }
}

/// Whether there is nothing any more: what could not be looked at for any other reason, for want of descriptors say, may be there.
fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::ENOENT, libc::ESRCH, libc::EBADF, libc::ENOTDIR, libc::EINVAL];
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

fn is_forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What everybody sees of the network namespace that a process is in: the number of a file that each has one of.
fn face(process: &Path) -> Option<u64> {
    fs::metadata(process.join("net/dev")).ok().map(|file| file.ino())
}

/// Opens a namespace; nothing if there is something else by now, to which it would mean something to be opened.
fn namespace(path: &Path) -> io::Result<Option<File>> {
    namespace_of(&File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?)
}

/// The same of a place, whatever is called so now.
fn namespace_of(place: &File) -> io::Result<Option<File>> {
    let path = PathBuf::from(format!("/proc/thread-self/fd/{}", place.as_raw_fd()));
    // All namespaces are of one file system, and nothing else is.
    let is_one = identity(&path)?.0 == identity(Path::new(OWN))?.0;
    is_one.then(|| File::open(path)).transpose()
}

/// What is mounted there for a process. What is on the way is the process's own: it is not waited for should it have to be asked
/// of a file system that does not answer.
fn mounted(process: &Path, point: &Path) -> io::Result<Option<File>> {
    /// `RESOLVE_CACHED`: <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/openat2.h#L38>
    const CACHED: ResolveFlag = ResolveFlag::from_bits_retain(0x20);
    let root =
        File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(process.join("root"))?;
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT | CACHED);
    namespace_of(&openat2(&root, point, how)?.into())
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
    fn nothing_but_a_namespace_is_opened() {
        assert!(namespace(Path::new(OWN)).is_ok_and(|found| found.is_some()));
        // As a FIFO would wait for somebody to write, this would do what it is for.
        for other in ["/dev/tty", "/dev/null", "/proc/self/maps"] {
            assert!(!namespace(Path::new(other)).is_ok_and(|found| found.is_some()), "{other}");
        }
        let folder = std::env::temp_dir().join(format!("fl-hunt-{}", std::process::id()));
        nix::unistd::mkfifo(&folder, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        let found = namespace(&folder);
        fs::remove_file(&folder).expect("its end");
        assert!(found.is_ok_and(|found| found.is_none()));
    }

    #[test]
    fn the_own_one_is_found() {
        let own = current().expect("/proc");
        assert!(matches!(within(own, || 7), Ok(Sought::Found(7))));
    }
}
