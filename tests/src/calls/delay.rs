//! Delays: as long as asked, for whom it was asked.

use std::time::Duration;

use chaos_user::kernel::mechanism::Mechanism as M;

use super::{
    fault::Fault,
    folder::Folder,
    operator::{Operator, Pair, Took},
};
use crate::{
    ensure,
    error::Result,
    faultline::Faultline,
    harness::{
        Need::{self, Mechanism as Has},
        Test, is_emulated,
    },
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf, Need::CgroupV2, Has(M::RawTracepoint), Has(M::BpfLoop)];

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::delay_takes_as_long_as_asked", accuracy).needs(NEEDS).timeout(120),
    Test::new("calls::delay_by_a_calls_name", by_name).needs(NEEDS).timeout(60),
    Test::new("calls::delay_jitter", jitter).needs(NEEDS).timeout(60),
    Test::new("calls::delay_that_is_long_must_be_allowed", long).needs(NEEDS).timeout(60),
];

/// What an error may be beside the 20th part of the delay.
const NOISE_NS: u64 = 20_000;
/// What a fault aimed at somebody else may add.
const UNTOUCHED_NS: u64 = 20_000;

/// A target and a bystander that read one file.
struct Readers {
    pair: Pair,
    fds: [u64; 2],
    place: Folder,
}

impl Readers {
    fn new() -> Result<Self> {
        let (pair, place) = (Pair::new()?, Folder::new()?);
        let path = place.file("file")?;
        let open = |operator: &Operator| operator.open(&path, libc::O_RDWR);
        let fds = [open(&pair.target)?, open(&pair.bystander)?];
        [&pair.target, &pair.bystander].into_iter().try_for_each(Operator::come_first)?;
        Ok(Self { pair, fds, place })
    }

    /// What so many reads of each take, in nanoseconds and in order.
    fn times(&self, count: usize) -> Result<[Vec<u64>; 2]> {
        let read = |operator: &Operator, fd| {
            sorted(operator.repeat(count, libc::SYS_pread64, &[fd, operator.buffer(0), 16, 0])?)
        };
        Ok([read(&self.pair.target, self.fds[0])?, read(&self.pair.bystander, self.fds[1])?])
    }

    /// The same while this fault runs.
    fn during(&self, delay: &str, count: usize) -> Result<[Vec<u64>; 2]> {
        let (path, target) = (self.place.path().display(), self.pair.option());
        let fault = Fault::arm(&format!("io delay {delay} --ops read --path {path} {target}"))?;
        let times = self.times(count)?;
        let counts = fault.end()?;
        ensure!(counts.fired == count as u64, "{delay}: {counts:?} after {count} reads");
        Ok(times)
    }
}

fn sorted(took: Vec<Took>) -> Result<Vec<u64>> {
    ensure!(
        took.iter().all(|took| took.value >= 0),
        "a call failed: {:?}",
        took.iter().find(|took| took.value < 0)
    );
    let mut times: Vec<u64> = took.iter().map(|took| took.ns).collect();
    times.sort_unstable();
    Ok(times)
}

fn median(times: &[u64]) -> u64 {
    times[times.len() / 2]
}

/// What is judged of them. An emulated machine that is not run for a moment takes longer over whatever it does just then, and
/// never less: of those, a tenth is enough that took as long as was asked.
fn usual(times: &[u64]) -> u64 {
    if is_emulated() { times[times.len() / 10] } else { median(times) }
}

fn accuracy() -> Result {
    let readers = Readers::new()?;
    for (word, asked, count) in [("50us", 50_000, 400), ("1ms", 1_000_000, 200), ("10ms", 10_000_000, 40)] {
        let before = readers.times(count)?;
        let during = readers.during(word, count)?;
        let after = readers.times(count)?;
        let [target, bystander] =
            [0, 1].map(|who: usize| [&before, &during, &after].map(|of| usual(&of[who])));
        println!("{word}: the target's {target:?} ns, the bystander's {bystander:?} ns");
        let added = target[1].saturating_sub(target[0]);
        let bound = NOISE_NS.max(asked / 20);
        ensure!(added.abs_diff(asked) <= bound, "{word}: {added} ns more, {asked} ± {bound} asked");
        ensure!(bystander[1] <= bystander[0] + UNTOUCHED_NS, "{word}: the bystander's {bystander:?}");
        ensure!(target[2] <= target[0] + UNTOUCHED_NS, "{word}: after it {target:?}");
    }
    Ok(())
}

