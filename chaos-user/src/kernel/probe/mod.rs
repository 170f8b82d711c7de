//! What this kernel can do, found by really doing it: each probe loads and attaches a program of a few
//! instructions to something that is thrown away afterwards, and where a kernel may accept a program and never
//! run it, looks whether it ran.
//!
//! No probe changes what anybody else sees. Network probes have a network namespace of their own; cgroup
//! probes an empty cgroup; all others act for the probe's own thread only. Everything is held by fds, so that a
//! probe killed in the middle leaves nothing but, maybe, that empty cgroup, which the next run removes.
//!
//! An [`Outlook`] makes and attaches nothing, and knows less.

mod cgroup;
pub mod flag;
mod helper;
mod host;
pub mod insn;
mod mounts;
mod net;
mod outlook;
pub mod perf;
mod probes;
mod report;
mod tracing;
mod vdso;

use std::{
    io,
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
};

use aya_obj::generated::bpf_func_id;
use nix::errno::Errno;

pub use self::{
    cgroup::remove_stale,
    helper::load_loop,
    host::security_modules,
    outlook::Outlook,
    report::{FaultSupport, Finding, MissingRight, Report, State},
};
use self::{flag::Thread, host::Host};
use super::{
    Error,
    btf::{KernelTypes, VMLINUX},
    fields,
    mechanism::Mechanism as M,
    own_thread,
};

/// What a probe found: a mechanism that works, maybe with a remark, or why not.
type Answer = Result<Option<String>, Refusal>;

/// Why a mechanism is not there.
#[derive(Debug)]
enum Refusal {
    /// The kernel said no.
    Kernel(Error),
    /// It is not there, or does not work.
    Missing {
        /// What was seen.
        cause: String,
        /// What to change, if not what [`M::remedy`] says.
        remedy: Option<String>,
    },
    /// It could not be tried.
    Untried(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Kernel(error)
    }
}

impl Refusal {
    fn missing(cause: impl Into<String>) -> Self {
        Self::Missing { cause: cause.into(), remedy: None }
    }
}

/// A program that loads and attaches and that the kernel then does not run.
const SILENT: &str = "the program loads and attaches, and the kernel does not run it";

/// Tries everything.
#[must_use]
pub fn run() -> Report {
    let host = Host::look();
    if let Some(reason) = &host.unprivileged {
        let untried = || Err(Refusal::Untried(format!("not tried: {reason}")));
        let mut answers = vec![(M::Btf, btf(&KernelTypes::read()))];
        answers.extend(M::ALL.into_iter().filter(|other| *other != M::Btf).map(|other| (other, untried())));
        return Report::new(&host, answers);
    }
    // Side by side, because most of the time is spent waiting for the kernel to detach.
    let answers = thread::scope(|scope| {
        let types = own_thread::begin(scope, KernelTypes::read);
        // This thread enters a network namespace of its own; the namespace goes with it.
        let net = own_thread::begin(scope, net::probe);
        let own = own_thread::begin(scope, || in_own_thread(&host, types));
        let cgroup = cgroup::probe();
        // What there is no room for a thread for is said not to have been tried.
        let answers = |thread: io::Result<ScopedJoinHandle<'_, Vec<(M, Answer)>>>| {
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        [answers(net), answers(own), cgroup].into_iter().flatten().collect()
    });
    Report::new(&host, answers)
}

/// The calling process as the kernel's programs see it, whatever PID namespace it is in.
///
/// # Errors
///
/// The kernel's.
pub fn own_tgid() -> Result<u32, Error> {
    Ok(Thread::current()?.tgid())
}

/// A program that says the kernel's `jiffies_64` as programs see it.
///
/// # Errors
///
/// The kernel's.
pub fn jiffies() -> Result<flag::Question, Error> {
    flag::Question::new(bpf_func_id::BPF_FUNC_jiffies64, 0)
}

/// Where the v2 hierarchy of cgroups is mounted, if it is.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn cgroup_root() -> Result<Option<PathBuf>, Error> {
    mounts::find("cgroup2")
}

/// How deep the cgroup of this number lies, the root being 0, if it is the caller's or one around that. In a cgroup
/// namespace the topmost folder need not be the root.
///
/// # Errors
///
/// The kernel's.
pub fn cgroup_level(number: u64) -> Result<Option<u8>, Error> {
    for level in 0..DEEPEST {
        match flag::ask_about(bpf_func_id::BPF_FUNC_get_current_ancestor_cgroup_id, level.into())? {
            0 => break,
            found if found == number => return Ok(Some(level)),
            _ => {}
        }
    }
    Ok(None)
}

/// Deeper than cgroups are nested.
const DEEPEST: u8 = 64;

/// The probes that act for the thread they run in. One after the other: some share a function.
fn in_own_thread(
    host: &Host,
    types: io::Result<ScopedJoinHandle<'_, Result<&'static KernelTypes, Error>>>,
) -> Vec<(M, Answer)> {
    let thread = Thread::current().unwrap_or_else(|_| Thread::here());
    let mut answers = helper::probe(host);
    answers.extend(probes::probe(thread));
    answers.extend(vdso::probe());
    let unread = |_| Err(Error::new("parse", VMLINUX, io::ErrorKind::InvalidData.into()));
    let types = types
        .map_err(|source| Error::new("clone", "a thread", source))
        .and_then(|thread| thread.join().unwrap_or_else(unread));
    answers.push((M::Btf, btf(&types)));
    answers.extend(FIELDS.map(|mechanism| (mechanism, fields(mechanism, types.as_ref().ok().copied()))));
    answers.extend(tracing::probe(thread, host, types.as_ref().ok().copied()));
    answers
}

/// Whether the kernel has types, and these can be read.
fn btf(types: &Result<&'static KernelTypes, Error>) -> Answer {
    types.as_ref().map(|_| None).map_err(|error| Refusal::missing(sentence(error)))
}

/// What is said of fields.
const FIELDS: [M; 6] =
    [M::CallFields, M::FileFields, M::ClockFields, M::RawClockFields, M::ProcessFields, M::CgroupFields];

/// Whether the kernel has all the fields of one kind.
fn fields(of: M, types: Option<&KernelTypes>) -> Answer {
    let Some(types) = types else { return Err(Refusal::missing("there is no btf")) };
    let missing = match of {
        M::CallFields => fields::missing(fields::OF_CALLS, types),
        M::FileFields => fields::missing(fields::OF_FILES, types),
        M::ClockFields => fields::missing(fields::OF_CLOCKS, types),
        M::RawClockFields => fields::missing(fields::OF_RAW_CLOCKS, types),
        M::ProcessFields => fields::missing(fields::OF_PROCESSES, types),
        _ => fields::missing(fields::OF_CGROUPS, types),
    }?;
    match missing.is_empty() {
        true => Ok(None),
        false => Err(Refusal::missing(format!("there is no {} in {VMLINUX}", missing.join(", ")))),
    }
}

/// One sentence: the call, its object, the errno by its name, and what else the kernel said.
fn sentence(error: &Error) -> String {
    let Error { call, object, source } = error;
    let Some(number) = source.raw_os_error() else {
        return format!("{call} on {object} fails: {source}");
    };
    let errno = Errno::from_raw(number);
    let gives = format!("gives {errno:?} ({})", errno.desc());
    // The verifier's last line, or netlink's explanation.
    match object.split_once(": ") {
        Some((object, said)) => format!("{call} on {object} {gives}: {said}"),
        None => format!("{call} on {object} {gives}"),
    }
}

#[cfg(test)]
mod tests;
