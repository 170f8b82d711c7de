//! Which files a path stands for: those that are there when they are used, by whatever name.

pub(super) mod mounts;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    LSM,
    fault::{Counts, Fault},
    folder::{CONTENT, Folder, write},
    operator::{Operator, Pair, errno},
};
use crate::{
    ensure,
    error::{Context, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::path_of_a_file_by_any_name", file).needs(LSM).timeout(60),
    Test::new("calls::path_of_a_folder", folder).needs(LSM).timeout(60),
    Test::new("calls::path_and_renames", renames).needs(LSM).timeout(60),
    Test::new("calls::path_globs", globs).needs(LSM).timeout(120),
    Test::new("calls::path_alternatives", alternatives).needs(LSM).timeout(90),
    Test::new("calls::path_of_what_comes_later", later).needs(LSM).timeout(60),
];

/// The nothing that `mount` takes.
const NONE: Option<&str> = None;

/// What somebody does who must be hit, or must not, and what they get.
pub(super) type Look<'a> = (&'a str, bool, &'a dyn Fn(&Operator) -> Result<i32>);

/// What the rules here do.
pub(super) const FAULT: &str = "io error EIO";

/// Nobody else sees the mounts that are made from here on.
pub(super) fn own_mounts() -> Result {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make / private")
}

/// Shows a folder in another place as well.
pub(super) fn bind(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to).context(to.display())?;
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).context(format_args!("bind {}", from.display()))
}

