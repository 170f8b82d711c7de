//! A vDSO that is not the kernel's.

use std::{fs, hint::black_box, os::fd::AsRawFd, process, ptr, slice};

use faultline_tests::{
    clocks::{Image, vdso_function, vdso_range},
    ensure,
    error::{Context, Failure, Result, check},
};

use super::{own_map::OwnMap, say, wait};

/// What no compiler or linker leaves there.
const SCRIBBLE: u8 = 0xcc;
/// As long as what a patch puts at the start of a function, or longer.
const ENTRY: usize = 16;

/// | kind | what is so |
/// |---|---|
/// | `padding` | what lies behind the code is written to |
/// | `entry` | so is the start of a function |
/// | `copied PID` | it is as that of another process is now, once |
/// | `again PID` | the same, whenever it is no longer |
/// | `auxv [PID]` | `AT_SYSINFO_EHDR` is a copy, of its own or of another's |
/// | `moved` | it lies elsewhere, and a copy where it was |
/// | `named FILE` | a file called `[vdso]` is mapped |
pub(super) fn forge(kind: &[&str]) -> Result {
    // Until it is over nobody here asks for the time.
    let forged = match kind {
        ["padding"] => padding(),
        ["entry"] => entry(),
        ["copied", pid] => copied(pid),
        ["again", pid] => return again(pid),
        ["auxv"] => auxv(process::id()),
        ["auxv", pid] => pid.parse().context(pid).and_then(auxv),
        ["moved"] => moved(),
        ["named", file] => named(file),
        other => return Err(Failure::new(format!("nothing is forged by {other:?}"))),
    };
    if let Err(failure) = forged {
        say(&format!("refused: {failure}"))?;
    }
    say("ready")?;
    wait()
}

/// The bytes of this process's own, which may be written to: it has a copy of its own of each page that is.
fn own() -> Result<&'static mut [u8]> {
    let (start, end) = vdso_range(process::id())?;
    let (start, length) = (start as *mut u8, (end - start) as usize);
    let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: what may be done with it grows, and nothing else changes.
    check(unsafe { libc::mprotect(start.cast(), length, access) }.into(), "mprotect(vDSO)")?;
    // SAFETY: mapped for as long as this process lives, and nobody runs there.
    Ok(unsafe { slice::from_raw_parts_mut(start, length) })
}

fn padding() -> Result {
    let image = own()?;
    let end = image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    ensure!(end < image.len(), "the vDSO has nothing behind its code");
    image[end..].fill(SCRIBBLE);
    Ok(())
}

fn entry() -> Result {
    let (start, _) = vdso_range(process::id())?;
    let at = vdso_function().context("no vDSO")? - start as usize;
    own()?[at..at + ENTRY].fill(SCRIBBLE);
    Ok(())
}

/// That of another process.
fn image_of(pid: &str) -> Result<Image> {
    Image::of(pid.parse().context(pid)?)
}

fn copied(pid: &str) -> Result {
    let other = image_of(pid)?;
    let image = own()?;
    ensure!(image.len() == other.bytes.len(), "the vDSO of process {pid} is of another length");
    image.copy_from_slice(&other.bytes);
    Ok(())
}

/// Whatever anybody writes there.
fn again(pid: &str) -> Result {
    let other = image_of(pid)?;
    copied(pid)?;
    let image = own()?;
    say("ready")?;
    loop {
        if *black_box(&*image) != *other.bytes {
            image.copy_from_slice(&other.bytes);
        }
        // SAFETY: takes nothing.
        unsafe { libc::sched_yield() };
    }
}

/// New memory: anywhere, or there and nowhere else.
fn memory(at: *mut libc::c_void, bytes: &[u8]) -> Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let flags = if at.is_null() { flags } else { flags | libc::MAP_FIXED_NOREPLACE };
    let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: never where there is something.
    let start = unsafe { libc::mmap(at, bytes.len(), access, flags, -1, 0) };
    ensure!(start != libc::MAP_FAILED, "{}", Failure::last_os_error("mmap"));
    // SAFETY: as long as that, and nobody else's.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), bytes.len()) };
    Ok(start)
}

fn auxv(pid: u32) -> Result {
    const ENTRY: usize = 2 * size_of::<u64>();
    let fake = memory(ptr::null_mut(), &Image::of(pid)?.bytes)? as u64;
    let path = "/proc/self/auxv";
    let mut vector = fs::read(path).context(path)?;
    let kind = libc::AT_SYSINFO_EHDR.to_ne_bytes();
    let entry = vector.chunks_exact_mut(ENTRY).find(|entry| entry.starts_with(&kind));
    entry.context("no AT_SYSINFO_EHDR")?[kind.len()..].copy_from_slice(&fake.to_ne_bytes());
    let mut map = OwnMap::get()?;
    (map.auxv, map.auxv_size) = (vector.as_ptr() as u64, vector.len() as u32);
    map.set()
}

fn moved() -> Result {
    let bytes = Image::of(process::id())?.bytes;
    let (start, _) = vdso_range(process::id())?;
    let start = start as *mut libc::c_void;
    // Room that nobody else has.
    let new = memory(ptr::null_mut(), &bytes)?;
    let (length, flags) = (bytes.len(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    // SAFETY: what lies there is a copy that nobody uses; nobody here runs in what is moved, now or later.
    let result = unsafe { libc::mremap(start, length, length, flags, new) };
    ensure!(result != libc::MAP_FAILED, "{}", Failure::last_os_error("mremap(vDSO)"));
    memory(start, &bytes).map(drop)
}

fn named(path: &str) -> Result {
    let bytes = Image::of(process::id())?.bytes;
    fs::write(path, &bytes).context(path)?;
    let file = fs::File::open(path).context(path)?;
    let access = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: new memory, wherever there is room.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), bytes.len(), access, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    ensure!(start != libc::MAP_FAILED, "{}", Failure::last_os_error(format_args!("mmap({path})")));
    Ok(())
}
