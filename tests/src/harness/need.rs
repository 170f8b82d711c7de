//! What tests need of the machine: mechanisms of its kernel, as the doctor finds them, and what is not the kernel's.

use std::{
    env, fmt,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use chaos_user::kernel::{
    mechanism::Mechanism,
    probe::{self, Report},
};

use super::numbered::LAST;
use crate::{cgroup, doctor, slow};

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// To be root.
    Root,
    /// Something the kernel can do.
    Mechanism(Mechanism),
    /// Something it cannot do, to see how that is said.
    Without(Mechanism),
    /// That there are no cgroups but v2, so that containers are in those.
    UnifiedCgroups,
    /// A kernel of which it is written down what it can do.
    KnownKernel,
    /// Two disks that keep nothing.
    Disks,
    /// A program, wherever [`program`] finds it.
    Program(&'static str),
    /// File systems that a process serves.
    Fuse,
    /// Processes that say where their arguments, their stack and the like are (`CONFIG_CHECKPOINT_RESTORE`).
    Placement,
    /// Who shares memory can be told (`CONFIG_KCMP`).
    Kcmp,
    /// Numbers of processes that are given again (`CONFIG_CHECKPOINT_RESTORE`).
    Numbers,
    /// Interfaces that a process is at the other end of (`CONFIG_TUN`).
    Tun,
    /// A guest of `cargo xtask vm`, where whatever fails for everybody fails for nobody else.
    Guest,
}

#[expect(non_upper_case_globals, reason = "they are read as the variants they stand for")]
impl Need {
    /// BTF of the running kernel.
    pub const Btf: Self = Self::Mechanism(Mechanism::Btf);
    /// tc programs held by links, from Linux 6.6.
    pub const Tcx: Self = Self::Mechanism(Mechanism::Tcx);
    /// tc programs on the `clsact` qdisc.
    pub const Clsact: Self = Self::Mechanism(Mechanism::Clsact);
    /// XDP in veth's driver.
    pub const XdpNative: Self = Self::Mechanism(Mechanism::XdpNative);
    /// The `fq` qdisc.
    pub const SchFq: Self = Self::Mechanism(Mechanism::SchFq);
    /// A cgroup v2 tree.
    pub const CgroupV2: Self = Self::Mechanism(Mechanism::CgroupV2);
    /// Programs on the sockets that are made in a cgroup.
    pub const CgroupSock: Self = Self::Mechanism(Mechanism::CgroupSock);
    /// `connect(2)` that fails as it is told to.
    pub const CgroupConnect: Self = Self::Mechanism(Mechanism::CgroupConnect);
    /// A program at the end of a kernel function.
    pub const Fexit: Self = Self::Mechanism(Mechanism::Fexit);
    /// A program that writes to a process's memory.
    pub const ProbeWriteUser: Self = Self::Mechanism(Mechanism::ProbeWriteUser);
    /// Limits of a cgroup on a block device.
    pub const IoMax: Self = Self::Mechanism(Mechanism::IoMax);
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => formatter.write_str("root"),
            Self::Mechanism(mechanism) => formatter.write_str(mechanism.name()),
            Self::Without(mechanism) => write!(formatter, "without:{}", mechanism.name()),
            Self::UnifiedCgroups => formatter.write_str("unified_cgroups"),
            Self::KnownKernel => formatter.write_str("known_kernel"),
            Self::Disks => formatter.write_str("disks"),
            Self::Program(name) => write!(formatter, "program:{name}"),
            Self::Fuse => formatter.write_str("fuse"),
            Self::Placement => formatter.write_str("placement"),
            Self::Kcmp => formatter.write_str("kcmp"),
            Self::Numbers => formatter.write_str("numbers"),
            Self::Tun => formatter.write_str("tun"),
            Self::Guest => formatter.write_str("guest"),
        }
    }
}

/// What answers needs: the doctor is asked when the first need for a mechanism comes up, and once.
#[derive(Debug, Default)]
pub(super) struct Machine {
    kernel: OnceLock<Report>,
}

impl Machine {
    /// Whether a need is met; if not, why.
    pub(super) fn meets(&self, need: Need) -> Result<(), String> {
        match need {
            Need::Root => require(nix::unistd::geteuid().is_root(), || "not root".into()),
            Need::Mechanism(mechanism) => self.kernel.get_or_init(probe::run).offers(mechanism),
            Need::Without(mechanism) => {
                let has = self.kernel.get_or_init(probe::run).has(mechanism);
                require(!has, || "this kernel has it".into())
            }
            Need::UnifiedCgroups => {
                let unified = cgroup::root().is_ok_and(|root| root == Path::new("/sys/fs/cgroup"));
                require(unified, || "cgroup v1 is in use here, and containers are in its cgroups".into())
            }
            Need::KnownKernel => doctor::known_kernel(),
            Need::Disks => slow::has_disks(),
            Need::Program(name) => require(program(name).is_some(), || "not installed".into()),
            Need::Fuse => require(opens("/dev/fuse"), || "no /dev/fuse".into()),
            Need::Placement => require(has_placement(), || "no PR_SET_MM_MAP".into()),
            Need::Kcmp => require(has_kcmp(), || "no kcmp".into()),
            Need::Numbers => require(Path::new(LAST).exists(), || format!("no {LAST}")),
            Need::Tun => require(opens("/dev/net/tun"), || "no /dev/net/tun".into()),
            // Its init says so.
            Need::Guest => require(env::var_os("FAULTLINE_KERNEL").is_some(), || "others live here".into()),
        }
    }
}

fn require(met: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if met { Ok(()) } else { Err(otherwise()) }
}

/// Whether a device is there, and something behind it.
fn opens(device: &str) -> bool {
    File::options().read(true).write(true).open(device).is_ok()
}

fn has_placement() -> bool {
    let mut size = 0_u32;
    // SAFETY: there is room for what is written.
    unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0) == 0 }
}

fn has_kcmp() -> bool {
    /// `KCMP_VM`.
    const MEMORY: libc::c_int = 1;
    let own = std::process::id();
    // SAFETY: integers.
    unsafe { libc::syscall(libc::SYS_kcmp, own, own, MEMORY, 0, 0) == 0 }
}

/// Where a program is. PostgreSQL's own folders come first: Debian's `psql` on the path is a script that chooses.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = postgres_folders().into_iter().chain(env::split_paths(&path)).chain(system);
    folders.map(|folder| folder.join(name)).find(|file| is_executable(file))
}

/// `/usr/lib/postgresql/VERSION/bin`, the newest version first.
fn postgres_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<(u32, PathBuf)> = versions
        .map(|version| {
            let number = version.file_name().to_string_lossy().parse().unwrap_or(0);
            (number, version.path().join("bin"))
        })
        .collect();
    folders.sort_by(|one, other| other.cmp(one));
    folders.into_iter().map(|(_, folder)| folder).collect()
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_go_by_the_doctors_names() {
        assert_eq!(Need::XdpNative.to_string(), "xdp_native");
        assert_eq!(Need::Mechanism(Mechanism::FmodRetSyscall).to_string(), "fmod_ret_syscall");
    }

    #[test]
    fn programs_are_found_beyond_the_path() {
        assert_eq!(program("no-such-program"), None);
        assert!(program("sh").is_some());
    }
}
