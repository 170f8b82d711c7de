//! Paths where something is mounted: file systems below, on top of each other, and seen by the target alone.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::{
    super::{
        LSM,
        fault::Fault,
        folder::{CONTENT, Folder, write},
        operator::{Operator, Pair},
    },
    FAULT, Look, bind, check, own_mounts, reading,
};
use crate::{
    ensure,
    error::{Context, Result},
    harness::Test,
};

pub(in crate::calls) const TESTS: &[Test] = &[
    Test::new("calls::path_with_mounts_below", below).needs(LSM).timeout(60),
    Test::new("calls::path_on_overlayfs", overlay).needs(LSM).timeout(90),
    Test::new("calls::path_in_another_mount_namespace", namespace).needs(LSM).timeout(60),
    Test::new("calls::path_in_a_chroot", chroot).needs(LSM).timeout(60),
];

fn mount_tmpfs(at: &Path) -> Result {
    std::fs::create_dir_all(at).context(at.display())?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).context(at.display())
}

/// What is mounted below a folder is beneath it, and is so wherever else it can be seen.
fn below() -> Result {
    own_mounts()?;
    let place = Folder::new()?;
    for name in ["dir/file", "elsewhere/file"] {
        place.file(name)?;
    }
    mount_tmpfs(&place.at("dir/a/mounted"))?;
    mount_tmpfs(&place.at("beside"))?;
    mount_tmpfs(&place.at("dir/a/mounted/again"))?;
    for name in ["dir/a/mounted/sub/file", "dir/a/mounted/again/file", "beside/file"] {
        place.file(name)?;
    }
    bind(&place.at("elsewhere"), &place.at("dir/bound"))?;
    let pair = Pair::new()?;
    let by = |name: &str| reading(place.at(name));
    let looks: &[Look<'_>] = &[
        ("a file in it", true, &by("dir/file")),
        ("on a file system below", true, &by("dir/a/mounted/sub/file")),
        ("on one below that", true, &by("dir/a/mounted/again/file")),
        ("in a folder bound below", true, &by("dir/bound/file")),
        ("that folder itself", true, &by("elsewhere/file")),
        ("on a file system beside it", false, &by("beside/file")),
    ];
    check(&pair, &format!("--path {}", place.at("dir").display()), looks)?;
    // A mount point itself, and a folder on what is mounted there.
    let looks: &[Look<'_>] = &[
        ("on the file system", true, &by("dir/a/mounted/sub/file")),
        ("on one below that", false, &by("dir/a/mounted/again/file")),
        ("beside the mount point", false, &by("dir/file")),
    ];
    check(&pair, &format!("--path {}", place.at("dir/a/mounted/sub").display()), looks)?;
    Ok(())
}

/// Rules on the merged tree, on the lower and on the upper, and what each hits by which way.
fn overlay() -> Result {
    own_mounts()?;
    let place = Folder::new()?;
    mount_tmpfs(&place.at("layers"))?;
    let [lower, upper, work, merged] =
        ["layers/lower", "layers/upper", "layers/work", "merged"].map(|name| place.folder(name));
    let (lower, upper, work, merged) = (lower?, upper?, work?, merged?);
    for name in ["layers/lower/low", "layers/lower/dir/low", "layers/upper/up", "layers/upper/dir/up"] {
        place.file(name)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*options)).context("overlay")?;
    let pair = Pair::new()?;
    let by = |name: &str| reading(place.at(name));
    let [m_low, m_up, l_low, u_up] =
        ["merged/low", "merged/up", "layers/lower/low", "layers/upper/up"].map(by);
    let [m_dir_low, m_dir_up] = ["merged/dir/low", "merged/dir/up"].map(by);
    for (rule, hit) in [("merged/low", [true, false]), ("merged/up", [false, true]), ("merged", [true, true])]
    {
        let looks: &[Look<'_>] = &[
            ("a lower file, merged", hit[0], &m_low),
            ("an upper file, merged", hit[1], &m_up),
            ("a lower file itself", false, &l_low),
            ("an upper file itself", false, &u_up),
        ];
        check(&pair, &format!("--path {}", place.at(rule).display()), looks)?;
    }
    let looks: &[Look<'_>] = &[("low", true, &m_dir_low), ("up", true, &m_dir_up), ("beside", false, &m_low)];
    check(&pair, &format!("--path {}", merged.join("dir").display()), looks)?;
    // A layer's file is hit by its own name, and when overlayfs reads it for somebody who reads the merged one.
    for (rule, direct, through) in [("layers/lower/low", &l_low, &m_low), ("layers/upper/up", &u_up, &m_up)] {
        let rule = format!("--path {}", place.at(rule).display());
        let looks: &[Look<'_>] = &[
            ("the layer's file itself", true, direct),
            ("merged", true, through),
            ("another", false, if rule.ends_with("low") { &m_up } else { &m_low }),
        ];
        check(&pair, &rule, looks)?;
    }
    // Where no file is asked for, a read of the merged file is one read, not another of the layer's.
    check(&pair, "", &[("low", true, &m_low), ("up", true, &m_up)])?;
    Ok(())
}

/// A mount that only the target sees: the path is looked up as it sees it.
fn namespace() -> Result {
    own_mounts()?;
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let file = place.file("inner/file")?;
    let operator = &pair.target;
    operator.must("unshare", libc::SYS_unshare, &[libc::CLONE_NEWNS as u64])?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let root = operator.path(0, "/")?;
    operator.must("mount", libc::SYS_mount, &[0, root, 0, private, 0])?;
    let (kind, at) = (operator.path(0, "tmpfs")?, operator.path(1, place.at("inner"))?);
    operator.must("mount", libc::SYS_mount, &[kind, at, kind, 0, 0])?;
    let theirs = PathBuf::from(format!("/proc/{}/root{}", operator.pid(), file.display()));
    write(&theirs, CONTENT)?;
    let looks: &[Look<'_>] = &[("its own file", true, &|operator| operator.reads(&file))];
    check(&pair, &format!("--path {}", file.display()), looks)?;
    check(&pair, &format!("--path {}", place.at("inner").display()), looks)?;
    // By its number, with somebody in the same cgroup who sees what everybody sees.
    let other = Operator::new(&pair.cgroup)?;
    let fault = Fault::arm(&format!("{FAULT} --path {} --pid {}", file.display(), operator.pid()))?;
    let got = [operator.reads(&file)?, other.reads(&file)?, pair.bystander.reads(&file)?];
    let counts = fault.end()?;
    ensure!(got == [libc::EIO, 0, 0] && counts.fired == 1, "by its number: {got:?} {counts:?}");
    ensure!(operator.reads(&file)? == 0, "after");
    Ok(())
}

fn chroot() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let file = place.file("jail/fl-file/file")?;
    let jail = place.at("jail");
    pair.target.must("chroot", libc::SYS_chroot, &[pair.target.path(0, &jail)?])?;
    pair.target.must("chdir", libc::SYS_chdir, &[pair.target.path(0, "/")?])?;
    for rule in ["/fl-file/file", "/fl-file"] {
        let fault = Fault::arm(&format!("{FAULT} --path {rule} {}", pair.option()))?;
        let got = [pair.target.reads("/fl-file/file")?, pair.bystander.reads(&file)?];
        let counts = fault.end()?;
        ensure!(got == [libc::EIO, 0] && counts.fired == 1, "{rule}: {got:?} {counts:?}");
        ensure!(pair.target.reads("/fl-file/file")? == 0, "after {rule}");
    }
    Ok(())
}
