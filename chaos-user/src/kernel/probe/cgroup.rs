//! What cgroups carry: programs on the packets and the connects of a cgroup, tried on an empty one.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process,
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};

use super::{Answer, M, Refusal, insn::Code, mounts};
use crate::kernel::{
    Error, Result,
    sys::{self, Program, Target},
    throttle,
};

/// Of the cgroup's name; the rest is the PID.
const PREFIX: &str = "faultline-probe-";
/// Let the packet, or the connect, go on.
const ALLOW: i32 = 1;

/// All of them.
pub(super) fn probe() -> Vec<(M, Answer)> {
    let root = match mounts::find("cgroup2") {
        Ok(Some(root)) => root,
        Ok(None) => {
            return without(&|| Refusal::missing("no cgroup2 file system is mounted (/proc/self/mountinfo)"));
        }
        Err(error) => return without(&|| Refusal::Untried(error.to_string())),
    };
    remove_stale(&root);
    let cgroup = match Cgroup::new(&root) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let remedy = "give this process a writable cgroup2 mount; in a container, mount the host's";
            return without(&|| Refusal::Missing { cause: error.to_string(), remedy: Some(remedy.into()) });
        }
    };
    vec![
        (M::CgroupV2, Ok(Some(format!("at {}", root.display())))),
        (M::CgroupSkb, answer(cgroup.skb())),
        (M::CgroupConnect, answer(cgroup.connect())),
        (M::CgroupSock, answer(cgroup.sock())),
        (M::IoMax, io_max(&cgroup.path)),
    ]
}

fn answer(result: Result<()>) -> Answer {
    result.map(|()| None).map_err(Refusal::from)
}

/// Whether the cgroup has limits, which it has as soon as it is there.
fn io_max(cgroup: &Path) -> Answer {
    match throttle::missing(cgroup)? {
        None => Ok(None),
        Some((cause, remedy)) => Err(Refusal::Missing { cause, remedy: Some(remedy) }),
    }
}

/// Without a cgroup there is nothing to attach to.
fn without(refusal: &dyn Fn() -> Refusal) -> Vec<(M, Answer)> {
    let untried = || Err(Refusal::Untried("not tried: there is no cgroup v2 to try it on".into()));
    let rest =
        [M::CgroupSkb, M::CgroupConnect, M::CgroupSock, M::IoMax].map(|mechanism| (mechanism, untried()));
    [(M::CgroupV2, Err(refusal()))].into_iter().chain(rest).collect()
}

/// An empty cgroup, gone with its value.
struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    fn new(root: &Path) -> Result<Self> {
        let path = root.join(format!("{PREFIX}{}", process::id()));
        let error = |call, source| Error::new(call, path.display().to_string(), source);
        match fs::create_dir(&path) {
            // A killed doctor's, whose PID came round again.
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error("mkdir", source));
            }
            _ => {}
        }
        let directory = File::open(&path).map_err(|source| {
            let _ = fs::remove_dir(&path);
            error("open", source)
        })?;
        Ok(Self { path, directory })
    }

    fn skb(&self) -> Result<()> {
        for hook in [bpf_attach_type::BPF_CGROUP_INET_INGRESS, bpf_attach_type::BPF_CGROUP_INET_EGRESS] {
            self.attach("doctor_skb", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, hook, Code::default())?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        for hook in [bpf_attach_type::BPF_CGROUP_INET4_CONNECT, bpf_attach_type::BPF_CGROUP_INET6_CONNECT] {
            let code = Code::default().set(1, 0).call(bpf_func_id::BPF_FUNC_set_retval);
            self.attach("doctor_connect", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, hook, code)?;
        }
        Ok(())
    }

    fn sock(&self) -> Result<()> {
        let hook = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE;
        self.attach("doctor_sock", bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, hook, Code::default())
    }

    fn attach(&self, name: &str, kind: bpf_prog_type, hook: bpf_attach_type, code: Code) -> Result<()> {
        let code = code.exit(ALLOW);
        let program = sys::load(&Program {
            name,
            kind,
            attach: Some(hook),
            attach_btf_id: 0,
            flags: 0,
            instructions: code.as_slice(),
            functions: None,
        })?;
        sys::link(program.as_fd(), Target::File(self.directory.as_fd()), hook, 0).map(drop)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What cannot be removed now is empty, and the next run tries again.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Removes the empty cgroups of doctors that were killed.
fn remove_stale(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(stale_owner) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The PID in the name of a doctor's cgroup.
fn stale_owner(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX).filter(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::stale_owner;

    #[test]
    fn only_our_own_cgroups_are_removed() {
        assert_eq!(stale_owner("faultline-probe-42"), Some("42"));
        for other in ["faultline-probe-", "faultline-probe-4x", "faultline-probe-../..", "system.slice"] {
            assert_eq!(stale_owner(other), None);
        }
    }
}
