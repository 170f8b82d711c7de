//! Measures what a decision costs: of packets by running the programs here, of system calls by making them in guests; what a
//! clock costs that is skewed, here; and how far the verifier walks, on every kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cargo::{as_root, build, build_dynamic, run as run_command, shown},
    guests::Guests,
    setup,
};

/// This machine's kernel may not let calls fail.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Of one guest; it takes some five minutes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(1500);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// What packets cost, on this machine's kernel.
    Packets,
    /// What system calls cost, in guests.
    Calls,
    /// What clocks cost, on this machine's kernel, and where system calls are rewritten in guests.
    Time,
    /// How many instructions the verifier looks at for each program, on this machine's kernel and in all guests.
    Verifier,
}

/// `cargo xtask bench`.
///
/// # Errors
///
/// If something does not build or cannot be measured.
pub(crate) fn run(part: Option<Part>) -> Result<()> {
    setup::build_tools()?;
    let wanted = |other| part.is_none_or(|part| part == other);
    if wanted(Part::Packets) {
        let folder = build(&["fl-bench"])?;
        run_command(&mut as_root(&folder.join("fl-bench")))?;
    }
    if wanted(Part::Time) {
        setup::bench_programs()?;
        // Linked dynamically, as what libfaketime is for must be.
        let folder = build_dynamic(&["faultline", "fl-clock", "fl-time-bench"])?;
        println!("\nclocks, on this machine's kernel");
        run_command(&mut as_root(&folder.join("fl-time-bench")))?;
        // What this machine's kernel does not let us do.
        let programs = ["faultline", "fl-clock", "fl-time-bench"];
        in_guests("clocks read by system calls", &programs, "fl-time-bench rewritten")?;
    }
    if wanted(Part::Calls) {
        in_guests("system calls", &["faultline", "fl-calls-bench"], "fl-calls-bench")?;
    }
    if wanted(Part::Verifier) {
        verifier()?;
    }
    Ok(())
}

/// Half of what the verifier allows is the most that `load::` lets a program have.
fn verifier() -> Result<()> {
    setup::guest_tools()?;
    let folder = build(&["fl-bench"])?;
    let mut command = as_root(&folder.join("fl-bench"));
    let output = command.arg("--verified").output().with_context(|| shown(&command))?;
    let failure = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "`{}`: {failure}", shown(&command));
    let mut said = vec![("host".to_owned(), String::from_utf8_lossy(&output.stdout).into_owned())];
    let guests = Guests::with(&[], &["fl-bench"])?;
    let of_guests = guests.say("fl-bench --verified")?;
    if let Some(kernel) = guests.names().find(|name| of_guests.iter().all(|(said, _)| said != name)) {
        bail!(
            "guest {kernel}: not all programs load; `cargo xtask vm --kernel {kernel} --test load::` says which"
        );
    }
    said.extend(of_guests);
    let columns: Vec<(&str, BTreeMap<&str, &str>)> = said
        .iter()
        .map(|(kernel, lines)| {
            (kernel.as_str(), lines.lines().filter_map(|line| line.split_once(' ')).collect())
        })
        .collect();
    let programs: BTreeSet<&str> = columns.iter().flat_map(|(_, found)| found.keys().copied()).collect();
    println!("\ninstructions that the verifier looked at, the most of all runs that load:: tries");
    let row = |first: &str, cells: Vec<&str>| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:>20}")).collect();
        println!("{first:<16}{cells}");
    };
    row("PROGRAM", columns.iter().map(|(kernel, _)| *kernel).collect());
    for program in programs {
        row(program, columns.iter().map(|(_, found)| found.get(program).copied().unwrap_or("-")).collect());
    }
    Ok(())
}

fn in_guests(what: &str, programs: &[&str], command: &str) -> Result<()> {
    setup::bench_programs()?;
    let guests = Guests::with(&KERNELS.map(String::from), programs)?;
    println!("\n{what}, in guests under QEMU without hardware virtualisation");
    let done = guests.hear(command, DEADLINE, &mut |_, line| println!("{line}"))?;
    ensure!(done, "{what} could not be measured");
    Ok(())
}
