//! Processes that wait for a file system that has died.

use std::{
    arch::asm,
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr,
    sync::{atomic::Ordering::Relaxed, mpsc},
    thread,
    time::{Duration, Instant},
};

use faultline_tests::{
    ensure,
    error::{Context, Failure, Result, check},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    end_with_parent,
    fuse::{Connection, MEMORY, PROGRAM, SIZE, leave},
    own_map::OwnMap,
    say, wait,
};

/// Longer than it takes a child to come to where it waits.
const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u64 = 4096;
/// A child ends with this if it cannot be what it should.
const FAILED: i32 = 9;

/// | kind | what a child is |
/// |---|---|
/// | `exec` | it executes a program from there, which does not come |
/// | `stack` | its stack, arguments and environment lie in memory that is a file of there |
/// | `locked` | whoever looks into its memory waits, for it holds the lock of that itself while it waits |
///
/// Says each of them with its number.
pub(super) fn serve(folder: &str, kinds: &[&str]) -> Result {
    let kinds = if kinds.is_empty() { &["exec", "stack"] } else { kinds };
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make / private")?;
    let connection = Connection::mount(folder)?;
    let (mut told, tell) = io::pipe().context("pipe")?;
    let mut children = Vec::new();
    for kind in kinds {
        let child = begin(kind, folder, &connection, &tell)?;
        say(&format!("{kind} {child}"))?;
        children.push((*kind, child));
    }
    drop(tell);
    let death = connection.death();
    let (reads, asked) = mpsc::channel();
    thread::spawn(move || {
        if let Err(failure) = connection.serve(&reads) {
            eprintln!("fl-hostile stuck: {failure}");
        }
    });
    let mut seen = Vec::new();
    for (kind, child) in children {
        match kind {
            "exec" => until_asked(PROGRAM, &asked, &mut seen)?,
            "stack" => told.read_exact(&mut [0]).context("its child has ended")?,
            _ => {
                until_asked(MEMORY, &asked, &mut seen)?;
                until_waits(child)?;
            }
        }
    }
    death.store(true, Relaxed);
    say("ready")?;
    wait()
}

fn until_asked(node: u64, asked: &mpsc::Receiver<u64>, seen: &mut Vec<u64>) -> Result {
    while !seen.contains(&node) {
        seen.push(asked.recv_timeout(PATIENCE).context("nobody reads")?);
    }
    Ok(())
}

/// Until its first thread waits where only a signal that kills it is heard.
fn until_waits(child: i32) -> Result {
    let path = format!("/proc/{child}/task/{child}/stat");
    let end = Instant::now() + PATIENCE;
    while !fs::read_to_string(&path).context(&path)?.contains(") D ") {
        ensure!(Instant::now() < end, "process {child} does not wait for its own memory");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Begins a child, which ends with this process.
fn begin(kind: &str, folder: &str, connection: &Connection, tell: &io::PipeWriter) -> Result<i32> {
    let become_stuck: fn(&str, &io::PipeWriter) -> Result = match kind {
        "exec" => executes,
        "stack" => has_stack,
        "locked" => is_locked,
        other => return Err(Failure::new(format!("nobody is stuck by {other}"))),
    };
    // SAFETY: this process has one thread.
    let child = check(unsafe { libc::fork() }.into(), "fork")? as i32;
    if child == 0 {
        // Or it would wait for itself.
        let left = leave(connection.descriptor()).context("close");
        let done = left.and_then(|()| end_with_parent()).and_then(|()| become_stuck(folder, tell));
        if let Err(failure) = done {
            eprintln!("fl-hostile stuck {kind}: {failure}");
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(FAILED) };
    }
    Ok(child)
}

/// Only returns if that fails.
fn executes(folder: &str, _: &io::PipeWriter) -> Result {
    let path = CString::new(format!("{folder}/program")).context(folder)?;
    let words = [path.as_ptr(), ptr::null()];
    let environment = [ptr::null()];
    // SAFETY: strings that end with NUL, in lists that end with a null pointer.
    let result = unsafe { libc::execve(path.as_ptr(), words.as_ptr(), environment.as_ptr()) };
    check(result.into(), "execve").map(drop)
}

/// Memory that is a file of there, none of which has been asked for.
fn map(folder: &str) -> Result<u64> {
    let path = format!("{folder}/memory");
    let file = File::open(&path).context(&path)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new memory, wherever there is room.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), SIZE as usize, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    ensure!(start != libc::MAP_FAILED, "{}", Failure::last_os_error(format_args!("mmap({path})")));
    Ok(start as u64)
}

fn has_stack(folder: &str, mut tell: &io::PipeWriter) -> Result {
    let start = map(folder)?;
    let said = OwnMap::get().and_then(|mut map| {
        (map.arg_start, map.arg_end) = (start, start + PAGE);
        (map.env_start, map.env_end) = (start + PAGE, start + 2 * PAGE);
        map.start_stack = start + 3 * PAGE;
        map.set()
    });
    if let Err(failure) = said {
        say(&format!("refused: {failure}"))?;
    }
    tell.write_all(&[1]).context("write")?;
    // SAFETY: in the middle of what was mapped, at the start of a page, and nobody else's.
    unsafe { wait_upon(start + SIZE / 2) }
}

/// Waits for ever with its stack there, without ever touching it.
///
/// # Safety
///
/// Nobody else may use that memory as a stack.
#[cfg(target_arch = "x86_64")]
unsafe fn wait_upon(stack: u64) -> ! {
    // SAFETY: `ppoll` of nothing, without a time, again and again; nothing here has anything on a stack.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "2:",
            "mov eax, {number}",
            "xor edi, edi",
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "syscall",
            "jmp 2b",
            stack = in(reg) stack,
            number = const libc::SYS_ppoll,
            options(noreturn),
        )
    }
}

/// The same.
///
/// # Safety
///
/// As there.
#[cfg(target_arch = "aarch64")]
unsafe fn wait_upon(stack: u64) -> ! {
    // SAFETY: as there.
    unsafe {
        asm!(
            "mov sp, {stack}",
            "2:",
            "mov x8, {number}",
            "mov x0, #0",
            "mov x1, #0",
            "mov x2, #0",
            "mov x3, #0",
            "mov x4, #0",
            "svc #0",
            "b 2b",
            stack = in(reg) stack,
            number = const libc::SYS_ppoll,
            options(noreturn),
        )
    }
}

/// Who reads a page of another's memory, or of its own as if it were another's, has its memory locked until the page is there: for
/// others who read as well. So does who waits to change it, and nobody passes by that one.
fn is_locked(folder: &str, _: &io::PipeWriter) -> Result {
    let start = map(folder)?;
    let path = "/proc/self/mem";
    let memory = File::open(path).context(path)?;
    thread::Builder::new().spawn(move || memory.read_exact_at(&mut [0], start)).context("a thread")?;
    loop {
        // SAFETY: new memory, and the same again.
        let done = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let new = libc::mmap(ptr::null_mut(), PAGE as usize, libc::PROT_READ, flags, -1, 0);
            new != libc::MAP_FAILED && libc::munmap(new, PAGE as usize) == 0
        };
        ensure!(done, "{}", Failure::last_os_error("mmap"));
    }
}
