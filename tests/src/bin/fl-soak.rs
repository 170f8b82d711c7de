//! Soaks this machine's kernel in random faults, and looks after each step whether everything is as it was; one JSON object a
//! step, and the sums.

use std::{env, fs::File, io, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use faultline_tests::{
    error::{Context, Result},
    faultline, harness, soak,
};

/// Soak this machine's kernel in random faults.
#[derive(Debug, Parser)]
#[command(name = "fl-soak", version)]
struct Cli {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 2)]
    minutes: u64,
    /// So many steps instead
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    steps: Option<u64>,
    /// From which all steps follow
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Begin with this step
    #[arg(long, value_name = "STEP", default_value_t = 0)]
    from: u64,
    /// Write what is printed to this file as well
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The faultline binary; the one beside this program if not given
    #[arg(long, value_name = "PATH")]
    faultline: Option<PathBuf>,
    /// This machine is emulated in software: wait longer
    #[arg(long)]
    emulated: bool,
    /// Be one of the processes of a scene
    #[arg(long, value_name = "ROLE", hide = true)]
    role: Option<String>,
    /// What that process is told
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.role {
        Some(role) => soak::play(role, &cli.words).map(|()| true),
        None => run(cli),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("fl-soak: {failure}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<bool> {
    if let Some(path) = &cli.faultline {
        let path = path.canonicalize().context(path.display())?;
        faultline::set_binary(path);
    }
    if cli.emulated {
        harness::set_emulated();
    }
    let _alone = alone().context("fl-tests.lock")?;
    let Cli { seed, from, steps, log, minutes, .. } = cli;
    soak::run(&soak::Options { seed, from, steps, time: Duration::from_secs(60 * minutes), log })
}

/// Waits until nobody else tests: the whole machine's state is compared. The kernel lets go of the lock when this ends.
fn alone() -> io::Result<File> {
    let file = File::create(env::temp_dir().join("fl-tests.lock"))?;
    file.lock()?;
    Ok(file)
}
