//! Files and directories, as the kernel's programs know them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use chaos_ebpf::call::Inode;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
};
use procfs::{FromRead, process::MountInfos};

use super::{CgroupError, Target};
use crate::{
    fault::glob,
    host::{RightsError, Use, rights},
    kernel::{self, calls::Identifier, throttle::BlockDevice},
    spec::{DeviceSpec, Invalid, PathSpec},
};

/// A file that is meant, or the directory of those that a glob matches.
pub type Place = (Inode, Option<String>);

/// What could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No such file.
    #[error("--path {path}: {source}{}", within(root))]
    Missing {
        /// What was asked for.
        path: PathSpec,
        /// Whose root it was looked up in, if not in the caller's own.
        root: Option<u32>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A glob that is none.
    #[error("--path: {0}")]
    Glob(#[from] Invalid),
    /// No such device.
    #[error("--dev-block {device}: {source}")]
    Device {
        /// What was asked for.
        device: DeviceSpec,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file system of which it is not known on what device it lies.
    #[error(
        "--path {path}: its file system is on no block device of its own ({device}); name the device with --dev-block"
    )]
    NoDevice {
        /// What was asked for.
        path: PathSpec,
        /// The number that stands for one.
        device: BlockDevice,
    },
    /// The processes that are aimed at.
    #[error(transparent)]
    Target(#[from] CgroupError),
    /// Nor may their roots be looked at.
    #[error("--path: {0}")]
    Rights(#[from] RightsError),
    /// What is mounted.
    #[error("read mountinfo: {0}")]
    Mounts(#[from] procfs::ProcError),
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// Something of `/proc`.
    #[error("{call}: {source}")]
    Proc {
        /// The operation.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn within(root: &Option<u32>) -> String {
    root.map_or_else(String::new, |pid| format!(" in the root of process {pid}, which is aimed at"))
}

/// From where paths are looked up.
#[derive(Debug)]
struct Root {
    /// The process whose root it is; the caller's own if none.
    process: Option<u32>,
    folder: OwnedFd,
    /// Where file systems are mounted there.
    mounts: Vec<PathBuf>,
}

/// Looks paths up.
#[derive(Debug)]
pub struct Places {
    kernel: Identifier,
    roots: Vec<Root>,
}

impl Places {
    /// Gets ready to look up what these processes mean by a path: each may have a root and mounts of its own.
    ///
    /// # Errors
    ///
    /// [`PlaceError`].
    pub fn new(targets: &[Target]) -> Result<Self, PlaceError> {
        Ok(Self { kernel: Identifier::new()?, roots: roots(targets)? })
    }

    /// What is meant by a path, and all that is mounted beneath it.
    ///
    /// # Errors
    ///
    /// [`PlaceError`] if it is nowhere.
    pub fn find(&mut self, spec: &PathSpec) -> Result<Vec<Place>, PlaceError> {
        let pattern = spec.glob.as_deref().map(|glob| glob::compile(glob, 1)).transpose()?;
        let mut found = Vec::new();
        let mut missing = None;
        for root in &self.roots {
            let file = match root.open(Path::new(&spec.path)) {
                Ok(file) => file,
                Err(errno) => {
                    let source = io::Error::from(errno);
                    missing = Some(PlaceError::Missing { path: spec.clone(), root: root.process, source });
                    continue;
                }
            };
            found.push((self.kernel.inode(file.as_fd())?, spec.glob.clone()));
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let folder = fs::read_link(link).map_err(proc("readlink /proc/self/fd"))?;
            for mount in &root.mounts {
                let Ok(below) = mount.strip_prefix(&folder) else { continue };
                let Some(first) = below.iter().next() else { continue };
                let is_meant =
                    pattern.as_ref().is_none_or(|glob| glob::takes(glob, first.as_encoded_bytes()));
                // One that has gone meanwhile, or cannot be reached, has nothing beneath it.
                if is_meant && let Ok(file) = root.open(mount) {
                    found.push((self.kernel.inode(file.as_fd())?, None));
                }
            }
        }
        match missing {
            Some(missing) if found.is_empty() => Err(missing),
            _ => Ok(found),
        }
    }

    /// The injector's own program, and the loader of programs that it is linked with; zeros if it is with none.
    ///
    /// # Errors
    ///
    /// [`PlaceError`].
    pub fn own(&mut self) -> Result<[Inode; 2], PlaceError> {
        let mut known = |path: &Path| {
            let file = File::open(path).map_err(proc("open the own program"))?;
            Ok::<_, PlaceError>(self.kernel.inode(file.as_fd())?)
        };
        let program = known(Path::new("/proc/self/exe"))?;
        let loader = loader()?.map(|path| known(&path)).transpose()?.unwrap_or_default();
        Ok([program, loader])
    }
}

/// The roots of these processes, each once; the caller's own if there are none.
fn roots(targets: &[Target]) -> Result<Vec<Root>, PlaceError> {
    let own = identity("/proc/self").map_err(proc("stat /proc/self/root"))?;
    let mut known = BTreeSet::new();
    let mut roots = Vec::new();
    for target in targets {
        for process in target.processes()? {
            let there = identity(&format!("/proc/{process}"));
            // What another root means by a path is not what the own means by it.
            rights::explain(&there, &[Use::Processes])?;
            let Ok(there) = there else { continue };
            if known.insert(there) {
                roots.push(Root::new((there != own).then_some(process))?);
            }
        }
    }
    if roots.is_empty() {
        roots.push(Root::new(None)?);
    }
    Ok(roots)
}

/// The devices on which the file systems lie of what these processes mean by a path.
///
/// # Errors
///
/// [`PlaceError`] if it is nowhere, or its file system on no device.
pub fn devices_of(spec: &PathSpec, targets: &[Target]) -> Result<BTreeSet<BlockDevice>, PlaceError> {
    let mut found = BTreeSet::new();
    let mut missing = None;
    for root in roots(targets)? {
        let file = match root.open(Path::new(&spec.path)) {
            Ok(file) => File::from(file),
            Err(errno) => {
                let source = io::Error::from(errno);
                missing = Some(PlaceError::Missing { path: spec.clone(), root: root.process, source });
                continue;
            }
        };
        let number = file.metadata().map_err(proc("fstat"))?.dev();
        let device = BlockDevice { major: libc::major(number), minor: libc::minor(number) };
        // Those of kernel file systems, of overlays and of btrfs.
        if device.major == 0 {
            return Err(PlaceError::NoDevice { path: spec.clone(), device });
        }
        found.insert(device);
    }
    match missing {
        Some(missing) if found.is_empty() => Err(missing),
        _ => Ok(found),
    }
}

/// What tells the root and the mounts of processes apart: the mount namespace, and the root directory in it.
fn identity(process: &str) -> io::Result<(u64, u64, u64)> {
    let namespace = fs::metadata(format!("{process}/ns/mnt"))?.ino();
    let root = fs::metadata(format!("{process}/root"))?;
    Ok((namespace, root.dev(), root.ino()))
}

impl Root {
    fn new(process: Option<u32>) -> Result<Self, PlaceError> {
        let name = process.map_or_else(|| "self".into(), |pid| pid.to_string());
        let folder = File::open(format!("/proc/{name}/root")).map_err(proc("open /proc/PID/root"))?.into();
        let table = MountInfos::from_file(format!("/proc/{name}/mountinfo"))?;
        let mounts = table.into_iter().map(|mount| mount.mount_point).collect();
        Ok(Self { process, folder, mounts })
    }

    /// Opens what is there, links followed within this root, without asking for anything but where it is.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
        match self.process {
            None => openat2(AT_FDCWD, path, how),
            Some(_) => openat2(self.folder.as_fd(), path, how.resolve(ResolveFlag::RESOLVE_IN_ROOT)),
        }
    }
}

/// The loader that the kernel starts in place of the own program, if that is not linked by itself.
fn loader() -> Result<Option<PathBuf>, PlaceError> {
    // SAFETY: takes a number, returns one.
    let base = unsafe { libc::getauxval(libc::AT_BASE) };
    let maps = fs::read_to_string("/proc/self/maps").map_err(proc("read /proc/self/maps"))?;
    let start = format!("{base:x}-");
    let line = maps.lines().find(|line| base != 0 && line.starts_with(&start));
    Ok(line.and_then(|line| line.find('/').map(|at| PathBuf::from(&line[at..]))))
}

/// The kernel's number of a device.
///
/// # Errors
///
/// [`PlaceError::Device`].
pub fn device_number(device: &DeviceSpec) -> Result<u32, PlaceError> {
    let (major, minor) = match device {
        DeviceSpec::Numbers(major, minor) => (*major, *minor),
        DeviceSpec::File(path) => {
            let error = |source| PlaceError::Device { device: device.clone(), source };
            let file = fs::metadata(path).map_err(error)?;
            if file.mode() & libc::S_IFMT != libc::S_IFBLK {
                return Err(error(io::Error::other("not a block device")));
            }
            (libc::major(file.rdev()), libc::minor(file.rdev()))
        }
    };
    // MKDEV of the kernel, which is not that of the C library.
    Ok(major << 20 | minor)
}

fn proc(call: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError::Proc { call, source }
}
