//! What is not begun, and what is said of it.

mod foreign;

use super::{
    NEEDS,
    clock::Clock,
    scene::{PATIENCE, Scene, end},
};
use crate::{
    cgroup::Cgroup,
    clocks::Image,
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::Test,
    life::scene::records,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::what_cannot_be_meant", not_meant).needs(NEEDS).timeout(90).slow(),
    Test::new("time::who_cannot_be_hit", nobody).needs(NEEDS).timeout(60).waits(),
];

/// Words, and what is said of them.
const NOT_MEANT: [(&str, &[&str]); 29] = [
    ("", &["--offset"]),
    ("--offset soon", &["--offset"]),
    ("--offset 5", &["--offset"]),
    ("--offset 1h-30m", &["--offset"]),
    ("--offset 999999999999d", &["--offset"]),
    ("--offset 0s", &["--offset"]),
    ("--rate 0", &["--rate"]),
    ("--rate -1", &["--rate"]),
    ("--rate nan", &["--rate"]),
    ("--rate inf", &["--rate"]),
    ("--rate fast", &["--rate"]),
    ("--rate 1e300", &["--rate"]),
    ("--drift much", &["--drift"]),
    ("--drift -1000000", &["--drift"]),
    ("--drift nan", &["--drift"]),
    ("--rate 2 --drift 5", &["--drift", "--rate"]),
    ("--freeze --rate 2", &["--freeze"]),
    ("--offset 1h --clock wall", &["wall"]),
    ("--offset 1h --clock realtime,,tai", &["--clock"]),
    ("--offset 1h --clock process_cputime_id", &["process_cputime_id"]),
    ("--offset -1s --clock monotonic", &["--allow-backwards-monotonic"]),
    ("--offset 1s --strobe 1s/1s --clock boottime", &["--allow-backwards-monotonic"]),
    ("--offset 1h --strobe 2s", &["--strobe"]),
    ("--offset 1h --strobe 0s/2s", &["--strobe"]),
    ("--strobe 2s/3s", &["--offset"]),
    ("--rate 2 --jump-every 1s", &["--jump-every"]),
    ("--leap jump", &["--leap"]),
    ("--leap step --rate 2", &["--leap"]),
    ("--leap smear --clock tai", &["--leap"]),
];

fn not_meant() -> Result {
    let mut scene = Scene::set()?;
    let folder = scene.folder();
    let mut wrong = Vec::new();
    for (words, says) in NOT_MEANT {
        let words = words.split(' ').filter(|word| !word.is_empty());
        let words: Vec<&str> = ["time", "skew", "--cgroup", &folder].into_iter().chain(words).collect();
        let exit = Faultline::run(&words)?;
        let right = exit.code == Some(2) && says.iter().all(|part| exit.stderr.contains(part));
        if !right {
            wrong.push(format!(
                "{words:?}: exit {:?}, not 2 saying {says:?}: {}",
                exit.code,
                exit.stderr.trim()
            ));
        }
    }
    let of = |aim: &[&'static str]| [&["time", "skew", "--offset", "1h"], aim].concat();
    for (aim, says) in [
        (&["--pid", "0"][..], "--pid"),
        (&["--pid", "x"], "--pid"),
        (&["--by", "magic"], "--by"),
        (&["--for", "never"], "--for"),
        (&["--ops", "read"], "--ops"),
    ] {
        let exit = Faultline::run(&of(aim))?;
        if exit.code != Some(2) || !exit.stderr.contains(says) {
            wrong.push(format!(
                "{aim:?}: exit {:?}, not 2 saying {says:?}: {}",
                exit.code,
                exit.stderr.trim()
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(records()?.is_empty(), "left {:?}", records());
    scene.over("nothing was begun")
}

fn nobody() -> Result {
    let mut scene = Scene::set()?;
    let skew = |aim: &[&str], says: &[&str]| {
        let words = [&["time", "skew", "--offset", "1h"], aim].concat();
        Faultline::check_refused(&words, 3, says).context(format_args!("{aim:?}"))
    };
    // Nobody is meant.
    Faultline::check_refused(&["time", "skew", "--offset", "1h"], 2, &["--cgroup", "--pid"])?;
    let gone = {
        let clock = Clock::start(None)?;
        clock.pid().to_string()
    };
    skew(&["--pid", &gone], &[&gone])?;
    let empty = Cgroup::new()?;
    skew(&["--cgroup", &empty.path().to_string_lossy()], &["empty target"])?;
    skew(&["--cgroup", "/no/such"], &["/no/such"])?;
    // Kernel threads have no memory.
    skew(&["--pid", "2"], &["2"])?;
    // Its own are right, or it could not tell those of others.
    let words = ["time", "skew", "--offset", "1h", "--cgroup", &scene.folder()].map(String::from);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let fault = Faultline::start_with(&words, |command| {
        let _ = scene.cgroup.admit(command);
    })?;
    fault.wait_event("armed", PATIENCE)?;
    scene.skewed(super::processes::SKEW, "with Faultline in the cgroup")?;
    Image::check_own(fault.pid().as_raw().cast_unsigned()).context("Faultline's own clock")?;
    let counts = end(&fault)?;
    ensure!(counts.fired == 1, "{counts:?}");
    scene.over("with Faultline in the cgroup")?;
    let bare = foreign::Foreign::without_vdso()?;
    let pid = bare.pid().to_string();
    skew(&["--pid", &pid], &[&pid, "vDSO"])?;
    match foreign::Foreign::of_32_bits() {
        Ok(old) => {
            let pid = old.pid().to_string();
            skew(&["--pid", &pid], &[&pid, "32"])?;
            scene.cgroup.take(old.pid())?;
            beside(&mut scene, "a 32-bit process").context("32 bits")?;
        }
        Err(failure) => println!("no 32-bit process here: {failure}"),
    }
    scene.cgroup.take(bare.pid())?;
    beside(&mut scene, "a process without a vDSO")?;
    scene.over("nothing was begun")
}

/// In a cgroup one that cannot be hit is told of, and is no reason not to hit the others.
fn beside(scene: &mut Scene, who: &str) -> Result {
    let (fault, _) = scene.armed(super::processes::OFFSET)?;
    scene.skewed(super::processes::SKEW, who)?;
    fault.wait_event("progress", PATIENCE)?;
    let counts = end(&fault)?;
    ensure!(counts.fired == 1, "{who}: {counts:?}");
    scene.over(who)
}
