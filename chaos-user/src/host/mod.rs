//! What this machine is, and what this process may do on it.

pub mod mounts;
pub mod namespaces;
pub mod release;
pub mod rights;
pub mod run;

use std::{fs, io, os::unix::fs::MetadataExt};

pub use release::TooOld;
pub use rights::{Capability, RightsError, Use};
pub use run::RunError;

/// Something that this process lacks, or its place on this machine. Nothing has been begun.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Rights.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// A journal that lasts.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A newer kernel.
    #[error(transparent)]
    TooOld(#[from] TooOld),
}

/// What tells this start of the machine from all others; nothing where that is not to be seen: containers may have another of their
/// own there.
///
/// # Errors
///
/// If it cannot be read.
pub fn boot_id() -> io::Result<Option<String>> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let is_the_kernels = fs::metadata(BOOT_ID)?.dev() == fs::metadata("/proc/self")?.dev();
    Ok(if is_the_kernels { Some(fs::read_to_string(BOOT_ID)?.trim().to_owned()) } else { None })
}

/// What a run takes of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// What takes a capability.
    pub uses: Vec<Use>,
    /// Whether it changes what the kernel does not put back when its owner ends.
    pub changes: bool,
}

impl Demands {
    /// Refuses what would only half work here.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn check(&self) -> Result<(), HostError> {
        rights::require(&self.uses)?;
        if self.changes {
            run::require()?;
        }
        Ok(())
    }
}
