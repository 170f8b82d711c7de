//! Compiles the eBPF half and leaves its objects where `kernel/object.rs` embeds them from.
//!
//! The host's toolchain need not have a `core` for `bpfel-unknown-none`, so the compiler is looked for:
//! `$FAULTLINE_BPF_RUSTC`, `rustc`, `/usr/bin/rustc` (Debian's rustc-web), whichever has that target's
//! `core` precompiled; failing all three, the nightly toolchain with `rust-src`, which builds `core`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["faultline-ebpf", "calls-ebpf", "bench-ebpf"];

fn main() {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir.parent().expect("chaos-user lies in the workspace");
    let out_dir = PathBuf::from(var("OUT_DIR"));
    for input in ["chaos-ebpf", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for variable in ["FAULTLINE_BPF_RUSTC", "FAULTLINE_BPF_LINKER"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    // A target directory of its own: one shared with the host's half is rebuilt at every switch.
    let target_dir = target(&out_dir).join("bpf");
    let mut cargo = compiler();
    cargo
        .current_dir(workspace)
        .args(["build", "--package", "chaos-ebpf", "--bins", "--features", "kernel", "--release"])
        .args(["--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags())
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker())
        .env("CARGO_PROFILE_RELEASE_LTO", "false");
    // Set by the outer cargo for the host's half; they would choose the wrong toolchain or wrapper here.
    for variable in
        ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot start {cargo:?}: {error}"));
    assert!(status.success(), "{cargo:?}: {status}; `cargo xtask setup` installs what the eBPF half needs");

    for object in OBJECTS {
        let from = target_dir.join(TARGET).join("release").join(object);
        let to = out_dir.join(format!("{object}.o"));
        fs::copy(&from, &to)
            .unwrap_or_else(|error| panic!("copy {} to {}: {error}", from.display(), to.display()));
    }
}

/// The target directory of the outer cargo, which it marks, as it does the folder of each target in it. The checkout may be
/// one that nobody can write to.
fn target(out_dir: &Path) -> &Path {
    let is_marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    out_dir.ancestors().filter(is_marked).last().unwrap_or(out_dir)
}

/// The cargo that can build for [`TARGET`], with its environment.
fn compiler() -> Command {
    let candidates =
        [env::var("FAULTLINE_BPF_RUSTC").ok(), Some("rustc".into()), Some("/usr/bin/rustc".into())];
    if let Some(rustc) = candidates.into_iter().flatten().find(|rustc| has_core(rustc)) {
        let beside = Path::new(&rustc).with_file_name("cargo");
        let mut cargo = Command::new(if beside.is_file() { beside } else { "cargo".into() });
        // aya-ebpf and our programs use BPF assembly, which is not yet stable; allow it there and nowhere else.
        cargo.env("RUSTC", &rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf,faultline_ebpf,calls_ebpf");
        return cargo;
    }
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("CARGO");
    cargo.env("CARGO_UNSTABLE_BUILD_STD", "core");
    cargo
}

/// Whether `rustc` has a precompiled `core` for [`TARGET`].
fn has_core(rustc: &str) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print=target-libdir", "--target", TARGET]).output() else {
        return false;
    };
    let libdir = String::from_utf8_lossy(&output.stdout);
    fs::read_dir(libdir.trim())
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn rustflags() -> String {
    let arch = var("CARGO_CFG_TARGET_ARCH");
    // v3: 32-bit subregisters and jumps, and the atomic fetch the packet sequence needs (Linux 5.12).
    [&format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Clink-arg=--btf"]
        .join("\u{1f}")
}

fn linker() -> String {
    env::var("FAULTLINE_BPF_LINKER").unwrap_or_else(|_| "bpf-linker".into())
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
