//! What cgroups carry: programs on the packets and the connects of a cgroup, tried on an empty one; where none can be made, on
//! the own, by programs that change nothing.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};

use super::{Answer, M, Refusal, insn::Code, mounts};
use crate::{
    kernel::{
        Error, Result,
        sys::{self, Program, Target},
        throttle,
    },
    spec::shown,
};

/// Of the cgroup's name; the rest is the PID, and a number of the process's own.
const PREFIX: &str = "faultline-probe-";
/// How often another name is tried: a process of another PID namespace may have this one's.
const ATTEMPTS: usize = 1000;
const OWN: &str = "/proc/self/cgroup";
/// Let the packet, or the connect, go on.
const ALLOW: i32 = 1;

/// All of them.
pub(super) fn probe() -> Vec<(M, Answer)> {
    let root = match mounts::find("cgroup2") {
        Ok(Some(root)) => root,
        Ok(None) => {
            return without(&|| Refusal::missing("no cgroup2 file system is mounted (/proc/self/mountinfo)"));
        }
        Err(error) => return without(&|| Refusal::Untried(error.to_string())),
    };
    remove_stale_in(&root);
    // Faults attach to what is there, for which nothing need be made.
    let cgroup = match Cgroup::new(&root).or_else(|_| Cgroup::own(&root)) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let remedy = "give this process a cgroup2 mount; in a container, mount the host's";
            return without(&|| Refusal::Missing { cause: error.to_string(), remedy: Some(remedy.into()) });
        }
    };
    let limits = if cgroup.is_ours { io_max(&cgroup.path) } else { io_max_of_others(&root) };
    let note = if cgroup.is_ours { "" } else { "; no cgroup can be made there, and none need be" };
    vec![
        (M::CgroupV2, Ok(Some(format!("at {}{note}", shown::name(&root))))),
        (M::CgroupSkb, answer(cgroup.skb())),
        (M::CgroupConnect, answer(cgroup.connect())),
        (M::CgroupSock, answer(cgroup.sock())),
        (M::IoMax, limits),
    ]
}

fn answer(result: Result<()>) -> Answer {
    result.map(|()| None).map_err(Refusal::from)
}

/// Whether the cgroup has limits, which it has as soon as it is there.
fn io_max(cgroup: &Path) -> Answer {
    match throttle::missing(cgroup)? {
        None => Ok(None),
        Some((cause, remedy)) => Err(Refusal::Missing { cause, remedy: Some(remedy) }),
    }
}

/// The same of a cgroup that somebody else has made: whether it could be limited, without doing so.
fn io_max_of_others(root: &Path) -> Answer {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut folders = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let Some(first) = folders.next() else {
        return Err(Refusal::Untried("not tried: there is no cgroup to be limited".into()));
    };
    let limits = |folder: &PathBuf| folder.join(throttle::LIMITS);
    let folder = folders.find(|folder| limits(folder).exists()).filter(|_| !limits(&first).exists());
    let folder = folder.unwrap_or(first);
    let works = io_max(&folder)?;
    let path = limits(&folder);
    match File::options().write(true).open(&path) {
        Ok(_) => Ok(works),
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            let cause = format!("{} is read-only here", shown::name(&path));
            Err(Refusal::Missing { cause, remedy: Some("mount cgroup2 for writing".into()) })
        }
        Err(source) => Err(Error::new("open", shown::name(&path), source).into()),
    }
}

/// Without a cgroup there is nothing to attach to.
fn without(refusal: &dyn Fn() -> Refusal) -> Vec<(M, Answer)> {
    let untried = || Err(Refusal::Untried("not tried: there is no cgroup v2 to try it on".into()));
    let rest =
        [M::CgroupSkb, M::CgroupConnect, M::CgroupSock, M::IoMax].map(|mechanism| (mechanism, untried()));
    [(M::CgroupV2, Err(refusal()))].into_iter().chain(rest).collect()
}

/// An empty cgroup, gone with its value, and locked as long as its maker lives, by which others know that, whatever PID
/// namespace they are in; or, where none can be made, that of this process.
struct Cgroup {
    path: PathBuf,
    directory: File,
    is_ours: bool,
}

impl Cgroup {
    fn new(root: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..ATTEMPTS {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("{PREFIX}{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Err(source) if source.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|source| Error::new("mkdir", shown::name(&path), source))?,
            }
            if let Some(cgroup) = Self::locked(path)? {
                return Ok(cgroup);
            }
        }
        let source = io::ErrorKind::AlreadyExists.into();
        Err(Error::new("mkdir", shown::name(&root.join(PREFIX)), source))
    }

