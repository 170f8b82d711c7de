//! Files and directories, as the kernel's programs know them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chaos_ebpf::call::Inode;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use super::{CgroupError, Target};
use crate::{
    fault::glob,
    host::{RightsError, Use, mounts, rights},
    kernel::{
        self, calls::Identifier, cgroups::leads_nowhere, mappings::Mappings, process::unless_gone, reach,
        throttle::BlockDevice,
    },
    spec::{DeviceSpec, Invalid, PathSpec, shown},
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
    /// A file system that does not answer, or of which it is not known what it has there.
    #[error("--path {path}: {}: {source}{}", shown::name(at), within(root))]
    Silent {
        /// What was asked for.
        path: PathSpec,
        /// What was looked at for it.
        at: PathBuf,
        /// Whose root it was looked up in, if not in the caller's own.
        root: Option<u32>,
        /// The kernel's answer, or that there was none.
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
    folder: Arc<OwnedFd>,
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
            let file = match root.open_meant(spec)? {
                Ok(file) => file,
                Err(nothing) => {
                    missing = Some(nothing);
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
                if !is_meant {
                    continue;
                }
                match root.open(mount) {
                    Ok(file) => found.push((self.kernel.inode(file.as_fd())?, None)),
                    // It has gone meanwhile, or is covered by another.
                    Err(gone) if leads_nowhere(&gone) => {}
                    Err(source) => {
                        let (path, at, root) = (spec.clone(), mount.clone(), root.process);
                        return Err(PlaceError::Silent { path, at, root, source });
                    }
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
    let own = identity("/proc/self").map_err(proc("statx /proc/self/root"))?;
    let mut known = BTreeSet::new();
    let mut roots = Vec::new();
    for target in targets {
        for process in target.processes()? {
            let there = identity(&format!("/proc/{process}"));
            // What another root means by a path is not what the own means by it.
            rights::explain(&there, &[Use::Processes])?;
            // There are processes that the kernel keeps even from who may trace all.
            if there.as_ref().is_err_and(rights::is_refusal) {
                continue;
            }
            let Some(there) = unless_gone(there).map_err(proc("statx /proc/PID/root"))? else { continue };
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
        let file = match root.open_meant(spec)? {
            Ok(file) => file,
            Err(nothing) => {
                missing = Some(nothing);
                continue;
            }
        };
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (number, _) = mounts::identity(Path::new(&link)).map_err(proc("statx"))?;
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
fn identity(process: &str) -> io::Result<[(u64, u64); 2]> {
    let of = |name| mounts::identity(Path::new(&format!("{process}/{name}")));
    Ok([of("ns/mnt")?, of("root")?])
}

impl Root {
    fn new(process: Option<u32>) -> Result<Self, PlaceError> {
        let name = process.map_or_else(|| "self".into(), |pid| pid.to_string());
        let mut folder = File::options();
        let folder = folder
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(format!("/proc/{name}/root"))
            .map_err(proc("open /proc/PID/root"))?;
        let table =
            mounts::of(Path::new(&format!("/proc/{name}"))).map_err(proc("read /proc/PID/mountinfo"))?;
        let mounts = table.into_iter().map(|mount| mount.point).collect();
        Ok(Self { process, folder: Arc::new(folder.into()), mounts })
    }

    /// Opens what is there, links followed within this root, without asking for anything but where it is.
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        /// How long the file systems on the way may take.
        const PATIENCE: Duration = Duration::from_millis(500);
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
        let (root, wanted) = (self.process.map(|_| Arc::clone(&self.folder)), path.to_owned());
        let open = move || match root {
            None => openat2(AT_FDCWD, &wanted, how),
            Some(root) => openat2(&*root, &wanted, how.resolve(ResolveFlag::RESOLVE_IN_ROOT)),
        };
        let opened = reach::one(PATIENCE, open).map_err(|error| error.source)?;
        Ok(opened.ok_or_else(|| io::Error::other("a file system on the way does not answer"))??)
    }

    /// The same of what was asked for; what there is instead if it is not here.
    ///
    /// # Errors
    ///
    /// [`PlaceError::Silent`] if that is not known.
    fn open_meant(&self, spec: &PathSpec) -> Result<Result<OwnedFd, PlaceError>, PlaceError> {
        let (path, root, at) = (spec.clone(), self.process, PathBuf::from(&spec.path));
        match self.open(&at) {
            Ok(file) => Ok(Ok(file)),
            Err(source) if source.raw_os_error().is_none() => {
                Err(PlaceError::Silent { path, at, root, source })
            }
            Err(source) => Ok(Err(PlaceError::Missing { path, root, source })),
        }
    }
}

/// The loader that the kernel starts in place of the own program, if that is not linked by itself.
fn loader() -> Result<Option<PathBuf>, PlaceError> {
    // SAFETY: takes a number, returns one.
    let base = unsafe { libc::getauxval(libc::AT_BASE) };
    let maps = Mappings::of(std::process::id()).map_err(proc("read /proc/self/maps"))?;
    Ok(maps.name_at(base).map(PathBuf::from))
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