/// Arms a rule that is aimed at the target, and checks who is hit before, during and after: all that the target does as
/// it is said, and nothing that the bystander does.
pub(super) fn check(pair: &Pair, rule: &str, looks: &[Look<'_>]) -> Result<Counts> {
    peace("before", pair, rule, looks)?;
    let fault = Fault::arm(&format!("{FAULT} {rule} {}", pair.option()))?;
    let mut wrong = Vec::new();
    for (what, hit, look) in looks {
        let got = look(&pair.target).context(what)?;
        let beside = look(&pair.bystander).context(what)?;
        println!("{rule}: {what}: {got}, the bystander {beside}");
        if got != if *hit { libc::EIO } else { 0 } || beside != 0 {
            wrong.push(format!("{what} gives {got}, the bystander {beside}, and should be hit: {hit}"));
        }
    }
    let counts = fault.end()?;
    ensure!(wrong.is_empty(), "{rule}: {}", wrong.join("; "));
    let hits = looks.iter().filter(|(_, hit, _)| *hit).count() as u64;
    ensure!(counts.fired == hits, "{rule}: {counts:?}, and {hits} reads failed");
    peace("after", pair, rule, looks)?;
    Ok(counts)
}

fn peace(when: &str, pair: &Pair, rule: &str, looks: &[Look<'_>]) -> Result {
    for (what, _, look) in looks {
        for operator in [&pair.target, &pair.bystander] {
            let got = look(operator).context(format_args!("{when} {rule}: {what}"))?;
            ensure!(got == 0, "{when} {rule}: {what} gives {got}");
        }
    }
    Ok(())
}

/// Opens a file and reads from it.
fn reading(path: PathBuf) -> impl Fn(&Operator) -> Result<i32> {
    move |operator| operator.reads(&path)
}

/// Reads a file of a folder that is open already.
fn read_in(operator: &Operator, folder: u64, name: &str) -> Result<i32> {
    let fd = operator.must(name, libc::SYS_openat, &[folder, operator.path(0, name)?, 0, 0])?;
    let read = operator.read(fd);
    operator.close(fd)?;
    read
}

fn enter(operator: &Operator, folder: &Path) -> Result {
    operator.must("chdir", libc::SYS_chdir, &[operator.path(0, folder)?]).map(drop)
}

fn file() -> Result {
    own_mounts()?;
    let place = Folder::new()?;
    let path = place.file("dir/file")?;
    for other in ["dir/other", "dir/file2", "other/file", "dir/sub/file"] {
        place.file(other)?;
    }
    symlink(&path, place.at("link")).context("symlink")?;
    symlink("dir", place.at("linked")).context("symlink")?;
    fs::hard_link(&path, place.at("hard")).context("link")?;
    bind(&place.at("dir"), &place.at("bound"))?;
    let pair = Pair::new()?;
    for operator in [&pair.target, &pair.bystander] {
        enter(operator, &place.at("dir"))?;
    }
    let opened = pair.target.open(&path, libc::O_RDONLY)?;
    ensure!(opened == pair.bystander.open(&path, libc::O_RDONLY)?, "other descriptors");
    let by = |name: &str| reading(place.at(name));
    let in_folder = |operator: &Operator| {
        let folder = operator.open(place.at("dir"), libc::O_PATH)?;
        let read = read_in(operator, folder, "file");
        operator.close(folder)?;
        read
    };
    let reopened = format!("/proc/self/fd/{opened}");
    let looks: &[Look<'_>] = &[
        ("its path", true, &by("dir/file")),
        ("a roundabout path", true, &by("other/../dir/./sub/../file")),
        ("a symlink", true, &by("link")),
        ("a linked folder", true, &by("linked/file")),
        ("a hard link", true, &by("hard")),
        ("a bind mount", true, &by("bound/file")),
        ("a relative path", true, &|operator| operator.reads("file")),
        ("openat in an open folder", true, &in_folder),
        ("a descriptor from before", true, &move |operator| operator.read(opened)),
        ("a descriptor opened again", true, &|operator| operator.reads(&reopened)),
        ("the file beside it", false, &by("dir/other")),
        ("a longer name", false, &by("dir/file2")),
        ("its name in another folder", false, &by("other/file")),
        ("its name below", false, &by("dir/sub/file")),
    ];
    check(&pair, &format!("--path {}", path.display()), looks)?;
    // By any of its names.
    for name in ["link", "linked/file", "hard", "bound/file"] {
        let rule = format!("--path {}", place.at(name).display());
        check(&pair, &rule, &looks[..3]).context(name)?;
    }
    Ok(())
}

/// Everything beneath, however deep.
fn folder() -> Result {
    own_mounts()?;
    let place = Folder::new()?;
    let deep = format!("dir{}/file", "/d".repeat(40));
    for name in ["dir/file", "dir/a/b/file", &deep, "dir2/file", "file", "di/file"] {
        place.file(name)?;
    }
    symlink("../file", place.at("dir/outward")).context("symlink")?;
    symlink("dir/a", place.at("inward")).context("symlink")?;
    bind(&place.at("dir"), &place.at("bound"))?;
    bind(&place.at("dir/a"), &place.at("bound-below"))?;
    let pair = Pair::new()?;
    let by = |name: &str| reading(place.at(name));
    let looks: &[Look<'_>] = &[
        ("a file in it", true, &by("dir/file")),
        ("below a folder in it", true, &by("dir/a/b/file")),
        ("40 levels below", true, &by(&deep)),
        ("by a link from outside", true, &by("inward/b/file")),
        ("by a bind mount", true, &by("bound/a/b/file")),
        ("by a bind mount of a folder in it", true, &by("bound-below/b/file")),
        ("by a link to outside", false, &by("dir/outward")),
        ("beside it", false, &by("file")),
        ("a longer name", false, &by("dir2/file")),
        ("a shorter name", false, &by("di/file")),
    ];
    let dir = place.at("dir");
    for rule in
        [dir.display().to_string(), format!("{}/", dir.display()), format!("{}/a/../../dir", dir.display())]
    {
        check(&pair, &format!("--path {rule}"), looks)?;
    }
    // Everybody's, where no target is named.
    let fault = Fault::arm(&format!("{FAULT} --path {}", dir.display()))?;
    let [inside, outside] = [dir.join("file"), place.at("file")];
    let got = [pair.target.reads(&inside)?, pair.bystander.reads(&inside)?, pair.target.reads(&outside)?];
    fault.end()?;
    ensure!(got == [libc::EIO, libc::EIO, 0], "without a target: {got:?}");
    Ok(())
}

/// What counts is where a file is when it is read.
fn renames() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    for name in ["dir/was-in", "dir/sub/file", "out/was-out", "out/folder/file"] {
        place.file(name)?;
    }
    let dir = place.at("dir");
    let fault = Fault::arm(&format!("{FAULT} --path {} {}", dir.display(), pair.option()))?;
    let look = |name: &str, expected: i32| {
        let path = place.at(name);
        let got = [pair.target.reads(&path)?, pair.bystander.reads(&path)?];
        ensure!(got == [expected, 0], "{name}: {got:?}, not {expected}");
        Ok(())
    };
    let rename = |from: &str, to: &str| {
        fs::rename(place.at(from), place.at(to)).context(format_args!("mv {from} {to}"))
    };
    let (spared, hit) = (0, libc::EIO);
    let open = pair.target.open(place.at("dir/was-in"), libc::O_RDONLY)?;
    look("dir/was-in", hit)?;
    look("out/was-out", spared)?;
    rename("dir/was-in", "out/was-in")?;
    rename("out/was-out", "dir/was-out")?;
    look("out/was-in", spared)?;
    ensure!(pair.target.read(open)? == spared, "a descriptor of a file that has left");
    look("dir/was-out", hit)?;
    rename("dir/sub", "out/sub")?;
    rename("out/folder", "dir/folder")?;
    look("out/sub/file", spared)?;
    look("dir/folder/file", hit)?;
    // The folder itself stays what it is; another that takes its name is another.
    rename("dir", "renamed")?;
    place.file("dir/new")?;
    look("renamed/folder/file", hit)?;
    look("renamed/was-out", hit)?;
    look("dir/new", spared)?;
    let counts = fault.end()?;
    ensure!(counts.fired == 5, "{counts:?}");
    for name in ["renamed/folder/file", "dir/new", "out/was-in"] {
        look(name, spared)?;
    }
    Ok(())
}

/// Files that come while the fault runs, in the folder of a rule and by the pattern of one.
fn later() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    place.folder("dir")?;
    place.folder("logs")?;
    let rules = format!("--path {} --path {}/*.log", place.at("dir").display(), place.at("logs").display());
    let fault = Fault::arm(&format!("{FAULT} {rules} {}", pair.option()))?;
    for (name, hit) in [("dir/new", true), ("dir/a/b", true), ("logs/x.log", true), ("logs/x.txt", false)] {
        write(&place.at(name), CONTENT)?;
        let got = [pair.target.reads(place.at(name))?, pair.bystander.reads(place.at(name))?];
        ensure!(got == [if hit { libc::EIO } else { 0 }, 0], "{name}: {got:?}");
    }
    // What somebody makes is hit when it is written to.
    let flags = libc::O_CREAT | libc::O_WRONLY;
    for (operator, expected) in [(&pair.target, libc::EIO), (&pair.bystander, 0)] {
        let fd = operator.open(place.at("dir/made"), flags)?;
        let wrote = operator.call(libc::SYS_write, &[fd, operator.bytes(0, CONTENT)?, 8])?;
        ensure!(errno(wrote) == expected, "what is made: {wrote}");
        operator.close(fd)?;
    }
    let counts = fault.end()?;
    ensure!(counts.fired == 4, "{counts:?}");
    let got = pair.target.reads(place.at("dir/new"))?;
    ensure!(got == 0, "after: {got}");
    Ok(())
}

