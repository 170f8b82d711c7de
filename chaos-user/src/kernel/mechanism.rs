//! What Faultline can be built of on a kernel, and which fault takes what: the one table that the planner and
//! the doctor read.

use chaos_ebpf::abi::Direction;
use serde::{Deserialize, Serialize};

use crate::host::Use;

use self::Mechanism as M;

/// Something a kernel can do or not. The names in JSON are the variants' in snake_case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// The kernel's types, `/sys/kernel/btf/vmlinux`.
    Btf,
    /// Running a program without attaching it.
    TestRun,
    /// XDP by a link, run by the driver.
    XdpNative,
    /// XDP by a link, run after the driver.
    XdpGeneric,
    /// tc by a link, both directions.
    Tcx,
    /// tc by netlink: a direct-action filter on `clsact`, both directions.
    Clsact,
    /// A mounted cgroup v2 hierarchy, in which cgroups can be made.
    CgroupV2,
    /// Packets of a cgroup's sockets.
    CgroupSkb,
    /// `connect(2)` in a cgroup, with an errno of our choice (`bpf_set_retval`).
    CgroupConnect,
    /// Sockets that are made in a cgroup.
    CgroupSock,
    /// BPF LSM hooks that really run.
    Lsm,
    /// The start of a kernel function.
    Fentry,
    /// The end of a kernel function.
    Fexit,
    /// Another result for a `security_*` function.
    FmodRetSecurity,
    /// Another result for a system call.
    FmodRetSyscall,
    /// The start of a kernel function, by a breakpoint.
    Kprobe,
    /// Another result for a system call, by a kprobe (`bpf_override_return`).
    KprobeOverride,
    /// `syscalls:*` tracepoints, by perf.
    Tracepoint,
    /// Tracepoints with their raw arguments.
    RawTracepoint,
    /// A place in a program.
    Uprobe,
    /// Writing to a process's memory (`bpf_probe_write_user`).
    ProbeWriteUser,
    /// Long loops in a program (`bpf_loop`).
    BpfLoop,
    /// The qdisc that releases packets at the time they carry.
    SchFq,
    /// The kernel's own network emulator.
    SchNetem,
    /// The interface that gives arriving packets a queue.
    Ifb,
    /// Limits of a cgroup on a block device.
    IoMax,
    /// Other code in processes' vDSOs.
    VdsoPatch,
    /// The fields of the kernel's structures that each fault of calls reads.
    CallFields,
    /// Those that say which file a call is about, and more of it.
    FileFields,
    /// Those that say where a process's vDSO lies.
    ClockFields,
    /// The fields that are read besides where what system calls read is rewritten.
    RawClockFields,
    /// Those that say whose process it is.
    ProcessFields,
    /// Those that say whose cgroup a socket is in.
    CgroupFields,
}

impl Mechanism {
    /// All, in the order the doctor prints them.
    pub const ALL: [Self; 33] = [
        M::Btf,
        M::CallFields,
        M::FileFields,
        M::ClockFields,
        M::RawClockFields,
        M::ProcessFields,
        M::CgroupFields,
        M::TestRun,
        M::XdpNative,
        M::XdpGeneric,
        M::Tcx,
        M::Clsact,
        M::SchFq,
        M::SchNetem,
        M::Ifb,
        M::CgroupV2,
        M::CgroupSkb,
        M::CgroupConnect,
        M::CgroupSock,
        M::IoMax,
        M::VdsoPatch,
        M::Lsm,
        M::Fentry,
        M::Fexit,
        M::FmodRetSecurity,
        M::FmodRetSyscall,
        M::Kprobe,
        M::KprobeOverride,
        M::Tracepoint,
        M::RawTracepoint,
        M::Uprobe,
        M::ProbeWriteUser,
        M::BpfLoop,
    ];

