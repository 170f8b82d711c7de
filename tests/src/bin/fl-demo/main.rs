//! The main job, shown: real traffic between two network namespaces, faults injected into it by the `faultline` beside
//! this program, and what they did, measured at the receiving end.

mod delay;
mod loss;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use chaos_user::kernel::{mechanism::Mechanism, probe};
use clap::{Parser, ValueEnum};
use faultline_tests::{
    error::{Context, Result},
    faultline::Event,
    harness::heed_signals,
    inventory::Inventory,
    lab::{Family, Lab, Route},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// What this kernel cannot do is shown elsewhere.
const CANNOT: u8 = 3;

/// Show what a fault does to real traffic.
#[derive(Debug, Parser)]
#[command(name = "fl-demo", version)]
struct Cli {
    fault: Fault,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Fault {
    Loss,
    Delay,
}

fn main() -> ExitCode {
    heed_signals();
    match run(Cli::parse().fault) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(fault: Fault) -> Result<ExitCode> {
    if matches!(fault, Fault::Delay) && !probe::run().has(Mechanism::SchFq) {
        return Ok(CANNOT.into());
    }
    let start = Instant::now();
    let before = Inventory::take(&[])?;
    let right = match fault {
        Fault::Loss => loss::show()?,
        Fault::Delay => delay::show()?,
    };
    before.wait_until_equal(&[], Duration::from_secs(2))?;
    say(&format!("\nnothing is left behind; {:.1} s", start.elapsed().as_secs_f64()))?;
    if !right {
        say("the lines marked ! are not as asked")?;
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(text: &str) -> Result {
    writeln!(io::stdout(), "{text}").context("write to standard output")
}

/// The first hook of a run that is prepared, as people write it.
fn hook(prepared: &Event) -> Result<String> {
    Ok(prepared.get("/hooks/0/hook")?.as_str().context("a hook without a name")?.replace('_', " "))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    const BOTH: [Self; 2] = [Self::In, Self::Out];

    fn route(self, lab: &Lab, family: Family) -> Route<'_> {
        match self {
            Self::In => lab.inward(family),
            Self::Out => lab.outward(family),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}
