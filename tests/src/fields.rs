//! A kernel that has called a field otherwise: just those faults are refused that read it, by its name, and the doctor says so.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use chaos_user::kernel::{
    btf::VMLINUX,
    fields::{self, Field},
    mechanism::Mechanism as M,
};
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;

use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::{Need, Test, is_gate, is_spared},
    inventory::Inventory,
    lab::{Lab, NEAR_DEVICE},
};

const OF_MODULES_NEED: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::Mechanism(M::Lsm)];
const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Need::CgroupConnect, Need::CgroupSock];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("fields::called_otherwise", everywhere).needs(NEEDS).timeout(600).once().waits().slow(),
    // What no other fault reads.
    Test::new("fields::called_otherwise_for_modules", for_modules)
        .needs(OF_MODULES_NEED)
        .timeout(200)
        .once()
        .waits(),
];

/// A fault, in whose line `DEVICE`, `CGROUP` and `PID` stand for what is there; and the fields that its programs read, by the
/// names that they have today.
struct Fault {
    line: &'static str,
    reads: &'static [&'static [&'static str]],
}

impl Fault {
    fn reads(&self, name: &str) -> bool {
        self.reads.iter().any(|names| names.contains(&name))
    }
}

/// Who makes a call, and whether that is Faultline.
const CALLER: &[&str] = &[
    "task_struct.tgid",
    "task_struct.flags",
    "task_struct.mm",
    "task_struct.cred",
    "task_struct.real_cred",
    "mm_struct.exe_file",
    "file.f_inode",
    "inode.i_sb",
    "inode.i_ino",
    "inode.i_generation",
    "super_block.s_dev",
];
/// The file that a descriptor is of.
const DESCRIPTOR: &[&str] = &["task_struct.files", "files_struct.fdt", "fdtable.fd", "fdtable.max_fds"];
/// The file itself, as soon as anything of it decides.
const FILE: &[&str] = &["file.f_path.dentry", "path.dentry", "file.f_flags"];
/// In which folders it is.
const FOLDERS: &[&str] = &["dentry.d_inode", "dentry.d_parent"];
/// On what it is, which a new file has from its folder.
const FILE_SYSTEM: &[&str] =
    &["dentry.d_inode", "dentry.d_parent", "super_block.s_type", "file_system_type.name"];
/// The name that a file has in its own file system, whoever has opened it.
const LAYER: &[&str] = &["inode.i_dentry", "dentry.d_alias"];
/// Whether a write makes a file longer.
const SIZE: &[&str] = &["inode.i_mode", "inode.i_size", "file.f_pos"];
/// In which cgroup a socket is.
const SOCKET: &[&str] =
    &["sock.sk_cgrp_data", "cgroup.level", "cgroup.ancestors", "cgroup.kn", "kernfs_node.id"];

const FAULTS: &[Fault] = &[
    Fault { line: "net loss 1% --dev DEVICE", reads: &[] },
    Fault {
        line: "net loss 1% --dev DEVICE --pid PID",
        reads: &[&["task_struct.tgid", "task_struct.real_parent"]],
    },
    Fault { line: "net loss 1% --dev DEVICE --direction in --cgroup CGROUP", reads: &[SOCKET] },
    Fault { line: "net refuse --cgroup CGROUP", reads: &[&["task_struct.tgid"]] },
    Fault { line: "sys delay getpid 1us --cgroup CGROUP", reads: &[CALLER, DESCRIPTOR] },
    Fault { line: "io delay 1us --ops read --cgroup CGROUP", reads: &[CALLER, DESCRIPTOR] },
    Fault {
        line: "io delay 1us --ops read --pid PID",
        reads: &[CALLER, DESCRIPTOR, &["task_struct.pid", "task_struct.signal", "signal_struct.live"]],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --path /run",
        reads: &[CALLER, DESCRIPTOR, FILE, FOLDERS],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --path /run/*.db",
        reads: &[CALLER, DESCRIPTOR, FILE, FOLDERS, &["dentry.d_name.name", "dentry.d_name.len"]],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --uid 12345",
        reads: &[CALLER, DESCRIPTOR, &["cred.euid"]],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --comm nobody",
        reads: &[CALLER, DESCRIPTOR, &["task_struct.comm"]],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --fstype tmpfs",
        reads: &[CALLER, DESCRIPTOR, FILE, FILE_SYSTEM],
    },
    Fault {
        line: "io delay 1us --ops read --cgroup CGROUP --open-flags O_APPEND",
        reads: &[CALLER, DESCRIPTOR, FILE],
    },
    Fault {
        line: "time skew --offset +1h --cgroup CGROUP",
        reads: &[&["task_struct.tgid", "task_struct.flags", "task_struct.mm", "mm_struct.context.vdso"]],
    },
];

/// Those that a machine under lockdown does not have: at the hooks of the security modules, and what is written to a process.
const OF_MODULES: &[Fault] = &[
    Fault { line: "io error EIO --ops open --cgroup CGROUP --path /run --by lsm", reads: &[CALLER, LAYER] },
    Fault {
        line: "io error EIO --ops read --cgroup CGROUP --path /run --by lsm",
        reads: &[CALLER, LAYER, &["inode.i_mode"]],
    },
    // Where all that system calls read is rewritten, nobody is asked who makes them; without `--by` it is only said that what
    // these read is right.
    Fault { line: "time skew --offset +1h --cgroup CGROUP --by fexit", reads: &[] },
    Fault { line: "io full --cgroup CGROUP", reads: &[CALLER, SIZE] },
    Fault { line: "io full --cgroup CGROUP --path /run --by lsm", reads: &[CALLER, SIZE, LAYER] },
    Fault {
        line: "deny --ops exec --cgroup CGROUP --path /run --by lsm",
        reads: &[CALLER, LAYER, &["linux_binprm.file"]],
    },
];

/// Of which structure, and all names that it has.
type Names = (&'static str, &'static [&'static str]);

/// Each field, by its name today.
fn fields() -> BTreeMap<String, Names> {
    fn of<T>(fields: &[Field<T>], to: &mut BTreeMap<String, Names>) {
        let named = |field: &Field<T>| {
            (format!("{}.{}", field.structure, field.paths[0]), (field.structure, field.paths))
        };
        to.extend(fields.iter().map(named));
    }
    let mut all = BTreeMap::new();
    of(fields::OF_CALLS, &mut all);
    of(fields::OF_FILES, &mut all);
    of(fields::OF_CLOCKS, &mut all);
    of(fields::OF_RAW_CLOCKS, &mut all);
    of(fields::OF_PROCESSES, &mut all);
    of(fields::OF_CGROUPS, &mut all);
    all
}

fn everywhere() -> Result {
    called_otherwise(FAULTS, some(fields().into_iter())?)
}

/// The gate has time for some of the fields, and each guest for half of them: an even or an odd kernel for the one or the other.
fn some<T>(fields: impl Iterator<Item = T>) -> Result<impl Iterator<Item = T>> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(RELEASE).context(RELEASE)?;
    let numbers = release.split(|letter: char| !letter.is_ascii_digit()).take(2);
    let sum: usize = numbers.filter_map(|number| number.parse::<usize>().ok()).sum();
    let (first, step) = match (is_gate(), is_spared()) {
        (true, _) => (0, 5),
        (false, true) => (sum % 2, 2),
        (false, false) => (0, 1),
    };
    Ok(fields.skip(first).step_by(step))
}

/// The fields that these faults alone read, and one that all do.
fn for_modules() -> Result {
    let is_elsewhere = |name: &str| FAULTS.iter().any(|fault| fault.reads(name));
    let fields = fields().into_iter().filter(|(name, _)| !is_elsewhere(name) || name == "inode.i_sb");
    called_otherwise(OF_MODULES, some(fields)?)
}

fn called_otherwise(faults: &'static [Fault], fields: impl Iterator<Item = (String, Names)>) -> Result {
    let lab = Lab::new()?;
    let cgroup = Cgroup::new()?;
    let inhabitant = cgroup.inhabit_in(&lab.near, |_| {})?;
    let before = Inventory::settled(&[&lab.near])?;
    let types = fs::read(VMLINUX).context(VMLINUX)?;
    let run = |line: &str| {
        let (pid, folder) = (inhabitant.pid().to_string(), cgroup.path().display().to_string());
        let words: Vec<&str> = line
            .split(' ')
            .map(|word| match word {
                "DEVICE" => NEAR_DEVICE,
                "CGROUP" => &folder,
                "PID" => &pid,
                word => word,
            })
            .chain(["--for", "1ms"])
            .collect();
        lab.near.run(|| Faultline::run(&words))
    };
    // Those that can be had here at all.
    let mut had = Vec::new();
    for fault in faults {
        let exit = run(fault.line)?;
        match exit.code {
            Some(0 | 5) => had.push(fault),
            Some(3) => println!("not here: {}: {}", fault.line, exit.stderr.trim()),
            _ => return Err(Failure::new(format!("{}: {exit:?}", fault.line))),
        }
    }
    ensure!(!had.is_empty(), "none of the faults can be had here");
    let mut wrong = Vec::new();
    for (name, (structure, paths)) in fields {
        let without = without(&types, structure, paths).context(&name)?;
        let is_said = |text: &str| paths.iter().any(|path| text.contains(&format!("{structure}.{path}")));
        let refused = with_types(&without, || {
            let doctor = Faultline::run(&["doctor", "--json"])?;
            let report: Value = serde_json::from_str(&doctor.stdout).context("the doctor's report")?;
            let says_so = |finding: &Value| {
                finding["mechanism"].as_str().is_some_and(|it| it.ends_with("_fields"))
                    && finding["state"] == "missing"
                    && finding["cause"].as_str().is_some_and(is_said)
            };
            let found = report["mechanisms"].as_array().context("mechanisms")?;
            ensure!(found.iter().any(says_so), "the doctor does not say that there is no {name}: {found:?}");
            let mut refused = Vec::new();
            for fault in &had {
                let exit = run(fault.line)?;
                match exit.code {
                    Some(0 | 5) => {}
                    Some(3) if is_said(&exit.stderr) => refused.push(fault.line),
                    _ => return Err(Failure::new(format!("{} without {name}: {exit:?}", fault.line))),
                }
            }
            Ok(refused)
        })?;
        for fault in &had {
            let expected = fault.reads(&name);
            if refused.contains(&fault.line) != expected {
                let was = if expected { "made" } else { "refused" };
                wrong.push(format!("{}, without {name}: {was}", fault.line));
            }
        }
    }
    before.wait_until_equal(&[&lab.near], Duration::from_secs(5))?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Does something where the kernel's types are these.
fn with_types<T>(types: &[u8], action: impl FnOnce() -> Result<T>) -> Result<T> {
    const NONE: Option<&str> = None;
    let file = Path::new("/run/types");
    fs::write(file, types).context("write")?;
    mount(Some(file), VMLINUX, NONE, MsFlags::MS_BIND, NONE).context("bind")?;
    let done = action();
    umount(VMLINUX).context("umount")?;
    fs::remove_file(file).context("remove")?;
    done
}

/// BTF in which a member of a structure, by any of these names, is called otherwise. `Documentation/bpf/btf.rst`.
fn without(types: &[u8], structure: &str, paths: &[&str]) -> Result<Vec<u8>> {
    let btf = Types::read(types)?;
    let called = btf.strings_length;
    let mut changed = types.to_vec();
    changed.extend(b"fl_otherwise\0");
    changed[20..24].copy_from_slice(&(called + 13).to_ne_bytes());
    let mut count = 0;
    for place in btf.structures(structure)? {
        for path in paths {
            let mut within = place;
            let mut names = path.split('.').peekable();
            while let Some(name) = names.next() {
                let Some(member) = btf.member(within, name)? else { break };
                if names.peek().is_some() {
                    within = btf.of_member(member)?.context("no structure")?;
                } else {
                    changed[member..member + 4].copy_from_slice(&called.to_ne_bytes());
                    count += 1;
                }
            }
        }
    }
    ensure!(count > 0, "there is none");
    Ok(changed)
}

/// The kinds of types that have members, or are another's with something about it.
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const RESTRICT: u32 = 11;
}

/// BTF, and where in it each type lies, by its number.
struct Types<'a> {
    bytes: &'a [u8],
    strings: usize,
    strings_length: u32,
    places: Vec<usize>,
}

impl<'a> Types<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut types = Self { bytes, strings: 0, strings_length: 0, places: vec![0] };
        let [header, first, length, strings] =
            [types.word(4)?, types.word(8)?, types.word(12)?, types.word(16)?].map(|word| word as usize);
        types.strings = header + strings;
        types.strings_length = types.word(20)?;
        let mut place = header + first;
        while place < header + first + length {
            types.places.push(place);
            let count = types.members(place)?;
            place += 12
                + match types.kind(place)? {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    kind::STRUCT | kind::UNION | 15 | 19 => 12 * count,
                    6 | 13 => 8 * count,
                    _ => 0,
                };
        }
        Ok(types)
    }

    fn word(&self, place: usize) -> Result<u32> {
        let word = self.bytes.get(place..).and_then(<[u8]>::first_chunk).context("too short")?;
        Ok(u32::from_ne_bytes(*word))
    }

    fn kind(&self, place: usize) -> Result<u32> {
        Ok(self.word(place + 4)? >> 24 & 31)
    }

    fn members(&self, place: usize) -> Result<usize> {
        Ok((self.word(place + 4)? & 0xffff) as usize)
    }

    /// The name that a type or a member begins with.
    fn name(&self, place: usize) -> Result<&'a [u8]> {
        let text = self.bytes.get(self.strings + self.word(place)? as usize..).context("too short")?;
        Ok(text.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    fn structures(&self, name: &str) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for place in &self.places[1..] {
            if self.kind(*place)? == kind::STRUCT && self.name(*place)? == name.as_bytes() {
                found.push(*place);
            }
        }
        Ok(found)
    }

    /// The member of this name, also of a part without one.
    fn member(&self, of: usize, name: &str) -> Result<Option<usize>> {
        for member in (0..self.members(of)?).map(|number| of + 12 + 12 * number) {
            let found = self.name(member)?;
            if found == name.as_bytes() {
                return Ok(Some(member));
            }
            if found.is_empty()
                && let Some(part) = self.of_member(member)?
                && let Some(found) = self.member(part, name)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What a member is, if that has members.
    fn of_member(&self, member: usize) -> Result<Option<usize>> {
        let mut place = member;
        loop {
            place = *self
                .places
                .get(self.word(place + if place == member { 4 } else { 8 })? as usize)
                .context("too far")?;
            match self.kind(place)? {
                kind::STRUCT | kind::UNION => return Ok(Some(place)),
                kind::TYPEDEF..=kind::RESTRICT => {}
                _ => return Ok(None),
            }
        }
    }
}
