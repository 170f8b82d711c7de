//! The vDSO: its functions, found in its own tables as any program would, and its bytes.

use std::{
    ffi::CStr,
    fs::{self, File},
    mem::transmute,
    os::unix::fs::FileExt,
    process,
    sync::OnceLock,
};

use crate::{
    ensure,
    error::{Context, Result, check},
};

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> i32;
type Gettimeofday = unsafe extern "C" fn(*mut libc::timeval, *mut libc::timezone) -> i32;
type Time = unsafe extern "C" fn(*mut libc::time_t) -> libc::time_t;

/// Those that tell the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions {
    pub(super) clock_gettime: ClockGettime,
    pub(super) gettimeofday: Gettimeofday,
    pub(super) time: Time,
}

/// This process's; looked for once.
pub(super) fn functions() -> Option<Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    *FUNCTIONS.get_or_init(|| {
        // SAFETY: takes no pointers.
        let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
        // SAFETY: the kernel says it has put an ELF image there, which stays while the process lives.
        (base != 0).then(|| unsafe { find(base) })?
    })
}

/// # Safety
///
/// `base` must be where the vDSO is.
unsafe fn find(base: u64) -> Option<Functions> {
    let function = |name: &CStr| {
        // SAFETY: as the caller says.
        unsafe { symbol(base, name) }
    };
    let [clock_gettime, gettimeofday, time] =
        [c"__vdso_clock_gettime", c"__vdso_gettimeofday", c"__vdso_time"].map(function);
    // SAFETY: the functions that have these names are of these types.
    unsafe {
        Some(Functions {
            clock_gettime: transmute::<*const (), ClockGettime>(clock_gettime?),
            gettimeofday: transmute::<*const (), Gettimeofday>(gettimeofday?),
            time: transmute::<*const (), Time>(time?),
        })
    }
}

/// Where a function is.
///
/// # Safety
///
/// `base` must be where the vDSO is, which is mapped as it is in its file.
unsafe fn symbol(base: u64, name: &CStr) -> Option<*const ()> {
    let at = |offset: u64| (base + offset) as *const u8;
    // SAFETY: the kernel's image is well-formed, and its tables are within it.
    unsafe {
        let header = &*at(0).cast::<libc::Elf64_Ehdr>();
        let sections = at(header.e_shoff).cast::<libc::Elf64_Shdr>();
        let section = |number: usize| &*sections.add(number);
        let symbols = (0..header.e_shnum.into()).map(section).find(|table| table.sh_type == SHT_DYNSYM)?;
        let names = section(symbols.sh_link as usize).sh_offset;
        let entries = at(symbols.sh_offset).cast::<libc::Elf64_Sym>();
        let count = symbols.sh_size as usize / size_of::<libc::Elf64_Sym>();
        let found = (0..count).map(|number| &*entries.add(number)).find(|entry| {
            entry.st_value != 0 && CStr::from_ptr(at(names + u64::from(entry.st_name)).cast()) == name
        })?;
        Some(at(found.st_value).cast())
    }
}

/// The type of the section with the symbols that others may use.
const SHT_DYNSYM: u32 = 11;

/// What a process has for a vDSO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Image {
    /// That of a process, or of this one.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot be read.
    pub fn of(pid: u32) -> Result<Self> {
        let (start, end) = vdso_range(pid)?;
        let path = format!("/proc/{pid}/mem");
        let memory = File::open(&path).context(&path)?;
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).context(&path)?;
        Ok(Self { bytes })
    }

    /// Fails unless a process has the same as this one.
    ///
    /// # Errors
    ///
    /// Where they differ.
    pub fn check_own(pid: u32) -> Result {
        let (own, its) = (Self::of(process::id())?, Self::of(pid)?);
        its.check_same(&own).context(format_args!("process {pid}"))
    }

    fn check_same(&self, other: &Self) -> Result {
        let (its, own) = (&self.bytes, &other.bytes);
        ensure!(own.len() == its.len(), "its vDSO has {} bytes, not {}", its.len(), own.len());
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for place in (0..own.len()).filter(|place| own[*place] != its[*place]) {
            match ranges.last_mut() {
                // Some in between may be the same by chance.
                Some((_, end)) if place <= *end + 16 => *end = place,
                _ => ranges.push((place, place)),
            }
        }
        let places: Vec<String> = ranges.iter().map(|(from, to)| format!("{from:#x} to {to:#x}")).collect();
        ensure!(ranges.is_empty(), "its vDSO is not the kernel's at {}", places.join(", "));
        Ok(())
    }
}

/// Where the function of this process's lies that reads a clock; nowhere if there is none.
#[must_use]
pub fn vdso_function() -> Option<usize> {
    functions().map(|functions| functions.clock_gettime as usize)
}

/// Where a process has it.
///
/// # Errors
///
/// If it has ended, or has none.
pub fn vdso_range(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).context(&path)?;
    // A file may be called so as well, and its path has a slash.
    let is_vdso = |line: &&str| line.split_whitespace().skip(5).eq(["[vdso]"]);
    let line = maps.lines().find(is_vdso).context(format_args!("no vDSO in {path}"))?;
    let ends = line.split(' ').next().and_then(|ends| ends.split_once('-')).context(line)?;
    let number = |digits| u64::from_str_radix(digits, 16).context(line);
    Ok((number(ends.0)?, number(ends.1)?))
}

/// Unmaps this process's: nothing may ask the C library for the time afterwards.
///
/// # Errors
///
/// If there is none.
pub fn remove_vdso() -> Result {
    let (start, end) = vdso_range(process::id())?;
    // SAFETY: nothing is called in there from now on, as the caller promises.
    let result = unsafe { libc::munmap(start as *mut libc::c_void, (end - start) as usize) };
    check(result.into(), "munmap(vDSO)").map(drop)
}
