//! Which calls are hit of those that match: by chance and by their order.

use std::thread;

use super::{
    LSM,
    fault::{Counts, Fault},
    folder::Folder,
    operator::{Operator, Pair, Took},
};
use crate::{
    ensure,
    error::Result,
    harness::{Test, rounds},
    stats::acceptance,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::chance_and_seed", chance).needs(LSM).timeout(120),
    Test::new("calls::skip_first_and_every", order).needs(LSM).timeout(120),
    Test::new("calls::order_of_several_at_once", at_once).needs(LSM).timeout(90),
];

/// A target that reads one file.
struct Reader {
    pair: Pair,
    fds: [u64; 2],
    place: Folder,
}

impl Reader {
    fn new() -> Result<Self> {
        let (pair, place) = (Pair::new()?, Folder::new()?);
        let path = place.file("file")?;
        let open = |operator: &Operator| operator.open(&path, libc::O_RDWR);
        let fds = [open(&pair.target)?, open(&pair.bystander)?];
        Ok(Self { pair, fds, place })
    }

    /// Which of so many reads fail.
    fn failures(operator: &Operator, fd: u64, count: usize) -> Result<Vec<bool>> {
        let took = operator.repeat(count, libc::SYS_pread64, &[fd, operator.buffer(0), 16, 0])?;
        ensure!(took.iter().all(|took| [0, libc::EIO].contains(&took.errno())), "another errno");
        Ok(took.iter().copied().map(Took::errno).map(|errno| errno != 0).collect())
    }

    fn target(&self, count: usize) -> Result<Vec<bool>> {
        Self::failures(&self.pair.target, self.fds[0], count)
    }

    fn bystander(&self, count: usize) -> Result<Vec<bool>> {
        Self::failures(&self.pair.bystander, self.fds[1], count)
    }

    fn calm(&self, when: &str) -> Result {
        let failed = [self.target(50)?, self.bystander(50)?].concat();
        ensure!(!failed.contains(&true), "{when}: it fails");
        Ok(())
    }

    /// Which of the target's reads fail while the fault runs, before and after which none does.
    fn during(&self, options: &str, count: usize) -> Result<(Vec<bool>, Counts)> {
        self.calm(&format!("before {options}"))?;
        let (path, target) = (self.place.path().display(), self.pair.option());
        let fault = Fault::arm(&format!("io error EIO --ops read --path {path} {target} {options}"))?;
        let beside = self.bystander(50)?;
        let failed = self.target(count)?;
        let counts = fault.end()?;
        ensure!(!beside.contains(&true), "{options}: the bystander is hit");
        let fired = failed.iter().filter(|failed| **failed).count() as u64;
        ensure!(
            counts.matched == count as u64 && counts.fired == fired,
            "{options}: {count} reads of which {fired} failed, and it counts {counts:?}"
        );
        self.calm(&format!("after {options}"))?;
        Ok((failed, counts))
    }
}

fn chance() -> Result {
    let reader = Reader::new()?;
    let count = rounds(5000) as usize;
    let mut patterns = Vec::new();
    for (percent, seed) in [("30", 7), ("30%", 7), ("30", 8), ("1", 7), ("0.5", 3), ("99.5", 4)] {
        let (failed, counts) = reader.during(&format!("--percent {percent} --seed {seed}"), count)?;
        let rate: f64 = percent.trim_end_matches('%').parse().unwrap_or(f64::NAN) / 100.0;
        let expected = acceptance(count as u64, rate);
        println!("{percent} % with seed {seed}: {} of {count}, expected {expected:?}", counts.fired);
        ensure!(expected.contains(&counts.fired), "{percent}, seed {seed}: {} of {count}", counts.fired);
        patterns.push(failed);
    }
    ensure!(patterns[0] == patterns[1], "the same seed does not hit the same calls");
    ensure!(patterns[0] != patterns[2], "another seed hits the same calls");
    let (failed, _) = reader.during("", 200)?;
    ensure!(!failed.contains(&false), "without a chance some are spared");
    Ok(())
}

/// Options, and whether the call of this number is hit.
type Row = (&'static str, fn(usize) -> bool);

const ROWS: &[Row] = &[
    ("--skip 10", |n| n >= 10),
    ("--first 20", |n| n < 20),
    ("--first 1", |n| n == 0),
    ("--every 3", |n| n % 3 == 2),
    ("--skip 5 --first 1", |n| n == 5),
    // Of numbers 5 to 14 the fourth and the eighth.
    ("--skip 5 --first 10 --every 4", |n| n == 8 || n == 12),
    ("--first 6 --every 7", |_| false),
];

fn order() -> Result {
    let reader = Reader::new()?;
    for (options, is_hit) in ROWS {
        let (failed, _) = reader.during(options, 60)?;
        let expected: Vec<bool> = (0..60).map(is_hit).collect();
        let numbers = |list: &[bool]| (0..).zip(list).filter(|(_, hit)| **hit).map(|(n, _)| n).collect();
        let (failed, expected): (Vec<u32>, Vec<u32>) = (numbers(&failed), numbers(&expected));
        ensure!(failed == expected, "{options}: {failed:?} were hit, not {expected:?}");
    }
    Ok(())
}

/// Processes that read at the same time are counted together: not one call more is hit, and none less. With a seed as
/// many of them as of one process alone.
fn at_once() -> Result {
    const READS: usize = 500;
    let reader = Reader::new()?;
    let path = reader.place.at("file");
    let mut crowd = Vec::new();
    for _ in 0..4 {
        let operator = Operator::new(&reader.pair.cgroup)?;
        let fd = operator.open(&path, libc::O_RDONLY)?;
        crowd.push((operator, fd));
    }
    let all = READS * crowd.len();
    let (alone, _) = reader.during("--percent 30 --seed 9", all)?;
    let by_chance = alone.iter().filter(|failed| **failed).count();
    for (options, expected) in [
        ("--first 100", 100),
        ("--skip 1900", all - 1900),
        ("--skip 11 --every 7", (all - 11) / 7),
        ("--percent 30 --seed 9", by_chance),
    ] {
        let rule = format!("--path {} {} {options}", path.display(), reader.pair.option());
        let fault = Fault::arm(&format!("io error EIO --ops read {rule}"))?;
        let failed: Vec<Result<Vec<bool>>> = thread::scope(|scope| {
            let threads: Vec<_> = crowd
                .iter_mut()
                .map(|(operator, fd)| scope.spawn(move || Reader::failures(operator, *fd, READS)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Ok(Vec::new()))).collect()
        });
        let counts = fault.end()?;
        let failed: Vec<usize> = failed
            .into_iter()
            .map(|list| list.map(|list| list.into_iter().filter(|failed| *failed).count()))
            .collect::<Result<_>>()?;
        println!("{options}: {failed:?} {counts:?}");
        let sum: usize = failed.iter().sum();
        ensure!(sum == expected, "{options}: {failed:?} of {READS} each failed, not {expected}");
        let counted = (counts.matched, counts.fired) == (all as u64, expected as u64);
        ensure!(counted, "{options}: {counts:?}");
    }
    reader.calm("after")
}
