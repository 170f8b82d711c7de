//! `--plan` looks and touches nothing, whatever the fault: by what it asks of the kernel, call by call.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process};

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    faultline::{Faultline, binary},
    harness::{Need, Test, program},
    lab::{Lab, NEAR_DEVICE},
};

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("plan::touches_nothing", touches_nothing)
        .needs(&[Need::Root, Need::Btf, Need::CgroupV2, Need::Program("strace")])
        .timeout(120)
        .waits(),
    Test::new("plan::is_what_is_done", is_what_is_done)
        .needs(&[Need::Root, Need::Btf, Need::CgroupV2])
        .timeout(90)
        .waits(),
];

/// Whatever makes, moves, changes or removes something, for whom else it may be.
const CHANGING: &[&str] = &[
    "perf_event_open",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "truncate",
    "ftruncate",
    "fallocate",
    "setxattr",
    "fsetxattr",
    "mount",
    "umount2",
    "move_mount",
    "pivot_root",
    "unshare",
    "ptrace",
    "kill",
    "tkill",
    "tgkill",
    "pidfd_send_signal",
    "process_vm_writev",
    "pwrite64",
    "pwritev",
    "creat",
    "init_module",
    "finit_module",
    "delete_module",
    "sethostname",
    "setpriority",
    "sched_setaffinity",
    "fork",
    "vfork",
    "execveat",
];
/// What does by some of its arguments.
const SOMETIMES: &[&str] =
    &["bpf", "open", "openat", "openat2", "write", "writev", "sendto", "sendmsg", "sendmmsg"];

/// What may be asked of BPF: nothing of it outlives its file descriptor, and nothing is attached.
const ASKING: &[&str] = &[
    "BPF_MAP_CREATE",
    "BPF_MAP_LOOKUP_ELEM",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_FREEZE",
    "BPF_PROG_LOAD",
    "BPF_PROG_QUERY",
    "BPF_PROG_TEST_RUN",
    "BPF_BTF_LOAD",
    "BPF_OBJ_GET_INFO_BY_FD",
];

/// Why a call, as strace has it, changes something; nothing if it does not.
fn changes(call: &str) -> Option<&'static str> {
    let name = call.split('(').next().unwrap_or_default();
    match name {
        // Ends, signals: not calls.
        _ if call.starts_with(['+', '-']) => None,
        "bpf" => {
            let asks = ASKING.iter().any(|command| call.starts_with(&format!("bpf({command},")));
            // Whether there are such links, asked with nothing to attach to.
            let nowhere = call.contains("BPF_LINK_CREATE")
                && call.contains("target_fd=-1,")
                && call.contains(") = -1 E");
            (!asks && !nowhere).then_some("BPF")
        }
        "open" | "openat" | "openat2" => {
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"];
            writes.iter().any(|flag| call.contains(flag)).then_some("opened to be written")
        }
        "write" | "writev" => {
            let (file, _) = call.split_once(',').unwrap_or_default();
            // Its own output, and a copy of the kernel's types in its own memory.
            let own = ["(1<", "(2<", "</memfd:btf"].iter().any(|it| file.contains(it));
            (!own).then_some("written to")
        }
        "sendto" | "sendmsg" | "sendmmsg" => (!asks(call)).then_some("sent"),
        _ => Some("it changes something"),
    }
}

/// Whether a message to rtnetlink asks: of its types each fourth, from 18 on, does. Or one to generic netlink: which number a family has,
/// and which features an interface; strace shows of them the number of the command first.
fn asks(call: &str) -> bool {
    const ASKING: [&str; 2] = [
        // To `nlctrl`, 16: `CTRL_CMD_GETFAMILY`.
        r#"nlmsg_type=0x10 /* NLMSG_??? */, nlmsg_flags=NLM_F_REQUEST|NLM_F_ACK, nlmsg_seq=1, nlmsg_pid=0}, "\x03\x01"#,
        // `ETHTOOL_MSG_FEATURES_GET`.
        r#", nlmsg_pid=0}, "\x0b\x01"#,
    ];
    if ASKING.iter().any(|asking| call.contains(asking)) {
        return true;
    }
    let Some((_, kind)) = call.split_once("nlmsg_type=") else { return false };
    let kind = kind.split([',', ' ', '}']).next().unwrap_or_default();
    let number = kind.strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
    kind.starts_with("RTM_GET") || number.is_some_and(|number| number % 4 == 2)
}

