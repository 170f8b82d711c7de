//! Where the running kernel keeps what: field offsets from its BTF, so that one object serves every kernel.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
};

use btf_rs::{Backend, Btf, Member, Struct, Type};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, Result};

/// Where the kernel offers its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's types.
pub struct KernelTypes(Btf);

impl KernelTypes {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// If the kernel was built without `CONFIG_DEBUG_INFO_BTF`, or has nothing readable there.
    pub fn read() -> Result<Self> {
        let error = |call| move |source| Error::new(call, VMLINUX, source);
        let bytes = std::fs::read(Path::new(VMLINUX)).map_err(error("open"))?;
        // A file that can be mapped, which the kernel's cannot be before 6.16: looking a few types up in place
        // takes a tenth of the time of reading all 100,000 into tables.
        let copy = memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| error("memfd_create")(errno.into()))?;
        let mut copy = File::from(copy);
        copy.write_all(&bytes).map_err(error("copy"))?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        Btf::from_file_with_backend(path, Backend::Mmap).map(Self).map_err(|error| unreadable(&error))
    }

    /// Offset of `field` in `structure`, in bytes.
    ///
    /// # Errors
    ///
    /// If this kernel has no such field.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32> {
        let types = self.0.resolve_types_by_name(structure).map_err(|error| unreadable(&error))?;
        for found in types {
            let Type::Struct(found) = found else { continue };
            if let Some((bits, _)) = self.find(&found, field) {
                return Ok(bits / 8);
            }
        }
        Err(missing(&format!("{structure}.{field}")))
    }

    /// Offset of `part` of `field` in `structure`, in bytes, where the field is a structure itself.
    ///
    /// # Errors
    ///
    /// If this kernel has no such field, or none with such a part.
    pub fn offset_within(&self, structure: &str, field: &str, part: &str) -> Result<u32> {
        let types = self.0.resolve_types_by_name(structure).map_err(|error| unreadable(&error))?;
        let bits = types.into_iter().find_map(|found| {
            let Type::Struct(found) = found else { return None };
            let (bits, inner) = self.find(&found, field)?;
            Some(bits + self.find(&self.structure(&inner)?, part)?.0)
        });
        bits.map(|bits| bits / 8).ok_or_else(|| missing(&format!("{structure}.{field}.{part}")))
    }

    /// The offset of a field in bits, and the field itself, also in a part of the structure that has no name.
    fn find(&self, structure: &Struct, field: &str) -> Option<(u32, Member)> {
        structure.members.iter().find_map(|member| match self.0.resolve_name(member).ok()? {
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
        let mut found = self.0.resolve_chained_type(member).ok()?;
        loop {
            found = match found {
                Type::Struct(found) | Type::Union(found) => return Some(found),
                Type::Typedef(other) => self.0.resolve_chained_type(&other).ok()?,
                Type::Const(other) => self.0.resolve_chained_type(&other).ok()?,
                Type::Volatile(other) => self.0.resolve_chained_type(&other).ok()?,
                _ => return None,
            };
        }
    }

    /// The number of a function, which programs attach to.
    ///
    /// # Errors
    ///
    /// If this kernel has no such function, or keeps its type to itself.
    pub fn function(&self, name: &str) -> Result<u32> {
        let ids = self.0.resolve_ids_by_name(name).unwrap_or_default();
        ids.into_iter()
            .find(|id| matches!(self.0.resolve_type_by_id(*id), Ok(Type::Func(_))))
            .ok_or_else(|| missing(&format!("function {name}")))
    }
}

fn missing(what: &str) -> Error {
    Error::new("look-up", format!("{what} in {VMLINUX}"), io::ErrorKind::NotFound.into())
}

fn unreadable(error: &btf_rs::Error) -> Error {
    Error::new("parse", VMLINUX, io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