    /// Its name in JSON and in the doctor's table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            M::Btf => "btf",
            M::TestRun => "test_run",
            M::XdpNative => "xdp_native",
            M::XdpGeneric => "xdp_generic",
            M::Tcx => "tcx",
            M::Clsact => "clsact",
            M::CgroupV2 => "cgroup_v2",
            M::CgroupSkb => "cgroup_skb",
            M::CgroupConnect => "cgroup_connect",
            M::CgroupSock => "cgroup_sock",
            M::Lsm => "lsm",
            M::Fentry => "fentry",
            M::Fexit => "fexit",
            M::FmodRetSecurity => "fmod_ret_security",
            M::FmodRetSyscall => "fmod_ret_syscall",
            M::Kprobe => "kprobe",
            M::KprobeOverride => "kprobe_override",
            M::Tracepoint => "tracepoint",
            M::RawTracepoint => "raw_tracepoint",
            M::Uprobe => "uprobe",
            M::ProbeWriteUser => "probe_write_user",
            M::BpfLoop => "bpf_loop",
            M::SchFq => "sch_fq",
            M::SchNetem => "sch_netem",
            M::Ifb => "ifb",
            M::IoMax => "io_max",
            M::VdsoPatch => "vdso_patch",
            M::CallFields => "call_fields",
            M::FileFields => "file_fields",
            M::ClockFields => "clock_fields",
            M::RawClockFields => "raw_clock_fields",
            M::ProcessFields => "process_fields",
            M::CgroupFields => "cgroup_fields",
        }
    }

    /// What to change where it is missing.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            M::Btf => "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all large distributions ship",
            M::CallFields
            | M::FileFields
            | M::ClockFields
            | M::RawClockFields
            | M::ProcessFields
            | M::CgroupFields => {
                "use a newer Faultline, or an older kernel: this one has changed what programs read there"
            }
            M::TestRun => "use Linux 5.10 or newer",
            M::XdpNative => "use Linux 5.9 or newer with veth; Faultline uses tcx or clsact instead",
            M::XdpGeneric => "use Linux 5.9 or newer; Faultline does not need it",
            M::Tcx => "needs Linux 6.6 or newer; Faultline uses clsact below",
            M::Clsact => {
                "load the modules sch_ingress and cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
            }
            M::CgroupV2 => "mount it: mount -t cgroup2 none DIRECTORY",
            M::CgroupSkb | M::CgroupSock => "use a kernel with CONFIG_CGROUP_BPF=y",
            M::CgroupConnect => "use Linux 5.18 or newer (bpf_set_retval) with CONFIG_CGROUP_BPF=y",
            M::Lsm => "use a kernel with CONFIG_BPF_LSM=y, and add bpf to its lsm= boot parameter",
            M::Fentry | M::Fexit => {
                "use a kernel with BTF, CONFIG_FUNCTION_TRACER=y and CONFIG_DYNAMIC_FTRACE=y"
            }
            M::FmodRetSecurity => "use a kernel with BTF, CONFIG_SECURITY=y and CONFIG_DYNAMIC_FTRACE=y",
            M::FmodRetSyscall => "use a kernel with CONFIG_FUNCTION_ERROR_INJECTION=y",
            M::Kprobe => "use a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y",
            M::KprobeOverride => {
                "use a kernel with CONFIG_BPF_KPROBE_OVERRIDE=y and CONFIG_FUNCTION_ERROR_INJECTION=y"
            }
            M::Tracepoint => "use a kernel with CONFIG_FTRACE_SYSCALLS=y",
            M::RawTracepoint => "use a kernel with CONFIG_BPF_EVENTS=y",
            M::Uprobe => "use a kernel with CONFIG_UPROBE_EVENTS=y",
            M::ProbeWriteUser => {
                "boot with lockdown=none; where Secure Boot turns lockdown on, turn that off"
            }
            M::BpfLoop => "use Linux 5.17 or newer",
            M::SchFq => "load the module sch_fq, or use a kernel that has it (CONFIG_NET_SCH_FQ)",
            M::SchNetem => "load the module sch_netem (CONFIG_NET_SCH_NETEM); no fault needs it",
            M::Ifb => "load the module ifb, or use a kernel that has it (CONFIG_IFB)",
            M::VdsoPatch => "boot an x86-64 kernel without vdso=0, and without proc_mem.force_override=never",
            M::IoMax => {
                "boot with cgroup_no_v1=blkio a kernel that has CONFIG_BLK_CGROUP=y and CONFIG_BLK_DEV_THROTTLING=y"
            }
        }
    }
}

