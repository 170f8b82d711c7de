//! What cannot be meant, or cannot be done here: one sentence says which word and what would be right.

use chaos_user::kernel::mechanism::Mechanism as M;

use super::LSM;
use crate::{
    cgroup::Cgroup,
    error::{Context, Result},
    faultline::Faultline,
    harness::{
        Need::{self, Mechanism as Has},
        Test,
    },
    inventory::Inventory,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::input_is_refused_in_one_sentence", refused)
        .needs(&[Need::Root, Need::CgroupV2])
        .timeout(60),
    Test::new("calls::input_that_this_kernel_cannot_do", no_fsync).needs(&[
        Need::Root,
        Need::CgroupV2,
        Has(M::Lsm),
        Need::Without(M::FmodRetSyscall),
    ]),
    Test::new("calls::input_forced_mechanisms", forced).needs(LSM),
];

/// What is typed, the exit code, and what the sentence must say. `@` stands for an aim that is right.
type Row = (&'static str, i32, &'static [&'static str]);

const ROWS: &[Row] = &[
    // Errnos.
    ("io error EIOO @", 2, &["EIOO", "EIO"]),
    ("io error ENOSPACE @", 2, &["ENOSPACE", "ENOSPC"]),
    ("io error eagan @", 2, &["eagan", "EAGAIN"]),
    ("io error @", 2, &["ERRNO"]),
    ("io error 0 @", 2, &["0"]),
    ("io error 5000 @", 2, &["5000"]),
    ("io full EIO @", 2, &["EIO", "ENOSPC", "EDQUOT"]),
    ("mem error EIO @", 2, &["EIO", "ENOMEM"]),
    ("fd error EIO @", 2, &["EIO", "EMFILE", "ENFILE"]),
    ("fork error ENOENT @", 2, &["ENOENT", "EAGAIN"]),
    ("deny EIO --ops open @", 2, &["EIO", "EACCES", "EPERM"]),
    ("sock error EPIPEE --ops connect @", 2, &["EPIPEE", "EPIPE"]),
    // Operations.
    ("io error EIO --ops raed @", 2, &["raed", "read"]),
    ("io error EIO --ops read,wirte @", 2, &["wirte", "write"]),
    ("io error EIO --ops fsycn @", 2, &["fsycn", "fsync"]),
    ("io error EIO --ops connect @", 2, &["connect"]),
    ("io error EIO --ops read,, @", 2, &["--ops"]),
    ("io error EIO --ops", 2, &["--ops"]),
    ("mem error --ops mmpa @", 2, &["mmpa", "mmap"]),
    ("sock error EIO --ops acept @", 2, &["acept", "accept"]),
    ("sock error EIO --ops read @", 2, &["read", "connect"]),
    ("deny --ops opne @", 2, &["opne", "open"]),
    // System calls.
    ("sys error raed EIO @", 2, &["raed", "read"]),
    ("sys error fsync,fdatasnyc EIO @", 2, &["fdatasnyc", "fdatasync"]),
    ("sys error read @", 2, &["ERRNO"]),
    ("sys error @", 2, &["SYSCALL"]),
    ("sys delay opena 1ms @", 2, &["opena", "open"]),
    ("sys error read EIO --arg 6=1 @", 2, &["--arg", "6"]),
    ("sys error read EIO --arg x=1 @", 2, &["--arg", "x=1"]),
    ("sys error read EIO --arg 0 @", 2, &["--arg", "0"]),
    ("sys error read EIO --arg 0=x @", 2, &["--arg", "0=x"]),
    ("sys error read EIO --arg 0~ @", 2, &["--arg", "0~"]),
    ("sys error read EIO --arg 0=0x1ffffffffffffffff @", 2, &["--arg"]),
    ("io error EIO --arg 0=3 @", 2, &["--arg"]),
    // Chances and orders.
    ("io error EIO --percent 0 @", 2, &["--percent", "0"]),
    ("io error EIO --percent 101 @", 2, &["--percent", "101"]),
    ("io error EIO --percent x @", 2, &["--percent", "x"]),
    ("io error EIO --percent -1 @", 2, &["--percent"]),
    ("io error EIO --first 0 @", 2, &["--first"]),
    ("io error EIO --every 0 @", 2, &["--every"]),
    ("io error EIO --skip -1 @", 2, &["--skip"]),
    ("io error EIO --seed x @", 2, &["--seed"]),
    ("io error EIO --for 0s @", 2, &["--for"]),
    // Times.
    ("io delay 5 @", 2, &["5", "ms"]),
    ("io delay @", 2, &["TIME"]),
    ("io delay -1ms @", 2, &["-1"]),
    ("io delay 0ms @", 2, &["TIME", "0"]),
    ("io delay 20ms @", 2, &["--allow-busy-wait", "10ms"]),
    ("io delay 3s --allow-busy-wait @", 2, &["2s"]),
    ("io delay 1ms distribution normal @", 2, &["jitter"]),
    ("io delay 2ms 1ms distribution gauss @", 2, &["gauss"]),
    // Corruption.
    ("io corrupt flop @", 2, &["flop", "flip"]),
    ("io corrupt flip bytes 0 @", 2, &["bytes"]),
    ("io corrupt flip bytes x @", 2, &["bytes", "number"]),
    ("io corrupt zero offset x @", 2, &["offset", "number"]),
    ("io corrupt --ops read @", 2, &["--ops"]),
    ("io full --ops read @", 2, &["--ops"]),
    // What it is aimed at.
    ("io error EIO", 2, &["--path", "--everything"]),
    ("io error EIO --fstype tmpfs", 2, &["--path", "--everything"]),
    ("io error EIO --comm cat", 2, &["--path", "--everything"]),
    ("io error EIO --uid 0", 2, &["--path", "--everything"]),
    ("io error EIO --everything @", 2, &["--everything", "--cgroup"]),
    ("io error EIO --path /no/such/file", 3, &["/no/such/file", "No such file"]),
    ("io error EIO --path /no-such-folder/*.db", 3, &["/no-such-folder", "No such file"]),
    ("io error EIO --path /t*p/file @", 3, &["/t*p/file", "No such file"]),
    ("io error EIO --path /etc/passwd/x", 3, &["/etc/passwd/x"]),
    ("io error EIO --path", 2, &["--path"]),
    ("io error EIO --path /tmp/[a @", 2, &["--path", "]"]),
    ("io error EIO --pid 2147483647", 3, &["--pid 2147483647", "no such process"]),
    ("io error EIO --pid 0", 2, &["--pid"]),
    ("io error EIO --pid init", 2, &["--pid"]),
    ("io error EIO --cgroup /no/such", 3, &["/no/such"]),
    ("io error EIO --container nope", 3, &["nope"]),
    ("io error EIO --uid no-such-user @", 2, &["no-such-user"]),
    ("io error EIO --comm a-name-that-is-too-long @", 2, &["--comm", "15"]),
    ("io error EIO --open-flags O_SNYC @", 2, &["O_SNYC", "O_SYNC"]),
    ("io error EIO --dev-block nope @", 2, &["--dev-block", "nope"]),
    ("io error EIO --dev-block /dev/null @", 3, &["--dev-block", "/dev/null"]),
    ("io error EIO --by magic @", 2, &["magic", "lsm"]),
    // Commands.
    ("io eror EIO @", 2, &["eror", "error"]),
    ("io error EIO --pth /tmp @", 2, &["--pth", "--path"]),
    ("sock error EIO --path /tmp --ops connect", 2, &["--path"]),
];

/// With something for `@`: an aim at somebody who is there.
fn check(rows: &[Row]) -> Result {
    let cgroup = Cgroup::new()?;
    let inhabitant = cgroup.inhabit(|_| {})?;
    let path = cgroup.path().display().to_string();
    let mut wrong = Vec::new();
    for (line, code, says) in rows {
        let line = line.replace('@', &format!("--cgroup {path}"));
        let words: Vec<&str> = line.split(' ').collect();
        if let Err(failure) = Faultline::check_refused(&words, *code, says) {
            wrong.push(failure.to_string());
        }
    }
    drop(inhabitant);
    if wrong.is_empty() { Ok(()) } else { Err(crate::error::Failure::new(wrong.join("\n"))) }
}

fn refused() -> Result {
    let before = Inventory::settled(&[])?;
    check(ROWS)?;
    before
        .wait_until_equal(&[], std::time::Duration::from_secs(5))
        .context("a refused command leaves something")
}

/// What only the results of system calls could do.
fn no_fsync() -> Result {
    check(&[
        ("io error EIO --ops fsync @", 3, &["fsync", "fmod_ret_syscall"]),
        ("io error EIO --ops read,fsync @", 3, &["fsync", "fmod_ret_syscall"]),
        ("sys error getppid EIO @", 3, &["getppid", "fmod_ret_syscall"]),
    ])
}

/// A mechanism that cannot do what is asked.
fn forced() -> Result {
    check(&[
        ("io error EIO --ops fsync --by lsm @", 3, &["fsync", "lsm"]),
        ("io error EIO --ops read --by raw_tracepoint @", 3, &["raw_tracepoint"]),
        ("sys error read EIO --by fentry @", 3, &["fentry"]),
    ])
}
