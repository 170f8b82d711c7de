//! On a full file system nothing grows; what is there can be read, overwritten and taken away.

use std::fs;

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

fn full() -> Result {
    let place = Folder::new()?;
    place.file("data")?;
    settled(|pair| {
        let look = |operator: &Operator| look(operator, &place);
        for (word, errno) in [("", Errno::ENOSPC), ("ENOSPC", Errno::ENOSPC), ("EDQUOT", Errno::EDQUOT)] {
            let words = format!("io full {word} --path {} {}", place.path().display(), pair.option());
            let hit = ["append", "write beyond the end", "O_CREAT", "mkdir", "mknod", "symlink", "link"]
                .map(|call| (call, errno));
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
    let mut said = Vec::new();
    let mut say = |call, value: i64| said.push((call, errno(value)));
    let content = operator.bytes(0, CONTENT)?;
    say("read", operator.call(libc::SYS_pread64, &[fd, operator.buffer(100), 16, 0])?);
    say("overwrite", operator.call(libc::SYS_pwrite64, &[fd, content, LENGTH, 0])?);
    say("append", operator.call(libc::SYS_write, &[appending, content, LENGTH])?);
    let end = fs::metadata(&path).context("stat")?.len();
    say("write beyond the end", operator.call(libc::SYS_pwrite64, &[fd, content, LENGTH, end - 8])?);
    say("shrink", operator.call(libc::SYS_ftruncate, &[fd, 8])?);
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
    let from = operator.path(1, &path)?;
    say("link", operator.call(libc::SYS_link, &[from, operator.path(0, &hard)?])?);
    say("unlink", operator.call(libc::SYS_unlink, &[from])?);
    for fd in [fd, appending] {
        operator.close(fd)?;
    }
    for made in [file, fifo, link, hard] {
        let _ = fs::remove_file(made);
    }
    let _ = fs::remove_dir(folder);
    Ok(said)
}
