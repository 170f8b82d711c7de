//! `faultline ps`, `stop` and `sweep`: the faults of all owners.

use serde_json::json;

use super::{
    CliError, Code,
    net::require_root,
    out::{OutputError, Stdout, say},
    report::{counted, rounded},
};
use crate::session::{self, Left, Live, Record, Records, live};

/// Lists the faults of all owners.
pub(super) fn ps(json: bool) -> Result<Code, CliError> {
    require_root()?;
    let code = sweep_first()?;
    let faults = live()?;
    let mut out = Stdout::lock();
    if !json {
        writeln!(
            out,
            "{:<6} {:>8} {:<9} {:<12} {:>11} {:<4} {:<17} {:>10} {:>10} {:>10} {:>8}  FAULT",
            "ID", "PID", "STATE", "DEVICE", "NETNS", "DIR", "HOOK", "SEEN", "MATCHED", "FIRED", "LEFT"
        )?;
    }
    for fault in &faults {
        if json { out.json(&object(fault))? } else { rows(fault, &mut out)? }
    }
    Ok(code)
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
                "fired_background": counters.map(|counters| counters.rules[number].background),
            })
        })
        .collect();
    json!({
        "id": fault.id,
        "pid": fault.pid,
        "start_time": fault.begun.owner.start_time,
        "state": fault.state,
        "device": fault.begun.device,
        "ifindex": fault.begun.ifindex,
        "netns": fault.begun.netns.inode,
        "seed": fault.begun.seed,
        "remaining_s": fault.remaining.map(|left| left.as_secs_f64()),
        "hooks": fault.hooks,
        "rules": rules,
    })
}

fn rows(fault: &Live, out: &mut Stdout) -> Result<(), OutputError> {
    let state = json!(fault.state);
    let left =
        fault.remaining.map_or_else(|| "-".into(), |left| format!("{:.0}s", left.as_secs_f64().ceil()));
    let pid = fault.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
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
            "{:<6} {pid:>8} {:<9} {:<12} {:>11} {:<4} {:<17} {seen:>10} {matched:>10} {fired:>10} {left:>8}  {}",
            fault.id,
            state.as_str().unwrap_or_default(),
            fault.begun.device.as_deref().unwrap_or("-"),
            fault.begun.netns.inode,
            rule.direction.name(),
            hook.map_or_else(|| "-".into(), |hook| hook.hook.to_string()),
            rule.fault
        )?;
    }
    Ok(())
}

/// Ends the named faults, or all: each that can be, whatever becomes of another.
pub(super) fn stop(ids: &[String], all: bool) -> Result<Code, CliError> {
    require_root()?;
    let mut code = sweep_first()?;
    let Records { understood, kept } = Record::all()?;
    let is_known =
        |id: &&String| understood.iter().any(|it| it.id == **id) || kept.iter().any(|it| it.id == **id);
    if let Some(id) = ids.iter().find(|id| !is_known(id)) {
        return Err(CliError::UnknownFault(id.clone()));
    }
    if kept.iter().any(|kept| all || ids.contains(&kept.id)) {
        code = Code::Dirty;
    }
    let mut out = Stdout::lock();
    for record in understood.iter().filter(|record| all || ids.contains(&record.id)) {
        let stopped = session::stop(record, |time| {
            let (id, time) = (&record.id, humantime::format_duration(rounded(time)));
            say(format_args!(
                "clocks of {id} become right within {time}; another `faultline stop {id}` has them jump"
            ));
        });
        match stopped {
            Ok(()) => writeln!(out, "stopped {}; nothing of it is left", record.id)?,
            Err(error) => {
                code = Code::Dirty;
                say(format_args!("{}: {error}", record.id));
            }
        }
    }
    Ok(code)
}

/// What a run starts beside itself.
pub(super) fn guard(id: &str) -> Result<Code, CliError> {
    require_root()?;
    session::guard(id)?;
    Ok(Code::Success)
}

/// Clears away what dead owners have left, before anything new begins: not beside what may still hurt.
pub(super) fn sweep_before() -> Result<(), CliError> {
    for left in session::sweep()?.left {
        if !left.is_inert {
            return Err(left.error.into());
        }
        tell(&left);
    }
    Ok(())
}

/// Clears away what dead owners have left, before anything else is done. What cannot be is told, and is what the command
/// ends with if all else is well.
pub(super) fn sweep_first() -> Result<Code, CliError> {
    let left = session::sweep()?.left;
    left.iter().for_each(tell);
    Ok(if left.iter().all(|left| left.is_inert || left.alive) { Code::Success } else { Code::Dirty })
}

fn tell(Left { id, error, alive, .. }: &Left) {
    let what =
        if *alive { "its owner lives, and what it does is not known" } else { "something may be left of it" };
    say(format_args!("{id}: {what}: {error}"));
}

/// Clears away what dead owners have left.
pub(super) fn sweep() -> Result<Code, CliError> {
    require_root()?;
    let swept = session::sweep()?;
    let mut out = Stdout::lock();
    for id in &swept.removed {
        writeln!(out, "removed the record of {id}, whose owner is gone; nothing of it is attached")?;
    }
    if swept.removed.is_empty() && swept.left.is_empty() {
        writeln!(out, "nothing to sweep")?;
    }
    swept.left.iter().for_each(tell);
    Ok(if swept.left.iter().all(|left| left.alive) { Code::Success } else { Code::Dirty })
}
