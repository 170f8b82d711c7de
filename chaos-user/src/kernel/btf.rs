//! Where the running kernel keeps what: field offsets from its BTF, so that one object serves every kernel.

use std::{io, path::Path};

use btf_rs::{Btf, Type};

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
        let bytes =
            std::fs::read(Path::new(VMLINUX)).map_err(|source| Error::new("open", VMLINUX, source))?;
        Btf::from_bytes(&bytes).map(Self).map_err(|error| unreadable(&error))
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
            for member in &found.members {
                if self.0.resolve_name(member).is_ok_and(|name| name == field) {
                    return Ok(member.bit_offset() / 8);
                }
            }
        }
        Err(Error::new(
            "look-up",
            format!("{structure}.{field} in {VMLINUX}"),
            io::ErrorKind::NotFound.into(),
        ))
    }

    /// The number of a function, which programs attach to.
    ///
    /// # Errors
    ///
    /// If this kernel has no such function, or keeps its type to itself.
    pub fn function(&self, name: &str) -> Result<u32> {
        let ids = self.0.resolve_ids_by_name(name).unwrap_or_default();
        ids.into_iter().find(|id| matches!(self.0.resolve_type_by_id(*id), Ok(Type::Func(_)))).ok_or_else(
            || {
                let object = format!("function {name} in {VMLINUX}");
                Error::new("look-up", object, io::ErrorKind::NotFound.into())
            },
        )
    }
}

fn unreadable(error: &btf_rs::Error) -> Error {
    Error::new("parse", VMLINUX, io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
