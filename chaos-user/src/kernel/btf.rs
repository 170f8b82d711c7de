//! Where the running kernel keeps what: field offsets from its BTF, so that one object serves every kernel.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use btf_rs::{Backend, Btf, EnumMember, Member, Struct, Type};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, Result};

/// Where the kernel offers its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's types.
pub struct KernelTypes {
    btf: Btf,
    /// The numbers of the types that have been looked for, by name. Each look goes through all of them, and a run of calls
    /// asks for some eighty.
    known: Mutex<HashMap<String, Vec<u32>>>,
}

impl KernelTypes {
    /// Reads them, once in a process: they are those of the kernel it runs on.
    ///
    /// # Errors
    ///
    /// If the kernel was built without `CONFIG_DEBUG_INFO_BTF`, or has nothing readable there.
    pub fn read() -> Result<&'static Self> {
        static TYPES: OnceLock<KernelTypes> = OnceLock::new();
        if let Some(types) = TYPES.get() {
            return Ok(types);
        }
        // Two threads may both read them; one's are kept.
        let types = Self::parse()?;
        Ok(TYPES.get_or_init(|| types))
    }

    fn parse() -> Result<Self> {
        let error = |call| move |source| Error::new(call, VMLINUX, source);
        let bytes = std::fs::read(Path::new(VMLINUX)).map_err(error("open"))?;
        // A file that can be mapped, which the kernel's cannot be before 6.16: looking a few types up in place
        // takes a tenth of the time of reading all 100,000 into tables.
        let copy = memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| error("memfd_create")(errno.into()))?;
        let mut copy = File::from(copy);
        copy.write_all(&bytes).map_err(error("copy"))?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let btf = Btf::from_file_with_backend(path, Backend::Mmap).map_err(|error| unreadable(&error))?;
        Ok(Self { btf, known: Mutex::default() })
    }

    /// The types of this name, of whatever kind; none if there is none.
    fn named(&self, name: &str) -> Result<Vec<(u32, Type)>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = match known.get(name) {
            Some(ids) => ids,
            None => {
                let ids = self.btf.resolve_ids_by_name(name).map_err(|error| unreadable(&error))?;
                known.entry(name.to_owned()).or_insert(ids)
            }
        };
        ids.iter()
            .map(|id| Ok((*id, self.btf.resolve_type_by_id(*id).map_err(|error| unreadable(&error))?)))
            .collect()
    }

    /// Offset of a field of `structure`, in bytes; with dots in `path`, that of a field of that field. Nothing if there is none.
    ///
    /// # Errors
    ///
    /// If the types cannot be read.
    pub fn offset(&self, structure: &str, path: &str) -> Result<Option<u32>> {
        let bits = self.named(structure)?.into_iter().find_map(|(_, found)| {
            let Type::Struct(mut within) = found else { return None };
            let mut names = path.split('.').peekable();
            let mut bits = 0;
            while let Some(name) = names.next() {
                let (further, member) = self.find(&within, name)?;
                bits += further;
                if names.peek().is_some() {
                    within = self.structure(&member)?;
                }
            }
            Some(bits)
        });
        Ok(bits.map(|bits| bits / 8))
    }

    /// The offset of a field in bits, and the field itself, also in a part of the structure that has no name.
    fn find(&self, structure: &Struct, field: &str) -> Option<(u32, Member)> {
        structure.members.iter().find_map(|member| match self.btf.resolve_name(member).ok()? {
            name if name == field => Some((member.bit_offset(), member.clone())),
            name if name.is_empty() => {
                let (bits, found) = self.find(&self.structure(member)?, field)?;
                Some((member.bit_offset() + bits, found))
            }
            _ => None,
        })
    }

    /// What a field is, whatever else it is called, if that has fields.
    fn structure(&self, member: &Member) -> Option<Struct> {
        let mut found = self.btf.resolve_chained_type(member).ok()?;
        loop {
            found = match found {
                Type::Struct(found) | Type::Union(found) => return Some(found),
                Type::Typedef(other) => self.btf.resolve_chained_type(&other).ok()?,
                Type::Const(other) => self.btf.resolve_chained_type(&other).ok()?,
                Type::Volatile(other) => self.btf.resolve_chained_type(&other).ok()?,
                _ => return None,
            };
        }
    }

    /// Whether there is a type of this name that is made of others.
    ///
    /// # Errors
    ///
    /// If the types cannot be read.
    pub fn has(&self, structure: &str) -> Result<bool> {
        Ok(self.named(structure)?.iter().any(|(_, found)| matches!(found, Type::Struct(_))))
    }

    /// Whether an enumeration has a value of this name.
    ///
    /// # Errors
    ///
    /// If the types cannot be read.
    pub fn has_value(&self, enumeration: &str, value: &str) -> Result<bool> {
        let has = |member: &EnumMember| self.btf.resolve_name(member).is_ok_and(|name| name == value);
        Ok(self.named(enumeration)?.iter().any(|(_, found)| match found {
            Type::Enum(found) => found.members.iter().any(has),
            _ => false,
        }))
    }

    /// The number of a function, which programs attach to.
    ///
    /// # Errors
    ///
    /// If this kernel has no such function, or keeps its type to itself.
    pub fn function(&self, name: &str) -> Result<u32> {
        let found = self.named(name)?.into_iter().find(|(_, found)| matches!(found, Type::Func(_)));
        found.map(|(id, _)| id).ok_or_else(|| missing(&format!("function {name}")))
    }
}

fn missing(what: &str) -> Error {
    Error::new("look-up", format!("{what} in {VMLINUX}"), io::ErrorKind::NotFound.into())
}

fn unreadable(error: &btf_rs::Error) -> Error {
    Error::new("parse", VMLINUX, io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