/// Of any call; others of the same process take no longer.
fn by_name() -> Result {
    let pair = Pair::new()?;
    [&pair.target, &pair.bystander].into_iter().try_for_each(Operator::come_first)?;
    let times =
        |operator: &Operator, number| sorted(operator.repeat(100, number, &[])?).map(|times| usual(&times));
    let look = || -> Result<[u64; 3]> {
        Ok([
            times(&pair.target, libc::SYS_getppid)?,
            times(&pair.target, libc::SYS_getuid)?,
            times(&pair.bystander, libc::SYS_getppid)?,
        ])
    };
    let before = look()?;
    let fault = Fault::arm(&format!("sys delay getppid 1ms {}", pair.option()))?;
    let during = look()?;
    let counts = fault.end()?;
    let after = look()?;
    println!("getppid, getuid, the bystander's getppid: {before:?}, {during:?}, {after:?}; {counts:?}");
    let added = during[0].saturating_sub(before[0]);
    ensure!(added.abs_diff(1_000_000) <= 50_000, "{added} ns more, 1 ms asked");
    ensure!(counts.fired == 100, "{counts:?}");
    let most = |times: [u64; 3]| times.into_iter().max().unwrap_or(0);
    ensure!(during[1].max(during[2]) <= most(before) + UNTOUCHED_NS, "beside it: {before:?} {during:?}");
    ensure!(most(after) <= most(before) + UNTOUCHED_NS, "after it: {before:?} {after:?}");
    Ok(())
}

/// None shorter than its bounds; longer only where something else took its time.
fn jitter() -> Result {
    let readers = Readers::new()?;
    let count = 300;
    let bare = usual(&readers.times(count)?[0]);
    let [times, bystander] = readers.during("2ms 1ms --seed 5", count)?;
    let [least, most] = [1_000_000, 3_000_000 + 150_000 + bare];
    let beyond = times.iter().filter(|ns| **ns > most).count();
    println!("2 ms ± 1 ms: {} to {} ns, {beyond} beyond", times[0], times[count - 1]);
    ensure!(times[0] >= least, "2 ms ± 1 ms: one took {} ns", times[0]);
    // Emulated on a busy machine, a call stands still now and then whatever it does.
    ensure!(
        is_emulated() || beyond <= count / 50,
        "2 ms ± 1 ms: {beyond} of {count} took longer than {most} ns"
    );
    // Evenly: a quarter of them lies below 1.5 ms, and half below 2 ms, give or take.
    let below = |most: u64| times.iter().filter(|ns| **ns < most + bare).count();
    let parts = [below(1_500_000), below(2_000_000)];
    let least = if is_emulated() { [20, 60] } else { [40, 105] };
    let even = (least[0]..110).contains(&parts[0]) && (least[1]..190).contains(&parts[1]);
    ensure!(even, "2 ms ± 1 ms: {parts:?} of {count} below 1.5 and 2 ms");
    ensure!(usual(&bystander) < bare + UNTOUCHED_NS, "the bystander's {}", usual(&bystander));
    Ok(())
}

/// A busy wait burns the target's CPU: more than 10 ms of it only for those who know.
fn long() -> Result {
    let readers = Readers::new()?;
    let (path, target) =
        (readers.place.path().display().to_string(), readers.pair.cgroup.path().display().to_string());
    let aim = ["--ops", "read", "--path", &path, "--cgroup", &target];
    for (time, allowed, says) in [
        ("11ms", &[][..], &["--allow-busy-wait", "10ms", "CPU"][..]),
        ("8ms 3ms", &[], &["--allow-busy-wait", "10ms"]),
        ("3s", &["--allow-busy-wait"], &["2s"]),
    ] {
        let time: Vec<&str> = time.split(' ').collect();
        let words = [&["io", "delay"], &time[..], &aim, allowed].concat();
        Faultline::check_refused(&words, 2, says)?;
    }
    let [times, bystander] = readers.during("200ms --allow-busy-wait", 3)?;
    println!("200 ms: {times:?}, the bystander {bystander:?}");
    let asked = Duration::from_millis(200).as_nanos() as u64;
    ensure!(usual(&times).abs_diff(asked) <= asked / 20, "200 ms: {times:?}");
    ensure!(usual(&bystander) < 1_000_000, "the bystander's {bystander:?}");
    Ok(())
}
