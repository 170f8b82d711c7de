//! Calls of cargo and of what it built.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

/// The workspace's folder.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that started us, in the workspace, with the folder it installs programs into on its path.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    if let Some(path) = path_with_installed() {
        cargo.env("PATH", path);
    }
    cargo
}

/// Where `cargo install` puts programs.
pub(crate) fn installed() -> Option<PathBuf> {
    let home = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map(PathBuf::from);
    Some(home.or_else(|| Some(env::home_dir()?.join(".cargo")))?.join("bin"))
}

fn path_with_installed() -> Option<std::ffi::OsString> {
    let path = env::var_os("PATH")?;
    let installed = installed()?;
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    if !folders.contains(&installed) {
        folders.push(installed);
    }
    env::join_paths(folders).ok()
}

/// Runs a command and waits for it.
///
/// # Errors
///
/// If it cannot be started, or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed: {status}");
    Ok(())
}

/// The command as it would be typed.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What we build for: this machine, linked statically, because a guest has no libraries of ours.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds binaries, optimised and linked statically, and returns the folder they are in.
///
/// # Errors
///
/// If the build fails.
pub(crate) fn build(binaries: &[&str]) -> Result<PathBuf> {
    run(&mut with_binaries(statically("build"), binaries))?;
    Ok(target()?.join(STATIC_TARGET).join("release"))
}

/// The same, linked as `cargo build --release` does.
///
/// # Errors
///
/// If the build fails.
pub(crate) fn build_dynamic(binaries: &[&str]) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--workspace"]);
    run(&mut with_binaries(cargo, binaries))?;
    Ok(target()?.join("release"))
}

/// One of cargo's commands for the whole workspace, so that whatever two of them need is compiled once.
pub(crate) fn statically(command: &str) -> Command {
    let mut cargo = cargo();
    // Naming the target keeps the flags away from build scripts and procedural macros.
    cargo.args([command, "--release", "--workspace", "--target", STATIC_TARGET]);
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    cargo
}

fn with_binaries(mut cargo: Command, binaries: &[&str]) -> Command {
    for binary in binaries {
        cargo.args(["--bin", binary]);
    }
    cargo
}

/// Where cargo puts what it makes of this workspace, whoever says so: a variable, a file of settings or nobody.
///
/// # Errors
///
/// If cargo does not say.
pub(crate) fn target() -> Result<&'static Path> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(target) = TARGET.get() {
        return Ok(target);
    }
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| shown(&command))?;
    ensure!(output.status.success(), "`{}` failed: {}", shown(&command), output.status);
    let metadata: Metadata = serde_json::from_slice(&output.stdout).with_context(|| shown(&command))?;
    Ok(TARGET.get_or_init(|| metadata.target_directory))
}

/// A program that must run as root: by itself, or through sudo, which then runs it and nothing else.
pub(crate) fn as_root(program: &Path) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    // The owner of a process' folder in /proc is its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0)
}
