//! What the doctor found, for people. `--json` is the report itself.

use std::fmt;

use chaos_ebpf::abi::Direction;

use super::{CliError, Code, net::require_root, out::Stdout, owners};
use crate::{
    kernel::probe::{self, FaultSupport, Finding, MissingRight, Report, State},
    spec::Lines,
};

/// Width of the longest mechanism's name.
const NAME: usize = 17;
/// Width of the longest state's name.
const STATE: usize = 7;

/// Says what this kernel can do.
pub(super) fn run(json: bool) -> Result<Code, CliError> {
    // Without root nothing can be swept, and the report says what else cannot be done.
    let swept = if require_root().is_ok() { owners::sweep_first()? } else { Code::Success };
    let report = probe::run();
    let mut out = Stdout::lock();
    if json {
        out.json(&report)?;
    } else {
        let mut text = Lines(String::new());
        // A string takes everything.
        let _ = print_text(&report, &mut text);
        out.text(&text.0)?;
    }
    Ok(if report.ready { swept } else { Code::NotStarted })
}

/// Prints the report: the host, a line for each mechanism with cause and remedy where it is missing, and what
/// faults work by what.
fn print_text(report: &Report, out: &mut Lines<String>) -> fmt::Result {
    let Report { faultline, kernel, architecture, ready, unprivileged, missing_rights, .. } = report;
    let unknown = || "unknown".to_owned();
    writeln!(out, "Faultline {faultline} on Linux {kernel} ({architecture})")?;
    writeln!(out, "lockdown: {}", report.lockdown.clone().unwrap_or_else(unknown))?;
    let modules = report.security_modules.as_ref().map_or_else(unknown, |modules| modules.join(", "));
    writeln!(out, "security modules: {modules}")?;
    match unprivileged {
        Some(reason) => writeln!(out, "rights: {reason}; below is what can be told without")?,
        None => missing_rights.iter().try_for_each(|MissingRight { capability, needed_to }| {
            writeln!(out, "rights: no {capability}, which it takes to {needed_to}")
        })?,
    }
    writeln!(out)?;
    // Without rights all that needs them is unknown for that one reason.
    let told = |finding: &&Finding| unprivileged.is_none() || finding.state != State::Unknown;
    for finding in report.mechanisms.iter().filter(told) {
        print_finding(finding, out)?;
    }
    if unprivileged.is_some() {
        let remedy = "run faultline doctor with the host root's rights";
        writeln!(out, "  {:NAME$}  {:STATE$}  {remedy}", "all others", "unknown")?;
    }
    writeln!(out)?;
    writeln!(out, "Faults on this kernel:")?;
    for fault in &report.faults {
        print_fault(fault, unprivileged.is_some(), out)?;
    }
    let verdict = if *ready {
        "Ready: packet loss works in both directions."
    } else if unprivileged.is_some() {
        "Not ready: needs root."
    } else {
        "Not ready: packet loss does not work in both directions."
    };
    writeln!(out)?;
    writeln!(out, "{verdict}")
}

fn print_finding(finding: &Finding, out: &mut Lines<String>) -> fmt::Result {
    let Finding { mechanism, state, note, cause, remedy } = finding;
    let state = match state {
        State::Available => "yes",
        State::Missing => "no",
        State::Unknown => "unknown",
    };
    let mut remarks =
        [note.as_deref(), cause.as_deref()].into_iter().flatten().map(str::to_owned).collect::<Vec<_>>();
    remarks.extend(remedy.as_ref().map(|remedy| format!("-> {remedy}")));
    let mut before = (mechanism.name(), state);
    if remarks.is_empty() {
        remarks.push(String::new());
    }
    for remark in remarks {
        let (name, state) = before;
        let line = format!("  {name:NAME$}  {state:STATE$}  {remark}");
        writeln!(out, "{}", line.trim_end())?;
        before = ("", "");
    }
    Ok(())
}

fn print_fault(support: &FaultSupport, untried: bool, out: &mut Lines<String>) -> fmt::Result {
    let FaultSupport { fault, direction, mechanism, fallbacks, missing, rights } = support;
    let names = |mechanisms: &[_]| mechanisms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let name = match direction {
        Direction::Call => fault.name().to_owned(),
        way => format!("{} {}", fault.name(), way.name()),
    };
    match mechanism {
        Some(mechanism) if fallbacks.is_empty() => writeln!(out, "  {name:NAME$}  by {mechanism}"),
        Some(mechanism) => writeln!(out, "  {name:NAME$}  by {mechanism}, else {}", names(fallbacks)),
        None if untried => writeln!(out, "  {name:NAME$}  unknown"),
        None if !rights.is_empty() => {
            let rights: Vec<_> = rights.iter().map(ToString::to_string).collect();
            writeln!(out, "  {name:NAME$}  cannot be had: no {}", rights.join(", "))
        }
        None => writeln!(out, "  {name:NAME$}  cannot be had: no {}", names(missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::mechanism::Mechanism;

    #[test]
    fn names_fit_their_column() {
        assert!(Mechanism::ALL.iter().all(|mechanism| mechanism.name().len() <= NAME));
    }

    #[test]
    fn what_is_missing_is_explained_below_itself() {
        let finding = Finding {
            mechanism: Mechanism::Tcx,
            state: State::Missing,
            note: None,
            cause: Some("the kernel says no".into()),
            remedy: Some("ask again".into()),
        };
        let mut out = Lines(String::new());
        print_finding(&finding, &mut out).expect("a string takes everything");
        let expected = [
            "  tcx                no       the kernel says no\n",
            "                              -> ask again\n",
        ];
        assert_eq!(out.0, expected.concat());
    }
}
