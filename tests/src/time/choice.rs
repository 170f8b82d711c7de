//! `--clock`: those that are chosen are skewed, and no others.

use super::{
    NEEDS,
    clock::{MILLISECOND, SECOND, expect},
    scene::{Scene, asks_vdso, end},
};
use crate::{
    clocks::{From, Source},
    error::{Context, Result},
    harness::Test,
};

pub(super) const TESTS: &[Test] =
    &[Test::new("time::clocks_are_chosen", chosen).needs(NEEDS).timeout(180).slow().waits()];

/// So little that clocks which must not go back are right again soon.
const OFFSET: (&str, i64) = ("300ms", 300 * MILLISECOND);

/// As they are written, and what they stand for.
const CHOICES: [(&str, &[Source]); 8] = [
    ("realtime", &[Source::Realtime]),
    ("monotonic", &[Source::Monotonic]),
    ("boottime", &[Source::Boottime]),
    ("tai", &[Source::Tai]),
    ("monotonic_raw", &[Source::MonotonicRaw]),
    ("realtime,tai", &[Source::Realtime, Source::Tai]),
    ("monotonic,boottime", &[Source::Monotonic, Source::Boottime]),
    (
        "realtime,monotonic,boottime,tai",
        &[Source::Realtime, Source::Monotonic, Source::Boottime, Source::Tai],
    ),
];

fn chosen() -> Result {
    let mut scene = Scene::set()?;
    for (words, clocks) in CHOICES {
        let (fault, _) = scene.armed(&format!("--offset {} --clock {words}", OFFSET.0))?;
        // What nobody has chosen.
        let raw = clocks.contains(&Source::MonotonicRaw);
        let reference = if raw { Source::Monotonic } else { Source::MonotonicRaw };
        let readings = scene.target.read(From::Itself, reference)?;
        for reading in readings.iter().filter(|reading| asks_vdso(reading)) {
            let skew = if clocks.contains(&reading.source.shows()) { OFFSET.1 } else { 0 };
            expect(reading, reference, skew).context(words)?;
        }
        scene.spared(words)?;
        end(&fault)?;
        scene.over(words)?;
    }
    // Only one that may go back can be behind.
    let (fault, _) = scene.armed("--offset -1s --clock monotonic --allow-backwards-monotonic")?;
    let readings = scene.target.read(From::Itself, Source::MonotonicRaw)?;
    for reading in readings.iter().filter(|reading| asks_vdso(reading)) {
        let skew = if reading.source.shows() == Source::Monotonic { -SECOND } else { 0 };
        expect(reading, Source::MonotonicRaw, skew)?;
    }
    end(&fault)?;
    scene.over("allowed to go back")
}
