//! On a full file system nothing grows; what is there can be read, overwritten and taken away.

use std::{fs, path::Path};

use nix::errno::Errno;

use super::{
    LSM,
    families::{Said, check, settled},
    folder::{CONTENT, Folder},
    operator::{HERE, Operator, errno},
};
use crate::{
    error::{Context, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] =
    &[Test::new("calls::nothing_grows_where_it_is_full", full).needs(LSM).timeout(90)];

const LENGTH: u64 = CONTENT.len() as u64;

/// What of all that is done makes something larger.
const GROWING: [&str; 10] = [
    "append",
    "write beyond the end",
    "writev beyond the end",
    "sendfile",
    "fallocate",
    "O_CREAT",
    "mkdir",
    "mknod",
    "symlink",
    "link",
];

fn full() -> Result {
    let place = Folder::new()?;
    place.file("data")?;
    settled(|pair| {
        let look = |operator: &Operator| look(operator, &place);
        for (word, errno) in [("", Errno::ENOSPC), ("ENOSPC", Errno::ENOSPC), ("EDQUOT", Errno::EDQUOT)] {
            let words = format!("io full {word} --path {} {}", place.path().display(), pair.option());
            let hit = GROWING.map(|call| (call, errno));
            check(pair, &words, &look, &hit)?;
        }
        Ok(())
    })
}

fn look(operator: &Operator, place: &Folder) -> Result<Said> {
    let name = format!("of-{}", operator.pid());
    let path = place.file(&name)?;
    let fd = operator.open(&path, libc::O_RDWR)?;
    let appending = operator.open(&path, libc::O_WRONLY | libc::O_APPEND)?;
    let source = operator.open(place.at("data"), libc::O_RDONLY)?;
    let mut said = Vec::new();
    let mut say = |call, value: i64| said.push((call, errno(value)));
    let content = operator.bytes(0, CONTENT)?;
    say("read", operator.call(libc::SYS_pread64, &[fd, operator.buffer(100), 16, 0])?);
    say("overwrite", operator.call(libc::SYS_pwrite64, &[fd, content, LENGTH, 0])?);
    say("append", operator.call(libc::SYS_write, &[appending, content, LENGTH])?);
    let end = fs::metadata(&path).context("stat")?.len();
    say("write beyond the end", operator.call(libc::SYS_pwrite64, &[fd, content, LENGTH, end - 8])?);
    let vector = operator.bytes(4096, &[content, LENGTH].map(u64::to_ne_bytes).concat())?;
    say("writev within", operator.call(libc::SYS_pwritev, &[fd, vector, 1, 0, 0])?);
    say("writev beyond the end", operator.call(libc::SYS_pwritev, &[fd, vector, 1, end - 8, 0])?);
    operator.must("lseek", libc::SYS_lseek, &[fd, 0, libc::SEEK_END as u64])?;
    let from = operator.bytes(8192, &0_u64.to_ne_bytes())?;
    say("sendfile", operator.call(libc::SYS_sendfile, &[fd, source, from, LENGTH])?);
    say("fallocate", operator.call(libc::SYS_fallocate, &[fd, 0, 0, 1 << 16])?);
    say("shrink", operator.call(libc::SYS_ftruncate, &[fd, 8])?);
    enter_new(operator, &path, place, &mut say)?;
    for fd in [fd, appending, source] {
        operator.close(fd)?;
    }
    Ok(said)
}

/// New entries of a directory, and one that goes.
fn enter_new(
    operator: &Operator,
    path: &Path,
    place: &Folder,
    say: &mut dyn FnMut(&'static str, i64),
) -> Result {
    let name = path.file_name().context("a name")?.to_string_lossy();
    let new = |what: &str| place.at(format!("{name}-{what}"));
    let [file, folder, fifo, link, hard] = ["file", "folder", "fifo", "link", "hard"].map(new);
    let create = (libc::O_CREAT | libc::O_WRONLY) as u64;
    let created = operator.call(libc::SYS_openat, &[HERE, operator.path(0, &file)?, create, 0o644])?;
    if errno(created) == 0 {
        operator.close(created as u64)?;
    }
    say("O_CREAT", created);
    say("mkdir", operator.call(libc::SYS_mkdir, &[operator.path(0, &folder)?, 0o755])?);
    let kind = (libc::S_IFIFO | 0o644) as u64;
    say("mknod", operator.call(libc::SYS_mknod, &[operator.path(0, &fifo)?, kind, 0])?);
    let to = operator.path(1, "to")?;
    say("symlink", operator.call(libc::SYS_symlink, &[to, operator.path(0, &link)?])?);
    let from = operator.path(1, path)?;
    say("link", operator.call(libc::SYS_link, &[from, operator.path(0, &hard)?])?);
    say("unlink", operator.call(libc::SYS_unlink, &[from])?);
    for made in [file, fifo, link, hard] {
        let _ = fs::remove_file(made);
    }
    let _ = fs::remove_dir(folder);
    Ok(())
}