    /// Nothing if somebody else has taken it for stale, before it was locked.
    fn locked(path: PathBuf) -> Result<Option<Self>> {
        let error = |call, source| {
            let _ = fs::remove_dir(&path);
            Error::new(call, shown::name(&path), source)
        };
        let directory = match File::open(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| error("open", source))?,
        };
        match directory.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(source)) => return Err(error("flock", source)),
        }
        // Whoever removes one has the lock on it meanwhile: now it stays.
        Ok(is_at(&directory, &path).then_some(Self { path, directory, is_ours: true }))
    }

    /// That of this process; the topmost that is to be seen, if that lies elsewhere.
    fn own(root: &Path) -> Result<Self> {
        let own = fs::read(OWN).map_err(|source| Error::new("open", OWN, source))?;
        let own = own.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"));
        let own = Path::new(OsStr::from_bytes(own.unwrap_or_default()));
        let is_outside = own.components().any(|part| part == Component::ParentDir);
        let inside = root.join(own);
        let path = if is_outside || !inside.is_dir() { root.to_owned() } else { inside };
        let directory = File::open(&path).map_err(|source| Error::new("open", shown::name(&path), source))?;
        Ok(Self { path, directory, is_ours: false })
    }

    fn skb(&self) -> Result<()> {
        for hook in [bpf_attach_type::BPF_CGROUP_INET_INGRESS, bpf_attach_type::BPF_CGROUP_INET_EGRESS] {
            self.attach(&load_skb(hook)?, hook)?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        for hook in [bpf_attach_type::BPF_CGROUP_INET4_CONNECT, bpf_attach_type::BPF_CGROUP_INET6_CONNECT] {
            if self.is_ours {
                self.attach(&load_connect(hook)?, hook)?;
            } else {
                // What another program has answered to a connect of somebody's must stay: this one is only loaded.
                load_connect(hook)?;
                let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
                self.attach(&load("doctor_connect", kind, hook, Code::default())?, hook)?;
            }
        }
        Ok(())
    }

    fn sock(&self) -> Result<()> {
        self.attach(&load_sock()?, SOCK_CREATE)
    }

    fn attach(&self, program: &OwnedFd, hook: bpf_attach_type) -> Result<()> {
        sys::link(program.as_fd(), Target::File(self.directory.as_fd()), hook, 0).map(drop)
    }
}

const SOCK_CREATE: bpf_attach_type = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE;

/// Lets all packets go on.
pub(super) fn load_skb(hook: bpf_attach_type) -> Result<OwnedFd> {
    load("doctor_skb", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, hook, Code::default())
}

/// Lets all connects go on, by the helper that would have them fail.
pub(super) fn load_connect(hook: bpf_attach_type) -> Result<OwnedFd> {
    let code = Code::default().set(1, 0).call(bpf_func_id::BPF_FUNC_set_retval);
    load("doctor_connect", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, hook, code)
}

/// Lets all sockets be made.
pub(super) fn load_sock() -> Result<OwnedFd> {
    load("doctor_sock", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, SOCK_CREATE, Code::default())
}

/// A program that lets everything go on.
fn load(name: &str, kind: bpf_prog_type, hook: bpf_attach_type, code: Code) -> Result<OwnedFd> {
    let code = code.exit(ALLOW);
    sys::load(&Program {
        name,
        kind,
        attach: Some(hook),
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })
}

/// Whether what was opened is still what has this name.
fn is_at(directory: &File, path: &Path) -> bool {
    let number = |found: io::Result<fs::Metadata>| found.map(|it| it.ino()).ok();
    let now = number(fs::metadata(path));
    now.is_some() && now == number(directory.metadata())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.is_ours {
            // What cannot be removed now is empty, and the next run tries again.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Removes the empty cgroups of doctors that were killed.
pub fn remove_stale() {
    if let Ok(Some(root)) = mounts::find("cgroup2") {
        remove_stale_in(&root);
    }
}

fn remove_stale_in(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
        let path = entry.path();
        // Locked while it is removed, lest its maker lock it at that moment.
        if let Ok(directory) = File::open(&path)
            && directory.try_lock().is_ok()
        {
            // What is not empty is not only a doctor's any more.
            let _ = fs::remove_dir(&path);
        }
    }
}

/// Whether a folder's name is that of a doctor's cgroup, of this version or one before.
fn is_ours(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix(PREFIX).is_some_and(|rest| match rest.split_once('-') {
        Some((pid, number)) => is_number(pid) && is_number(number),
        None => is_number(rest),
    })
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_our_own_cgroups_are_removed() {
        assert!(is_ours("faultline-probe-42-0") && is_ours("faultline-probe-42"));
        for other in [
            "faultline-probe-",
            "faultline-probe-4x",
            "faultline-probe-42-",
            "faultline-probe-42-1-2",
            "faultline-probe-../..",
            "system.slice",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
