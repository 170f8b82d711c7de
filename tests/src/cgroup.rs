//! Throw-away cgroups.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    ensure,
    error::{Context, Result},
    harness::{patience, program},
    lab::Netns,
};

const MOUNTS: &str = "/proc/self/mounts";
const OWN: &str = "/proc/self/cgroup";
/// What a process may take to begin, or to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cgroup below the root, without processes. Removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
}

/// What writes its caller into this `cgroup.procs`: system calls alone, as a command may make before its program begins.
///
/// # Errors
///
/// If it has no path that the kernel could be given.
pub(crate) fn entering(members: &Path) -> Result<impl Fn() -> io::Result<()> + Send + Sync + use<>> {
    let file = CString::new(members.as_os_str().as_bytes()).context(members.display())?;
    Ok(move || {
        // SAFETY: a string that ends with NUL; what is opened is closed by exec, and one byte is read.
        let written = unsafe {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(fd, c"0".as_ptr().cast(), 1)
        };
        if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}

impl Cgroup {
    /// A new one.
    ///
    /// # Errors
    ///
    /// The kernel's, and if there are no cgroups v2.
    pub fn new() -> Result<Self> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let path = root()?.join(format!("fl-test-{}-{number}", process::id()));
        // A test that had this process's number and was killed may have left it.
        let _ = fs::remove_dir(&path);
        Self::at(path)
    }

    /// One with a name of its own, below the root.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn named(name: &str) -> Result<Self> {
        Self::at(root()?.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).context(path.display())?;
        let directory = File::open(&path).context(path.display())?;
        Ok(Self { path, directory })
    }

    /// Moves the calling process here. It must leave or end before this is dropped.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn join(&self) -> Result {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, "0").context(file.display())
    }

    /// A new one below this one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn child(&self, name: impl AsRef<Path>) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does something in here, and goes back: what sockets the calling process makes meanwhile are this cgroup's.
    ///
    /// # Errors
    ///
    /// The action's, and the kernel's.
    pub fn run<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = own()?.join("cgroup.procs");
        self.join()?;
        let done = action();
        fs::write(&home, "0").context(home.display())?;
        done
    }

    /// Starts a process in here that does nothing until its value is dropped. `prepare` may change it before.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn inhabit(&self, prepare: impl FnOnce(&mut Command)) -> Result<Inhabitant> {
        // It ends when nobody can write to it any more.
        self.inhabit_as(&program("cat").context("no program cat")?, prepare)
    }

    /// Starts another program in here, until its value is dropped or its input ends. `prepare` may change it before.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn inhabit_as(&self, program: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Inhabitant> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        prepare(&mut command);
        self.run(|| Ok(Inhabitant(command.spawn().context(program.display())?)))
    }

    /// Starts a process in here that has begun so many others, each with its files. `prepare` may change it before.
    ///
    /// # Errors
    ///
    /// If they cannot be started.
    pub(crate) fn crowd(&self, others: usize, prepare: impl FnOnce(&mut Command)) -> Result<Crowd<'_>> {
        let script =
            format!("exec 3<&0; i=0; while [ $i -lt {others} ]; do cat <&3 & i=$((i + 1)); done; wait");
        let first = self.inhabit_as(&program("sh").context("no program sh")?, |command| {
            command.args(["-c", &script]).process_group(0);
            prepare(command);
        })?;
        let mut crowd = Crowd { cgroup: self, first, pids: BTreeSet::new() };
        let deadline = Instant::now() + patience(PATIENCE);
        while crowd.pids.len() != others + 1 {
            ensure!(Instant::now() < deadline, "{} of {others} others have begun", crowd.pids.len());
            thread::sleep(Duration::from_millis(5));
            crowd.pids = crowd.group()?;
        }
        Ok(crowd)
    }

    /// The same in a network namespace.
    ///
    /// # Errors
    ///
    /// As [`inhabit`](Self::inhabit).
    pub fn inhabit_in(&self, netns: &Netns, prepare: impl FnOnce(&mut Command) + Send) -> Result<Inhabitant> {
        netns.run(|| self.inhabit(prepare))
    }

    /// Has what a command starts be in here before its program begins; this process stays where it is.
    ///
    /// # Errors
    ///
    /// If this has no path that the kernel could be given.
    pub fn admit(&self, command: &mut Command) -> Result {
        let enter = entering(&self.path.join("cgroup.procs"))?;
        // SAFETY: two system calls, no allocation.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// Moves a process here.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take(&self, pid: u32) -> Result {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string()).context(file.display())
    }

    /// Whether the calling process is here, by its own word.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_joined(&self) -> Result<bool> {
        let own = fs::read_to_string(OWN).context(OWN)?;
        let name = self.path.file_name().context("a cgroup without a name")?.to_string_lossy();
        Ok(own.lines().any(|line| line.starts_with("0::") && line.ends_with(&*name)))
    }

    /// How many processes are here.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn population(&self) -> Result<usize> {
        let file = self.path.join("cgroup.procs");
        Ok(fs::read_to_string(&file).context(file.display())?.lines().count())
    }
}

impl AsFd for Cgroup {
    /// The directory, which is what programs attach to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // One that is not empty now stays; nothing acts on it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// A process that is somewhere and does nothing else.
#[derive(Debug)]
pub struct Inhabitant(Child);

impl Inhabitant {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process, and others that it has begun. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Crowd<'a> {
    cgroup: &'a Cgroup,
    first: Inhabitant,
    pids: BTreeSet<u32>,
}

impl Crowd<'_> {
    /// That of the first.
    pub(crate) fn pid(&self) -> u32 {
        self.first.pid()
    }

    /// Those of all.
    pub(crate) fn pids(&self) -> &BTreeSet<u32> {
        &self.pids
    }

    /// Who of the cgroup is in the first one's process group, and has become what it was begun for.
    fn group(&self) -> Result<BTreeSet<u32>> {
        let file = self.cgroup.path.join("cgroup.procs");
        let all = fs::read_to_string(&file).context(file.display())?;
        let group = Some(self.pid().to_string());
        let is_of_it = |pid: &u32| {
            // `PID (NAME) STATE PARENT GROUP ...`; it may have ended.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
            let is_there = *pid == self.pid() || name.ends_with("(cat");
            is_there && rest.split(' ').nth(2).map(str::to_owned) == group
        };
        Ok(all.lines().filter_map(|pid| pid.parse().ok()).filter(is_of_it).collect())
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid().cast_signed()), Signal::SIGKILL);
        // Its cgroup can only be removed when all have ended.
        let deadline = Instant::now() + patience(PATIENCE);
        while Instant::now() < deadline && self.group().is_ok_and(|group| !group.is_empty()) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The folder of the one that this process is in.
///
/// # Errors
///
/// If it cannot be told.
pub fn own() -> Result<PathBuf> {
    let own = fs::read_to_string(OWN).context(OWN)?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).context(OWN)?;
    Ok(root()?.join(path))
}

/// Where cgroups v2 are mounted.
///
/// # Errors
///
/// If they are not.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string(MOUNTS).context(MOUNTS)?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    // `source /mount/point type options`
    let point = mounts.find_map(|mut words| {
        let point = words.nth(1)?;
        (words.next() == Some("cgroup2")).then(|| PathBuf::from(point))
    });
    point.context("no cgroup2 file system is mounted")
}
