//! Kernels by name: Debian's stock ones, taken from its packages, and whatever folders hold a `bzImage`.
//!
//! Nothing is installed on the host: packages are unpacked under `target/vm/kernels/NAME`, kept for the next run,
//! and replaced when apt offers another version. A kernel that cannot be had is an answer, not an error.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use super::apt::Apt;

/// One of Debian's kernels.
#[derive(Debug)]
struct Packaged {
    /// Our name for it.
    name: &'static str,
    /// The release that has it, if it is not the machine's.
    release: Option<&'static str>,
    /// The version it must have, if not whichever there is.
    series: Option<&'static str>,
    /// The metapackages that may lead to it.
    metapackages: &'static [&'static str],
}

/// The cloud metapackage follows the release: 6.1 on Debian 12, 6.12 on Debian 13, the newest there is in sid.
const DEBIAN: [Packaged; 3] = [
    Packaged { name: "6.1", release: None, series: Some("6.1"), metapackages: &["linux-image-cloud-amd64"] },
    Packaged {
        name: "6.12",
        release: None,
        series: Some("6.12"),
        metapackages: &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
    },
    Packaged { name: NEWEST, release: Some("sid"), series: None, metapackages: &["linux-image-cloud-amd64"] },
];

/// The newest kernel that Debian has.
pub(crate) const NEWEST: &str = "newest";

/// The environment variable naming more kernels: folders, separated by colons, each holding a `bzImage`.
const EXTRA: &str = "FAULTLINE_KERNELS";

/// A kernel that no package holds and that some tests run on alone.
pub(crate) const ERROR_INJECTION: &str = "6.12-error-injection";

/// A kernel that guests can boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, for kernels that have modules.
    pub(crate) modules: Option<PathBuf>,
    /// Which build this is, and what there is to say about how it was had.
    pub(crate) origin: String,
}

/// A kernel that was asked for or known of, by name.
#[derive(Debug)]
pub(crate) enum Found {
    Ready(Kernel),
    Missing { name: String, reason: String },
}

impl Found {
    /// The name it goes by, had or not.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ready(kernel) => &kernel.name,
            Self::Missing { name, .. } => name,
        }
    }
}

/// Where kernels are looked for and kept.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// Unpacked packages: `target/vm/kernels`.
    pub(crate) cache: PathBuf,
    /// The workspace, beside which `shared/kernels` may stand.
    pub(crate) workspace: PathBuf,
}

impl Catalogue {
    /// The kernels named, or all there are if none is. Only those wanted are fetched.
    pub(crate) fn find(&self, wanted: &[String]) -> Vec<Found> {
        let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|other| other == name);
        let folders = self.folders();
        let mut found: Vec<Found> = Vec::new();
        for packaged in DEBIAN.iter().filter(|packaged| is_wanted(packaged.name)) {
            found.push(ready_or_missing(packaged.name, self.debian(packaged)));
        }
        for folder in folders {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if is_wanted(&name) && !found.iter().any(|other| other.name() == name) {
                found.push(ready_or_missing(&name, from_folder(&name, &folder)));
            }
        }
        let known = ERROR_INJECTION.to_owned();
        for name in wanted.iter().chain(wanted.is_empty().then_some(&known)) {
            if !found.iter().any(|other| other.name() == name) {
                let reason = format!("neither Debian's, nor in {EXTRA}, nor in ../shared/kernels");
                found.push(Found::Missing { name: name.clone(), reason });
            }
        }
        found
    }

    /// Folders with a `bzImage`, those named in the environment first.
    fn folders(&self) -> Vec<PathBuf> {
        let named = env::var_os(EXTRA).unwrap_or_default();
        let mut folders: Vec<PathBuf> =
            env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
        let shared = self.workspace.join("../shared/kernels");
        let shared = fs::read_dir(shared).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(shared.filter(|path| path.join("bzImage").is_file()).collect::<BTreeSet<_>>());
        folders
    }

    /// One of Debian's kernels, unpacked: what the cache has if it is current or if apt cannot say.
    fn debian(&self, packaged: &Packaged) -> Result<Kernel> {
        let Packaged { name, release, series, metapackages } = packaged;
        let dir = self.cache.join(name);
        let cached = fs::read_to_string(dir.join("package")).ok();
        let current = || -> Result<String> {
            let apt = match release {
                None => Apt::of_machine(),
                Some(suite) => Apt::of_release(suite, &self.cache.join(format!("apt-{suite}")))?,
            };
            let packages = apt.newest(*series, metapackages)?;
            let names = packages.join(" ");
            if cached.as_ref() != Some(&names) {
                apt.fetch(&packages, &dir)?;
            }
            Ok(names)
        };
        let origin = match (current(), &cached) {
            (Ok(names), _) => names,
            (Err(error), Some(cached)) => format!("{cached}, kept: {error:#}"),
            (Err(error), None) => return Err(error),
        };
        unpacked(name, &dir, origin)
    }
}

fn ready_or_missing(name: &str, kernel: Result<Kernel>) -> Found {
    match kernel {
        Ok(kernel) => Found::Ready(kernel),
        Err(error) => Found::Missing { name: name.to_owned(), reason: format!("{error:#}") },
    }
}

/// A folder holding a `bzImage` and, for kernels with modules, `lib/modules/RELEASE`.
fn from_folder(name: &str, folder: &Path) -> Result<Kernel> {
    let image = folder.join("bzImage");
    if !image.is_file() {
        bail!("{} has no bzImage", folder.display());
    }
    let modules = only_entry(&folder.join("lib/modules"), "");
    Ok(Kernel { name: name.to_owned(), image, modules, origin: folder.display().to_string() })
}

/// A kernel's packages as `dpkg-deb -x` leaves them.
fn unpacked(name: &str, dir: &Path, origin: String) -> Result<Kernel> {
    let modules = only_entry(&dir.join("lib/modules"), "")
        .or_else(|| only_entry(&dir.join("usr/lib/modules"), ""))
        .ok_or_else(|| anyhow!("{} holds no lib/modules/*", dir.display()))?;
    let beside_modules = modules.join("vmlinuz");
    let image = only_entry(&dir.join("boot"), "vmlinuz-")
        .or_else(|| beside_modules.is_file().then_some(beside_modules))
        .ok_or_else(|| anyhow!("{} holds no boot/vmlinuz-* nor {}", dir.display(), modules.display()))?;
    Ok(Kernel { name: name.to_owned(), image, modules: Some(modules), origin })
}

/// The entry of a folder whose name starts so, if there is exactly one.
fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut entries = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let first = entries.next()?.path();
    entries.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_is_missing_with_a_reason() {
        let nowhere = PathBuf::from("nowhere");
        let catalogue = Catalogue { cache: nowhere.clone(), workspace: nowhere };
        let found = catalogue.find(&["2.4".to_owned()]);
        assert!(matches!(&found[..], [Found::Missing { name, .. }] if name == "2.4"), "{found:?}");
    }
}
