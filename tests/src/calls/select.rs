//! Selectors other than paths: file system types, flags of open files, names of processes, users.

use std::{fs, os::unix::fs::MetadataExt};

use nix::mount::{MsFlags, mount};

use super::{
    LSM,
    fault::Fault,
    folder::Folder,
    operator::{Operator, Pair},
    path::{FAULT, Look, check, own_mounts},
    servant::Who,
};
use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::select_file_system_types", types).needs(LSM).timeout(60),
    Test::new("calls::select_open_flags", flags).needs(LSM).timeout(60),
    Test::new("calls::select_names_of_processes", names).needs(LSM).timeout(60),
    Test::new("calls::select_users", users).needs(LSM).timeout(60),
];

fn types() -> Result {
    own_mounts()?;
    let place = Folder::new()?;
    for kind in ["tmpfs", "ramfs"] {
        let at = place.folder(kind)?;
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), None::<&str>).context(kind)?;
        place.file(format!("{kind}/file"))?;
    }
    let pair = Pair::new()?;
    let [ram, tmp] = ["ramfs/file", "tmpfs/file"].map(|name| {
        let path = place.at(name);
        move |operator: &Operator| operator.reads(&path)
    });
    let device = |name: &str| {
        let number = fs::metadata(place.at(name)).context(name)?.dev();
        Ok::<_, Failure>(format!("--dev-block {}:{}", libc::major(number), libc::minor(number)))
    };
    let proc = |operator: &Operator| operator.reads("/proc/self/stat");
    for (rule, hit) in [
        ("--fstype ramfs", [true, false, false]),
        ("--fstype tmpfs", [false, true, false]),
        ("--fstype tmpfs --fstype ramfs", [true, true, false]),
        ("--fstype proc", [false, false, true]),
        ("--fstype ext3", [false, false, false]),
        (&device("ramfs")?, [true, false, false]),
        (&format!("{} {}", device("ramfs")?, device("tmpfs")?), [true, true, false]),
    ] {
        let looks: &[Look<'_>] = &[("ramfs", hit[0], &ram), ("tmpfs", hit[1], &tmp), ("proc", hit[2], &proc)];
        check(&pair, rule, looks)?;
    }
    Ok(())
}

fn flags() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let opened = |flags: i32| {
        let path = &path;
        move |operator: &Operator| {
            let fd = operator.open(path, flags)?;
            let read = operator.read(fd);
            operator.close(fd)?;
            read
        }
    };
    let [plain, append, dsync, sync] =
        [0, libc::O_APPEND, libc::O_DSYNC, libc::O_SYNC].map(|flags| opened(flags | libc::O_RDWR));
    for (rule, hit) in [
        ("--open-flags O_APPEND", [false, true, false, false]),
        ("--open-flags O_SYNC", [false, false, false, true]),
        ("--open-flags O_DSYNC", [false, false, true, true]),
        ("--open-flags O_APPEND,O_SYNC", [false; 4]),
        ("--open-flags O_DSYNC,O_RDWR", [false, false, true, true]),
    ] {
        let looks: &[Look<'_>] = &[
            ("without flags", hit[0], &plain),
            ("O_APPEND", hit[1], &append),
            ("O_DSYNC", hit[2], &dsync),
            ("O_SYNC", hit[3], &sync),
        ];
        check(&pair, &format!("--path {} {rule}", path.display()), looks)?;
    }
    Ok(())
}

/// Arms a rule on a file that names no cgroup, and looks who is hit.
fn who_is_hit(pair: &Pair, place: &Folder, rule: &str) -> Result<[i32; 3]> {
    let path = place.at("file");
    let opened = pair.target.open(&path, libc::O_RDONLY)?;
    let thread = || {
        let arguments = [opened, pair.target.buffer(0), 16, 0];
        pair.target.call_by(Who::Thread, libc::SYS_pread64, &arguments).map(super::operator::errno)
    };
    let look = || Ok([pair.target.read(opened)?, thread()?, pair.bystander.reads(&path)?]);
    ensure!(look()? == [0; 3], "before {rule}: {:?}", look());
    let fault = Fault::arm(&format!("{FAULT} --path {} {rule}", path.display()))?;
    let got = look();
    fault.end()?;
    ensure!(look()? == [0; 3], "after {rule}: {:?}", look());
    pair.target.close(opened)?;
    got
}

/// A thread's name is its own.
fn names() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    place.file("file")?;
    let name = pair.target.bytes(0, b"fl-by-name\0")?;
    pair.target.must("prctl", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name])?;
    for (rule, expected) in [
        ("--comm fl-by-name", [libc::EIO, 0, 0]),
        ("--comm nobody --comm fl-by-name", [libc::EIO, 0, 0]),
        ("--comm fl-by-nam", [0; 3]),
    ] {
        let got = who_is_hit(&pair, &place, rule)?;
        ensure!(got == expected, "{rule}: the thread, another, the bystander: {got:?}, not {expected:?}");
    }
    Ok(())
}

/// So is its user, where the call itself says so and not the C library.
fn users() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    place.file("file")?;
    let nobody = 65534;
    let opened = pair.target.open(place.at("file"), libc::O_RDONLY)?;
    pair.target.must("setresuid", libc::SYS_setresuid, &[nobody, nobody, nobody])?;
    pair.target.close(opened)?;
    for (rule, expected) in [
        ("--uid 65534", [libc::EIO, 0, 0]),
        ("--uid nobody", [libc::EIO, 0, 0]),
        ("--uid 65533", [0; 3]),
        ("--uid root", [0, libc::EIO, libc::EIO]),
        ("--uid 0 --uid 65534", [libc::EIO; 3]),
    ] {
        let got = who_is_hit(&pair, &place, rule)?;
        ensure!(got == expected, "{rule}: nobody, another thread, the bystander: {got:?}, not {expected:?}");
    }
    Ok(())
}
