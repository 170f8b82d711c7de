//! Capabilities: which this process has, and which of them what takes.
//!
//! What takes which was found by running every fault without each of them. `CAP_SYS_ADMIN` stands for `CAP_BPF`, `CAP_PERFMON`
//! and, for eBPF, `CAP_NET_ADMIN` as well; none of these stands for it: only it opens links and programs by their numbers,
//! without which nothing can be verified.

use std::{fmt, fs, io, os::unix::fs::MetadataExt, sync::OnceLock};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, faccessat},
};
use procfs::{FromRead, process::Status};
use serde::Serialize;

use super::namespaces;

/// A capability that something here takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Capability {
    /// Files, whoever's they are.
    #[serde(rename = "CAP_DAC_OVERRIDE")]
    DacOverride,
    /// Reading these, and searching folders.
    #[serde(rename = "CAP_DAC_READ_SEARCH")]
    DacReadSearch,
    /// Interfaces.
    #[serde(rename = "CAP_NET_ADMIN")]
    NetAdmin,
    /// Packets made by hand.
    #[serde(rename = "CAP_NET_RAW")]
    NetRaw,
    /// Other processes.
    #[serde(rename = "CAP_SYS_PTRACE")]
    SysPtrace,
    /// eBPF and namespaces.
    #[serde(rename = "CAP_SYS_ADMIN")]
    SysAdmin,
}

impl Capability {
    /// As container engines have it; the kernel says `CAP_` before it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacOverride => "DAC_OVERRIDE",
            Self::DacReadSearch => "DAC_READ_SEARCH",
            Self::NetAdmin => "NET_ADMIN",
            Self::NetRaw => "NET_RAW",
            Self::SysPtrace => "SYS_PTRACE",
            Self::SysAdmin => "SYS_ADMIN",
        }
    }

    /// Its bit: <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/capability.h#L105>
    const fn bit(self) -> u32 {
        match self {
            Self::DacOverride => 1,
            Self::DacReadSearch => 2,
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysPtrace => 19,
            Self::SysAdmin => 21,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name())
    }
}

/// What takes a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Whatever Faultline does.
    Programs,
    /// Targets whose processes may do more than this one, or are others' users.
    Processes,
    /// Clocks.
    Clocks,
    /// Waiting, offloads, filters.
    Interfaces,
    /// Resets of silent connections.
    Segments,
    /// Sockets of another user's processes.
    Sockets,
    /// Clocks of another user's processes.
    Memory,
    /// Limits of another user's cgroup.
    Limits,
}

impl Use {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Programs,
        Self::Processes,
        Self::Clocks,
        Self::Interfaces,
        Self::Segments,
        Self::Sockets,
        Self::Memory,
        Self::Limits,
    ];

    /// Which it takes.
    #[must_use]
    pub const fn takes(self) -> Capability {
        match self {
            Self::Programs => Capability::SysAdmin,
            Self::Processes | Self::Clocks => Capability::SysPtrace,
            Self::Interfaces => Capability::NetAdmin,
            Self::Segments => Capability::NetRaw,
            Self::Sockets => Capability::DacReadSearch,
            Self::Memory | Self::Limits => Capability::DacOverride,
        }
    }

    /// What for: to ...
    #[must_use]
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Programs => "attach programs, verify that they are gone, and enter network namespaces",
            Self::Processes => "see the namespaces, roots and sockets of other processes",
            Self::Clocks => "change the clocks of other processes, and find all that are changed",
            Self::Interfaces => "delay packets, switch offloads off, and attach filters (before Linux 6.6)",
            Self::Segments => "reset connections that are silent",
            Self::Sockets => "list the sockets of another user's processes",
            Self::Memory => "change the clocks of another user's processes",
            Self::Limits => "write io.max of another user's cgroup",
        }
    }

    /// Whether this process may.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        // Who may write and search everything may read it.
        has(self.takes()) || self.takes() == Capability::DacReadSearch && has(Capability::DacOverride)
    }
}

/// Rights that are missing. Nothing has been begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RightsError {
    /// Capabilities.
    #[error("this needs {}, which this process does not have; add {} (securityContext.capabilities.add, --cap-add)", reasons(.0), names(.0))]
    Missing(Vec<Use>),
    /// All capabilities there are, over nothing but a user namespace.
    #[error(
        "this process is root in a user namespace of its own, and has no rights over the kernel; run it as the host's root (hostUsers: true, --userns host)"
    )]
    UserNamespace,
}

fn reasons(uses: &[Use]) -> String {
    uses.iter().map(|it| format!("{} to {}", it.takes(), it.purpose())).collect::<Vec<_>>().join(", and ")
}

fn names(uses: &[Use]) -> String {
    let mut all: Vec<_> = uses.iter().map(|it| it.takes().name()).collect();
    all.dedup();
    all.join(", ")
}

