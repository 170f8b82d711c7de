//! Finds out what the build needs and is not there, and installs it: by apt where we are root on Debian.
//! Elsewhere it prints the commands and stops, because guessing with somebody's system is worse.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail, ensure};

use crate::cargo::{cargo, installed, is_root, run as run_command, shown};

const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler with `core` for eBPF, and the LLVM that the linker is built on.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const LINKER_PACKAGES: [&str; 2] = ["llvm-22-dev", "g++"];
const LINKER_LLVM: &str = "/usr/lib/llvm-22";

/// A program, and the package that has it.
type Program = (&'static str, &'static str);

/// What guests need of the host: QEMU and what they boot into.
const GUEST_PROGRAMS: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("virtiofsd", "qemu-system-common"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("xz", "xz-utils"),
];

/// The real programs that tests run, here and in guests.
const TEST_PROGRAMS: &[Program] = &[
    ("ethtool", "ethtool"),
    ("initdb", "postgresql"),
    ("redis-server", "redis-server"),
    ("nginx", "nginx-light"),
    ("ab", "apache2-utils"),
    ("runc", "runc"),
    ("openssl", "openssl"),
    ("dig", "bind9-dnsutils"),
    ("python3", "python3"),
    ("strace", "strace"),
    ("cc", "gcc"),
    ("musl-gcc", "musl-tools"),
    ("faketime", "faketime"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
];

/// What measurements compare with.
const BENCH_PROGRAMS: &[Program] = &[("strace", "strace"), ("faketime", "faketime")];

/// Where Debian keeps programs that are not on the path.
const MORE_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/lib/qemu", "/usr/libexec"];

/// 0.13 is the first that is known to link what this workspace's compilers emit.
const LINKER_VERSION: &str = "0.13.0";

/// Installs what the build needs and is not there.
///
/// # Errors
///
/// If something cannot be installed, or must be by hand; the message says how.
pub(crate) fn build_tools() -> Result<()> {
    let compiler = has_compiler();
    let linker = has_linker();
    if compiler && linker {
        return Ok(());
    }
    if !is_debian_root() {
        return by_hand(compiler, linker);
    }
    apt_install(&build_packages(compiler, linker))?;
    if !linker {
        install_linker()?;
    }
    ensure!(
        has_compiler(),
        "no rustc for {TARGET} even now; set FAULTLINE_BPF_RUSTC to one that has its core"
    );
    ensure!(has_linker(), "bpf-linker is installed but not found; put {:?} on the PATH", installed());
    Ok(())
}

/// The packages that the build lacks.
fn build_packages(compiler: bool, linker: bool) -> Vec<&'static str> {
    let compiler = COMPILER_PACKAGES.iter().filter(|_| !compiler);
    compiler.chain(LINKER_PACKAGES.iter().filter(|_| !linker)).copied().collect()
}

/// Installs what the build and the tests need and is not there.
///
/// # Errors
///
/// As [`build_tools`].
pub(crate) fn everything() -> Result<()> {
    if is_debian_root() {
        // One call of apt takes less than two.
        let missing = missing(&[GUEST_PROGRAMS, TEST_PROGRAMS].concat());
        let mut packages = build_packages(has_compiler(), has_linker());
        packages.extend(missing.into_iter().map(|(_, package)| package));
        if !packages.is_empty() {
            apt_install(&packages)?;
        }
    }
    build_tools()?;
    test_programs()
}

/// Installs what guests need and is not there.
///
/// # Errors
///
/// As [`build_tools`].
pub(crate) fn guest_tools() -> Result<()> {
    install(GUEST_PROGRAMS)
}

/// Installs the real programs that tests run, with what guests need.
///
/// # Errors
///
/// As [`build_tools`].
pub(crate) fn test_programs() -> Result<()> {
    install(&[GUEST_PROGRAMS, TEST_PROGRAMS].concat())
}

/// Installs what measurements compare with, with what guests need.
///
/// # Errors
///
/// As [`build_tools`].
pub(crate) fn bench_programs() -> Result<()> {
    install(&[GUEST_PROGRAMS, BENCH_PROGRAMS].concat())
}

fn missing(programs: &[Program]) -> Vec<Program> {
    programs.iter().copied().filter(|(program, _)| !has_program(program)).collect()
}

