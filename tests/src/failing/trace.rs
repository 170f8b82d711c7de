//! What strace lists of a run: its system calls in order, each by its name, its number among those of that name, and the
//! object that it is about.

use std::collections::{BTreeMap, HashMap, HashSet};

/// One system call that a run can make fail: the `nth` of its name, in whichever tasks come so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) nth: u32,
    /// Its object: a command of `bpf`, a message of netlink, a path; numbers are written `N`.
    pub(super) what: String,
}

impl Call {
    /// Whether it prints.
    pub(super) fn is_of_output(&self) -> bool {
        self.name == "write" && self.what.starts_with("pipe:")
    }

    /// Whether it is one of those by which programs and limits come to be where they act, or are loaded for that.
    pub(super) fn attaches(&self) -> bool {
        const PARTS: [&str; 6] = [
            "BPF_LINK_CREATE",
            "BPF_PROG_LOAD",
            "BPF_RAW_TRACEPOINT_OPEN",
            "RTM_NEW",
            "RTM_SET",
            "SIOCETHTOOL",
        ];
        let is_part = PARTS.iter().any(|part| self.what.starts_with(part));
        is_part && self.name != "recvfrom" && !self.is_question()
            || matches!(&*self.name, "process_vm_writev" | "setns" | "unshare")
    }

    /// Whether aya asks by it what the kernel can do, and takes any refusal for a no: nothing of ours is made.
    pub(super) fn is_question(&self) -> bool {
        let made =
            ["BPF_MAP_CREATE ", "BPF_PROG_LOAD "].iter().find_map(|command| self.what.strip_prefix(command));
        made.map_or(self.what == "BPF_BTF_LOAD", |name| !is_ours(name))
    }

    /// Whether it is about this process's memory.
    pub(super) fn is_of_memory(&self) -> bool {
        MEMORY.contains(&&*self.name)
    }
}

/// What is left out, and why: they cannot fail with right arguments, or end the task; `futex` fails with nothing but
/// what a caller that is right never gives it, and `getrandom` only while a machine boots; `brk` returns no errno, but the
/// old end of the heap, and strace cannot have it do so. `close` of what lies on no disk does not fail either, and one that
/// strace has fail is not carried out: what hangs on it stays. `fcntl` says the flags of a descriptor at any time, and
/// `clock_gettime`, a system call where the vDSO does not trust the machine's clock, the time of a clock that there is.
const CANNOT_FAIL: &[&str] = &[
    "arch_prctl",
    "brk",
    "clock_gettime",
    "close",
    "exit",
    "exit_group",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "getuid",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "uname",
];

