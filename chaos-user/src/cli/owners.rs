//! `faultline ps`, `stop` and `sweep`: the faults of all owners.

use std::io::{self, Write};

use serde_json::json;

use super::{
    CliError, Code,
    net::require_root,
    report::{counted, rounded},
};
use crate::session::{self, Live, Record, live};

/// Lists the faults of all owners.
pub(super) fn ps(json: bool) -> Result<Code, CliError> {
    require_root()?;
    sweep_first(false)?;
    let faults = live()?;
    let mut out = io::stdout().lock();
    if !json {
        writeln!(
            out,
            "{:<6} {:>8} {:<9} {:<12} {:>11} {:<4} {:<17} {:>10} {:>10} {:>10} {:>8}  FAULT",
            "ID", "PID", "STATE", "DEVICE", "NETNS", "DIR", "HOOK", "SEEN", "MATCHED", "FIRED", "LEFT"
        )?;
    }
    for fault in &faults {
        if json { writeln!(out, "{}", object(fault))? } else { rows(fault, &mut out)? }
    }
    Ok(Code::Success)
}

fn object(fault: &Live) -> serde_json::Value {
    let rules: Vec<_> = fault
        .begun
        .rules
        .iter()
        .enumerate()
        .map(|(number, rule)| {
            let counters = fault.counters.as_ref();
            json!({
                "rule": number,
                "fault": rule.fault,
                "direction": rule.direction,
                "asked": rule.asked,
                "seen": counters.map(|counters| counted(rule.direction, counters.seen[rule.direction as usize])),
                "matched": counters.map(|counters| counted(rule.direction, counters.rules[number].matched)),
                "fired": counters.map(|counters| counted(rule.direction, counters.rules[number].fired)),
            })
        })
        .collect();
    json!({
        "id": fault.id,
        "pid": fault.begun.owner.pid,
        "start_time": fault.begun.owner.start_time,
        "state": fault.state,
        "device": fault.begun.device,
        "ifindex": fault.begun.ifindex,
        "netns": fault.begun.netns,
        "seed": fault.begun.seed,
        "remaining_s": fault.remaining.map(|left| left.as_secs_f64()),
        "hooks": fault.hooks,
        "rules": rules,
    })
}

fn rows(fault: &Live, out: &mut impl Write) -> io::Result<()> {
    let state = json!(fault.state);
    let left =
        fault.remaining.map_or_else(|| "-".into(), |left| format!("{:.0}s", left.as_secs_f64().ceil()));
    for (number, rule) in fault.begun.rules.iter().enumerate() {
        let hook = fault.hooks.iter().find(|hook| hook.direction == rule.direction);
        let counters = fault.counters.as_ref();
        let count = counters.map(|counters| (counters.seen[rule.direction as usize], counters.rules[number]));
        let [seen, matched, fired] = count
            .map(|(seen, rule)| {
                [seen.packets, rule.matched.packets, rule.fired.packets].map(|n| n.to_string())
            })
            .unwrap_or_else(|| ["-", "-", "-"].map(String::from));
        writeln!(
            out,
            "{:<6} {:>8} {:<9} {:<12} {:>11} {:<4} {:<17} {seen:>10} {matched:>10} {fired:>10} {left:>8}  {}",
            fault.id,
            fault.begun.owner.pid,
            state.as_str().unwrap_or_default(),
            fault.begun.device.as_deref().unwrap_or("-"),
            fault.begun.netns,
            rule.direction.name(),
            hook.map_or_else(|| "-".into(), |hook| hook.hook.to_string()),
            rule.fault
        )?;
    }
    Ok(())
}

/// Ends the named faults, or all.
pub(super) fn stop(ids: &[String], all: bool) -> Result<Code, CliError> {
    require_root()?;
    sweep_first(false)?;
    let records = Record::all()?;
    let unknown = ids.iter().find(|id| !records.iter().any(|record| record.id == **id));
    if let Some(id) = unknown {
        return Err(CliError::UnknownFault(id.clone()));
    }
    let mut out = io::stdout().lock();
    for record in records.iter().filter(|record| all || ids.contains(&record.id)) {
        session::stop(record, |time| {
            let (id, time) = (&record.id, humantime::format_duration(rounded(time)));
            eprintln!(
                "faultline: clocks of {id} become right within {time}; another `faultline stop {id}` has them jump"
            );
        })?;
        writeln!(out, "stopped {}; nothing of it is left", record.id)?;
    }
    Ok(Code::Success)
}

/// What a run starts beside itself.
pub(super) fn guard(id: &str) -> Result<Code, CliError> {
    require_root()?;
    session::guard(id)?;
    Ok(Code::Success)
}

/// Clears away what dead owners have left, before anything else is done. What cannot be is told; beside what may still
/// hurt nothing new begins.
pub(super) fn sweep_first(begins: bool) -> Result<(), CliError> {
    for left in session::sweep()?.left {
        if begins && !left.is_inert {
            return Err(left.error.into());
        }
        eprintln!("faultline: of {}, whose owner is gone, something is left: {}", left.id, left.error);
    }
    Ok(())
}

/// Clears away what dead owners have left.
pub(super) fn sweep() -> Result<Code, CliError> {
    require_root()?;
    let mut swept = session::sweep()?;
    let mut out = io::stdout().lock();
    for id in &swept.removed {
        writeln!(out, "removed the record of {id}, whose owner is gone; nothing of it is attached")?;
    }
    if swept.removed.is_empty() && swept.left.is_empty() {
        writeln!(out, "nothing to sweep")?;
    }
    let Some(last) = swept.left.pop() else { return Ok(Code::Success) };
    for left in swept.left {
        eprintln!("faultline: {}: {}", left.id, left.error);
    }
    Err(last.error.into())
}
