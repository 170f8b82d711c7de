//! The fields of the kernel's structures that programs read, how each is found, and what is said of one that is not.
//!
//! A field that this kernel has not is [`MISSING`], and the verifier refuses just those programs that read it: see
//! [`chaos_ebpf::field`].

use std::io;

use serde::Serialize;

use chaos_ebpf::{
    abi::{CgroupOffsets, Setup},
    call::Offsets,
    field::{MISSING, REFUSED},
};

use super::{
    Error, Result,
    btf::{KernelTypes, VMLINUX},
};

/// A field of a structure, and where its place is written down.
pub struct Field<T> {
    /// Of which structure.
    pub structure: &'static str,
    /// Its name, and those that it has on other kernels: the first that is there. With a dot, a field of that field; one in a part
    /// without a name is found by its own name.
    pub paths: &'static [&'static str],
    set: fn(&mut T, u32),
}

macro_rules! fields {
    ($($place:ident: $structure:literal $($path:literal)|+,)+) => {
        &[$(Field {
            structure: $structure,
            paths: &[$($path),+],
            set: |to, offset| to.$place = offset,
        }),+]
    };
}

/// What each fault of calls reads: who makes the call, whether that is Faultline itself, and which file a descriptor is of.
pub const OF_CALLS: &[Field<Offsets>] = fields! {
    task_tgid: "task_struct" "tgid",
    task_flags: "task_struct" "flags",
    task_mm: "task_struct" "mm",
    task_cred: "task_struct" "cred",
    task_real_cred: "task_struct" "real_cred",
    task_files: "task_struct" "files",
    mm_exe_file: "mm_struct" "exe_file",
    files_fdt: "files_struct" "fdt",
    fdt_fd: "fdtable" "fd",
    fdt_max_fds: "fdtable" "max_fds",
    file_inode: "file" "f_inode",
    inode_sb: "inode" "i_sb",
    inode_number: "inode" "i_ino",
    inode_generation: "inode" "i_generation",
    sb_dev: "super_block" "s_dev",
};

/// What those read that are told by their file, by who makes them or by what they would do to it.
pub const OF_FILES: &[Field<Offsets>] = fields! {
    task_pid: "task_struct" "pid",
    task_signal: "task_struct" "signal",
    signal_live: "signal_struct" "live",
    task_comm: "task_struct" "comm",
    cred_euid: "cred" "euid",
    file_dentry: "file" "f_path.dentry",
    file_flags: "file" "f_flags",
    file_pos: "file" "f_pos",
    path_dentry: "path" "dentry",
    dentry_parent: "dentry" "d_parent",
    dentry_inode: "dentry" "d_inode",
    dentry_name: "dentry" "d_name.name",
    dentry_length: "dentry" "d_name.len",
    // In a part without a name since Linux 7.1.
    dentry_alias: "dentry" "d_alias" | "d_u.d_alias",
    inode_mode: "inode" "i_mode",
    inode_size: "inode" "i_size",
    inode_names: "inode" "i_dentry",
    sb_type: "super_block" "s_type",
    type_name: "file_system_type" "name",
    exec_file: "linux_binprm" "file",
};

/// What faults of clocks read.
pub const OF_CLOCKS: &[Field<Offsets>] = fields! {
    task_tgid: "task_struct" "tgid",
    task_flags: "task_struct" "flags",
    task_mm: "task_struct" "mm",
    mm_vdso: "mm_struct" "context.vdso",
};

/// What those read besides that rewrite what system calls read.
pub const OF_RAW_CLOCKS: &[Field<Offsets>] = fields! {
    mm_vdso_image: "mm_struct" "context.vdso_image",
    image_size: "vdso_image" "size",
};

/// What faults of packets read that are of a process, and `net refuse`.
pub const OF_PROCESSES: &[Field<Setup>] = fields! {
    tgid_offset: "task_struct" "tgid",
    parent_offset: "task_struct" "real_parent",
};

/// What faults of packets read that are of a cgroup.
pub const OF_CGROUPS: &[Field<CgroupOffsets>] = fields! {
    of_socket: "sock" "sk_cgrp_data",
    level: "cgroup" "level",
    ancestors: "cgroup" "ancestors",
    node: "cgroup" "kn",
    node_id: "kernfs_node" "id",
};

/// Writes down where the running kernel has these; [`MISSING`] for one that it has not.
///
/// # Errors
///
/// If its types cannot be read.
pub fn look_up<T>(fields: &[Field<T>], types: &KernelTypes, to: &mut T) -> Result<()> {
    for field in fields {
        (field.set)(to, field.find(types)?.map_or(MISSING, |(_, offset)| offset));
    }
    Ok(())
}

/// Those of these that the running kernel has not, as they are written in C.
///
/// # Errors
///
/// If its types cannot be read.
pub fn missing<T>(fields: &[Field<T>], types: &KernelTypes) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for field in fields {
        if field.find(types)?.is_none() {
            names.push(field.name());
        }
    }
    Ok(names)
}

/// A field, and how it is found on this kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// As it is written in C.
    pub field: String,
    /// The name that it has here; nothing if there is none.
    pub path: Option<&'static str>,
    /// How many bytes lie before it.
    pub offset: Option<u32>,
}

/// All fields that are read.
///
/// # Errors
///
/// If the running kernel's types cannot be read.
pub fn places(types: &KernelTypes) -> Result<Vec<Place>> {
    fn of<T>(fields: &[Field<T>], types: &KernelTypes, to: &mut Vec<Place>) -> Result<()> {
        for field in fields {
            let found = field.find(types)?;
            let place = Place {
                field: format!("{}.{}", field.structure, field.paths.first().unwrap_or(&"")),
                path: found.map(|(path, _)| path),
                offset: found.map(|(_, offset)| offset),
            };
            if !to.contains(&place) {
                to.push(place);
            }
        }
        Ok(())
    }
    let mut places = Vec::new();
    of(OF_CALLS, types, &mut places)?;
    of(OF_FILES, types, &mut places)?;
    of(OF_CLOCKS, types, &mut places)?;
    of(OF_RAW_CLOCKS, types, &mut places)?;
    of(OF_PROCESSES, types, &mut places)?;
    of(OF_CGROUPS, types, &mut places)?;
    Ok(places)
}

/// What is to be said of a program that was not loaded: if it reads a field that there is none of, that.
pub(super) fn explain(error: Error, types: &KernelTypes) -> Error {
    if !error.object.contains(&format!("unknown#{REFUSED}")) {
        return error;
    }
    let missing = places(types).unwrap_or_default().into_iter().filter(|place| place.offset.is_none());
    let names: Vec<String> = missing.map(|place| place.field).collect();
    Error::new("look-up", format!("{} in {VMLINUX}", names.join(", ")), io::ErrorKind::NotFound.into())
}

impl<T> Field<T> {
    /// The name by which it is found, and its offset.
    fn find(&self, types: &KernelTypes) -> Result<Option<(&'static str, u32)>> {
        for path in self.paths {
            if let Some(offset) = types.offset(self.structure, path)? {
                return Ok(Some((path, offset)));
            }
        }
        Ok(None)
    }

    fn name(&self) -> String {
        let names = self.paths.iter().map(|path| format!("{}.{path}", self.structure));
        names.collect::<Vec<_>>().join(" or ")
    }
}
