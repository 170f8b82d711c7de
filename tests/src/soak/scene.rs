//! Where all of it happens: two hosts on a wire and a third on another, a target and a bystander in cgroups of their own, and
//! what there is of all that at the start.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, ChildStdin, Command, Stdio},
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::roles::Role;
use crate::{
    cgroup::Cgroup,
    error::{Context, Result},
    faultline::sibling,
    harness::{enter, patience},
    inventory::{Inventory, Surroundings},
    lab::{Lab, NEAR_DEVICE, Netns, Options},
};

/// Where network namespaces have names, and the one that this one's has for owners who number processes otherwise.
const NAMED: &str = "/run/netns";
const NAME: &str = "soak";

/// Everything is as it was within this time: what an owner that was killed held takes the kernel a moment, and its guard
/// some more.
fn settles() -> Duration {
    patience(Duration::from_secs(8))
}

/// What the scenes of a run have in file systems, which goes with the run however that ends.
#[derive(Debug)]
pub(super) struct Ground {
    memory: Memory,
    base: Cgroup,
    folder: PathBuf,
    /// As long as this is open.
    _janitor: ChildStdin,
}

impl Ground {
    /// Makes it, and takes this process, which has one thread, to mounts of its own.
    pub(super) fn prepare() -> Result<Self> {
        let base = Cgroup::named(&format!("fl-soak-{}", process::id()))?;
        // A controller that is not there cannot be turned on, and nothing that needs it is then done.
        for controller in ["+io", "+memory", "+cpu", "+pids"] {
            let _ = fs::write(base.path().join("cgroup.subtree_control"), controller);
        }
        let folder = Path::new("/var/tmp").join(format!("fl-soak-{}", process::id()));
        let memory = Memory::find(&base)?;
        let janitor = janitor(&[base.path(), memory.folder(), &folder])?;
        for part in ["target", "beside"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).context(part.display())?;
        }
        enter()?;
        // Who comes first makes it, so that it is seen how.
        fs::remove_dir(crate::harness::RECORDS).context(crate::harness::RECORDS)?;
        Ok(Self { memory, base, folder, _janitor: janitor })
    }

    fn part(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Where memory can be had to want.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Starts who takes these away once this process has ended. In a process group of its own: ^C is not meant for it.
fn janitor(paths: &[&Path]) -> Result<ChildStdin> {
    let mut command = Command::new(sibling("fl-soak")?);
    command.args(["--role", "janitor"]).args(paths).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut janitor = command.spawn().context("start the janitor")?;
    janitor.stdin.take().context("its input")
}

/// A cgroup that has a controller of memory, of whichever version.
#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Memory {
    /// The host of the development machines has version 1 for it, guests have version 2.
    const FIRST: &str = "/sys/fs/cgroup/memory";

    fn find(base: &Cgroup) -> Result<Self> {
        let first = Path::new(Self::FIRST);
        if first.join("memory.limit_in_bytes").exists() {
            let folder = first.join(format!("fl-soak-{}", process::id()));
            fs::create_dir(&folder).context(folder.display())?;
            return Ok(Self { folder, limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes" });
        }
        let folder = base.path().join("memory");
        fs::create_dir(&folder).context(folder.display())?;
        Ok(Self { folder, limit: "memory.max", usage: "memory.current" })
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a process is moved to.
    pub(super) fn members(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Gives those in it so much more than they have.
    pub(super) fn leave(&self, more: u64) -> Result {
        let usage = self.folder.join(self.usage);
        let used: u64 =
            fs::read_to_string(&usage).context(usage.display())?.trim().parse().context("usage")?;
        let limit = self.folder.join(self.limit);
        fs::write(&limit, (used + more).to_string()).context(limit.display())
    }

    /// As much as they want.
    pub(super) fn unlimit(&self) -> Result {
        let limit = self.folder.join(self.limit);
        let most = if self.limit == "memory.max" { "max" } else { "-1" };
        fs::write(&limit, most).context(limit.display())
    }
}

/// An interface that a step may take away, move, or have go with its namespace.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) near: Option<Netns>,
    pub(super) far: Netns,
    /// Where it is moved to.
    pub(super) other: Netns,
    before: Inventory,
}

impl Spare {
    pub(super) fn new() -> Result<Self> {
        let Lab { near, far, side: _ } = Lab::new()?;
        let other = Netns::new()?;
        let before = Inventory::of_interfaces(&[&near, &far, &other])?;
        Ok(Self { near: Some(near), far, other, before })
    }

    /// Deletes the interface.
    pub(super) fn delete(&self) -> Result {
        self.near.as_ref().map_or(Ok(()), |near| near.delete_interface(NEAR_DEVICE))
    }

    /// Moves it away.
    pub(super) fn relocate(&self) -> Result {
        let Some(near) = &self.near else { return Ok(()) };
        let index = near.index(NEAR_DEVICE)?;
        Ok(near.netlink()?.set_netns(index, self.other.as_fd())?)
    }

    /// What is tuned of its interfaces, wherever they are by now, that was not.
    pub(super) fn changed(&self) -> Result<Vec<String>> {
        let all: Vec<&Netns> = self.near.iter().chain([&self.far, &self.other]).collect();
        Ok(Inventory::of_interfaces(&all)?.beyond(&self.before))
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    ground: &'a Ground,
    pub(super) target: Option<Role>,
    pub(super) bystander: Role,
    _servers: [Role; 2],
    pub(super) cgroup: Option<Cgroup>,
    pub(super) elsewhere: Cgroup,
    _beside: Cgroup,
    lab: Lab,
    /// That of an interface which this step takes away.
    pub(super) spare: Option<Spare>,
    is_named: bool,
    start: Inventory,
}

impl<'a> Scene<'a> {
    /// All of it at work, with a listing of what there is.
    pub(super) fn set(ground: &'a Ground) -> Result<Self> {
        let lab = Lab::with(Options { wire_packets: false, side: true })?;
        let side = lab.side.as_ref().context("a third host")?;
        let server = |netns| Role::start("server", &[], None, Some(netns));
        let servers = [server(&lab.far)?, server(side)?];
        let (elsewhere, beside) = (ground.base.child("elsewhere")?, ground.base.child("beside")?);
        let folder = ground.part("beside");
        let bystander = Role::start("bystander", &[&folder], Some(&beside), Some(&lab.near))?;
        let mut scene = Self {
            ground,
            target: None,
            bystander,
            _servers: servers,
            cgroup: None,
            elsewhere,
            _beside: beside,
            lab,
            spare: None,
            is_named: false,
            start: Inventory::default(),
        };
        scene.restore()?;
        scene.start = Inventory::settled_as(|| scene.inventory())?;
        Ok(scene)
    }

    /// Has the target be there, and nowhere else than it belongs.
    pub(super) fn restore(&mut self) -> Result {
        if self.cgroup.is_none() {
            self.cgroup = Some(self.ground.base.child("target")?);
        }
        let cgroup = self.cgroup.as_ref().context("the target's cgroup")?;
        match &self.target {
            Some(target) => cgroup.take(target.pid()),
            None => {
                let folder = self.ground.part("target");
                self.target = Some(Role::start("target", &[&folder], Some(cgroup), Some(&self.lab.near))?);
                Ok(())
            }
        }
    }

    /// Gives the step its own interface, and the first one's namespace a name, if it wants these.
    pub(super) fn prepare(&mut self, spare: bool, named: bool) -> Result {
        self.spare = if spare { Some(Spare::new()?) } else { None };
        if named {
            let path = Path::new(NAMED).join(NAME);
            fs::create_dir_all(NAMED).context(NAMED)?;
            File::create(&path).context(path.display())?;
            let namespace = format!("/proc/self/fd/{}", self.lab.near.as_fd().as_raw_fd());
            mount(Some(namespace.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context(path.display())?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Takes both back.
    pub(super) fn clear(&mut self) -> Result {
        self.spare = None;
        if std::mem::take(&mut self.is_named) {
            let path = Path::new(NAMED).join(NAME);
            umount2(&path, MntFlags::MNT_DETACH).context(path.display())?;
            fs::remove_file(&path).context(path.display())?;
        }
        Ok(())
    }

    /// A word of a fault, with all that it names by a place in it.
    pub(super) fn word(&self, word: &str, is_elsewhere: bool) -> Result<String> {
        let near = self.spare.as_ref().and_then(|spare| spare.near.as_ref()).unwrap_or(&self.lab.near);
        Ok(match word {
            "{netns}" if is_elsewhere => NAME.into(),
            "{netns}" => near.path().display().to_string(),
            "{cgroup}" => self.cgroup.as_ref().context("the target's cgroup")?.path().display().to_string(),
            "{pid}" => self.target.as_ref().context("the target")?.pid().to_string(),
            "{folder}" => self.ground.part("target"),
            "{command}" => sibling("fl-soak")?.display().to_string(),
            other => other.into(),
        })
    }

    /// All that there is now.
    fn inventory(&self) -> Result<Inventory> {
        let side = self.lab.side.as_ref().context("a third host")?;
        let namespaces = [("near", &self.lab.near), ("far", &self.lab.far), ("side", side)];
        let mut processes = vec![("bystander", self.bystander.pid())];
        processes.extend(self.target.as_ref().map(|target| ("target", target.pid())));
        let surroundings =
            Surroundings { namespaces: &namespaces, cgroup: self.ground.base.path(), processes: &processes };
        Inventory::take(&namespaces.map(|(_, netns)| netns))?.with(&surroundings)
    }

    /// Waits until all is as it was at the start.
    ///
    /// # Errors
    ///
    /// What is not.
    pub(super) fn wait_for_start(&self) -> Result {
        self.start.wait_for(|| self.inventory(), settles())
    }

    /// Where memory can be had to want.
    pub(super) fn memory(&self) -> &Memory {
        self.ground.memory()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        // What cannot be taken back is in mounts that end with this process.
        let _ = self.clear();
    }
}

/// Fills the pipe that a process prints to.
pub(super) fn fill_output(pid: i32) -> Result {
    let path = format!("/proc/{pid}/fd/1");
    // Opened anew, so that it is this end alone that does not wait.
    let opened =
        std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().write(true), libc::O_NONBLOCK)
            .open(&path);
    let mut pipe = match opened {
        Ok(pipe) => pipe,
        // It has ended.
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(path),
    };
    // Whoever was just reading has read for the last time then.
    for _ in 0..20 {
        while pipe.write(&[b'\n'; 64]).is_ok() {}
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
