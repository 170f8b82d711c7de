//! How near a fault is to what was asked, beside netem in the same guest and the same run.

mod changes;
mod delays;
mod losses;
mod netem;
mod rates;
mod row;
mod statistics;

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use chaos_ebpf::abi::Direction;
use nix::sys::signal::Signal;

use self::{
    netem::Netem,
    row::{Figure, Row, verdict},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    lab::{Family, Lab, NEAR_DEVICE, Options, Route},
};

/// How long a start or an end may take on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fault, and the way it is asked for.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// In the words that both understand.
    words: &'static str,
    /// What only Faultline is told.
    options: &'static str,
    /// Words for netem where they are others.
    netem: &'static str,
    /// What only netem is told.
    netem_options: &'static str,
    direction: Direction,
    family: Family,
}

/// Who injects the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Ours,
    Netem,
}

impl Case {
    const fn new(words: &'static str) -> Self {
        Self {
            words,
            options: "",
            netem: words,
            netem_options: "",
            direction: Direction::Out,
            family: Family::V4,
        }
    }

    const fn received(self) -> Self {
        Self { direction: Direction::In, ..self }
    }

    const fn v6(self) -> Self {
        Self { family: Family::V6, ..self }
    }

    const fn options(self, options: &'static str) -> Self {
        Self { options, ..self }
    }

    fn route<'a>(&self, lab: &'a Lab) -> Route<'a> {
        match self.direction {
            Direction::Out | Direction::Connect | Direction::Call => lab.outward(self.family),
            Direction::In => lab.inward(self.family),
        }
    }

    /// Measures while the fault is there.
    fn during<T>(&self, lab: &Lab, who: Who, measure: impl FnOnce(Route<'_>) -> Result<T>) -> Result<T> {
        let route = self.route(lab);
        match who {
            Who::Nobody => measure(route),
            Who::Netem => {
                let words = format!("{} {}", self.netem, self.netem_options);
                let _netem = Netem::add(&lab.near, self.direction, &words)?;
                measure(route)
            }
            Who::Ours => {
                // Another each time, so that the rows are independent, and the same in each run.
                static SEED: AtomicU64 = AtomicU64::new(1);
                let seed = SEED.fetch_add(1, Ordering::Relaxed).to_string();
                let mut arguments = vec!["net"];
                arguments.extend(self.words.split_whitespace());
                arguments.extend(self.options.split_whitespace());
                arguments.extend([
                    "--dev",
                    NEAR_DEVICE,
                    "--direction",
                    self.direction.name(),
                    "--seed",
                    &seed,
                ]);
                let faultline = Faultline::start_in(&lab.near, &arguments)?;
                faultline.wait_event("armed", PATIENCE)?;
                let measured = measure(route);
                faultline.kill(Signal::SIGINT)?;
                let exit = faultline.wait(PATIENCE)?;
                ensure!(exit.code == Some(130), "faultline ended with {:?}: {}", exit.code, exit.stderr);
                measured
            }
        }
    }

    /// A row without figures.
    fn row(&self, parameters: String, quantity: impl Into<String>, unit: &'static str, asked: f64) -> Row {
        let name = format!("{} {}", self.words, self.options).trim().to_owned();
        let parameters = format!("{parameters}, {}", if self.family == Family::V4 { "IPv4" } else { "IPv6" });
        Row {
            name,
            direction: self.direction.name(),
            parameters,
            quantity: quantity.into(),
            unit,
            asked,
            baseline: None,
            ours: None,
            netem: None,
            verdict: String::new(),
        }
    }
}

impl Row {
    fn beside(self, ours: Figure, netem: Option<Figure>) -> Self {
        Self { ours: Some(ours), netem, verdict: verdict(ours, netem).to_owned(), ..self }
    }

    fn with_baseline(self, baseline: f64) -> Self {
        Self { baseline: Some(baseline), ..self }
    }
}

/// Some quantities of one fault.
type Measurement = (Case, fn(&Case, &Lab) -> Result<Vec<Row>>);

/// Measures all faults whose words contain one of these, or all, and prints each quantity as a JSON object.
///
/// # Errors
///
/// If there is no lab. A fault that cannot be measured is a row that says so.
pub fn run(filter: &[String]) -> Result {
    let lab = Lab::with(Options { wire_packets: true, ..Options::default() })?;
    let all = [losses::ALL, changes::ALL, delays::ALL, rates::ALL, losses::AFTERWARDS];
    for (case, measure) in all.into_iter().flatten() {
        let chosen = |word: &String| case.words.contains(word.as_str());
        if !filter.is_empty() && !filter.iter().any(chosen) {
            continue;
        }
        let rows = measure(case, &lab).unwrap_or_else(|failure| {
            let row = case.row(String::new(), "nothing", "", 0.0);
            vec![Row { verdict: format!("failed: {failure}"), ..row }]
        });
        for row in rows {
            let line = serde_json::to_string(&row).context("JSON")?;
            let mut out = io::stdout().lock();
            writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output")?;
        }
    }
    Ok(())
}
