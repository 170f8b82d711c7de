//! What is known of the kernels that the tests run on, without asking the doctor.

use std::{fs, process::Command};

use chaos_user::kernel::mechanism::Mechanism as M;

use crate::error::{Context, Failure, Result};

const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// The kernel's own configuration, where it carries it.
const CONFIG: &str = "/proc/config.gz";

/// A kernel of which all is known.
#[derive(Debug)]
pub(super) struct Known {
    /// What it is called here.
    pub(super) name: &'static str,
    /// Its release; `*` stands for anything.
    release: &'static str,
    /// A line of its configuration.
    config: Option<&'static str>,
    /// Its lockdown state.
    pub(super) lockdown: &'static str,
    /// What it cannot do, and a word of why. It can do all else.
    pub(super) missing: &'static [(M, &'static str)],
    /// How arriving packets are lost, the best way first.
    pub(super) loss_in: &'static [M],
    /// How leaving packets are lost.
    pub(super) loss_out: &'static [M],
}

/// Debian leaves out error injection (and cannot override results of system calls, only the security modules') before 7.2,
/// which has it for `fmod_ret` alone. tcx is of Linux 6.6.
const KERNELS: &[Known] = &[
    Known {
        name: "Debian's 6.1 for clouds",
        release: "6.1.*-cloud-amd64",
        config: None,
        lockdown: "none",
        missing: &[
            (M::Tcx, "EINVAL"),
            (M::FmodRetSyscall, "is not modifiable"),
            (M::KprobeOverride, "bpf_override_return"),
        ],
        loss_in: &[M::XdpNative, M::Clsact],
        loss_out: &[M::Clsact],
    },
    Known {
        name: "Debian's 6.12 for clouds",
        release: "6.12.*-cloud-amd64",
        config: None,
        lockdown: "none",
        missing: &[(M::FmodRetSyscall, "is not modifiable"), (M::KprobeOverride, "bpf_override_return")],
        loss_in: &[M::XdpNative, M::Tcx, M::Clsact],
        loss_out: &[M::Tcx, M::Clsact],
    },
    Known {
        name: "6.12 with error injection",
        release: "6.12.*",
        config: Some("CONFIG_BPF_KPROBE_OVERRIDE=y"),
        lockdown: "none",
        missing: &[],
        loss_in: &[M::XdpNative, M::Tcx, M::Clsact],
        loss_out: &[M::Tcx, M::Clsact],
    },
    Known {
        name: "Debian's 7.2 for clouds",
        release: "7.*-cloud-amd64",
        config: None,
        lockdown: "none",
        missing: &[(M::KprobeOverride, "bpf_override_return")],
        loss_in: &[M::XdpNative, M::Tcx, M::Clsact],
        loss_out: &[M::Tcx, M::Clsact],
    },
    Known {
        name: "the development machines' 6.18",
        release: "6.18.*-fc-*",
        config: None,
        lockdown: "integrity",
        missing: &[
            (M::SchFq, "ENOENT"),
            (M::SchNetem, "ENOENT"),
            (M::IoMax, "cgroup v1 has it as blkio"),
            (M::Lsm, "EPERM"),
            (M::Fentry, "EPERM"),
            (M::Fexit, "EPERM"),
            (M::FmodRetSecurity, "EPERM"),
            (M::FmodRetSyscall, "EPERM"),
            (M::Kprobe, "ENOENT"),
            (M::KprobeOverride, "ENOENT"),
            (M::ProbeWriteUser, "locked down (integrity)"),
        ],
        loss_in: &[M::XdpNative, M::Tcx, M::Clsact],
        loss_out: &[M::Tcx, M::Clsact],
    },
];

/// What is known of the kernel we are on.
pub(super) fn this() -> Result<&'static Known> {
    let release = fs::read_to_string(RELEASE).context(RELEASE)?;
    let release = release.trim();
    let is_this = |known: &&Known| matches(known.release, release) && known.config.is_none_or(configured);
    let unknown = || Failure::new(format!("nothing is written down of Linux {release}"));
    KERNELS.iter().find(is_this).ok_or_else(unknown)
}

/// Whether `text` is `pattern`, each `*` of which stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(place, _)| place).chain([text.len()]);
            ends.into_iter().any(|place| matches(rest, &text[place..]))
        }),
    }
}

/// Whether the kernel says that it was configured so.
fn configured(line: &str) -> bool {
    let output = Command::new("gzip").args(["-dc", CONFIG]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|other| other == line))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn releases_match_as_a_whole() {
        for (pattern, release) in [
            ("6.1.*-cloud-amd64", "6.1.0-56-cloud-amd64"),
            ("6.12.*-cloud-amd64", "6.12.117+deb12-cloud-amd64"),
            ("6.12.*", "6.12.117"),
            ("6.18.*-fc-*", "6.18.44-fc-v669"),
        ] {
            assert!(matches(pattern, release), "{pattern} {release}");
        }
        for (pattern, release) in [
            ("6.1.*-cloud-amd64", "6.12.117+deb12-cloud-amd64"),
            ("6.1.*-cloud-amd64", "6.1.0-56-amd64"),
            ("6.18.*-fc-*", "6.18.44"),
        ] {
            assert!(!matches(pattern, release), "{pattern} {release}");
        }
    }
}
