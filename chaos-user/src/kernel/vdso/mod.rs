//! A process's vDSO as bytes, and what to write into it so that its clocks are skewed. Nothing here reads or writes
//! another process.

mod aarch64;
mod block;
mod patch;
mod x86_64;

use std::{fmt, io, ops::Range, slice};

use object::{
    LittleEndian, Object, ObjectSymbol, elf,
    read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader},
};

pub use patch::{Kind, Patch, Piece};

use super::{Error, mappings::Mappings};

/// What the slack is aligned to.
const ALIGN: usize = 16;
const MAPS: &str = "/proc/self/maps";

/// What a vDSO's code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// A function of a vDSO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub name: &'static str,
    /// Where its code lies in the image.
    pub range: Range<usize>,
}

/// The functions of a vDSO that tell the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    /// `clock_gettime`.
    pub clock_gettime: Function,
    /// `gettimeofday`.
    pub gettimeofday: Function,
    /// `time`, which aarch64 does not have.
    pub time: Option<Function>,
}

impl Functions {
    fn all(&self) -> impl Iterator<Item = &Function> {
        [&self.clock_gettime, &self.gettimeofday].into_iter().chain(&self.time)
    }
}

/// Why a vDSO cannot be patched.
#[derive(Debug, thiserror::Error)]
pub enum VdsoError {
    /// There is none.
    #[error("no vDSO is mapped: its clocks are read by system calls; nothing has to be patched")]
    Unmapped,
    /// Of a 32-bit process.
    #[error("the vDSO is one of 32 bits, and only those of 64 are known; leave 32-bit processes out")]
    Bits32,
    /// It is not what the kernel maps.
    #[error("the vDSO cannot be read: {cause}; leave the process out")]
    Malformed {
        /// What is wrong with it.
        cause: String,
    },
    /// Of another machine.
    #[error("the vDSO is for machine {number} (ELF's e_machine), which is not known; leave the process out")]
    Machine {
        /// ELF's `e_machine`.
        number: u16,
    },
    /// The code for this machine was never run.
    #[error("patching the vDSO was never tried on {machine}; use x86_64")]
    Untested {
        /// Which.
        machine: Machine,
    },
    /// It has no such function.
    #[error("the vDSO has no {symbol}: the kernel may have been built without it; leave the process out")]
    Symbol {
        /// The function's name.
        symbol: &'static str,
    },
    /// Not enough room after it.
    #[error("the vDSO has {there} bytes of room after its code, and {needed} are needed; use another kernel")]
    Slack {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes there are.
        there: usize,
    },
    /// The start of a function cannot be moved.
    #[error("the start of {function} in the vDSO cannot be moved: {cause}; use another kernel")]
    Prologue {
        /// The function's name.
        function: &'static str,
        /// Why not.
        cause: String,
    },
    /// Somebody has patched it already.
    #[error("the vDSO is patched already{}; end the fault that does first", .token.map_or_else(String::new, |token| format!(" (by run {token:016x})")))]
    Patched {
        /// By which run, if it is one of ours.
        token: Option<u64>,
    },
    /// The instructions to be written do not go together: a bug of ours.
    #[error("the code for the vDSO cannot be assembled: {cause}; report this")]
    Code {
        /// What the assembler says.
        cause: String,
    },
    /// A call to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// A vDSO as the kernel maps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    bytes: Vec<u8>,
    machine: Machine,
    functions: Functions,
    /// Where nothing lies up to the end of the mapping.
    slack: Range<usize>,
}

impl Image {
    /// Reads the bytes of a whole mapping. What an earlier run left in the slack, with no way leading there, counts
    /// as room.
    ///
    /// # Errors
    ///
    /// Where it is not a vDSO of a known kind, has not the functions, or is patched.
    pub fn parse(bytes: &[u8]) -> Result<Self, VdsoError> {
        if bytes.starts_with(&elf::ELFMAG) && bytes.get(4) == Some(&elf::ELFCLASS32) {
            return Err(VdsoError::Bits32);
        }
        let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(malformed)?;
        let machine = match file.elf_header().e_machine(LittleEndian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            number => return Err(VdsoError::Machine { number }),
        };
        let functions = match machine {
            Machine::X86_64 => Functions {
                clock_gettime: function(&file, "__vdso_clock_gettime")?,
                gettimeofday: function(&file, "__vdso_gettimeofday")?,
                time: Some(function(&file, "__vdso_time")?),
            },
            Machine::Aarch64 => Functions {
                clock_gettime: function(&file, "__kernel_clock_gettime")?,
                gettimeofday: function(&file, "__kernel_gettimeofday")?,
                time: None,
            },
        };
        let start = described(&file).next_multiple_of(ALIGN).min(bytes.len());
        let mut image = Self { bytes: bytes.to_vec(), machine, functions, slack: start..bytes.len() };
        let token = patch::token(&bytes[start..]);
        if image.functions.all().any(|function| patch::is_ours(&image, function, token.is_some())) {
            return Err(VdsoError::Patched { token });
        }
        if token.is_some() {
            image.bytes[start..].fill(0);
        }
        let used = image.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        image.slack.start = start.max(used.next_multiple_of(ALIGN)).min(bytes.len());
        Ok(image)
    }

