//! Kernels by name: Debian's stock ones, taken from its packages, and whatever folders hold a `bzImage`.
//!
//! Nothing is installed on the host: packages are unpacked under `target/vm/kernels/NAME`, kept for the next run,
//! and replaced when apt offers another version. A kernel that cannot be had is an answer, not an error.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

/// Debian's kernels: our name for each (the version it must have) and the metapackages that may lead to it.
/// The cloud metapackage follows the release: 6.1 on Debian 12, 6.12 on Debian 13.
const DEBIAN: &[(&str, &[&str])] = &[
    ("6.1", &["linux-image-cloud-amd64"]),
    ("6.12", &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"]),
];

/// The environment variable naming more kernels: folders, separated by colons, each holding a `bzImage`.
const EXTRA: &str = "FAULTLINE_KERNELS";

/// A kernel that no package holds and that some tests run on alone.
const ERROR_INJECTION: &str = "6.12-error-injection";

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
        for (name, metapackages) in DEBIAN.iter().filter(|(name, _)| is_wanted(name)) {
            found.push(ready_or_missing(name, self.debian(name, metapackages)));
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
    fn debian(&self, name: &str, metapackages: &[&str]) -> Result<Kernel> {
        let dir = self.cache.join(name);
        let stamp = dir.join("package");
        let cached = fs::read_to_string(&stamp).ok();
        match (newest_package(name, metapackages), cached) {
            (Ok(package), Some(cached)) if package == cached => unpacked(name, &dir, package),
            (Ok(package), cached) => match fetch(&package, &dir) {
                Ok(()) => unpacked(name, &dir, package),
                Err(error) => match cached {
                    Some(cached) => unpacked(name, &dir, format!("{cached}, kept: {error:#}")),
                    None => Err(error),
                },
            },
            (Err(error), Some(cached)) => unpacked(name, &dir, format!("{cached}, kept: {error:#}")),
            (Err(error), None) => Err(error),
        }
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

/// A kernel package as `dpkg-deb -x` leaves it.
fn unpacked(name: &str, dir: &Path, origin: String) -> Result<Kernel> {
    let image = only_entry(&dir.join("boot"), "vmlinuz-")
        .ok_or_else(|| anyhow!("{} holds no boot/vmlinuz-*", dir.display()))?;
    let modules = only_entry(&dir.join("lib/modules"), "")
        .or_else(|| only_entry(&dir.join("usr/lib/modules"), ""))
        .ok_or_else(|| anyhow!("{} holds no lib/modules/*", dir.display()))?;
    Ok(Kernel { name: name.to_owned(), image, modules: Some(modules), origin })
}

/// The entry of a folder whose name starts so, if there is exactly one.
fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut entries = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let first = entries.next()?.path();
    entries.next().is_none().then_some(first)
}

/// `PACKAGE=VERSION` of the newest kernel of this series that apt knows.
fn newest_package(series: &str, metapackages: &[&str]) -> Result<String> {
    let mut seen = Vec::new();
    let mut refusals = Vec::new();
    for metapackage in metapackages {
        let listing = match capture("apt-cache", ["depends", "--important", metapackage]) {
            Ok(listing) => listing,
            Err(error) => {
                refusals.push(format!("{error:#}"));
                continue;
            }
        };
        let depends = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        for package in depends.filter(|package| package.starts_with("linux-image-")) {
            if is_of_series(package, series) {
                return Ok(format!("{package}={}", candidate(package)?));
            }
            seen.push(package.to_owned());
        }
    }
    if seen.is_empty() {
        let (names, refusals) = (metapackages.join(" nor "), refusals.join("; "));
        bail!("apt has no {names} to offer ({refusals}); apt-get update may help");
    }
    bail!("apt offers {} in place of a {series} kernel", seen.join(", "))
}

/// Whether `linux-image-6.1.0-56-cloud-amd64` is a kernel of the series `6.1`; the unsigned build is not.
fn is_of_series(package: &str, series: &str) -> bool {
    let version = package.strip_prefix("linux-image-").unwrap_or_default();
    let rest = version.strip_prefix(series);
    rest.is_some_and(|rest| rest.starts_with(['.', '+', '-'])) && !package.ends_with("-unsigned")
}

/// The version that `apt-get download` would fetch.
fn candidate(package: &str) -> Result<String> {
    let policy = capture("apt-cache", ["policy", package])?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match candidate {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        _ => bail!("apt has no version of {package} to offer"),
    }
}

/// Downloads a package and puts its contents in place of the folder, which is whole at every moment it exists.
fn fetch(package: &str, dir: &Path) -> Result<()> {
    eprintln!("fetching {package}");
    let fresh = dir.with_added_extension("new");
    remove_dir(&fresh)?;
    let download = fresh.join("download");
    fs::create_dir_all(&download).with_context(|| format!("creating {}", download.display()))?;
    run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(&download))?;
    let deb = only_entry(&download, "linux-image-")
        .ok_or_else(|| anyhow!("apt-get download {package} left no package"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&fresh))?;
    remove_dir(&download)?;
    fs::write(fresh.join("package"), package).with_context(|| format!("writing to {}", fresh.display()))?;
    remove_dir(dir)?;
    fs::rename(&fresh, dir).with_context(|| format!("renaming {}", fresh.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn capture<const N: usize>(program: &str, args: [&str; N]) -> Result<String> {
    run(Command::new(program).args(args))
}

/// Runs a command in the C locale (its output is parsed) and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().with_context(|| format!("running {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let args = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("{program} {args}: {}: {}", output.status, stderr.trim().replace('\n', "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_apart() {
        assert!(is_of_series("linux-image-6.1.0-56-cloud-amd64", "6.1"));
        assert!(is_of_series("linux-image-6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(!is_of_series("linux-image-6.12.117+deb12-cloud-amd64", "6.1"));
        assert!(!is_of_series("linux-image-6.1.0-56-cloud-amd64-unsigned", "6.1"));
    }

    #[test]
    fn an_unknown_kernel_is_missing_with_a_reason() {
        let nowhere = PathBuf::from("nowhere");
        let catalogue = Catalogue { cache: nowhere.clone(), workspace: nowhere };
        let found = catalogue.find(&["2.4".to_owned()]);
        assert!(matches!(&found[..], [Found::Missing { name, .. }] if name == "2.4"), "{found:?}");
    }
}
