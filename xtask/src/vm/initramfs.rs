//! The guest's first root file system, in two archives, one after the other.
//!
//! The *base* changes with the kernel and the host's tools: busybox, `ip` and `tc` with their libraries, modules. It
//! is cached. The *run* changes every time: init, the command, the binaries under test. Neither is compressed:
//! the file reaches the guest's memory at the host's speed, unpacking it there would run at the emulator's.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::cpio::Archive;
use super::kernels::Kernel;
use super::modules::{BUILTIN, Tree};

/// Where everything of ours is in a guest, whatever its root file system.
pub(crate) const HOME: &str = "/opt/faultline";

/// The program the kernel starts.
pub(crate) const INIT: &str = "/opt/faultline/init";

const INIT_SCRIPT: &str = include_str!("init.sh");

/// Modules every guest loads. Interfaces are made by those who want them, never by loading a module.
const NETWORK_MODULES: &[&str] = &[
    "sch_fq",
    "sch_netem",
    "sch_ingress",
    "sch_htb",
    "sch_tbf",
    "sch_prio",
    "cls_bpf",
    "cls_flower",
    "cls_matchall",
    "act_mirred",
    "act_bpf",
    "veth",
    "ifb",
    "dummy",
    "tun",
    "tcp_diag",
    "8021q",
];

/// Modules with which there are block devices, and a file system for them.
const BLOCK_MODULES: &[&str] = &["null_blk", "loop", "ext4"];

/// Modules for guests that see the host's files.
const HOST_ROOT_MODULES: &[&str] = &["virtio_pci", "virtiofs", "overlay"];

/// Parameters of modules, be they loaded or built in: no interface that nobody made, and two disks that keep nothing.
const MODULE_PARAMETERS: &[(&str, &str)] =
    &[("ifb", "numifbs=0"), ("dummy", "numdummies=0"), ("null_blk", "nr_devices=2")];

/// Programs of the host copied into the guest with their libraries.
const PROGRAMS: &[&str] = &["bash", "ip", "tc"];

/// Folders that are links into `/usr` in the guest, as on every current distribution.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

/// Small files that programs expect.
const ETC: &[(&str, &str)] = &[
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost guest\n::1 localhost\n"),
];

/// What differs from run to run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) kernel: &'a Kernel,
    /// A shell script; `None` asks for an interactive shell.
    pub(crate) command: Option<&'a str>,
    /// Put into the guest's search path under their own names.
    pub(crate) binaries: &'a [PathBuf],
    pub(crate) host_root: bool,
    /// From starting QEMU to killing it; a shell has all the time it wants.
    pub(crate) deadline: Duration,
}

/// What the kernel's command line says to modules that are built in.
pub(crate) fn builtin_parameters() -> String {
    let parameters = MODULE_PARAMETERS.iter().map(|(module, parameters)| format!("{module}.{parameters}"));
    parameters.collect::<Vec<_>>().join(" ")
}

/// The base archive of a kernel: built unless `cache` has one made from the same things.
pub(crate) fn base(kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
    let path = cache.join(format!("{}.cpio", kernel.name));
    let key_path = path.with_extension("key");
    let key = base_key(kernel)?;
    if path.is_file() && fs::read_to_string(&key_path).is_ok_and(|old| old == key) {
        return Ok(path);
    }
    let mut archive = Archive::default();
    add_skeleton(&mut archive);
    for program in PROGRAMS {
        add_program(&mut archive, program)?;
    }
    archive.symlink("/usr/bin/sh", "bash");
    add_busybox(&mut archive)?;
    add_modules(&mut archive, kernel)?;
    write_whole(&path, |out| archive.write(out))?;
    fs::write(&key_path, key).with_context(|| format!("writing {}", key_path.display()))?;
    Ok(path)
}

/// Writes the initrd of one run: the base, then what differs.
pub(crate) fn assemble(base: &Path, run: &Run<'_>, to: &Path) -> Result<()> {
    let mut archive = Archive::default();
    archive.file(INIT, 0o755, INIT_SCRIPT);
    archive.file(&format!("{HOME}/config"), 0o644, config(run));
    archive.file(&format!("{HOME}/command"), 0o644, run.command.unwrap_or_default());
    for binary in run.binaries {
        let name = binary.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| anyhow!("{} has no usable file name", binary.display()))?;
        archive.program(&format!("{HOME}/bin/{name}"), binary)?;
    }
    write_whole(to, |out| {
        let mut base_file = File::open(base).with_context(|| format!("opening {}", base.display()))?;
        io::copy(&mut base_file, out).with_context(|| format!("copying {}", base.display()))?;
        archive.write(out)
    })
}

/// Settings as init reads them: a shell fragment, values quoted.
fn config(run: &Run<'_>) -> String {
    let name = run.kernel.name.replace('\'', "");
    let host_root = u8::from(run.host_root);
    let shell = u8::from(run.command.is_none());
    let deadline = run.deadline.as_secs();
    format!("KERNEL='{name}'\nHOST_ROOT={host_root}\nSHELL_WANTED={shell}\nDEADLINE={deadline}\n")
}