/// What maps and programs of Faultline's are called.
fn is_ours(name: &str) -> bool {
    ["fl_", "FL_", "doctor_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Memory of the process: Rust's allocator aborts where there is none. Judged otherwise than the others.
const MEMORY: &[&str] = &["madvise", "mmap", "mprotect", "mremap", "munmap"];

/// What one run makes.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// What is to fail, in the order of their first appearance.
    pub(super) calls: Vec<Call>,
    /// How many there were in all.
    pub(super) total: usize,
    /// Those before `main` and after it, which are the C library's and Rust's runtime's.
    pub(super) runtime: usize,
    /// Those that cannot fail.
    pub(super) infallible: usize,
    /// Those left out for others of their kind: see [`thin`].
    pub(super) alike: usize,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Before `main`.
    Starting,
    #[default]
    Running,
    /// Rust's runtime has begun to clear away.
    Ending,
}

/// Reads what `strace -f -y -o FILE` has written.
pub(super) fn parse(text: &str) -> Listing {
    let mut listing = Listing::default();
    let mut phases: HashMap<&str, Phase> = HashMap::new();
    // strace counts by task and name, through `execve`.
    let mut counts: HashMap<(&str, &str), u32> = HashMap::new();
    let mut seen = HashSet::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((task, rest)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        let arguments = arguments.trim_end_matches(" <unfinished ...>");
        // `<... read resumed>`, `+++ exited`, `--- SIGCHLD`.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        listing.total += 1;
        let nth = counts.entry((task, name)).or_default();
        *nth += 1;
        let phase = phases.entry(task).or_default();
        match (*phase, name) {
            // What it fails with is seen by whoever starts it.
            (Phase::Running, "execve") if *nth == 1 && listing.total == 1 => *phase = Phase::Starting,
            (Phase::Running, "sigaltstack") if arguments.contains("SS_DISABLE, ss_size=8192}") => {
                *phase = Phase::Ending;
            }
            _ => {}
        }
        let is_runtime = *phase != Phase::Running;
        match (*phase, name) {
            // The runtime's last step before `main`.
            (Phase::Starting, "rt_sigaction") if arguments.starts_with("SIGBUS, {") => {
                *phase = Phase::Running;
            }
            (Phase::Running, "execve") if line.ends_with("= 0") || line.ends_with("<unfinished ...>") => {
                *phase = Phase::Starting;
            }
            _ => {}
        }
        if is_runtime {
            listing.runtime += 1;
        } else if CANNOT_FAIL.contains(&name) || name == "fcntl" && arguments.contains(", F_GETF") {
            listing.infallible += 1;
        } else if seen.insert((name, *nth)) {
            calls.push(Call { name: name.into(), nth: *nth, what: object(name, arguments) });
        }
    }
    let before = calls.len();
    listing.calls = thin(calls);
    listing.alike = before - listing.calls.len();
    listing
}

/// How many calls of a name the task has made that has made most of them.
pub(super) fn most(text: &str, name: &str) -> u32 {
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for line in text.lines() {
        if let Some((task, rest)) = line.split_once(' ')
            && rest.trim_start().split_once('(').is_some_and(|(called, _)| called == name)
        {
            *counts.entry(task).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}

/// What a call is about, numbers left out.
fn object(name: &str, arguments: &str) -> String {
    let after = |mark: &str| {
        let rest = &arguments[arguments.find(mark)? + mark.len()..];
        Some(rest.split([',', '}', ')', ' ']).next().unwrap_or(rest))
    };
    let between = |from: char, to: char| {
        let rest = &arguments[arguments.find(from)? + 1..];
        Some(&rest[..rest.find(to)?])
    };
    let first = || arguments.split([',', ')']).next();
    let found = match name {
        // With the name of what is made.
        "bpf" if arguments.contains("_name=\"") => {
            let name = arguments.split("_name=\"").nth(1).and_then(|rest| rest.split('"').next());
            return format!("{} {}", first().unwrap_or_default(), name.unwrap_or_default());
        }
        "bpf" => first(),
        "sendto" | "recvfrom" | "sendmsg" | "recvmsg" => after("nlmsg_type=").or_else(|| between('<', '>')),
        "ioctl" | "setsockopt" | "getsockopt" => {
            arguments.split(", ").nth(if name == "ioctl" { 1 } else { 2 })
        }
        "fcntl" => arguments.split(", ").nth(1).and_then(|command| command.split(')').next()),
        "ptrace" | "prctl" => first(),
        // What is read may look like a path.
        "read" | "write" | "pread64" | "pwrite64" => between('<', '>'),
        _ => between('"', '"').filter(|path| path.starts_with('/')).or_else(|| between('<', '>')),
    };
    let mut shown = String::new();
    for letter in found.unwrap_or_default().chars() {
        match letter {
            '0'..='9' if shown.ends_with('N') => {}
            '0'..='9' => shown.push('N'),
            letter => shown.push(letter),
        }
    }
    // A record's name is drawn.
    match shown.split_once("/run/faultline/") {
        Some((before, _)) => format!("{before}/run/faultline/ID"),
        None => shown,
    }
}

/// Of a file that is read in pieces, and of what is done for each process there is, the first two, the one in the middle and the
/// last: they are one line of code. All others stay.
fn thin(calls: Vec<Call>) -> Vec<Call> {
    const MANY: usize = 4;
    let is_one_of_many = |call: &Call| {
        matches!(&*call.name, "read" | "pread64" | "getdents64" | "process_vm_readv")
            || call.what.starts_with("/proc/N/")
    };
    let mut alike: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (place, call) in calls.iter().enumerate().filter(|(_, call)| is_one_of_many(call)) {
        alike.entry((&call.name, &call.what)).or_default().push(place);
    }
    let dropped: HashSet<usize> = alike
        .into_values()
        .filter(|places| places.len() > MANY)
        .flat_map(|places| {
            let kept = [0, 1, places.len() / 2, places.len() - 1];
            places.into_iter().enumerate().filter(move |(at, _)| !kept.contains(at)).map(|(_, place)| place)
        })
        .collect();
    calls
        .into_iter()
        .enumerate()
        .filter(|(place, _)| !dropped.contains(place))
        .map(|(_, call)| call)
        .collect()
}

/// The lines of what strace has made fail.
pub(super) fn injected(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("(INJECTED)")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"7 execve("/x/faultline", ["faultline"], 0x7ffd /* 9 vars */) = 0
7 brk(NULL) = 0x555571e74000
7 openat(AT_FDCWD</>, "/proc/self/maps", O_RDONLY|O_CLOEXEC) = 3</proc/7/maps>
7 rt_sigaction(SIGBUS, NULL, {sa_handler=SIG_DFL, sa_mask=[], sa_flags=0}, 8) = 0
7 rt_sigaction(SIGBUS, {sa_handler=0x7f, sa_mask=[], sa_flags=SA_ONSTACK}, NULL, 8) = 0
7 geteuid() = 0
7 read(3</proc/7/maps>, "/5\r<>"..., 1024) = 1024
7 openat(AT_FDCWD</>, "/run/faultline/abcd2.json", O_WRONLY, 0666) = 4</run/faultline/abcd2.json>
7 bpf(BPF_MAP_CREATE, {map_type=BPF_MAP_TYPE_ARRAY, map_name="FL_RULES", map_ifindex=0}, 152) = 5<anon_inode:bpf-map>
7 clone3({flags=CLONE_VM}, 88 <unfinished ...>
8 bpf(BPF_PROG_LOAD, {prog_type=1}, 152) = 6<anon_inode:bpf-prog>
7 <... clone3 resumed> => {parent_tid=[8]}, 88) = 8
7 sendto(4<NETLINK:[7]>, [{nlmsg_len=40, nlmsg_type=RTM_GETLINK, nlmsg_flags=1}], 40, 0, NULL, 0) = 40
7 sigaltstack({ss_sp=NULL, ss_flags=SS_DISABLE, ss_size=8192}, NULL) = 0
7 munmap(0x7efce540e000, 12288) = 0
7 +++ exited with 0 +++
"#;

    #[test]
    fn calls_of_main_are_listed() {
        let listing = parse(TEXT);
        let calls: Vec<_> = listing.calls.iter().map(|call| (&*call.name, call.nth, &*call.what)).collect();
        let expected = [
            ("read", 1, "/proc/N/maps"),
            ("openat", 2, "/run/faultline/ID"),
            ("bpf", 1, "BPF_MAP_CREATE FL_RULES"),
            ("clone3", 1, ""),
            // The other task's first is made to fail with the first.
            ("sendto", 1, "RTM_GETLINK"),
        ];
        assert_eq!(calls, expected);
        assert_eq!((listing.total, listing.runtime, listing.infallible), (14, 7, 1));
    }

    #[test]
    fn calls_are_counted_by_task() {
        assert_eq!((most(TEXT, "bpf"), most(TEXT, "rt_sigaction"), most(TEXT, "none")), (1, 2, 0));
    }

    #[test]
    fn questions_of_ayas_are_told_from_what_is_made() {
        let call = |what: &str| Call { name: "bpf".into(), nth: 1, what: what.into() };
        assert!(call("BPF_PROG_LOAD ").is_question() && call("BPF_MAP_CREATE aya_name_check").is_question());
        assert!(call("BPF_BTF_LOAD").is_question());
        for what in ["BPF_PROG_LOAD fl_tc_out", "BPF_MAP_CREATE FL_RULES", "BPF_LINK_CREATE"] {
            assert!(!call(what).is_question(), "{what}");
        }
        assert!(call("BPF_PROG_LOAD fl_tc_out").attaches() && !call("BPF_PROG_LOAD ").attaches());
    }

    #[test]
    fn pieces_of_a_file_are_thinned() {
        let call = |nth| Call { name: "read".into(), nth, what: "/sys/kernel/btf/vmlinux".into() };
        let kept: Vec<_> = thin((1..=100).map(call).collect()).iter().map(|call| call.nth).collect();
        assert_eq!(kept, [1, 2, 51, 100]);
        assert_eq!(thin((1..=4).map(call).collect()).len(), 4);
    }

    #[test]
    fn what_failed_is_told() {
        let text = "7 close(4</x>) = 0\n7 close(5</y>) = -1 EIO (Input/output error) (INJECTED)\n";
        assert_eq!(injected(text), ["7 close(5</y>) = -1 EIO (Input/output error) (INJECTED)"]);
    }
}
