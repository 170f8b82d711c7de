//! A fault of a call that runs, and what it has counted.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    ensure,
    error::{Context, Result},
    faultline::{Exit, Faultline},
};

/// Loading takes seconds under emulation.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) seen: u64,
    pub(super) matched: u64,
    pub(super) fired: u64,
}

/// It, armed.
#[derive(Debug)]
pub(super) struct Fault {
    words: String,
    faultline: Faultline,
    /// What `prepared` named: the mechanisms.
    pub(super) hooks: Vec<String>,
}

impl Fault {
    /// Arms what is written here, words parted by single spaces.
    pub(super) fn arm(words: &str) -> Result<Self> {
        let arguments: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
        let faultline = Faultline::start(&arguments).context(words)?;
        let prepared = faultline.wait_event("prepared", PATIENCE).context(words)?;
        let hooks = prepared.get("/hooks").context(words)?.as_array().cloned().unwrap_or_default();
        let hooks = hooks.iter().filter_map(|hook| hook.get("hook")?.as_str().map(String::from)).collect();
        faultline.wait_event("armed", PATIENCE).context(words)?;
        Ok(Self { words: words.into(), faultline, hooks })
    }

    /// Ends it as a user would, and says what its only rule has counted.
    pub(super) fn end(self) -> Result<Counts> {
        let Self { words, faultline, .. } = self;
        let exit = faultline.end().context(&words)?;
        let counts = counts(&exit).context(&words)?;
        ensure!(counts.fired <= counts.matched && counts.matched <= counts.seen, "{words}: {counts:?}");
        Ok(counts)
    }
}

/// What the rules of a run that has ended have counted, all together.
pub(super) fn counts(exit: &Exit) -> Result<Counts> {
    let rules = exit.event("summary")?.get("/rules")?.clone();
    let rules: Vec<Counts> = serde_json::from_value(rules.clone()).context(rules)?;
    let sum = |of: fn(&Counts) -> u64| rules.iter().map(of).sum();
    Ok(Counts {
        seen: sum(|rule| rule.seen),
        matched: sum(|rule| rule.matched),
        fired: sum(|rule| rule.fired),
    })
}
