//! The kernel as a whole: release, rights, lockdown, security modules.

use std::{fs, io};

use nix::sys::utsname::uname;

use super::mounts;
use crate::kernel::{Error, Result};

const SECURITYFS: &str = "/sys/kernel/security";
const STATUS: &str = "/proc/self/status";
/// Capabilities by their bits; `CAP_SYS_ADMIN` stands for `CAP_BPF` and `CAP_PERFMON` as well.
const CAPABILITIES: [(&str, u32); 2] = [("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12)];

/// What the probes want to know of the host.
pub(super) struct Host {
    /// The release.
    pub(super) kernel: String,
    /// The architecture.
    pub(super) architecture: String,
    /// Why this process cannot do anything.
    pub(super) unprivileged: Option<String>,
    /// The lockdown state.
    pub(super) lockdown: Result<String>,
    /// The active security modules.
    pub(super) security_modules: Result<Vec<String>>,
}

impl Host {
    pub(super) fn look() -> Self {
        let (kernel, architecture) = uname().map_or_else(
            |_| ("unknown".into(), std::env::consts::ARCH.into()),
            |name| {
                let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
                (text(name.release()), text(name.machine()))
            },
        );
        let security_modules = security_modules();
        let lockdown = lockdown(&security_modules);
        Self { kernel, architecture, unprivileged: unprivileged(), lockdown, security_modules }
    }
}

/// The lockdown state.
pub(super) fn lockdown(security_modules: &Result<Vec<String>>) -> Result<String> {
    match (mounts::read(c"securityfs", SECURITYFS, "lockdown"), security_modules) {
        (Ok(text), _) => selected(&text).map(str::to_owned).ok_or_else(|| {
            let file = format!("{SECURITYFS}/lockdown");
            Error::new("read", file, io::ErrorKind::InvalidData.into())
        }),
        // Where the module that locks down is not there, nothing can be locked.
        (Err(_), Ok(modules)) if !modules.iter().any(|module| module == "lockdown") => Ok("none".into()),
        (Err(error), _) => Err(error),
    }
}

/// The active security modules, wherever securityfs is mounted or not.
///
/// # Errors
///
/// The kernel's.
pub fn security_modules() -> Result<Vec<String>> {
    let text = mounts::read(c"securityfs", SECURITYFS, "lsm")?;
    Ok(text.trim().split(',').map(str::to_owned).collect())
}

/// Why this process may not do what Faultline does, if so.
fn unprivileged() -> Option<String> {
    let status = fs::read_to_string(STATUS).ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    if !lacking.is_empty() {
        return Some(format!("needs root, and this process has no {}", lacking.join(" and no ")));
    }
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    // The initial user namespace maps all ids to themselves.
    let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    (!initial).then(|| "needs the host's root, and this process is in a user namespace of its own".to_owned())
}

/// The chosen word of `none [integrity] confidentiality`.
fn selected(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::selected;

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        assert_eq!(selected("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(selected("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(selected(""), None);
        assert_eq!(selected("[none"), None);
    }
}
