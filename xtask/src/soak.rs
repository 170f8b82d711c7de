//! Random faults for minutes, on this machine's kernel or in guests; after each step everything is as it was.
//!
//! What each step was and how it went is in `target/soak/KERNEL-SEED.jsonl`; a step is repeated by what is told of it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cargo::{as_root, build, shown, target},
    guests::Guests,
    setup,
};

/// The program, and what it needs.
pub(crate) const PROGRAMS: [&str; 2] = ["faultline", "fl-soak"];

/// The seed of a run that is given none: each run does the same.
pub(crate) const SEED: u64 = 18;

/// How long a guest may take beyond its minutes: it boots, and ends its last step.
const BEYOND: Duration = Duration::from_secs(600);

/// How often it is told how far a run is.
const TOLD: Duration = Duration::from_secs(30);

/// `cargo xtask soak`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long, on each kernel
    #[arg(long, value_name = "N", default_value_t = 2)]
    minutes: u64,
    /// From which all steps follow
    #[arg(long, value_name = "S", default_value_t = SEED)]
    seed: u64,
    /// In a guest with this kernel instead: 6.1, 6.12, newest (Debian's), or a folder's name; one after the other
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Begin with this step
    #[arg(long, value_name = "STEP", default_value_t = 0)]
    from: u64,
    /// So many steps instead of minutes
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
}

/// `cargo xtask soak`.
///
/// # Errors
///
/// If something does not build, or not all was well.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::build_tools()?;
    if options.kernels.is_empty() {
        return host(&build(&PROGRAMS)?, options);
    }
    setup::guest_tools()?;
    let guests = Guests::with(&options.kernels, &PROGRAMS)?;
    let mut soaks: BTreeMap<String, Soak> = BTreeMap::new();
    let command = format!("fl-soak --emulated {}", words(options).join(" "));
    let deadline = BEYOND + Duration::from_secs(60 * options.minutes);
    let mut wrong = Vec::new();
    guests.hear(&command, deadline, &mut |kernel, line| {
        let soak =
            soaks.entry(kernel.name.clone()).or_insert_with(|| Soak::begin(&kernel.name, options.seed));
        soak.hear(line).unwrap_or_else(|error| wrong.push(format!("{error:#}")));
    })?;
    wrong.extend(soaks.into_values().filter_map(|soak| soak.end().err()).map(|error| format!("{error:#}")));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The stage of `cargo xtask test`: two minutes of it on this machine's kernel, always the same.
///
/// # Errors
///
/// If not all was well.
pub(crate) fn gate(folder: &Path) -> Result<()> {
    let options = Options { minutes: 2, seed: SEED, kernels: Vec::new(), from: 0, steps: None };
    host(folder, &options)
}

fn host(folder: &Path, options: &Options) -> Result<()> {
    let mut command = as_root(&folder.join("fl-soak"));
    command.args(words(options)).stdin(Stdio::null()).stdout(Stdio::piped());
    let shown = shown(&command);
    let mut child = command.spawn().with_context(|| format!("start `{shown}`"))?;
    let mut soak = Soak::begin("host", options.seed);
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).lines() {
        soak.hear(&line.with_context(|| format!("read from `{shown}`"))?)?;
    }
    let status = child.wait()?;
    soak.end()?;
    ensure!(status.success(), "`{shown}`: {status}");
    Ok(())
}

fn words(options: &Options) -> Vec<String> {
    let Options { minutes, seed, from, steps, kernels: _ } = options;
    let long = steps.map_or_else(|| format!("--minutes={minutes}"), |steps| format!("--steps={steps}"));
    vec![long, format!("--seed={seed}"), format!("--from={from}")]
}

/// A step, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Step {
    step: u64,
    faults: Vec<String>,
    event: String,
    moment: String,
    findings: Vec<Value>,
}

impl Step {
    /// What should not have been, with what the step was.
    fn found(&self) -> Option<String> {
        let Self { step, faults, event, moment, findings } = self;
        let mut text = format!("step {step}: {event} {moment}: {}", faults.join(" + "));
        for finding in findings {
            let word = |name: &str| finding[name].as_str().unwrap_or_default().trim();
            text += &format!("\n     | {}: {}", word("kind"), word("what").replace('\n', "\n     |   "));
        }
        (!findings.is_empty()).then_some(text)
    }
}