impl std::fmt::Display for Mechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A fault, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Packets vanish.
    Loss,
    /// Packets come later, or overtake others.
    Delay,
    /// Packets take their time on a wire.
    Rate,
    /// Packets come twice.
    Duplicate,
    /// Packets have wrong bits.
    Corrupt,
    /// TCP connections are reset.
    Reset,
    /// TCP connections go silent once they stand.
    Timeout,
    /// Connections are refused.
    Refuse,
    /// DNS queries are answered, or any of these happens to them.
    Dns,
    /// Any of these, for the sockets of a cgroup alone.
    Aim,
    /// The same for those of a process.
    AimAtProcess,
    /// Any of those that follow, for some files alone.
    AimAtFile,
    /// What is done to files fails, `fsync` apart.
    IoError,
    /// What is done to files takes longer.
    IoDelay,
    /// What was read is wrong.
    IoCorrupt,
    /// A cgroup is slow with a block device.
    IoSlow,
    /// System calls fail; of what is done to files, `fsync` is one.
    SysError,
    /// System calls take longer.
    SysDelay,
    /// There is no more memory.
    MemError,
    /// There are no more files to open.
    FdError,
    /// There are no more processes.
    ForkError,
    /// What is done with sockets fails.
    SockError,
    /// Files, sockets and programs are refused.
    Deny,
    /// Clocks are wrong, as the vDSO tells them.
    TimeSkew,
    /// The same as system calls tell them.
    TimeSkewRaw,
}

impl Fault {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Rate => "rate",
            Self::Duplicate => "duplicate",
            Self::Corrupt => "corrupt",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Refuse => "refuse",
            Self::Dns => "dns",
            Self::Aim => "cgroup",
            Self::AimAtProcess => "pid",
            Self::AimAtFile => "path",
            Self::IoError => "io error",
            Self::IoDelay => "io delay",
            Self::IoCorrupt => "io corrupt",
            Self::IoSlow => "io slow",
            Self::SysError => "sys error, fsync",
            Self::SysDelay => "sys delay",
            Self::MemError => "mem error",
            Self::FdError => "fd error",
            Self::ForkError => "fork error",
            Self::SockError => "sock error",
            Self::Deny => "deny",
            Self::TimeSkew => "time skew",
            Self::TimeSkewRaw => "time skew, raw calls",
        }
    }
}

impl Fault {
    /// What it takes that the kernel has for those with the right alone; what all do aside, and what depends on the target.
    #[must_use]
    pub const fn uses(self) -> &'static [Use] {
        match self {
            Self::Delay | Self::Rate | Self::Duplicate | Self::Corrupt => &[Use::Interfaces],
            Self::Reset => &[Use::Segments],
            Self::TimeSkew | Self::TimeSkewRaw => &[Use::Clocks],
            _ => &[],
        }
    }
}

/// One way to have a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Which fault.
    pub fault: Fault,
    /// Which packets it acts on.
    pub direction: Direction,
    /// By what.
    pub mechanism: Mechanism,
    /// What else the kernel must have for it.
    pub needs: &'static [Mechanism],
}

const fn way(fault: Fault, direction: Direction, mechanism: M, needs: &'static [M]) -> Way {
    Way { fault, direction, mechanism, needs }
}

