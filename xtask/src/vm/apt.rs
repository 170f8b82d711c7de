//! Debian's packages of kernels, asked for and fetched by apt. Nothing is installed.
//!
//! Those of another release come by a private apt folder beside the machine's own, which has the machine's mirror with
//! another suite.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};

/// The machine's own sources; the first URI in them is a mirror of Debian's.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// How long the lists of another release are taken for current.
const CURRENT: Duration = Duration::from_secs(12 * 3600);

/// Packages of these names are what an image's package may only depend on.
const PARTS: [&str; 2] = ["linux-binary-", "linux-modules-"];

/// Whose packages: the machine's, or another release's.
#[derive(Clone, Debug)]
pub(super) struct Apt {
    /// `-o` with each.
    options: Vec<String>,
}

impl Apt {
    /// That of the machine.
    pub(super) fn of_machine() -> Self {
        Self { options: Vec::new() }
    }

    /// That of another release, such as `sid`, with lists of today; all is kept in the folder.
    ///
    /// # Errors
    ///
    /// If the machine's sources name no mirror, or the lists cannot be had.
    pub(super) fn of_release(suite: &str, folder: &Path) -> Result<Self> {
        let sources = fs::read_to_string(SOURCES).with_context(|| format!("reading {SOURCES}"))?;
        let mirror = sources.lines().find_map(|line| line.strip_prefix("URIs:")?.split_whitespace().next());
        let mirror = mirror.ok_or_else(|| anyhow!("{SOURCES} names no mirror"))?;
        let (list, lists) = (folder.join("sources.list"), folder.join("lists"));
        for folder in [lists.join("partial"), folder.join("cache/archives/partial")] {
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let line = format!("deb {mirror} {suite} main\n");
        let known = fs::read_to_string(&list).is_ok_and(|old| old == line);
        fs::write(&list, line).with_context(|| format!("writing {}", list.display()))?;
        let apt = Self {
            options: vec![
                format!("Dir::Etc::sourcelist={}", list.display()),
                "Dir::Etc::sourceparts=-".into(),
                format!("Dir::State::lists={}", lists.display()),
                format!("Dir::Cache={}", folder.join("cache").display()),
                "APT::Get::List-Cleanup=0".into(),
                // Lists that could not be had are not current.
                "APT::Update::Error-Mode=any".into(),
            ],
        };
        let stamp = folder.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if !known || age.is_none_or(|age| age > CURRENT) {
            apt.run("apt-get", &["update", "--quiet=2"], None)?;
            fs::write(&stamp, "").with_context(|| format!("writing {}", stamp.display()))?;
        }
        Ok(apt)
    }

    /// `PACKAGE=VERSION` of the newest kernel that one of the metapackages leads to, with the packages that hold it:
    /// of a series such as `6.1`, or whichever.
    ///
    /// # Errors
    ///
    /// If apt knows of none.
    pub(super) fn newest(&self, series: Option<&str>, metapackages: &[&str]) -> Result<Vec<String>> {
        let (mut seen, mut refusals) = (Vec::new(), Vec::new());
        for metapackage in metapackages {
            let depends = match self.depends(metapackage) {
                Ok(depends) => depends,
                Err(error) => {
                    refusals.push(format!("{error:#}"));
                    continue;
                }
            };
            for package in depends.into_iter().filter(|package| package.starts_with("linux-image-")) {
                if series.is_none_or(|series| is_of_series(&package, series)) {
                    return self.with_parts(package);
                }
                seen.push(package);
            }
        }
        if seen.is_empty() {
            let (names, refusals) = (metapackages.join(" nor "), refusals.join("; "));
            bail!("apt has no {names} to offer ({refusals}); apt-get update may help");
        }
        bail!("apt offers {} in place of a {} kernel", seen.join(", "), series.unwrap_or("newer"))
    }

    /// An image's package, and those that hold the image where that one is empty.
    fn with_parts(&self, image: String) -> Result<Vec<String>> {
        let parts = self.depends(&image)?;
        let parts = parts.into_iter().filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
        [image.clone()]
            .into_iter()
            .chain(parts)
            .map(|package| Ok(format!("{package}={}", self.candidate(&package)?)))
            .collect()
    }

    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let listing = self.run("apt-cache", &["depends", "--important", package], None)?;
        Ok(listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// The version that `apt-get download` would fetch.
    fn candidate(&self, package: &str) -> Result<String> {
        let policy = self.run("apt-cache", &["policy", package], None)?;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        match candidate {
            Some(version) if version != "(none)" => Ok(version.to_owned()),
            _ => bail!("apt has no version of {package} to offer"),
        }
    }

    /// Downloads packages and puts what is in them in place of the folder, which is whole at every moment it exists; a
    /// file `package` in it says what it holds.
    ///
    /// # Errors
    ///
    /// If one cannot be had.
    pub(super) fn fetch(&self, packages: &[String], dir: &Path) -> Result<()> {
        eprintln!("fetching {}", packages.join(" "));
        let fresh = dir.with_added_extension("new");
        remove_dir(&fresh)?;
        let download = fresh.join("download");
        fs::create_dir_all(&download).with_context(|| format!("creating {}", download.display()))?;
        let words: Vec<&str> =
            ["download", "--quiet"].into_iter().chain(packages.iter().map(String::as_str)).collect();
        self.run("apt-get", &words, Some(&download))?;
        let mut debs: Vec<PathBuf> = fs::read_dir(&download)
            .with_context(|| format!("listing {}", download.display()))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        debs.sort();
        if debs.len() != packages.len() {
            bail!("apt-get download {} left {} packages", packages.join(" "), debs.len());
        }
        for deb in debs {
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&fresh))?;
        }
        remove_dir(&download)?;
        fs::write(fresh.join("package"), packages.join(" "))
            .with_context(|| format!("writing to {}", fresh.display()))?;
        remove_dir(dir)?;
        fs::rename(&fresh, dir).with_context(|| format!("renaming {}", fresh.display()))
    }

    fn run(&self, program: &str, words: &[&str], folder: Option<&Path>) -> Result<String> {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        run(command.args(words))
    }
}

/// Whether `linux-image-6.1.0-56-cloud-amd64` is a kernel of the series `6.1`; the unsigned build is not.
fn is_of_series(package: &str, series: &str) -> bool {
    let version = package.strip_prefix("linux-image-").unwrap_or_default();
    let rest = version.strip_prefix(series);
    rest.is_some_and(|rest| rest.starts_with(['.', '+', '-'])) && !package.ends_with("-unsigned")
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
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
}