/// Runs a command under strace, and says which of its calls change something.
fn trace(words: &[&str]) -> Result<(crate::faultline::Exit, Vec<String>)> {
    let folder = Folder::new()?;
    let prefix = folder.0.join("calls").display().to_string();
    let calls: Vec<String> = CHANGING.iter().chain(SOMETIMES).map(|call| format!("?{call}")).collect();
    let (only, binary) = (format!("trace={}", calls.join(",")), binary()?.display().to_string());
    // A file for each thread, so that no call is cut in two by another's.
    let options =
        ["-ff", "-qq", "-y", "-s", "64", "-e", &only, "-e", "signal=none", "-o", &prefix, "--", &binary];
    let strace = program("strace").context("no program strace")?;
    let exit = Faultline::run_binary(&strace, &[&options[..], words, &["--plan"]].concat(), |_| {})?;
    let mut found = Vec::new();
    let mut seen = 0;
    for file in fs::read_dir(&folder.0).context("readdir")? {
        let text = fs::read_to_string(file.context("readdir")?.path()).context("read")?;
        seen += text.lines().count();
        found.extend(text.lines().filter_map(|call| Some(format!("{}: {call}", changes(call)?))));
    }
    ensure!(seen > 3, "{words:?}: strace saw {seen} calls; {exit:?}");
    Ok((exit, found))
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("fl-plan-{}", process::id()));
        fs::create_dir(&path).context(path.display())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn touches_nothing() -> Result {
    let (lab, cgroup) = (Lab::new()?, Cgroup::new()?);
    let inhabitant = cgroup.inhabit_in(&lab.near, |_| {})?;
    let (path, pid) = (cgroup.path().display().to_string(), inhabitant.pid().to_string());
    let netns = lab.near.path().display().to_string();
    let everything = "--everything";
    let rows: &[(&str, &[&str])] = &[
        ("net loss 1% duplicate 1% corrupt 1% --exact", &["--dev", NEAR_DEVICE, "--netns", &netns]),
        ("net delay 10ms rate 1mbit --direction both", &["--dev", NEAR_DEVICE, "--netns", &netns]),
        ("net reset", &["--dev", NEAR_DEVICE, "--pid", &pid]),
        ("net timeout", &["--dev", NEAR_DEVICE, "--cgroup", &path]),
        ("net refuse", &["--cgroup", &path]),
        ("net dns nxdomain --name a.example", &["--dev", "lo"]),
        ("io error EIO --ops read,fsync --path /", &["--cgroup", &path]),
        ("io delay 1ms --ops read --path /", &["--pid", &pid]),
        ("io corrupt flip --path /", &["--pid", &pid]),
        ("io slow 1mb/s --path /", &["--cgroup", &path]),
        ("sys error fsync EIO", &[everything]),
        ("sys delay fsync 1ms", &[everything]),
        ("mem error", &[everything]),
        ("fd error", &[everything]),
        ("fork error", &[everything]),
        ("sock error ECONNREFUSED --ops connect", &[everything]),
        ("deny --ops open --path /", &["--cgroup", &path]),
        ("time skew --offset 2d", &["--cgroup", &path]),
        ("time skew --offset 2d --by fexit", &["--pid", &pid]),
    ];
    let mut planned = 0;
    for (fault, whom) in rows {
        let words: Vec<&str> = fault.split(' ').chain(whom.iter().copied()).collect();
        let (exit, found) = trace(&words)?;
        ensure!(found.is_empty(), "{fault}:\n{}", found.join("\n"));
        // What this kernel cannot do is said as well, and takes no more.
        ensure!(matches!(exit.code, Some(0 | 3)), "{fault}: {exit:?}");
        let is_plan = exit.stdout.starts_with("plan, nothing is touched: ");
        let is_refused = exit.code == Some(3) && exit.stdout.is_empty() && !exit.stderr.is_empty();
        ensure!(is_plan || is_refused, "{fault}: {exit:?}");
        planned += usize::from(is_plan);
    }
    // A limit where cgroup v1 has the disks, and results rewritten under lockdown.
    ensure!(planned + 2 >= rows.len(), "only {planned} of {} were planned", rows.len());
    Ok(())
}