/// All faults and the ways to have them, of each fault the best way first.
#[rustfmt::skip]
pub const WAYS: &[Way] = &[
    way(Fault::Loss, Direction::In,  M::XdpNative, &[M::Btf]),
    way(Fault::Loss, Direction::In,  M::Tcx,       &[M::Btf]),
    way(Fault::Loss, Direction::In,  M::Clsact,    &[M::Btf]),
    way(Fault::Loss, Direction::Out, M::Tcx,       &[M::Btf]),
    way(Fault::Loss, Direction::Out, M::Clsact,    &[M::Btf]),
    way(Fault::Delay, Direction::In,  M::Tcx,      &[M::Btf, M::SchFq]),
    way(Fault::Delay, Direction::In,  M::Clsact,   &[M::Btf, M::SchFq]),
    way(Fault::Delay, Direction::Out, M::Tcx,      &[M::Btf, M::SchFq]),
    way(Fault::Delay, Direction::Out, M::Clsact,   &[M::Btf, M::SchFq]),
    way(Fault::Rate, Direction::In,  M::Tcx,       &[M::Btf, M::SchFq]),
    way(Fault::Rate, Direction::In,  M::Clsact,    &[M::Btf, M::SchFq]),
    way(Fault::Rate, Direction::Out, M::Tcx,       &[M::Btf, M::SchFq]),
    way(Fault::Rate, Direction::Out, M::Clsact,    &[M::Btf, M::SchFq]),
    way(Fault::Duplicate, Direction::In,  M::Tcx,    &[M::Btf]),
    way(Fault::Duplicate, Direction::In,  M::Clsact, &[M::Btf]),
    way(Fault::Duplicate, Direction::Out, M::Tcx,    &[M::Btf]),
    way(Fault::Duplicate, Direction::Out, M::Clsact, &[M::Btf]),
    way(Fault::Corrupt, Direction::In,  M::Tcx,      &[M::Btf]),
    way(Fault::Corrupt, Direction::In,  M::Clsact,   &[M::Btf]),
    way(Fault::Corrupt, Direction::Out, M::Tcx,      &[M::Btf]),
    way(Fault::Corrupt, Direction::Out, M::Clsact,   &[M::Btf]),
    way(Fault::Reset, Direction::In,  M::Tcx,        &[M::Btf]),
    way(Fault::Reset, Direction::In,  M::Clsact,     &[M::Btf]),
    way(Fault::Reset, Direction::Out, M::Tcx,        &[M::Btf]),
    way(Fault::Reset, Direction::Out, M::Clsact,     &[M::Btf]),
    way(Fault::Timeout, Direction::In,  M::Tcx,      &[M::Btf]),
    way(Fault::Timeout, Direction::In,  M::Clsact,   &[M::Btf]),
    way(Fault::Timeout, Direction::Out, M::Tcx,      &[M::Btf]),
    way(Fault::Timeout, Direction::Out, M::Clsact,   &[M::Btf]),
    way(Fault::Refuse, Direction::Connect, M::CgroupConnect, &[M::Btf, M::ProcessFields, M::CgroupV2]),
    way(Fault::Aim, Direction::Connect, M::CgroupConnect,    &[M::Btf, M::ProcessFields, M::CgroupV2]),
    way(Fault::AimAtProcess, Direction::Connect, M::CgroupConnect, &[M::Btf, M::ProcessFields, M::CgroupV2, M::CgroupSock]),
    way(Fault::AimAtProcess, Direction::In,  M::Tcx,    &[M::Btf, M::ProcessFields, M::CgroupV2, M::CgroupSock]),
    way(Fault::AimAtProcess, Direction::In,  M::Clsact, &[M::Btf, M::ProcessFields, M::CgroupV2, M::CgroupSock]),
    way(Fault::AimAtProcess, Direction::Out, M::Tcx,    &[M::Btf, M::ProcessFields, M::CgroupV2, M::CgroupSock]),
    way(Fault::AimAtProcess, Direction::Out, M::Clsact, &[M::Btf, M::ProcessFields, M::CgroupV2, M::CgroupSock]),
    way(Fault::Dns, Direction::In,  M::Tcx,          &[M::Btf, M::BpfLoop]),
    way(Fault::Dns, Direction::In,  M::Clsact,       &[M::Btf, M::BpfLoop]),
    way(Fault::Dns, Direction::Out, M::Tcx,          &[M::Btf, M::BpfLoop]),
    way(Fault::Dns, Direction::Out, M::Clsact,       &[M::Btf, M::BpfLoop]),
    way(Fault::Aim, Direction::In,  M::Tcx,          &[M::Btf, M::CgroupFields, M::CgroupV2]),
    way(Fault::Aim, Direction::In,  M::Clsact,       &[M::Btf, M::CgroupFields, M::CgroupV2]),
    way(Fault::Aim, Direction::Out, M::Tcx,          &[M::Btf, M::CgroupFields, M::CgroupV2]),
    way(Fault::Aim, Direction::Out, M::Clsact,       &[M::Btf, M::CgroupFields, M::CgroupV2]),
    at_file(M::Lsm),
    at_file(M::FmodRetSecurity),
    at_file(M::Fentry),
    at_file(M::RawTracepoint),
    call(Fault::IoError,   M::Lsm),
    call(Fault::IoError,   M::FmodRetSecurity),
    call(Fault::IoDelay,   M::Lsm),
    call(Fault::IoDelay,   M::FmodRetSecurity),
    call(Fault::IoDelay,   M::Fentry),
    call(Fault::IoDelay,   M::RawTracepoint),
    way(Fault::IoCorrupt, Direction::Call, M::Fexit, &[M::Btf, M::CallFields, M::BpfLoop, M::ProbeWriteUser]),
    way(Fault::IoSlow, Direction::Call, M::IoMax, &[M::CgroupV2]),
    call(Fault::SysError,  M::FmodRetSyscall),
    call(Fault::SysError,  M::KprobeOverride),
    call(Fault::SysDelay,  M::Fentry),
    call(Fault::SysDelay,  M::RawTracepoint),
    call(Fault::MemError,  M::FmodRetSecurity),
    call(Fault::FdError,   M::Lsm),
    call(Fault::FdError,   M::FmodRetSecurity),
    call(Fault::ForkError, M::Lsm),
    call(Fault::ForkError, M::FmodRetSecurity),
    call(Fault::SockError, M::Lsm),
    call(Fault::SockError, M::FmodRetSecurity),
    call(Fault::Deny,      M::Lsm),
    call(Fault::Deny,      M::FmodRetSecurity),
    way(Fault::TimeSkew, Direction::Call, M::VdsoPatch, &[M::Btf, M::ClockFields, M::BpfLoop, M::RawTracepoint]),
    way(Fault::TimeSkewRaw, Direction::Call, M::Fexit, &[M::Btf, M::ClockFields, M::RawClockFields, M::RawTracepoint, M::ProbeWriteUser]),
];

