//! What a target reads is not what is in the file, and the file stays what it is.

use std::fs;

use chaos_user::kernel::mechanism::Mechanism as M;

use super::{
    fault::Fault,
    folder::{CONTENT, Folder},
    operator::{Operator, Pair, errno},
};
use crate::{
    ensure,
    error::{Context, Result},
    harness::{
        Need::{self, Mechanism as Has},
        Test,
    },
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Has(M::ProbeWriteUser)];

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::corrupt_what_was_read", corrupt).needs(NEEDS).timeout(120),
    Test::new("calls::corrupt_short_reads", short).needs(NEEDS).timeout(60),
];

const LENGTH: usize = CONTENT.len();

/// What is read by one call each: `read`, `pread64`, and `readv` into two places, the first of which takes it all.
fn reads(operator: &Operator, fd: u64) -> Result<[Vec<u8>; 3]> {
    let room = LENGTH as u64 * 2;
    let fetch = |number, arguments: &[u64]| {
        operator.must("lseek", libc::SYS_lseek, &[fd, 0, 0])?;
        operator.bytes(0, &[0; LENGTH * 2])?;
        let value = operator.call(number, arguments)?;
        ensure!(value == LENGTH as i64, "a read gives {value}, errno {}", errno(value));
        Ok(operator.read_back(0, LENGTH * 2))
    };
    let buffer = operator.buffer(0);
    let one = fetch(libc::SYS_read, &[fd, buffer, room])?;
    let two = fetch(libc::SYS_pread64, &[fd, buffer, room, 0])?;
    let vector = [buffer, room - 8, operator.buffer(LENGTH * 2 - 8), 8].map(u64::to_ne_bytes).concat();
    let vector = operator.bytes(4096, &vector)?;
    let three = fetch(libc::SYS_readv, &[fd, vector, 2])?;
    for read in [&one, &two, &three] {
        ensure!(read[LENGTH..] == [0; LENGTH], "something was written behind what was read");
    }
    Ok([one, two, three].map(|read| read[..LENGTH].to_vec()))
}

/// The places at which a read is not what is in the file.
fn differences(read: &[u8]) -> Vec<usize> {
    (0..read.len()).filter(|place| read[*place] != CONTENT[*place]).collect()
}

/// What is asked for, and whether a read is what it should be.
type Row = (&'static str, fn(&[u8]) -> bool);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("", |read| differences(read).len() == 1),
    ("flip", |read| differences(read).len() == 1),
    ("flip bytes 4 offset 10", |read| differences(read) == [10, 11, 12, 13]),
    ("flip bytes 1 offset 0", |read| differences(read) == [0]),
    ("flip offset 63", |read| differences(read) == [63]),
    ("zero bytes 4 offset 0", |read| read[..4] == [0; 4] && read[4..] == CONTENT[4..]),
    ("zero bytes 3 offset 61", |read| read[61..] == [0; 3] && read[..61] == CONTENT[..61]),
    ("random bytes 16 offset 8", |read| differences(read).into_iter().eq(8..24)),
    ("zero bytes 64 offset 0", |read| *read == [0; LENGTH]),
];

fn corrupt() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let beside = place.file("beside")?;
    let open = |operator: &Operator, path| operator.open(path, libc::O_RDONLY);
    let [target, other] = [open(&pair.target, &path)?, open(&pair.target, &beside)?];
    let bystander = open(&pair.bystander, &path)?;
    let whole = |what: &str, reads: &[Vec<u8>]| {
        ensure!(reads.iter().all(|read| read == CONTENT), "{what}: {reads:?}");
        Ok(())
    };
    for (words, right) in ROWS {
        whole("before", &reads(&pair.target, target)?)?;
        let (path, cgroup) = (path.display(), pair.option());
        let fault = Fault::arm(&format!("io corrupt {words} --path {path} {cgroup} --seed 11"))?;
        let got = reads(&pair.target, target)?;
        let (other, others) = (reads(&pair.target, other)?, reads(&pair.bystander, bystander)?);
        let counts = fault.end()?;
        println!("{words}: {:?} {counts:?}", got.each_ref().map(|read| differences(read)));
        for (call, read) in ["read", "pread64", "readv"].into_iter().zip(&got) {
            ensure!(right(read), "{words}: {call} gives {:?}", String::from_utf8_lossy(read));
        }
        whole("another file", &other)?;
        whole("the bystander", &others)?;
        ensure!(counts.fired == 3, "{words}: {counts:?}");
        whole("after", &reads(&pair.target, target)?)?;
    }
    ensure!(fs::read(&path).context("read")? == CONTENT, "the file itself has changed");
    Ok(())
}

/// Nothing beyond what was read is touched: what a short read did not fill stays what it was.
fn short() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    let path = place.file("file")?;
    let fd = pair.target.open(&path, libc::O_RDONLY)?;
    let fault = Fault::arm(&format!(
        "io corrupt zero bytes 64 offset 2 --path {} {}",
        path.display(),
        pair.option()
    ))?;
    for (asked, at, expected) in [(4, 0, 4), (64, 60, 4), (1, 0, 1), (16, 64, 0), (0, 0, 0)] {
        pair.target.bytes(0, &[b'#'; 80])?;
        let got = pair.target.call(libc::SYS_pread64, &[fd, pair.target.buffer(0), asked, at])?;
        let read = pair.target.read_back(0, 80);
        ensure!(got == expected, "{asked} bytes at {at}: {got}");
        let mut right = [b'#'; 80];
        let (from, length) = (at as usize, got as usize);
        right[..length].copy_from_slice(&CONTENT[from..from + length]);
        right[2.min(length)..length].fill(0);
        ensure!(read == right, "{asked} bytes at {at}: {:?}", String::from_utf8_lossy(&read));
    }
    fault.end()?;
    ensure!(pair.target.read(fd)? == 0, "after");
    Ok(())
}
