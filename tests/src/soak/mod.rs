//! Random faults on random targets, whose owners end in every way there is, at random moments; after each step everything is
//! as it was at the start.
//!
//! A step follows from the seed and its number ([`plan`]). Bystanders talk, write files and look at clocks all the time.

mod aftermath;
mod events;
mod faults;
mod owners;
mod plan;
mod random;
mod report;
mod roles;
mod scene;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::{
    owners::Owner,
    plan::{Event, Step},
    report::{Line, Report},
    scene::{Ground, Scene},
};
pub use self::{report::Finding, roles::play};
use crate::{
    error::{Context, Failure, Result},
    faultline::Faultline,
    harness::patience,
};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// From which all steps follow.
    pub seed: u64,
    /// The number of the first.
    pub from: u64,
    /// How many, if that is said.
    pub steps: Option<u64>,
    /// How long, if not.
    pub time: Duration,
    /// Where a line for each step goes, beside standard output.
    pub log: Option<PathBuf>,
}

/// What a step takes at most where all goes well: the last one is over when the time is.
const LONGEST: Duration = Duration::from_secs(5);
/// Those that the event ends by itself do so within this time; who does not is asked to.
const BY_ITSELF: Duration = Duration::from_millis(1500);

/// Goes through the steps; whether all was well.
///
/// # Errors
///
/// If a step could not be done.
pub fn run(options: &Options) -> Result<bool> {
    let begun = Instant::now();
    let mut report = Report::new(options.seed, options.log.as_deref())?;
    let ground = Ground::prepare()?;
    let abilities = abilities()?;
    let mut scene = Scene::set(&ground)?;
    let until = options.steps.map_or(u64::MAX, |steps| options.from.saturating_add(steps));
    for number in options.from..until {
        if options.steps.is_none() && begun.elapsed() + LONGEST >= options.time {
            break;
        }
        let step = Step::draw(options.seed, number, &abilities);
        let start = Instant::now();
        let mut went = Went::default();
        let done = go(&step, &mut scene, &mut went);
        if let Err(failure) = done.and_then(|()| scene.restore()) {
            went.findings.push(Finding::Stuck { what: failure.to_string() });
            went.is_spoilt = true;
        }
        tally(&mut report, &step, &went);
        report.step(&Line {
            seed: options.seed,
            step: number,
            faults: step.faults.iter().map(faults::Fault::line).collect(),
            event: step.event.to_string(),
            moment: step.moment.to_string(),
            to_all: step.to_all,
            owners: went.owners.iter().map(Owner::word).collect(),
            milliseconds: start.elapsed().as_millis() as u64,
            findings: went.findings,
        })?;
        if went.is_spoilt {
            drop(went.owners);
            events::discard()?;
            drop(scene);
            scene = Scene::set(&ground)?;
        }
    }
    drop(scene);
    report.end(begun.elapsed())
}