/// Everything the base is made from, as text. Its own source is among it: a changed list is a changed base.
fn base_key(kernel: &Kernel) -> Result<String> {
    let mut files = vec![find_program("busybox")?, kernel.image.clone()];
    for program in PROGRAMS {
        files.push(find_program(program)?);
    }
    files.extend(kernel.modules.iter().map(|dir| dir.join(BUILTIN)).filter(|list| list.is_file()));
    let mut key = format!(
        "{NETWORK_MODULES:?}\n{BLOCK_MODULES:?}\n{HOST_ROOT_MODULES:?}\n{MODULE_PARAMETERS:?}\n{ETC:?}\n"
    );
    for file in files {
        let metadata = fs::metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
        let modified = metadata.modified().with_context(|| format!("looking at {}", file.display()))?;
        // Writing to a String cannot fail.
        let _ = writeln!(key, "{} {} {modified:?}", file.display(), metadata.len());
    }
    Ok(key)
}

fn add_skeleton(archive: &mut Archive) {
    for dir in [
        "/proc",
        "/sys",
        "/dev",
        "/run",
        "/tmp",
        "/mnt",
        "/root",
        "/var/tmp",
        "/usr/bin",
        "/opt/faultline/bin",
    ] {
        archive.dir(dir);
    }
    for name in MERGED {
        archive.dir(&format!("/usr/{name}"));
        archive.symlink(&format!("/{name}"), &format!("usr/{name}"));
    }
    for (path, contents) in ETC {
        archive.file(path, 0o644, *contents);
    }
}

/// busybox, and a link for each of its applets whose name is not taken.
fn add_busybox(archive: &mut Archive) -> Result<()> {
    let busybox = find_program("busybox")?;
    if !libraries(&busybox)?.is_empty() {
        bail!("{} is not static: install the package busybox-static", busybox.display());
    }
    let target = format!("{HOME}/busybox");
    archive.program(&target, &busybox)?;
    let output = Command::new(&busybox).arg("--list").output().context("running busybox --list")?;
    for applet in String::from_utf8_lossy(&output.stdout).lines() {
        let taken = ["bin", "sbin"].iter().any(|dir| archive.contains(&format!("/usr/{dir}/{applet}")));
        if !taken {
            archive.symlink(&format!("/usr/bin/{applet}"), &target);
        }
    }
    Ok(())
}

/// A program of the host and the libraries it is linked to, where the loader will look for them.
fn add_program(archive: &mut Archive, name: &str) -> Result<()> {
    let program = find_program(name)?;
    for library in libraries(&program)? {
        let path = in_usr(&library);
        if !archive.contains(&path) {
            archive.program(&path, &library)?;
        }
    }
    archive.program(&format!("/usr/bin/{name}"), &program)
}

/// The modules, and for each list the order in which they load.
fn add_modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let tree = kernel.modules.as_deref().map(Tree::read).transpose()?;
    let mut done = BTreeSet::new();
    let lists = [("host-root", HOST_ROOT_MODULES), ("network", NETWORK_MODULES), ("block", BLOCK_MODULES)];
    for (list, names) in lists {
        let mut lines = String::new();
        // A kernel without modules has built in whatever it has.
        let plan = tree.as_ref().map(|tree| tree.plan(names)).transpose()?.unwrap_or_default();
        if !plan.absent.is_empty() {
            eprintln!("kernel {} has no module {}", kernel.name, plan.absent.join(", "));
        }
        for module in plan.load {
            let parameters = MODULE_PARAMETERS.iter().find(|(name, _)| *name == module.name);
            let parameters = parameters.map_or("", |(_, parameters)| parameters);
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{} {parameters}", module.name);
            if done.insert(module.name.clone()) {
                archive.file(&format!("{HOME}/modules/{}.ko", module.name), 0o644, module.data);
            }
        }
        archive.file(&format!("{HOME}/modules/{list}"), 0o644, lines);
    }
    Ok(())
}

/// Where a program is; `/usr/sbin` and `/sbin` count even where the search path leaves them out.
pub(crate) fn find_program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| anyhow!("{name} is not installed"))
}

/// The shared libraries of a program, its loader included; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), line.trim());
    }
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

/// `/lib/x.so` is `/usr/lib/x.so` in the guest, where `/lib` is a link.
fn in_usr(path: &Path) -> String {
    let first = path.components().find_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let merged = first.is_some_and(|first| MERGED.contains(&first));
    format!("{}{}", if merged { "/usr" } else { "" }, path.display())
}

/// Writes a file that is either whole or not there.
fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let partial = path.with_added_extension("partial");
    let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    out.flush().with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming {}", partial.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_land_in_usr() {
        assert_eq!(in_usr(Path::new("/lib64/ld-linux-x86-64.so.2")), "/usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(in_usr(Path::new("/usr/lib/libz.so.1")), "/usr/lib/libz.so.1");
    }
}
