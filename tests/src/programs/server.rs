//! A world for a real program: its own network, mounts and shared memory. What the machine runs is not disturbed,
//! and nothing stays, however the test ends.

use std::{
    fmt::Display,
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::{die_with_parent, program},
    lab::Netns,
};

/// Where everything of the program is, in memory that only its world sees: this test's own `/run`.
const FOLDER: &str = "/run/world";
const STOP: Duration = Duration::from_secs(30);

/// The world this process has entered.
pub(super) struct World(());

impl World {
    /// Takes this process, which has one thread, out of the machine's.
    pub(super) fn enter() -> Result<Self> {
        Self::enter_at(&Netns::new()?)
    }

    /// The same, into a network that is there.
    pub(super) fn enter_at(netns: &Netns) -> Result<Self> {
        setns(netns, CloneFlags::CLONE_NEWNET).context("setns(CLONE_NEWNET)")?;
        unshare(CloneFlags::CLONE_NEWIPC).context("unshare(CLONE_NEWIPC)")?;
        fs::create_dir(FOLDER).context(FOLDER)?;
        fs::set_permissions(FOLDER, Permissions::from_mode(0o1777)).context(FOLDER)?;
        std::env::set_current_dir(FOLDER).context(FOLDER)?;
        Ok(Self(()))
    }

    /// A folder that anybody may write to, and that holds nothing yet.
    pub(super) fn path(&self) -> &Path {
        Path::new(FOLDER)
    }

    /// A new folder in it for one user only.
    pub(super) fn folder(&self, name: &str, user: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir(&path).context(path.display())?;
        let (uid, gid) = ids(user)?;
        chown(&path, Some(uid), Some(gid)).context(path.display())?;
        Ok(path)
    }

    /// A program to be run as a user, and killed should this process end.
    pub(super) fn command(&self, name: &str, user: &str) -> Result<Command> {
        let (uid, gid) = ids(user)?;
        let mut command = Command::new(program(name).context(format_args!("no program {name}"))?);
        command.uid(uid).gid(gid).env("HOME", FOLDER).env("LC_ALL", "C");
        // After the change of user, which makes the kernel forget it.
        die_with_parent(&mut command);
        Ok(command)
    }

    /// Runs a program to its end and returns what it prints.
    pub(super) fn run(&self, command: &mut Command) -> Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = command.output().context(&name)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status;
        ensure!(status.success(), "{name}: {status}: {}{}", text(&output.stdout), text(&output.stderr));
        Ok(text(&output.stdout))
    }
}

/// A program that runs until it is told to stop. Killed when dropped.
pub(super) struct Server {
    child: Child,
    name: String,
    stop: Signal,
}

impl Server {
    /// Starts it; `stop` is the signal that makes it end in order.
    pub(super) fn start(mut command: Command, stop: Signal) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().context(&name)?;
        Ok(Self { child, name, stop })
    }

    /// Tries until the server answers.
    pub(super) fn until<T>(&self, time: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + time;
        loop {
            match attempt() {
                Ok(answer) => return Ok(answer),
                Err(failure) if Instant::now() >= deadline => return Err(failure).context(&self.name),
                // A server says in its own way, if at all, when it is ready; asking it is what a user would do.
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Whether it has not ended by itself.
    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context(&self.name)?.is_none())
    }

    /// Waits until it ends by itself.
    pub(super) fn wait(mut self, time: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context(&self.name)? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(Failure::new(format!("{}: still running after {time:?}", self.name)))
    }

    /// Has it end in order.
    pub(super) fn stop(mut self) -> Result {
        let status = self.end()?;
        ensure!(status.success(), "{}: {status} after {}", self.name, self.stop);
        Ok(())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let failed = |what: &dyn Display| Failure::new(format!("{}: {what}", self.name));
        kill(Pid::from_raw(self.child.id().cast_signed()), self.stop).map_err(|errno| failed(&errno))?;
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(|error| failed(&error))? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(failed(&format!("still running {STOP:?} after {}", self.stop)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order first, so that its own children end with it.
        if matches!(self.child.try_wait(), Ok(None)) && self.end().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A user's and its group's number. Static programs cannot ask the C library.
fn ids(user: &str) -> Result<(u32, u32)> {
    const PASSWD: &str = "/etc/passwd";
    let passwd = fs::read_to_string(PASSWD).context(PASSWD)?;
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == user).then_some(())?;
        let mut number = |skip| fields.nth(skip)?.parse().ok();
        Some((number(1)?, number(0)?))
    });
    entry.context(format_args!("no user {user} in {PASSWD}"))
}