fn install(programs: &[Program]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    if !is_debian_root() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        bail!(
            "{} not here; on Debian run\n  apt-get install --no-install-recommends {}",
            programs.join(", "),
            packages.join(" ")
        );
    }
    apt_install(&packages)
}

/// `cargo xtask setup`.
///
/// # Errors
///
/// As [`build_tools`].
pub(crate) fn run() -> Result<()> {
    build_tools()?;
    println!("everything the build needs is here; tests and measurements install what else they need");
    Ok(())
}

fn is_debian_root() -> bool {
    is_root() && Path::new("/etc/debian_version").exists() && has_program("apt-get")
}

fn by_hand(compiler: bool, linker: bool) -> Result<()> {
    let mut commands = Vec::new();
    if !compiler {
        commands.push("rustup toolchain install nightly --component rust-src".to_string());
    }
    if !linker {
        commands.push("cargo install bpf-linker".to_string());
    }
    bail!("the eBPF half needs a compiler and a linker that are not here; run\n  {}", commands.join("\n  "))
}

/// Installs packages, with fresh lists if the old ones do not know them all.
fn apt_install(packages: &[&str]) -> Result<()> {
    println!("installing from Debian's packages: {}", packages.join(" "));
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args([
            "install",
            "--yes",
            "--no-install-recommends",
            "-qq",
        ]);
        // Another apt may be at work.
        apt.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]).args(packages);
        apt
    };
    let simulated = install().arg("--simulate").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !simulated.is_ok_and(|status| status.success()) {
        run_quietly(Command::new("apt-get").args(["update", "-qq"]))?;
    }
    run_quietly(&mut install())
}

fn install_linker() -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"]);
    cargo.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", LINKER_LLVM);
    println!("installing bpf-linker {LINKER_VERSION}, which takes about a minute: {}", shown(&cargo));
    run_command(&mut cargo)
}

fn run_quietly(command: &mut Command) -> Result<()> {
    run_command(command.stdout(Stdio::null()))
}

/// Whether `chaos-user/build.rs` will find a compiler.
fn has_compiler() -> bool {
    let candidates =
        [env::var("FAULTLINE_BPF_RUSTC").ok(), Some("rustc".into()), Some("/usr/bin/rustc".into())];
    candidates.into_iter().flatten().any(|rustc| has_core(Command::new(rustc))) || has_nightly_source()
}

fn has_core(mut rustc: Command) -> bool {
    // The rustup toolchain that started us is not what build.rs would get.
    rustc.args(["--print=target-libdir", "--target", TARGET]).env_remove("RUSTUP_TOOLCHAIN");
    output(&mut rustc).is_some_and(|libdir| {
        let files = std::fs::read_dir(libdir.trim()).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn has_nightly_source() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", "nightly", "rustc", "--print=sysroot"]);
    output(&mut rustc)
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library").exists())
}

fn has_linker() -> bool {
    let asked = env::var("FAULTLINE_BPF_LINKER").unwrap_or_else(|_| "bpf-linker".into());
    let in_installed = installed().map(|folder| folder.join("bpf-linker"));
    [Some(PathBuf::from(asked)), in_installed].into_iter().flatten().any(|linker| {
        let version = output(Command::new(linker).arg("--version"));
        version.is_some_and(|version| recent(&version))
    })
}

/// Whether `bpf-linker --version` says at least [`LINKER_VERSION`].
fn recent(version: &str) -> bool {
    let numbers =
        |text: &str| -> Vec<u32> { text.split('.').map_while(|number| number.parse().ok()).collect() };
    version.split_whitespace().nth(1).is_some_and(|version| numbers(version) >= numbers(LINKER_VERSION))
}

fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = MORE_FOLDERS.into_iter().map(PathBuf::from).chain(postgres_folders());
    env::split_paths(&path).chain(more).any(|folder| folder.join(name).is_file())
}

/// Debian keeps each version's own programs apart.
fn postgres_folders() -> impl Iterator<Item = PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linker_versions() {
        assert!(recent("bpf-linker 0.13.0\n") && recent("bpf-linker 1.0.0") && recent("bpf-linker 0.14.2"));
        assert!(!recent("bpf-linker 0.9.15") && !recent("") && !recent("bpf-linker unknown"));
    }
}
