//! A folder for one guest's files, gone with the run; what a killed run left behind goes with the next one.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// `PARENT/NAME.NUMBER-PID`.
#[derive(Debug)]
pub(crate) struct Workdir(PathBuf);

impl Workdir {
    /// A new, empty folder that only its owner can enter: the socket in it serves files as root.
    pub(crate) fn create(parent: &Path, name: &str) -> Result<Self> {
        sweep(parent);
        // One kernel may run in several guests at a time.
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("{name}.{number}-{}", process::id()));
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the folders of processes that are no more.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.rsplit_once('-')).map(|(_, pid)| pid);
        let is_pid = |pid: &&str| pid.parse::<u32>().is_ok();
        if owner.filter(is_pid).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be sweeping as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
