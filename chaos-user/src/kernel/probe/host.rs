//! The kernel as a whole: release, rights, lockdown, security modules.

use std::io;

use nix::sys::utsname::uname;

use super::mounts;
use crate::{
    host::{Use, rights},
    kernel::{Error, Result},
};

const SECURITYFS: &str = "/sys/kernel/security";

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
        let unprivileged = rights::require(&[Use::Programs]).err().map(|error| error.to_string());
        Self { kernel, architecture, unprivileged, lockdown, security_modules }
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