/// The sums, as far as they are shown.
#[derive(Debug, Deserialize)]
struct Sums {
    steps: u64,
    seconds: u64,
    owners: u64,
    refused: u64,
    faults: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    findings: BTreeMap<String, u64>,
    repeat: Vec<String>,
}

/// A run on one kernel, as it is heard.
#[derive(Debug)]
struct Soak {
    kernel: String,
    path: PathBuf,
    log: Option<File>,
    steps: u64,
    found: Vec<String>,
    told: Instant,
    sums: Option<Sums>,
}

impl Soak {
    fn begin(kernel: &str, seed: u64) -> Self {
        let folder = target().map_or_else(|_| "target".into(), Path::to_path_buf).join("soak");
        let path = folder.join(format!("{kernel}-{seed}.jsonl"));
        println!("soak {kernel}, seed {seed}; log {}", path.display());
        let log = fs::create_dir_all(&folder).and_then(|()| File::create(&path)).ok();
        Self {
            kernel: kernel.into(),
            path,
            log,
            steps: 0,
            found: Vec::new(),
            told: Instant::now(),
            sums: None,
        }
    }

    /// Takes in a line: a step, or the sums.
    fn hear(&mut self, line: &str) -> Result<()> {
        let log = self.log.as_mut().with_context(|| format!("{} cannot be written", self.path.display()))?;
        writeln!(log, "{line}").with_context(|| format!("writing {}", self.path.display()))?;
        if let Ok(step) = serde_json::from_str::<Step>(line) {
            self.steps += 1;
            if let Some(found) = step.found() {
                println!("soak {}, {found}", self.kernel);
                self.found.push(found);
            }
        } else if let Ok(sums) = serde_json::from_str(line) {
            self.sums = Some(sums);
        } else {
            println!("soak {}: {line}", self.kernel);
        }
        if self.told.elapsed() >= TOLD {
            self.told = Instant::now();
            println!(
                "soak {}: {} steps, {} of them with findings",
                self.kernel,
                self.steps,
                self.found.len()
            );
        }
        Ok(())
    }

    /// Tells the sums.
    fn end(self) -> Result<()> {
        let Self { kernel, path, steps, found, sums, .. } = self;
        let sums =
            sums.with_context(|| format!("soak {kernel}: it ended after {steps} steps; {}", path.display()))?;
        let Sums { steps, seconds, owners, refused, faults, events, findings, repeat } = sums;
        println!(
            "soak {kernel}: {steps} steps, {owners} faults in {seconds} s, of which {refused} were refused"
        );
        println!("  faults: {}", listed(&faults));
        println!("  events: {}", listed(&events));
        println!("  found: {}", listed(&findings));
        for words in &repeat {
            println!("  repeat by cargo xtask soak {words}");
        }
        ensure!(
            findings.values().all(|count| *count == 0),
            "soak {kernel}: not all was well; {}\n{}",
            path.display(),
            found.join("\n")
        );
        ensure!(steps > 0, "soak {kernel}: nothing was done");
        Ok(())
    }
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_decide() {
        let sums = |count: u64| {
            let line = format!(
                r#"{{"seed":1,"steps":3,"seconds":2,"owners":4,"refused":0,"faults":{{}},"events":{{}},
                    "findings":{{"lies":{count}}},"repeat":[]}}"#
            );
            let sums: Sums = serde_json::from_str(&line).expect("sums");
            let told = Instant::now();
            Soak {
                kernel: "x".into(),
                path: "x".into(),
                log: None,
                steps: 3,
                found: Vec::new(),
                told,
                sums: Some(sums),
            }
        };
        assert!(sums(0).end().is_ok());
        assert!(sums(1).end().is_err());
        assert!(Soak { sums: None, ..sums(0) }.end().is_err());
    }

    #[test]
    fn what_was_found_is_said() {
        let step = |findings: &str| {
            let line = format!(
                r#"{{"step":7,"faults":["net loss 1%","mem error"],"event":"SIGKILL","moment":"1s after arming","findings":[{findings}]}}"#
            );
            serde_json::from_str::<Step>(&line).expect("a step").found()
        };
        assert_eq!(step(""), None);
        let expected =
            "step 7: SIGKILL 1s after arming: net loss 1% + mem error\n     | stuck: a\n     |   b";
        assert_eq!(step(r#"{"kind":"stuck","what":"a\nb\n"}"#).as_deref(), Some(expected));
    }
}