/// The faults that this kernel can have, and its mechanisms, as the doctor calls them.
fn abilities() -> Result<BTreeSet<String>> {
    let exit = Faultline::run(&["doctor", "--json"])?;
    let doctor: Value = serde_json::from_str(exit.stdout.trim()).context("what the doctor says")?;
    let listed = |list: &str| doctor[list].as_array().cloned().context(format_args!("the doctor's {list}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let faults = listed("faults")?.into_iter().filter(|fault| fault["mechanism"].is_string());
    let mechanisms = listed("mechanisms")?.into_iter().filter(|mechanism| mechanism["state"] == "available");
    let mut abilities: BTreeSet<String> = faults.map(|fault| text(&fault["fault"])).collect();
    abilities.extend(mechanisms.map(|mechanism| text(&mechanism["mechanism"])));
    if !std::path::Path::new(faults::DISK).exists() {
        abilities.remove("io_slow");
    }
    Ok(abilities)
}

/// How a step went.
#[derive(Debug, Default)]
struct Went {
    owners: Vec<Owner>,
    findings: Vec<Finding>,
    /// Whether the next one cannot begin with what this one leaves.
    is_spoilt: bool,
}

fn tally(report: &mut Report, step: &Step, went: &Went) {
    let sums = &mut report.sums;
    for fault in &step.faults {
        *sums.faults.entry(fault.family.name.into()).or_default() += 1;
    }
    sums.owners += went.owners.len() as u64;
    sums.refused += went.owners.iter().filter(|owner| owner.is_refused()).count() as u64;
}

/// One step, from a clean start to a clean end.
fn go(step: &Step, scene: &mut Scene<'_>, went: &mut Went) -> Result {
    let beats = scene.bystander.beats();
    // Empty by now: the first owner makes it, so that it is seen how.
    let _ = std::fs::remove_dir(crate::harness::RECORDS);
    scene.prepare(step.event.takes_interface(), step.is_elsewhere)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers(step))
            .map(|it| {
                scope.spawn({
                    let is_over = &is_over;
                    move || read(it, is_over)
                })
            })
            .collect();
        let done = owners(step, scene, went);
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            let read = reader.join().map_err(|_| Failure::new("a reader panicked"))?;
            went.findings.extend(read);
        }
        done
    })?;
    aftermath::compare(step, scene, went)?;
    aftermath::bystander(scene, &beats, went);
    Ok(())
}

/// Who reads and sweeps all the time would have done so before somebody else.
fn readers(step: &Step) -> u64 {
    match step.event {
        Event::SweptFrom(_) | Event::TornLine | Event::UnknownLine => 0,
        _ => step.readers,
    }
}

/// Lists and sweeps until all is over; what is wrong with how these commands end.
fn read(number: u64, is_over: &AtomicBool) -> Vec<Finding> {
    let mut wrong = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let (words, codes): (&[&str], &[i32]) =
            if number == 1 { (&["sweep"], &[0, 6]) } else { (&["ps"], &[0]) };
        match Faultline::run(words) {
            Ok(exit) if exit.code.is_some_and(|code| codes.contains(&code)) => {}
            Ok(exit) => {
                let what =
                    format!("beside others, faultline {words:?}: exit {:?}, {:?}", exit.code, exit.stderr);
                wrong.push(Finding::Exit { what });
            }
            Err(failure) => wrong.push(Finding::Stuck { what: failure.to_string() }),
        }
        if !wrong.is_empty() {
            return wrong;
        }
        thread::sleep(Duration::from_millis(30));
    }
    wrong
}

/// Starts them, has it happen, and ends them.
fn owners(step: &Step, scene: &mut Scene<'_>, went: &mut Went) -> Result {
    for place in 0..step.faults.len() {
        went.owners.push(Owner::start(step, place, scene)?);
    }
    owners::wait_for_moment(step, &mut went.owners)?;
    if step.is_careless {
        went.findings.extend(owners::open_to_others().into_iter().map(|what| Finding::Open { what }));
    }
    events::happen(step, scene, &mut went.owners, &mut went.findings)?;
    let ends_by_itself = step.event == Event::Duration
        || step.event == Event::Pause
        || step.event.takes_interface()
        || step.event.takes_target();
    let deadline = Instant::now() + patience(BY_ITSELF);
    for (place, owner) in went.owners.iter_mut().enumerate() {
        if owner.is_killed {
            owner.ends_within(patience(aftermath::SWEPT));
        } else if ends_by_itself && step.hits(place) {
            owner.ends_within(deadline.saturating_duration_since(Instant::now()));
        }
        if !owner.end() {
            let what = format!("does not end: {}", owner.fault.line());
            went.findings.push(Finding::Stuck { what });
            owner.signal(nix::sys::signal::Signal::SIGKILL);
            owner.ends_within(patience(aftermath::SWEPT));
        }
        let wrong = owner.judge(step, place);
        went.findings.extend(wrong.map(|what| Finding::Exit { what }));
    }
    Ok(())
}
