//! Kernel modules for a guest: which file holds a module, what it needs first, in which order to load.
//!
//! Debian's packages carry no `modules.dep` (depmod writes it when they are installed, which we do not), and a
//! host need not have depmod. Every module says itself what it depends on, so it is read there: the `.modinfo`
//! section is a run of NUL-terminated `key=value` strings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The list of modules that are built in.
pub(crate) const BUILTIN: &str = "modules.builtin";

/// A module to load, in uncompressed form.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// Modules in the order in which they load, and the names this kernel does not have.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) load: Vec<Module>,
    pub(crate) absent: Vec<String>,
}

/// The modules of one kernel: `lib/modules/RELEASE`.
#[derive(Debug)]
pub(crate) struct Tree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Lists the modules in a folder.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&dir.join("kernel"), &mut files)?;
        // Debian's packages of 7.2 have no such list: what is not there is built in, or absent.
        let builtin = fs::read_to_string(dir.join(BUILTIN)).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, builtin })
    }

    /// The named modules with everything they depend on, dependencies first.
    pub(crate) fn plan(&self, names: &[&str]) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(name, &mut seen, &mut plan)?;
        }
        Ok(plan)
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, plan: &mut Plan) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name) else {
            plan.absent.push(name);
            return Ok(());
        };
        let data = read_module(file)?;
        for dependency in dependencies(&data) {
            self.visit(&dependency, seen, plan)?;
        }
        plan.load.push(Module { name, data });
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sched/sch_fq.ko.xz` is the module `sch_fq`; `-` and `_` are the same in module names.
fn module_name(path: &Path) -> Option<String> {
    let (name, _compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The module's bytes, unpacked: what a guest's `insmod` can load whatever its kernel can decompress.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| format!("reading {}", path.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: unknown compression", path.display()),
    };
    let output =
        Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("running {tool}"))?;
    if !output.status.success() {
        bail!("{tool} -dc {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The value of `depends=` in the module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_folder_compression_and_dashes() {
        let name = module_name(Path::new("kernel/net/8021q/8021q.ko.xz"));
        assert_eq!(name.as_deref(), Some("8021q"));
        assert_eq!(module_name(Path::new("a/nf-tables.ko")).as_deref(), Some("nf_tables"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"ELF\0license=GPL\0depends=fuse,virtio\0name=virtiofs\0";
        assert_eq!(dependencies(module), ["fuse", "virtio"]);
        assert!(dependencies(b"\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
