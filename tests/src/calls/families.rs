//! Faults with a name of their own: memory, file descriptors, processes, sockets, permissions, full disks, and system
//! calls by their names.

use std::time::Duration;

use chaos_user::kernel::mechanism::Mechanism as M;
use nix::errno::Errno;

use super::{
    LSM,
    fault::Fault,
    folder::Folder,
    operator::{HERE, Operator, Pair, errno},
    servant::Who,
    sockets,
};
use crate::{
    ensure,
    error::Result,
    harness::{
        Need::{self, Mechanism as Has},
        Test,
    },
    inventory::Inventory,
};

const BY_NAME: &[Need] = &[Need::Root, Need::CgroupV2, Has(M::FmodRetSyscall), Has(M::KprobeOverride)];

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::memory_is_refused", memory).needs(LSM).timeout(90),
    Test::new("calls::descriptors_are_refused", descriptors).needs(LSM).timeout(60),
    Test::new("calls::forks_are_refused", forks).needs(LSM).timeout(60),
    Test::new("calls::sockets_fail", sockets::every_operation).needs(LSM).timeout(180),
    Test::new("calls::permissions_are_denied", denied).needs(LSM).timeout(90),
    Test::new("calls::system_calls_fail_by_name", by_name).needs(BY_NAME).timeout(120),
    Test::new("calls::system_calls_without_arguments_fail", without_arguments).needs(BY_NAME).timeout(60),
];

/// What somebody's calls give, by what they are called.
pub(super) type Said = Vec<(&'static str, i32)>;

/// Runs a fault between two looks at a target and a bystander, and checks what the target's calls give while it runs,
/// and that nothing else changes.
pub(super) fn check(
    pair: &Pair,
    words: &str,
    look: &dyn Fn(&Operator) -> Result<Said>,
    hit: &[(&str, Errno)],
) -> Result {
    let peace = |when: &str| {
        for operator in [&pair.target, &pair.bystander] {
            let said = look(operator)?;
            ensure!(said.iter().all(|(_, errno)| *errno == 0), "{when} {words}: {said:?}");
        }
        Ok(())
    };
    peace("before")?;
    let fault = Fault::arm(words)?;
    let (said, beside) = (look(&pair.target)?, look(&pair.bystander)?);
    let counts = fault.end()?;
    println!("{words}: {said:?} {counts:?}");
    for (call, errno) in &said {
        let expected = hit.iter().find(|(hit, _)| hit == call).map_or(0, |(_, errno)| *errno as i32);
        ensure!(*errno == expected, "{words}: {call} gives {errno}, not {expected}; {said:?}");
    }
    ensure!(beside.iter().all(|(_, errno)| *errno == 0), "{words}: the bystander's {beside:?}");
    ensure!(counts.fired >= hit.len() as u64, "{words}: {counts:?}");
    peace("after")
}

/// Does something with a target and a bystander that leaves nothing behind.
pub(super) fn settled(action: impl FnOnce(&Pair) -> Result) -> Result {
    let before = Inventory::settled(&[])?;
    let pair = Pair::new()?;
    action(&pair)?;
    drop(pair);
    before.wait_until_equal(&[], Duration::from_secs(5))
}

const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const SOME: u64 = 1 << 20;

fn allocates(operator: &Operator) -> Result<Said> {
    let at = operator.call(libc::SYS_mmap, &[0, SOME, READ_WRITE, ANONYMOUS, u64::MAX, 0])?;
    if errno(at) == 0 {
        operator.must("munmap", libc::SYS_munmap, &[at as u64, SOME])?;
    }
    // It says nothing when it fails, but stays where it was.
    let end = operator.must("brk", libc::SYS_brk, &[0])?;
    let moved = operator.must("brk", libc::SYS_brk, &[end + SOME])?;
    operator.must("brk", libc::SYS_brk, &[end])?;
    let brk = if moved == end { Errno::ENOMEM as i32 } else { 0 };
    Ok(vec![("mmap", errno(at)), ("brk", brk), ("getpid", errno(operator.call(libc::SYS_getpid, &[])?))])
}

fn memory() -> Result {
    settled(|pair| {
        let target = pair.option();
        let (mmap, brk) = (("mmap", Errno::ENOMEM), ("brk", Errno::ENOMEM));
        check(pair, &format!("mem error {target}"), &allocates, &[mmap, brk])?;
        check(pair, &format!("mem error ENOMEM --ops mmap {target}"), &allocates, &[mmap])?;
        check(pair, &format!("mem error ENOMEM --ops brk {target}"), &allocates, &[brk])
    })
}

/// New descriptors, and one that is there.
fn descriptors() -> Result {
    let place = Folder::new()?;
    let path = place.file("file")?;
    settled(|pair| {
        let open = [pair.target.open(&path, libc::O_RDONLY)?, pair.bystander.open(&path, libc::O_RDONLY)?];
        ensure!(open[0] == open[1], "descriptors {open:?}");
        let look = |operator: &Operator| {
            let mut said = Vec::new();
            for (call, number, arguments) in [
                ("openat", libc::SYS_openat, [HERE, operator.path(0, &path)?, 0]),
                ("socket", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0]),
                ("eventfd", libc::SYS_eventfd2, [0, 0, 0]),
            ] {
                let value = operator.call(number, &arguments)?;
                if errno(value) == 0 {
                    operator.close(value as u64)?;
                }
                said.push((call, errno(value)));
            }
            said.push(("pread64", operator.read(open[0])?));
            Ok(said)
        };
        for (word, errno) in [("", Errno::EMFILE), ("EMFILE", Errno::EMFILE), ("ENFILE", Errno::ENFILE)] {
            let hit = [("openat", errno), ("socket", errno), ("eventfd", errno)];
            check(pair, &format!("fd error {word} {}", pair.option()), &look, &hit)?;
        }
        Ok(())
    })
}

