//! What this kernel has, as far as that can be told without making or attaching anything: by its types, its modules and its
//! lists, and by loading programs that are attached to nothing and are gone at once.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};

use super::{
    Answer, M, Refusal, State, cgroup, flag::load_raw, helper, host, insn::Code, mounts, perf, probes,
    tracing,
};
use crate::{
    host::release,
    kernel::{Error, btf::KernelTypes, wiring::DISABLED_HOOK},
};

/// What was found so far; each mechanism is looked for when it is first asked for.
#[derive(Debug, Default)]
pub struct Outlook(RefCell<BTreeMap<M, State>>);

impl Outlook {
    /// Whether the kernel has a mechanism.
    #[must_use]
    pub fn state(&self, mechanism: M) -> State {
        *self.0.borrow_mut().entry(mechanism).or_insert_with(|| State::of(&look(mechanism)))
    }

    /// Whether BPF is let to this function of the security modules, unless the kernel says that it is not.
    #[must_use]
    pub fn lets_bpf(&self, function: &str, types: &KernelTypes) -> bool {
        let (kind, attach) = (bpf_prog_type::BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC);
        let loaded = tracing::load("doctor_look", kind, attach, types, function, &Code::default().exit(0));
        !matches!(loaded, Err(Refusal::Kernel(error)) if error.object.contains(DISABLED_HOOK))
    }

    /// Whether it is known that the kernel has not.
    #[must_use]
    pub fn lacks(&self, mechanism: M) -> bool {
        self.state(mechanism) == State::Missing
    }
}

fn look(mechanism: M) -> Answer {
    let traced = |kind, attach, function: &str| {
        let code = Code::default().exit(0);
        tracing::load("doctor_look", kind, attach, KernelTypes::read()?, function, &code).map(|_| None)
    };
    let of_call = |attach| traced(bpf_prog_type::BPF_PROG_TYPE_TRACING, attach, &probes::syscall());
    match mechanism {
        M::Btf => Ok(KernelTypes::read().map(|_| None)?),
        M::CallFields
        | M::FileFields
        | M::ClockFields
        | M::RawClockFields
        | M::ProcessFields
        | M::CgroupFields => super::fields(mechanism, Some(KernelTypes::read()?)),
        M::TestRun => Ok(helper::test_run()?),
        M::BpfLoop => helper::bpf_loop(),
        M::XdpNative | M::XdpGeneric => attach_type("BPF_XDP"),
        M::Tcx => attach_type("BPF_TCX_INGRESS"),
        M::Clsact => {
            built_in_or_module("sch_ingress", "clsact_sched_data")?;
            built_in_or_module("cls_bpf", "cls_bpf_head")
        }
        M::SchFq => built_in_or_module("sch_fq", "fq_sched_data"),
        M::SchNetem => built_in_or_module("sch_netem", "netem_sched_data"),
        M::Ifb => built_in_or_module("ifb", "ifb_dev_private"),
        M::CgroupV2 => match mounts::find("cgroup2")? {
            Some(_) => Ok(None),
            None => Err(Refusal::missing("no cgroup2 file system is mounted")),
        },
        M::CgroupSkb => Ok(cgroup::load_skb(bpf_attach_type::BPF_CGROUP_INET_EGRESS).map(|_| None)?),
        M::CgroupConnect => {
            Ok(cgroup::load_connect(bpf_attach_type::BPF_CGROUP_INET4_CONNECT).map(|_| None)?)
        }
        M::CgroupSock => Ok(cgroup::load_sock().map(|_| None)?),
        M::Lsm => {
            let (kind, attach) = (bpf_prog_type::BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC);
            traced(kind, attach, &tracing::lsm_function())?;
            // Where `bpf` is not among the active ones it would never be asked.
            match host::security_modules() {
                Ok(modules) if modules.iter().any(|module| module == "bpf") => Ok(None),
                Ok(_) => Err(Refusal::missing("bpf is not among the active security modules")),
                Err(error) => Err(Refusal::Untried(error.to_string())),
            }
        }
        M::Fentry => of_call(bpf_attach_type::BPF_TRACE_FENTRY),
        M::Fexit => of_call(bpf_attach_type::BPF_TRACE_FEXIT),
        M::FmodRetSyscall => of_call(bpf_attach_type::BPF_MODIFY_RETURN),
        M::FmodRetSecurity => {
            let (kind, attach) = (bpf_prog_type::BPF_PROG_TYPE_TRACING, bpf_attach_type::BPF_MODIFY_RETURN);
            traced(kind, attach, &tracing::security_function())
        }
        M::Kprobe => kprobe(Code::default()),
        M::KprobeOverride => kprobe(Code::default().set(2, 0).call(bpf_func_id::BPF_FUNC_override_return)),
        M::RawTracepoint => Ok(load_raw("doctor_look", &Code::default().exit(0)).map(|_| None)?),
        M::ProbeWriteUser => unlocked(),
        // No run asks for these by name, or it looks for itself.
        M::Tracepoint | M::Uprobe | M::IoMax | M::VdsoPatch => {
            Err(Refusal::Untried("only a try would tell".into()))
        }
    }
}