const fn at_file(mechanism: M) -> Way {
    let needs = &[M::Btf, M::CallFields, M::FileFields, M::BpfLoop];
    way(Fault::AimAtFile, Direction::Call, mechanism, needs)
}

const fn call(fault: Fault, mechanism: M) -> Way {
    way(fault, Direction::Call, mechanism, &[M::Btf, M::CallFields, M::BpfLoop])
}

/// The ways to have a fault, the best first.
pub fn ways(fault: Fault, direction: Direction) -> impl Iterator<Item = &'static Way> {
    WAYS.iter().filter(move |way| way.fault == fault && way.direction == direction)
}

/// The mechanisms by which all of these faults can be had together, the best for the first of them first.
pub fn common(faults: &[Fault], direction: Direction) -> impl Iterator<Item = Mechanism> {
    let first = faults.first().copied().unwrap_or(Fault::Loss);
    let has = move |fault: &Fault, mechanism| ways(*fault, direction).any(|way| way.mechanism == mechanism);
    ways(first, direction)
        .map(|way| way.mechanism)
        .filter(move |mechanism| faults.iter().all(|fault| has(fault, *mechanism)))
}

impl Way {
    /// The mechanism and what it needs.
    pub fn all(&self) -> impl Iterator<Item = Mechanism> + use<> {
        std::iter::once(self.mechanism).chain(self.needs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_json_and_all_are_listed_once() {
        let mut seen = std::collections::HashSet::new();
        for mechanism in M::ALL {
            assert_eq!(serde_json::to_value(mechanism).ok(), Some(mechanism.name().into()));
            assert!(seen.insert(mechanism), "{mechanism} twice");
        }
        // The last variant: whoever adds one is reminded of the list.
        assert_eq!(M::CgroupFields as usize + 1, M::ALL.len());
    }

    #[test]
    fn loss_falls_back_in_order() {
        let order = |direction| ways(Fault::Loss, direction).map(|way| way.mechanism).collect::<Vec<_>>();
        assert_eq!(order(Direction::In), [M::XdpNative, M::Tcx, M::Clsact]);
        assert_eq!(order(Direction::Out), [M::Tcx, M::Clsact]);
        let both: Vec<_> = common(&[Fault::Loss, Fault::Delay], Direction::In).collect();
        assert_eq!(both, [M::Tcx, M::Clsact]);
    }
}