fn forks() -> Result {
    settled(|pair| {
        let look = |operator: &Operator| {
            let thread = operator.call_by(Who::Thread, libc::SYS_getpid, &[])?;
            Ok(vec![("fork", operator.fork()?), ("getpid", errno(thread))])
        };
        for words in ["fork error", "fork error EAGAIN"] {
            check(pair, &format!("{words} {}", pair.option()), &look, &[("fork", Errno::EAGAIN)])?;
        }
        Ok(())
    })
}

fn denied() -> Result {
    let place = Folder::new()?;
    let (path, program) = (place.file("file")?, place.program("program")?);
    settled(|pair| {
        let open = [pair.target.open(&path, libc::O_RDWR)?, pair.bystander.open(&path, libc::O_RDWR)?];
        ensure!(open[0] == open[1], "descriptors {open:?}");
        let look = |operator: &Operator| {
            let opened = operator.call(libc::SYS_openat, &[HERE, operator.path(0, &path)?, 0])?;
            if errno(opened) == 0 {
                operator.close(opened as u64)?;
            }
            let at = operator.path(0, &program)?;
            let words = operator.bytes(0, &[at, 0].map(u64::to_ne_bytes).concat())?;
            let executed = operator.call_by(Who::Child, libc::SYS_execve, &[at, words, 0])?;
            let connected = sockets::connects(operator)?;
            let (openat, execve) = (("openat", errno(opened)), ("execve", errno(executed)));
            Ok(vec![openat, execve, ("connect", connected), ("pread64", operator.read(open[0])?)])
        };
        for (word, errno) in [("", Errno::EACCES), ("EACCES", Errno::EACCES), ("EPERM", Errno::EPERM)] {
            let hit = [("openat", errno), ("execve", errno), ("connect", errno)];
            check(pair, &format!("deny {word} --ops open,exec,connect {}", pair.option()), &look, &hit)?;
        }
        let hit = [("connect", Errno::EPERM)];
        check(pair, &format!("deny EPERM --ops connect {}", pair.option()), &look, &hit)
    })
}