    /// That of this process.
    ///
    /// # Errors
    ///
    /// Where there is none, none that can be patched, or none that was ever tried to patch.
    pub fn own() -> Result<Self, VdsoError> {
        // SAFETY: it only looks a number up.
        let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
        let maps = Mappings::of(std::process::id()).map_err(|source| Error::new("read", MAPS, source))?;
        let range = maps.vdso.filter(|range| range.start == start).ok_or(VdsoError::Unmapped)?;
        let length = (range.end - range.start) as usize;
        // SAFETY: the kernel has mapped that for as long as the process lives, to be read. Somebody may patch it
        // meanwhile, with bytes that are as good.
        let bytes = unsafe { slice::from_raw_parts(range.start as *const u8, length) }.to_vec();
        let image = Self::parse(&bytes)?;
        image.tried()?;
        Ok(image)
    }

    /// An error where its code was never run patched.
    fn tried(&self) -> Result<(), VdsoError> {
        match self.machine {
            Machine::X86_64 => Ok(()),
            machine @ Machine::Aarch64 => Err(VdsoError::Untested { machine }),
        }
    }

    /// It as it was before any patch.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What its code is for.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Its functions that tell the time.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The zero bytes after everything its headers describe, from a multiple of 16 on.
    #[must_use]
    pub fn slack(&self) -> Range<usize> {
        self.slack.clone()
    }
}

fn malformed(error: impl fmt::Display) -> VdsoError {
    VdsoError::Malformed { cause: error.to_string() }
}

/// Where a function lies.
fn function(file: &ElfFile64<'_, LittleEndian>, name: &'static str) -> Result<Function, VdsoError> {
    let missing = || VdsoError::Symbol { symbol: name };
    let symbol = file.dynamic_symbols().find(|it| it.name() == Ok(name) && it.is_definition());
    let symbol = symbol.ok_or_else(missing)?;
    let loaded = file.elf_program_headers().iter().find_map(|header| {
        let start = header.p_vaddr(LittleEndian);
        let within = symbol.address().checked_sub(start)?;
        let is_in = header.p_type(LittleEndian) == elf::PT_LOAD && within < header.p_filesz(LittleEndian);
        is_in.then_some(header.p_offset(LittleEndian).checked_add(within)?)
    });
    let range = loaded.and_then(|start| {
        let (start, size) = (usize::try_from(start).ok()?, usize::try_from(symbol.size()).ok()?);
        Some(start..start.checked_add(size)?).filter(|range| file.data().len() >= range.end)
    });
    let range = range.filter(|range| !range.is_empty()).ok_or_else(|| {
        malformed(io::Error::other(format!("{name} does not lie within it, or has no size")))
    })?;
    Ok(Function { name, range })
}

/// Where everything the headers describe ends.
fn described(file: &ElfFile64<'_, LittleEndian>) -> usize {
    let header = file.elf_header();
    let table = |start: u64, size: u16, number: usize| start.saturating_add(u64::from(size) * number as u64);
    let segments = file.elf_program_headers();
    let sections = file.elf_section_table();
    let tables = [
        table(header.e_phoff(LittleEndian), header.e_phentsize(LittleEndian), segments.len()),
        table(header.e_shoff(LittleEndian), header.e_shentsize(LittleEndian), sections.len()),
    ];
    let segments = segments.iter().map(|it| {
        it.p_offset(LittleEndian).saturating_add(it.p_filesz(LittleEndian).max(it.p_memsz(LittleEndian)))
    });
    let sections = sections.iter().filter(|it| it.sh_type(LittleEndian) != elf::SHT_NOBITS);
    let sections = sections.map(|it| it.sh_offset(LittleEndian).saturating_add(it.sh_size(LittleEndian)));
    let end = tables.into_iter().chain(segments).chain(sections).max().unwrap_or(0);
    usize::try_from(end).unwrap_or(usize::MAX).min(file.data().len())
}

#[cfg(test)]
mod tests;
