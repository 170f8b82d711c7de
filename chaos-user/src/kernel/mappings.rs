//! What a process has in its memory, as the kernel says it. A process chooses what its `auxv` says, and the names of the files
//! that it maps; not what the kernel's own mappings are called, nor where they lie.

use std::{ffi::OsStr, fs, io, ops::Range, os::unix::ffi::OsStrExt, path::Path};

use super::process::living_thread;

/// The mappings of a process, by address.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    all: Vec<Mapping>,
    /// The thread by which its memory is to be had: the first, unless that has ended.
    pub thread: u32,
    /// Where its vDSO lies, if it has one.
    pub vdso: Option<Range<u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    is_private: bool,
    is_code: bool,
    file: Option<Mapped>,
}

/// What of a file is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapped {
    file: FileId,
    /// From where in it.
    offset: u64,
    /// What it was called when it was mapped.
    name: Box<[u8]>,
}

/// A file, by device and inode number, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileId {
    device: Vec<u8>,
    inode: Vec<u8>,
}

impl Mappings {
    /// Those of a process, which has none if it has ended or is the kernel's own. Nobody's answer is waited for but the
    /// kernel's, and for that in a way that ends with the caller.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of(process: u32) -> io::Result<Self> {
        let (mut text, mut thread) = (fs::read(format!("/proc/{process}/maps"))?, process);
        // So is that of one whose first thread has ended before the others.
        if text.is_empty()
            && let Some(other) = living_thread(process)?.filter(|other| *other != process)
        {
            (text, thread) = (fs::read(format!("/proc/{process}/task/{other}/maps"))?, other);
        }
        Ok(Self { thread, ..Self::parse(&text) })
    }

    fn parse(text: &[u8]) -> Self {
        let mut mappings = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            // The name comes last and may hold any bytes but a newline.
            let mut words = line.splitn(6, |byte| *byte == b' ');
            let Some((mapping, name)) = (|| {
                let range = range(words.next()?)?;
                let flags = words.next()?;
                let offset = number(words.next()?)?;
                let (device, inode) = (words.next()?, words.next()?);
                let name = words.next().unwrap_or_default().trim_ascii_start();
                let file = (inode != b"0").then(|| Mapped {
                    file: FileId { device: device.into(), inode: inode.into() },
                    offset,
                    name: name.into(),
                });
                let is = |place: usize, flag: u8| flags.get(place) == Some(&flag);
                Some((Mapping { range, is_private: is(3, b'p'), is_code: is(2, b'x'), file }, name))
            })() else {
                continue;
            };
            if mapping.file.is_none() && name.trim_ascii_end() == b"[vdso]" {
                mappings.vdso = Some(mapping.range.clone());
            }
            mappings.all.push(mapping);
        }
        mappings
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The file whose code lies at this address.
    #[must_use]
    pub fn code_at(&self, address: u64) -> Option<FileId> {
        self.mapping(address)?.code()
    }

    /// Where in its file lies what is at this address.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let mapping = self.mapping(address)?;
        mapping.file.as_ref().map(|mapped| mapped.offset + (address - mapping.range.start))
    }

    /// What the file was called that this address is of.
    #[must_use]
    pub fn name_at(&self, address: u64) -> Option<&Path> {
        let mapped = self.mapping(address)?.file.as_ref()?;
        Some(Path::new(OsStr::from_bytes(&mapped.name)))
    }

    /// Whether this file's code may be run.
    #[must_use]
    pub fn run(&self, file: &FileId) -> bool {
        self.all.iter().any(|mapping| mapping.code().as_ref() == Some(file))
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let before = self.all.partition_point(|mapping| mapping.range.start <= address);
        self.all.get(before.checked_sub(1)?).filter(|mapping| mapping.range.contains(&address))
    }

    /// Where the mapping ends that this address lies in, and whether what is written there is the process's own; nothing if
    /// there is none.
    #[must_use]
    pub fn around(&self, address: u64) -> Option<(u64, bool)> {
        self.mapping(address).map(|mapping| (mapping.range.end, mapping.is_private))
    }
}

impl Mapping {
    /// The file whose code it is, if it is a file's and may be run.
    fn code(&self) -> Option<FileId> {
        self.file.as_ref().filter(|_| self.is_code).map(|mapped| mapped.file.clone())
    }
}

/// `START-END`.
fn range(word: &[u8]) -> Option<Range<u64>> {
    let end = word.iter().position(|byte| *byte == b'-')?;
    Some(number(&word[..end])?..number(&word[end + 1..])?).filter(|range| !range.is_empty())
}

fn number(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_vdso() {
        let text = b"00001000-00002000 rw-p 00000000 00:00 0 \n\
            00002000-00003000 r-xp 00000000 08:01 42                         /tmp/x [vdso]\n\
            00003000-00004000 r-xp 00000000 08:01 42                         [vdso]\n\
            00005000-00006000 rw-s 00000000 00:01 7                          /memfd:\xff\x80 [vdso] (deleted)\n\
            00006000-00007000 rw-p 00000000 00:00 0                          [anon:x [vdso]\n\
            7f0000000000-7f0000002000 r-xp 00000000 00:00 0                          [vdso]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
        let mappings = Mappings::parse(text);
        assert_eq!(mappings.vdso, Some(0x7f00_0000_0000..0x7f00_0000_2000));
        assert_eq!(mappings.around(0x1fff), Some((0x2000, true)));
        assert_eq!(mappings.around(0x5000), Some((0x6000, false)));
        assert_eq!(mappings.around(0x4000), None);
        assert_eq!(mappings.around(0xfff), None);
        assert_eq!(mappings.all.len(), 7);
        let file = mappings.code_at(0x2abc).expect("a file");
        assert_eq!((&file.device[..], &file.inode[..]), (&b"08:01"[..], &b"42"[..]));
        assert!(mappings.run(&file) && !mappings.run(&FileId { inode: b"43".into(), ..file }));
        assert_eq!(mappings.code_at(0x1abc), None);
        let named = b"55e000-55f000 r--p 00000000 08:01 1                    /bin/x\xff y\n\
            55f000-560000 r-xp 00001000 08:01 1                    /bin/x\xff y\n";
        let mappings = Mappings::parse(named);
        assert_eq!(mappings.offset_of(0x55_f123), Some(0x1123));
        assert_eq!(mappings.name_at(0x55_e000), Some(Path::new(OsStr::from_bytes(b"/bin/x\xff y"))));
        assert_eq!((mappings.offset_of(0x56_0000), mappings.name_at(0x56_0000)), (None, None));
        assert!(Mappings::parse(b"nonsense\n").is_empty());
    }

    #[test]
    fn the_own_ones() {
        let own = Mappings::of(std::process::id()).expect("maps");
        let here = 0_u8;
        assert!(own.around((&raw const here) as u64).is_some_and(|(_, is_private)| is_private));
        // SAFETY: takes a number, returns one.
        let told = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
        assert_eq!(own.vdso.as_ref().map(|vdso| vdso.start), Some(told).filter(|told| *told != 0));
        assert!(Mappings::parse(b"").is_empty());
        let code = own.code_at(Mappings::of as fn(u32) -> io::Result<Mappings> as usize as u64);
        assert!(code.is_some_and(|code| own.run(&code)));
    }
}