/// By number, alone and several, and by their arguments.
fn by_name() -> Result {
    let place = Folder::new()?;
    let path = place.file("file")?;
    settled(|pair| {
        let mut fds = [0; 2];
        for operator in [&pair.target, &pair.bystander] {
            fds = [operator.open(&path, libc::O_RDWR)?, operator.open(&path, libc::O_RDWR)?];
        }
        let [first, second] = fds;
        let look = |operator: &Operator| {
            let mut said = Vec::new();
            let (at, buffer) = (operator.path(0, &path)?, operator.buffer(0));
            let create = (libc::O_CREAT | libc::O_RDWR) as u64;
            for (call, number, arguments) in [
                ("pread64", libc::SYS_pread64, [first, buffer, 16, 0]),
                ("pread64 of another", libc::SYS_pread64, [second, buffer, 16, 0]),
                ("fsync", libc::SYS_fsync, [first, 0, 0, 0]),
                ("fdatasync", libc::SYS_fdatasync, [first, 0, 0, 0]),
                ("openat", libc::SYS_openat, [HERE, at, 0, 0]),
                ("openat O_CREAT", libc::SYS_openat, [HERE, at, create, 0o644]),
                ("getpgid", libc::SYS_getpgid, [0; 4]),
            ] {
                let value = operator.call(number, &arguments)?;
                if call.starts_with("openat") && errno(value) == 0 {
                    operator.close(value as u64)?;
                }
                said.push((call, errno(value)));
            }
            Ok(said)
        };
        let (eio, emfile) = (Errno::EIO, Errno::EMFILE);
        let both = [("pread64", eio), ("pread64 of another", eio)];
        let syncs = [("fsync", eio), ("fdatasync", eio)];
        let opens = [("openat", emfile), ("openat O_CREAT", emfile)];
        let fd = format!("pread64 EIO --arg 0={first}");
        let fds = format!("pread64 EIO --arg 0={first} --arg 2=16");
        let neither = format!("pread64,fsync EIO --arg 0={first} --arg 1=1");
        let rows: &[(&str, &[(&str, Errno)])] = &[
            ("pread64 EIO", &both),
            ("fsync,fdatasync EIO", &syncs),
            ("openat EMFILE", &opens),
            ("openat EMFILE --arg 2~0x40", &opens[1..]),
            (&fd, &both[..1]),
            (&fds, &both[..1]),
            ("openat EMFILE --arg 0=-100", &opens),
            ("openat EMFILE --arg 0=-100 --arg 2=0", &opens[..1]),
            ("getpgid EPERM", &[("getpgid", Errno::EPERM)]),
        ];
        for (row, hit) in rows {
            check(pair, &format!("sys error {row} {}", pair.option()), &look, hit)?;
        }
        for (row, hit) in &rows[1..4] {
            let words = format!("sys error {row} {} --by kprobe_override", pair.option());
            check(pair, &words, &look, hit)?;
        }
        check_inconclusive(pair, &format!("sys error {neither} {}", pair.option()), &look)
    })
}

/// BTF may have no function for them: the compiler has left their only argument out, the registers.
fn without_arguments() -> Result {
    settled(|pair| {
        let look = |operator: &Operator| {
            let of = |number| operator.call(number, &[]).map(errno);
            Ok(vec![("getppid", of(libc::SYS_getppid)?), ("sched_yield", of(libc::SYS_sched_yield)?)])
        };
        for call in ["getppid", "sched_yield"] {
            check(
                pair,
                &format!("sys error {call} EPERM {}", pair.option()),
                &look,
                &[(call, Errno::EPERM)],
            )?;
        }
        Ok(())
    })
}

/// A fault that meets nothing.
fn check_inconclusive(pair: &Pair, words: &str, look: &dyn Fn(&Operator) -> Result<Said>) -> Result {
    let fault = Fault::arm(words)?;
    let said = look(&pair.target)?;
    let counts = fault.end()?;
    ensure!(said.iter().all(|(_, errno)| *errno == 0) && counts.fired == 0, "{words}: {said:?} {counts:?}");
    Ok(())
}
