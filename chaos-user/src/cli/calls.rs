//! `faultline io`, `sys`, `mem`, `fd`, `fork`, `sock` and `deny`: one run, from what was typed to the exit code.

use super::{
    CliError, Code,
    call_args::Typed,
    net::{draw_seed, inject, require_root},
    out::say,
    owners,
    report::{self, Reporter},
};
use crate::{
    fault::{
        CallRule, CallTables, CgroupId, Wanted,
        call::{SHORT_WAIT, check_wait},
    },
    kernel::signals::Waiting,
    session::{CallPlan, Prepared},
    spec::{CallFault, CallMatch, NameSpec, UserSpec},
    target::{Cgroup, Places, Target, device_number},
};

/// Does to calls what was asked until its time is over or something ends it.
pub(super) fn run(typed: Typed) -> Result<Code, CliError> {
    let Typed { spec, run } = typed;
    // What can be told from the words alone is told first.
    let unknown: Vec<_> = spec.faults.iter().map(|fault| CallRule::new(fault, Wanted::default())).collect();
    check_wait(&unknown, run.allow_busy_wait)?;
    for fault in &spec.faults {
        for glob in fault.matches.paths.iter().filter_map(|path| path.glob.as_deref()) {
            crate::fault::glob::compile(glob, 1).map_err(crate::fault::CallError::Glob)?;
        }
        if !fault.matches.everything && !fault.matches.is_aimed() {
            return Err(CliError::Unaimed);
        }
    }
    require_root()?;
    let waiting = Waiting::take()?;
    if !run.plan {
        owners::sweep_before()?;
    }
    let mut targets = Vec::new();
    let mut rules = Vec::new();
    let mut own_files = Default::default();
    for fault in &spec.faults {
        let (wanted, aimed, own) = look_up(fault)?;
        rules.push(CallRule::new(fault, wanted));
        targets.extend(aimed);
        own_files = own;
    }
    let seed = spec.seed.map_or_else(draw_seed, Ok)?;
    let tables = CallTables::new(&rules, seed)?;
    let plan = CallPlan { targets, rules, tables, seed, duration: spec.duration, by: spec.by, own_files };
    plan.check()?;
    if run.plan {
        let preview = plan.preview()?;
        report::preview(&preview, run.json)?;
        return Ok(if preview.is_possible() { Code::Success } else { Code::NotStarted });
    }
    let longest = CallTables::longest_wait(&plan.rules);
    if longest > SHORT_WAIT {
        let wait = humantime::format_duration(std::time::Duration::from_nanos(longest));
        say(format_args!(
            "a call that is hit keeps its CPU for up to {wait}; nothing else runs there meanwhile"
        ));
    }
    let reporter = Reporter::new(run.json, None)?;
    let signals = waiting.hold()?;
    Ok(inject(Prepared::of_calls(plan)?, &signals, None, reporter)?.0)
}

/// Whose calls and which files are meant, and which files are the injector's own.
fn look_up(fault: &CallFault) -> Result<(Wanted, Vec<Target>, [chaos_ebpf::call::Inode; 2]), CliError> {
    let CallMatch { owners, everything: _, paths, file_systems, devices, flags, comms, users } =
        &fault.matches;
    let mut targets = Vec::new();
    let (mut cgroups, mut processes) = (Vec::new(), Vec::new());
    for owner in owners {
        let target = Target::find(owner)?;
        if target.is_everybody() && paths.is_empty() {
            return Err(CliError::Everybody(owner.clone()));
        }
        // What is meant by a path is asked of each of them.
        target.inhabitants(owner, !paths.is_empty())?;
        match &target {
            Target::Cgroup(Cgroup { id, level, .. }) => cgroups.push(CgroupId { id: *id, level: *level }),
            Target::Process(tree) => processes.push(tree.pid),
        }
        targets.push(target);
    }
    let mut kernel = Places::new(if paths.is_empty() { &[] } else { &targets })?;
    let mut places = Vec::new();
    for path in paths {
        places.extend(kernel.find(path)?);
    }
    let wanted = Wanted {
        cgroups,
        processes,
        places,
        users: users.iter().map(|UserSpec { uid, .. }| *uid).collect(),
        names: comms.iter().map(NameSpec::padded).collect(),
        file_systems: file_systems.iter().map(NameSpec::padded).collect(),
        devices: devices.iter().map(device_number).collect::<Result<_, _>>()?,
        flags: flags.0,
    };
    Ok((wanted, targets, kernel.own()?))
}
