//! Guests under QEMU: the tier of tests that runs on kernels other than the machine's own.
//!
//! `kernels` knows which there are, `initramfs` makes what a guest boots into, `guest` runs it.

mod apt;
mod cpio;
mod guest;
mod host_root;
mod initramfs;
mod kernels;
mod modules;
mod process;
mod results;
mod workdir;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

pub(crate) use guest::{Ending, Report};
pub(crate) use initramfs::Run;
pub(crate) use kernels::{ERROR_INJECTION, Found, Kernel, NEWEST};
pub(crate) use results::{Outcome, TestResult};

/// The tier: where its files are kept.
#[derive(Debug)]
pub(crate) struct Tier {
    workspace: PathBuf,
    dir: PathBuf,
}

impl Tier {
    /// The guests of a workspace; everything is kept in its target folder, under `vm`.
    pub(crate) fn new(workspace: &Path, target: &Path) -> Self {
        Self { workspace: workspace.to_owned(), dir: target.join("vm") }
    }

    /// The kernels named, or all of them.
    pub(crate) fn kernels(&self, wanted: &[String]) -> Result<Vec<Found>> {
        let _lock = self.lock()?;
        let catalogue =
            kernels::Catalogue { cache: self.dir.join("kernels"), workspace: self.workspace.clone() };
        Ok(catalogue.find(wanted))
    }

    /// Runs a command in a guest until it ends or its time is up.
    pub(crate) fn run(&self, run: &Run<'_>, on_line: &mut dyn FnMut(&str)) -> Result<Report> {
        let base = self.base(run.kernel)?;
        let folders = self.dir.join("run");
        let mut report = guest::run(run, &base, &folders, on_line)?;
        if let Ending::Unbooted(words) = &report.ending {
            eprintln!("guest {} did not boot, trying once more: {words}", run.kernel.name);
            report = guest::run(run, &base, &folders, on_line)?;
        }
        self.keep_console(run.kernel, &report.console)?;
        Ok(report)
    }

    /// The consoles of a run's boots stay in `target/vm/console`, for a look after the event.
    fn keep_console(&self, kernel: &Kernel, console: &str) -> Result<()> {
        static BOOTS: AtomicU32 = AtomicU32::new(1);
        let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join("console");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join(format!("{}.{boot}.log", kernel.name));
        fs::write(&path, console).with_context(|| format!("writing {}", path.display()))
    }

    /// A shell in a guest, on the caller's terminal.
    pub(crate) fn shell(&self, run: &Run<'_>) -> Result<i32> {
        let base = self.base(run.kernel)?;
        guest::shell(run, &base, &self.dir.join("run"))
    }

    fn base(&self, kernel: &Kernel) -> Result<PathBuf> {
        let _lock = self.lock()?;
        initramfs::base(kernel, &self.dir.join("base"))
    }

    /// Held while something that several runs share is made; released when the file is closed.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let path = self.dir.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }
}