/// Whether this process has a capability. Where `/proc` does not say, it is for the kernel to refuse.
#[must_use]
pub fn has(capability: Capability) -> bool {
    static EFFECTIVE: OnceLock<u64> = OnceLock::new();
    let read = || Status::from_file("/proc/self/status").map_or(u64::MAX, |status| status.capeff);
    EFFECTIVE.get_or_init(read) >> capability.bit() & 1 == 1
}

/// Refuses what this process may not do.
///
/// # Errors
///
/// [`RightsError`], with all that is missing.
pub fn require(uses: &[Use]) -> Result<(), RightsError> {
    if !uses.is_empty() && !namespaces::owns_the_machine() {
        return Err(RightsError::UserNamespace);
    }
    let missing: Vec<_> = uses.iter().copied().filter(|it| !it.is_allowed()).collect();
    if missing.is_empty() { Ok(()) } else { Err(RightsError::Missing(missing)) }
}

/// Whether the kernel said that somebody may not.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// What was looked up in another process's folder, if the kernel refused it for want of a capability. What it refuses to those
/// who have them all is nobody's to change.
///
/// # Errors
///
/// [`RightsError::Missing`].
pub fn explain<T>(found: &io::Result<T>, uses: &[Use]) -> Result<(), RightsError> {
    match found {
        Err(error) if is_refusal(error) => {
            let missing = uses.iter().copied().find(|it| !it.is_allowed());
            missing.map_or(Ok(()), |first| Err(RightsError::Missing(vec![first])))
        }
        _ => Ok(()),
    }
}

/// Refuses a process whose sockets cannot be had for want of a capability.
///
/// # Errors
///
/// [`RightsError::Missing`].
pub fn may_have_sockets(process: u32) -> Result<(), RightsError> {
    explain(&fs::metadata(format!("/proc/{process}/ns/net")), &[Use::Processes])?;
    explain(
        &fs::read_dir(format!("/proc/{process}/fd")),
        &of_another_user(process, Use::Sockets, Use::Processes),
    )
}

/// Refuses a process whose clocks cannot be changed for want of a capability.
///
/// # Errors
///
/// [`RightsError::Missing`].
pub fn may_have_memory(process: u32) -> Result<(), RightsError> {
    // Asked, and not tried: a plan opens nothing to be written.
    let path = format!("/proc/{process}/mem");
    let may = faccessat(AT_FDCWD, path.as_str(), AccessFlags::R_OK | AccessFlags::W_OK, AtFlags::AT_EACCESS);
    explain(&may.map_err(io::Error::from), &of_another_user(process, Use::Memory, Use::Clocks))
}

/// What it takes to use a process's files: those of another user's take one right more.
fn of_another_user(process: u32, other: Use, any: Use) -> Vec<Use> {
    let own = nix::unistd::geteuid().as_raw();
    let is_anothers = fs::metadata(format!("/proc/{process}")).is_ok_and(|folder| folder.uid() != own);
    is_anothers.then_some(other).into_iter().chain([any]).collect()
}

/// What the kernel's refusal of a call is for want of, for the end of a sentence.
pub(crate) fn hint(call: &str, object: &str, error: &io::Error) -> String {
    let lacking: Vec<_> = lacking(call, object, error).iter().map(ToString::to_string).collect();
    if lacking.is_empty() {
        return String::new();
    }
    format!("; this process lacks {}", lacking.join(" and "))
}

/// The same by themselves.
pub(crate) fn lacking(call: &str, object: &str, error: &io::Error) -> Vec<Capability> {
    let wanted: &[Capability] = match error.raw_os_error() {
        Some(libc::EACCES) if object.starts_with("/proc/") => {
            &[Capability::DacOverride, Capability::SysPtrace]
        }
        Some(libc::EACCES) => &[Capability::DacOverride],
        Some(libc::EPERM) if call.starts_with("netlink") || call.starts_with("ETHTOOL") => {
            &[Capability::NetAdmin]
        }
        Some(libc::EPERM) if call.starts_with("ptrace") || call.starts_with("pidfd") => {
            &[Capability::SysPtrace]
        }
        Some(libc::EPERM) if call == "socket" => &[Capability::NetRaw],
        Some(libc::EPERM) => &[Capability::SysAdmin],
        _ => &[],
    };
    wanted.iter().copied().filter(|it| !has(*it)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_once_with_its_remedy() {
        let error = RightsError::Missing(vec![Use::Clocks, Use::Memory, Use::Limits]).to_string();
        assert!(error.contains("CAP_SYS_PTRACE to change the clocks") && error.len() < 400, "{error}");
        assert!(
            error.ends_with("; add SYS_PTRACE, DAC_OVERRIDE (securityContext.capabilities.add, --cap-add)")
        );
    }

    #[test]
    fn names_are_the_kernels() {
        for capability in Use::ALL.map(Use::takes) {
            assert_eq!(serde_json::to_value(capability).ok(), Some(capability.to_string().into()));
        }
    }
}