/// Patterns for the last name of a path, and which of the files it matches.
fn globs() -> Result {
    const FILES: [&str; 12] = [
        "a.db",
        "b.db",
        "d.db",
        "A.DB",
        "a.dbx",
        "xa.db",
        "ab.db",
        ".db",
        "sub/a.db",
        "a.db.d/file",
        "c.db/x/file",
        "db",
    ];
    let (pair, place) = (Pair::new()?, Folder::new()?);
    for name in FILES {
        place.file(name)?;
    }
    let rows: &[(&str, &[&str])] = &[
        ("*.db", &["a.db", "b.db", "d.db", "xa.db", "ab.db", ".db", "c.db/x/file"]),
        ("?.db", &["a.db", "b.db", "d.db", "c.db/x/file"]),
        ("[a-c].db", &["a.db", "b.db", "c.db/x/file"]),
        ("[ad].db", &["a.db", "d.db"]),
        ("a*", &["a.db", "a.dbx", "ab.db", "a.db.d/file"]),
        ("*b.d*", &["b.db", "ab.db", "a.db.d/file"]),
        ("A.*", &["A.DB"]),
        ("s*", &["sub/a.db"]),
    ];
    let reads: Vec<_> = FILES.iter().map(|name| reading(place.at(name))).collect();
    for (pattern, hit) in rows {
        let looks: Vec<Look<'_>> =
            FILES.iter().zip(&reads).map(|(name, read)| (*name, hit.contains(name), read as _)).collect();
        check(&pair, &format!("--path {}/{pattern}", place.path().display()), &looks)?;
    }
    Ok(())
}

/// Paths are alternatives; other options must be met as well.
fn alternatives() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let [one, two, three] = [place.file("one")?, place.file("dir/two")?, place.file("three")?];
    let (one_look, two_look, three_look) = (
        |operator: &Operator| operator.reads(&one),
        |operator: &Operator| operator.reads(&two),
        |operator: &Operator| operator.reads(&three),
    );
    let rows = [
        (format!("--path {} --path {}", one.display(), place.at("dir").display()), [true, true, false]),
        (format!("--path {} --path {}/th*", one.display(), place.path().display()), [true, false, true]),
        (format!("--path {} --fstype nfs", one.display()), [false, false, false]),
        (format!("--path {} --comm not-its-name", one.display()), [false, false, false]),
    ];
    for (rule, [hit_one, hit_two, hit_three]) in rows {
        let looks: &[Look<'_>] = &[
            ("the first", hit_one, &one_look),
            ("the second", hit_two, &two_look),
            ("the third", hit_three, &three_look),
        ];
        check(&pair, &rule, looks)?;
    }
    Ok(())
}
