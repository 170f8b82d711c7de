//! Which kernel this is, and whether it is new enough.

use nix::sys::utsname::uname;

use crate::kernel::{Error, Result};

/// The first two numbers of a release.
pub type Version = (u32, u32);

/// The oldest that has what all of Faultline's programs are made of (`bpf_loop` is 5.17's, and what the verifier forgets between
/// its turns 6.1's).
const OLDEST: Version = (6, 1);

/// A kernel without what everything here needs.
#[derive(Debug, thiserror::Error)]
#[error("Linux {}.{} or newer is needed, and this is Linux {running}; boot a newer kernel", OLDEST.0, OLDEST.1)]
pub struct TooOld {
    running: String,
}

/// Of `6.1.0-56-cloud-amd64`, 6 and 1.
fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// Whether a release is this one or a newer one; of one that is no number that is not known.
#[must_use]
pub fn is_at_least(release: &str, wanted: Version) -> bool {
    version(release).is_some_and(|version| version >= wanted)
}

/// As `uname -r` has it.
///
/// # Errors
///
/// The kernel's.
pub fn running() -> Result<String> {
    let name = uname().map_err(|errno| Error::new("uname", "this kernel", errno.into()))?;
    Ok(name.release().to_string_lossy().into_owned())
}

/// Refuses a kernel on which nothing would load, in words that its verifier does not have.
///
/// # Errors
///
/// [`TooOld`]. A release that is no number is taken for new enough.
pub fn require(running: String) -> std::result::Result<(), TooOld> {
    match version(&running) {
        Some(version) if version < OLDEST => Err(TooOld { running }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_than_the_oldest() {
        for old in ["5.10.0-35-cloud-amd64", "6.0.19", "4.19", "2.6.78", "5.14.0-503.el9.x86_64"] {
            let said = require(old.into()).map_err(|error| error.to_string());
            let expected =
                format!("Linux 6.1 or newer is needed, and this is Linux {old}; boot a newer kernel");
            assert_eq!(said, Err(expected));
        }
        for new in
            ["6.1", "6.1.0-56-cloud-amd64", "6.10-rc1", "7.2.13+deb14-cloud-amd64", "10.0", "unknown", ""]
        {
            assert!(require(new.into()).is_ok(), "{new}");
        }
    }
}