/// Whether the kernel knows of such a place to attach to.
fn attach_type(name: &str) -> Answer {
    match KernelTypes::read()?.has_value("bpf_attach_type", name)? {
        true => Ok(None),
        false => Err(Refusal::missing(format!("the kernel has no {name}"))),
    }
}

fn kprobe(code: Code) -> Answer {
    perf::unit_type("kprobe")?;
    probes::load("doctor_look", bpf_prog_type::BPF_PROG_TYPE_KPROBE, &code.exit(0))?;
    Ok(None)
}

/// Each program that may write to a process's memory leaves a line in the kernel's log when it is loaded, so none is: what
/// refuses it is lockdown.
fn unlocked() -> Answer {
    match &host::lockdown(&host::security_modules()) {
        Ok(state) if state == "none" => Ok(None),
        Ok(state) => Err(Refusal::missing(format!("the kernel is locked down ({state})"))),
        Err(error) => Err(Refusal::Untried(error.to_string())),
    }
}

/// Whether something is in the kernel, which then has a type of its, or in a module that is loaded or that the kernel would
/// load.
fn built_in_or_module(module: &str, of_its_own: &str) -> Answer {
    let is_there = KernelTypes::read()?.has(of_its_own)? || exists(&Path::new("/sys/module").join(module))?;
    if is_there {
        return Ok(None);
    }
    let missing = || Refusal::missing(format!("the kernel has no {module}"));
    if !exists(Path::new("/proc/modules"))? {
        return Err(missing());
    }
    let listed = modules(module).map_err(|error| Refusal::Untried(error.to_string()))?;
    if listed { Ok(None) } else { Err(missing()) }
}

/// Whether the modules that lie ready for this kernel have one of this name.
fn modules(name: &str) -> Result<bool, Error> {
    let folder = PathBuf::from("/lib/modules").join(release::running()?);
    let mut listed = false;
    for file in ["modules.dep", "modules.builtin"] {
        let path = folder.join(file);
        let text = fs::read_to_string(&path)
            .map_err(|source| Error::new("open", path.display().to_string(), source))?;
        listed |= lists(&text, name);
    }
    Ok(listed)
}

/// `kernel/net/sched/sch_fq.ko.xz: needs...`; a dash in a file's name is an underscore in the module's.
fn lists(text: &str, name: &str) -> bool {
    let paths = text.lines().filter_map(|line| line.split(':').next());
    let files = paths.filter_map(|path| path.rsplit('/').next()?.split_once(".ko"));
    files.into_iter().any(|(file, _)| file.replace('-', "_") == name)
}

fn exists(path: &Path) -> Result<bool, Error> {
    let error = |source: io::Error| Error::new("stat", path.display().to_string(), source);
    path.try_exists().map_err(error)
}

#[cfg(test)]
mod tests {
    use super::lists;

    #[test]
    fn modules_are_listed_by_their_files() {
        let text = "kernel/net/sched/sch_fq.ko.xz:\nkernel/a/nf-tables.ko: kernel/b/sch_fq_codel.ko.zst\nkernel/c/ifb.ko\n";
        for (name, listed) in [
            ("sch_fq", true),
            ("nf_tables", true),
            ("ifb", true),
            ("sch_fq_codel", false),
            ("fq", false),
            ("", false),
        ] {
            assert_eq!(lists(text, name), listed, "{name}");
        }
    }
}
