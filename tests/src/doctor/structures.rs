//! Where the fields lie that programs read: this process is found again by them.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_func_id;
use chaos_user::kernel::{
    btf::KernelTypes,
    probe::{
        flag::{Flag, load_raw, run_here},
        insn::Code,
    },
};
use nix::unistd::getppid;

use crate::{
    cgroup, ensure,
    error::{Context, Result},
};

/// What a program reads of this thread's structure, or elsewhere: eight bytes.
enum Place {
    OfThread(u32),
    At(u64),
}

fn read(place: Place) -> Result<u64> {
    let flag = Flag::new()?;
    let code = match place {
        Place::OfThread(offset) => Code::default()
            .call(bpf_func_id::BPF_FUNC_get_current_task)
            .copy(3, 0)
            .add(3, offset.cast_signed()),
        Place::At(address) => Code::default().set_wide(3, address),
    };
    let code = code
        .set_value(1, flag.as_fd())
        .set(2, 8)
        .call(bpf_func_id::BPF_FUNC_probe_read_kernel)
        .exit_with_result();
    let result = run_here(&load_raw("fl_test_read", &code)?)?;
    ensure!(result == 0, "bpf_probe_read_kernel: {}", result.cast_signed());
    Ok(flag.get()?)
}

fn offset(structure: &str, field: &str) -> Result<u32> {
    KernelTypes::read()?.offset(structure, field)?.context(format_args!("{structure}.{field}"))
}

/// A field of this thread's.
fn own(field: &str) -> Result<u64> {
    read(Place::OfThread(offset("task_struct", field)?))
}

/// A field of what lies there.
fn of(address: u64, structure: &str, field: &str) -> Result<u64> {
    read(Place::At(address + u64::from(offset(structure, field)?)))
}

/// The program that runs.
pub(super) fn of_calls() -> Result {
    let file = of(own("mm")?, "mm_struct", "exe_file")?;
    let number = of(of(file, "file", "f_inode")?, "inode", "i_ino")?;
    let expected = fs::metadata("/proc/self/exe").context("stat")?.ino();
    ensure!(number == expected, "inode {number}, not {expected}");
    Ok(())
}

/// The name of an open file.
pub(super) fn of_files() -> Result {
    const NAME: &str = "/proc/self/mountinfo";
    let open = fs::File::open(NAME).context(NAME)?;
    let table = of(own("files")?, "files_struct", "fdt")?;
    let files = of(table, "fdtable", "fd")?;
    let file = read(Place::At(files + 8 * open.as_raw_fd() as u64))?;
    let dentry = of(file, "file", "f_path.dentry")?;
    let name = read(Place::At(of(dentry, "dentry", "d_name.name")?))?.to_ne_bytes();
    let length = of(dentry, "dentry", "d_name.len")? as u32;
    let expected = Path::new(NAME).file_name().and_then(OsStr::to_str).context("a name")?;
    ensure!(
        expected.as_bytes().starts_with(&name) && length as usize == expected.len(),
        "{name:?}, of {length}"
    );
    Ok(())
}

/// The vDSO.
pub(super) fn of_clocks() -> Result {
    let found = of(own("mm")?, "mm_struct", "context.vdso")?;
    // SAFETY: takes and returns a number.
    let expected = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    ensure!(found == expected, "{found:#x}, not {expected:#x}");
    Ok(())
}

/// How long the vDSO is: as long as what is mapped.
pub(super) fn of_raw_clocks() -> Result {
    let image = of(own("mm")?, "mm_struct", "context.vdso_image")?;
    let found = of(image, "vdso_image", "size")?;
    let maps = fs::read_to_string("/proc/self/maps").context("maps")?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).context("a vDSO")?;
    let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
    let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap_or_default());
    ensure!(found == end - start, "{found}, not of {line}");
    Ok(())
}

/// Who began this process.
pub(super) fn of_processes() -> Result {
    let found = of(own("real_parent")?, "task_struct", "tgid")? as u32;
    let expected = getppid().as_raw().cast_unsigned();
    ensure!(found == expected, "process {found}, not {expected}");
    Ok(())
}

/// The cgroup that this process is in.
pub(super) fn of_cgroups() -> Result {
    let cgroup = of(own("cgroups")?, "css_set", "dfl_cgrp")?;
    let level = of(cgroup, "cgroup", "level")? as u32;
    let itself = read(Place::At(cgroup + u64::from(offset("cgroup", "ancestors")?) + 8 * u64::from(level)))?;
    let number = of(of(cgroup, "cgroup", "kn")?, "kernfs_node", "id")?;
    let folder = cgroup::own()?;
    let expected = fs::metadata(&folder).context("stat")?.ino();
    ensure!(
        (itself, number) == (cgroup, expected),
        "{cgroup:#x} of level {level} is {itself:#x}; {number}, not {expected}"
    );
    Ok(())
}
