//! What came of it: a line for each step, and the sums.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

/// What should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// Something is left, and it was said that nothing is.
    Lie {
        /// What is left, and who said what.
        what: String,
    },
    /// Something is left, and it was said so.
    Residue {
        /// What.
        what: String,
    },
    /// The target did not live through it.
    Crash {
        /// How it ended.
        what: String,
    },
    /// Somebody noticed whom nothing was aimed at.
    Bystander {
        /// What.
        what: String,
    },
    /// A command ended as it should not.
    Exit {
        /// How.
        what: String,
    },
    /// An owner does not end, or does not begin.
    Stuck {
        /// Which.
        what: String,
    },
    /// Others may read or write records.
    Open {
        /// Which.
        what: String,
    },
}

impl Finding {
    const fn name(&self) -> &'static str {
        match self {
            Self::Lie { .. } => "lies",
            Self::Residue { .. } => "residues",
            Self::Crash { .. } => "target crashes",
            Self::Bystander { .. } => "bystander errors",
            Self::Exit { .. } => "unexpected exits",
            Self::Stuck { .. } => "stuck",
            Self::Open { .. } => "open records",
        }
    }
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) faults: Vec<String>,
    pub(super) event: String,
    pub(super) moment: String,
    /// Whether it happened to all owners.
    pub(super) to_all: bool,
    /// How each owner ended.
    pub(super) owners: Vec<String>,
    pub(super) milliseconds: u64,
    pub(super) findings: Vec<Finding>,
}

/// The sums.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sums {
    pub(super) seed: u64,
    pub(super) steps: u64,
    pub(super) seconds: u64,
    pub(super) owners: u64,
    pub(super) refused: u64,
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) events: BTreeMap<String, u64>,
    pub(super) findings: BTreeMap<String, u64>,
    /// The first steps with any: each can be repeated.
    pub(super) repeat: Vec<String>,
}

/// Where it is told.
#[derive(Debug)]
pub(super) struct Report {
    log: Option<File>,
    pub(super) sums: Sums,
}

/// What there is to be found, for sums that name what was not.
const ALL: [&str; 7] =
    ["lies", "residues", "target crashes", "bystander errors", "unexpected exits", "stuck", "open records"];

impl Report {
    pub(super) fn new(seed: u64, log: Option<&Path>) -> Result<Self> {
        let log = log.map(|path| File::create(path).context(path.display())).transpose()?;
        let findings = ALL.map(|name| (name.to_owned(), 0)).into();
        Ok(Self { log, sums: Sums { seed, findings, ..Sums::default() } })
    }

    /// Tells of a step.
    pub(super) fn step(&mut self, line: &Line) -> Result {
        /// More than anybody repeats.
        const MOST: usize = 20;
        self.sums.steps += 1;
        *self.sums.events.entry(line.event.clone()).or_default() += 1;
        for finding in &line.findings {
            *self.sums.findings.entry(finding.name().into()).or_default() += 1;
        }
        if !line.findings.is_empty() && self.sums.repeat.len() < MOST {
            self.sums.repeat.push(format!("--seed {} --from {} --steps 1", line.seed, line.step));
        }
        self.tell(line)
    }

    /// Tells the sums; whether all is well.
    pub(super) fn end(mut self, time: Duration) -> Result<bool> {
        self.sums.seconds = time.as_secs();
        let sums = self.sums.clone();
        self.tell(&sums)?;
        Ok(sums.findings.values().all(|count| *count == 0) && sums.steps > 0)
    }

    fn tell(&mut self, line: &impl Serialize) -> Result {
        let text = serde_json::to_string(line).context("JSON")?;
        if let Some(log) = &mut self.log {
            writeln!(log, "{text}").context("write the log")?;
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).context("write to standard output")
    }
}