/// What of calls would be hit by what is what is hit by what.
fn is_what_is_done() -> Result {
    let cgroup = Cgroup::new()?;
    let _inhabitant = cgroup.inhabit(|_| {})?;
    let path = cgroup.path().display().to_string();
    let mut same = 0;
    for fault in [
        "io error EIO --ops open,read,write,create,unlink,truncate,stat",
        "io delay 1us --ops read,open,fsync",
        "io corrupt flip",
        "io full",
        "sys error getpid EIO",
        "sys delay getpid 1us",
        "mem error --ops mmap,brk",
        "fd error",
        "fork error",
        "sock error EIO --ops create,connect,sendmsg",
        "deny --ops open,exec",
    ] {
        let words: Vec<&str> = fault.split(' ').chain(["--cgroup", &path]).collect();
        let plan = Faultline::run(&[&words[..], &["--plan", "--json"]].concat())?;
        let run = Faultline::run(&[&words[..], &["--for", "1ms", "--json"]].concat())?;
        if run.code == Some(3) {
            ensure!(plan.code == Some(3), "{fault}: {plan:?}, but {run:?}");
            continue;
        }
        ensure!(plan.code == Some(0) && matches!(run.code, Some(0 | 5)), "{fault}: {plan:?}, but {run:?}");
        let plan = plan.events.first().context("a plan")?;
        let mut planned = BTreeSet::new();
        for hook in plan.get("/hooks")?.as_array().context("hooks")? {
            for function in hook["functions"].as_array().context("functions")? {
                planned.insert((hook["mechanism"].to_string(), function.to_string()));
            }
        }
        let armed = run.event("prepared")?;
        let hooks = armed.get("/hooks")?.as_array().context("hooks")?;
        let done: BTreeSet<_> =
            hooks.iter().map(|hook| (hook["hook"].to_string(), hook["function"].to_string())).collect();
        ensure!(planned == done, "{fault}: planned {planned:?}, done {done:?}");
        same += 1;
    }
    ensure!(same > 0, "nothing can be hit here");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn what_changes_something_is_told_from_what_does_not() {
        for call in [
            "bpf(BPF_LINK_CREATE, {link_create={prog_fd=4, target_fd=3, attach_type=BPF_XDP}}, 152) = 4",
            "mkdir(\"/sys/fs/cgroup/x\", 0777) = 0",
            "write(7</run/x>, \"\", 1) = 1",
            "openat(AT_FDCWD</>, \"/proc/self/mem\", O_RDWR|O_CLOEXEC) = 4",
            "sendto(4<NETLINK:[1]>, [{nlmsg_len=44, nlmsg_type=0x10 /* NLMSG_??? */, nlmsg_flags=0}, \"\"], 44) = 44",
            "sendto(4<UDP:[1]>, \"x\", 1) = 1",
            "sendto(4<NETLINK:[1]>, [{nlmsg_type=0x15 /* NLMSG_??? */, nlmsg_pid=0}, \"\\x0c\\x01\\x00\"], 32) = 32",
        ] {
            assert!(changes(call).is_some(), "{call}");
        }
        for call in [
            "bpf(BPF_PROG_LOAD, {prog_type=BPF_PROG_TYPE_XDP}, 152) = 4",
            "bpf(BPF_LINK_CREATE, {link_create={prog_fd=4, target_fd=-1, flags=0}}, 152) = -1 EBADF (Bad file descriptor)",
            "write(1</dev/pts/0>, \"plan\", 4) = 4",
            "write(5</memfd:btf (deleted)>, \"\", 9) = 9",
            "openat(AT_FDCWD</>, \"/proc/self/maps\", O_RDONLY|O_CLOEXEC) = 4",
            "sendto(4<NETLINK:[1]>, [{nlmsg_len=44, nlmsg_type=0x12 /* NLMSG_??? */, nlmsg_flags=0}, \"\"], 44) = 44",
            "sendto(4<NETLINK:[1]>, [{nlmsg_len=44, nlmsg_type=RTM_GETLINK, nlmsg_flags=0}, \"\"], 44) = 44",
            "sendto(4<NETLINK:[1]>, [{nlmsg_type=0x15 /* NLMSG_??? */, nlmsg_pid=0}, \"\\x0b\\x01\\x00\"], 32) = 32",
            "+++ exited with 0 +++",
        ] {
            assert_eq!(changes(call), None, "{call}");
        }
    }
}
