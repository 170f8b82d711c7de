//! A thousand programs, each skewed when it looks at a clock for the first time.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    NEEDS,
    clock::{MILLISECOND, REFERENCE, path, truth},
    processes::{OFFSET, SKEW},
    scene::{Scene, end},
};
use crate::{
    clocks::{Reading, Source},
    ensure,
    error::{Context, Result},
    harness::{Need, Test, die_with_parent, is_spared, program},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("time::a_thousand_programs", thousand).needs(THOUSAND).timeout(300)];

const THOUSAND: &[Need] = &[NEEDS[0], NEEDS[1], NEEDS[2], Need::Program("sh")];
/// How many there are, and of how many of a thousand the first reading must be skewed.
const PROGRAMS: u32 = 1_000;
/// By how many of them: one shell has one program begin at a time. With several on two CPUs, one of which has to see to
/// those that are held, some are not held: how many is said.
const PER_THOUSAND: [usize; 2] = [990, 500];

/// One after the other, and several at a time.
fn thousand() -> Result {
    let mut scene = Scene::set()?;
    let (fault, _) = scene.armed(OFFSET)?;
    let count = if is_spared() { 200 } else { PROGRAMS };
    let ways = [("one after the other", ""), ("eight at a time", " & [ $((i % 8)) = 0 ] && wait")];
    for ((how, after), least) in ways.into_iter().zip(PER_THOUSAND) {
        let script =
            format!("i=0; while [ $i -lt {count} ]; do i=$((i + 1)); \"$0\" first{after}; done; wait");
        let mut shell = Command::new(program("sh").context("no program sh")?);
        shell.args(["-c", &script]).arg(path()?).stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut shell);
        scene.cgroup.admit(&mut shell)?;
        let mut child = shell.spawn().context("sh")?;
        let mut said = String::new();
        child.stdout.take().context("stdout")?.read_to_string(&mut said).context("what programs say")?;
        child.wait().context("sh")?;
        let readings = said
            .lines()
            .map(|line| serde_json::from_str(line).context(line))
            .collect::<Result<Vec<Reading>>>()?;
        let truth = truth(Source::Realtime, REFERENCE)?.ahead();
        let near = |reading: &&Reading| {
            // Those may stand still between two looks; NTP may have slewed the clock by some of it since.
            (reading.ahead() - truth - SKEW).abs() <= 10 * MILLISECOND + reading.doubt()
        };
        let skewed = readings.iter().filter(near).count();
        println!("{how}: {skewed} of {} programs were skewed at their first reading", readings.len());
        ensure!(readings.len() == count as usize, "{how}: {} of {count} programs spoke", readings.len());
        ensure!(skewed * 1_000 >= readings.len() * least, "{how}: {skewed} of {count} were skewed");
        scene.spared(how)?;
    }
    scene.target.until(SKEW, Duration::from_millis(100))?;
    let counts = end(&fault)?;
    println!("{counts:?}");
    ensure!(counts.matched > u64::from(2 * count) * 9 / 10, "{counts:?}");
    scene.over("afterwards")
}
