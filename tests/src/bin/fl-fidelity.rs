//! Measures how near each fault is to what was asked, beside netem; one JSON object a quantity.

use clap::Parser;
use faultline_tests::{error::Result, fidelity, harness::heed_signals};

/// Measure how near faults are to what was asked.
#[derive(Debug, Parser)]
#[command(name = "fl-fidelity", version)]
struct Cli {
    /// Only faults whose words contain one of these
    filter: Vec<String>,
}

fn main() -> Result {
    heed_signals();
    fidelity::run(&Cli::parse().filter)
}
