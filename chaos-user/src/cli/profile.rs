//! `faultline profile`: the profiles there are, and another one for a run that has one.

use std::time::Instant;

use chaos_ebpf::abi::Direction;

use super::{CliError, Code, args::ProfileCommand, net::require_root, out::Stdout, owners};
use crate::{
    kernel::peers::Applied,
    session::{ProfileRun, Record},
    spec::{BUILT_IN, Profile},
};

/// Does what was asked.
pub(super) fn run(command: &ProfileCommand) -> Result<Code, CliError> {
    match command {
        ProfileCommand::List => list(),
        ProfileCommand::Show { name } => show(name),
        ProfileCommand::Apply { file, id } => apply(file, id.as_deref()),
    }
}

/// A line each: the name, what it is, and its figures.
fn list() -> Result<Code, CliError> {
    let mut out = Stdout::lock();
    for (name, text) in BUILT_IN {
        let what = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        let figures = text.lines().find_map(|line| line.strip_prefix("default ")).unwrap_or_default();
        writeln!(out, "{name:<14}{what}")?;
        writeln!(out, "{:<14}{figures}", "")?;
    }
    Ok(Code::Success)
}

/// As a file of one's own would be.
fn show(name: &str) -> Result<Code, CliError> {
    let found = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
    let (_, text) = found.ok_or_else(|| CliError::NoBuiltIn(name.into()))?;
    Stdout::lock().text(text)?;
    Ok(Code::Success)
}

fn apply(file: &str, id: Option<&str>) -> Result<Code, CliError> {
    // All of it is read and checked before anything is changed.
    let profile = Profile::load(file).map_err(CliError::Profile)?;
    require_root()?;
    owners::sweep_before()?;
    let records = Record::all()?.understood;
    if let Some(id) = id.filter(|id| !records.iter().any(|record| record.id == **id)) {
        return Err(CliError::UnknownFault(id.into()));
    }
    let target = ProfileRun::find(records, id)?;
    let begin = Instant::now();
    let Applied { changed, added, removed } = target.apply(&profile)?;
    let mut out = Stdout::lock();
    writeln!(
        out,
        "{file} applied to {}: {changed} peers changed, {added} added, {removed} removed, in {} ms",
        target.id(),
        begin.elapsed().as_millis()
    )?;
    for direction in [Direction::In, Direction::Out] {
        if profile.has_sides && !target.acts(direction) {
            let what = if direction == Direction::In { "down" } else { "up" };
            writeln!(out, "not its {what} side: the run was begun without --direction {}", direction.name())?;
        }
    }
    Ok(Code::Success)
}
