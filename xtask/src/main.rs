//! `cargo xtask`: the only scripts. Each command installs what it needs and is not there.

mod bench;
mod cargo;
mod cells;
mod demo;
mod dist;
mod failing;
mod fidelity;
mod guests;
mod kernels;
mod lint;
mod matrix;
mod newest;
mod peers;
mod setup;
mod soak;
mod stages;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, demonstrate, test and measure Faultline.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the build needs
    Setup,
    /// Inject packet loss into real traffic and show the figures
    Demo,
    /// Put the program, completions for shells and the manual into one archive, target/dist/faultline-*.tar.gz
    Dist,
    /// Run all tests: on this machine's kernel, on a guest that has it all, and what differs on the other kernels
    Test(test::Options),
    /// Run the integration tests in guests under QEMU, or a shell
    Vm(guests::Options),
    /// Begin and end random faults for minutes, and look after each step whether everything is as it was
    Soak(soak::Options),
    /// Have each system call of the injector fail once, and see that it says so and leaves nothing
    Failing(failing::Options),
    /// Ask the doctor on every kernel and write docs/kernels.md
    Kernels {
        /// Say in one line what the newest kernel that can be had breaks, and write nothing
        #[arg(long)]
        newest: bool,
    },
    /// Measure what a decision costs, beside bare programs, strace and libfaketime
    Bench {
        /// Only this
        part: Option<bench::Part>,
    },
    /// Measure what gets through a link to many peers, in a guest, beside tc filters with netem classes
    Peers,
    /// Measure how near faults are to what was asked, beside netem, and write docs/fidelity.md
    Fidelity {
        /// Only faults whose words contain one of these; nothing is written then
        filter: Vec<String>,
        /// On this kernel instead of 6.12; nothing is written then
        #[arg(long)]
        kernel: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::Demo => demo::run(),
        Command::Dist => dist::run(),
        Command::Test(options) => test::run(&options),
        Command::Vm(options) => guests::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Failing(options) => failing::run(&options),
        Command::Kernels { newest: false } => kernels::run(),
        Command::Kernels { newest: true } => newest::run(),
        Command::Bench { part } => bench::run(part),
        Command::Peers => peers::run(),
        Command::Fidelity { filter, kernel } => fidelity::run(&filter, kernel),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
