//! Every program of faults in system calls is one the verifier takes, for every operation by every mechanism there is.

use chaos_ebpf::{abi::Window, call::Inode};
use chaos_user::{
    fault::{CallRule, CallTables, CgroupId, Wanted},
    kernel::{
        btf::KernelTypes,
        calls::{CallPrograms, Exempt, Identifier},
        hook::{self, Effect},
        mechanism::Mechanism,
        probe,
    },
    spec::{Action, CallFault, CallMatch, Calls, Family, Op, Percent, parse_calls},
};
use nix::errno::Errno;

use crate::{
    ensure,
    error::{Context, Failure, Result},
    harness::{Need, Test},
    verified::Verified,
};

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("calls_load::each_program", each_program).needs(&[Need::Root, Need::Btf]).timeout(240).waits(),
    Test::new("calls_load::every_operation", every_operation)
        .needs(&[Need::Root, Need::Btf])
        .timeout(240)
        .waits(),
    Test::new("calls_load::files_are_known", files_are_known).needs(&[Need::Root, Need::Btf]),
];

/// A run with this fault that asks for everything there is to ask for, or for as little as can be.
fn shape(action: &Action, calls: &Calls, all: bool) -> Vec<CallRule> {
    let fault = CallFault {
        family: Family::Io,
        action: action.clone(),
        calls: calls.clone(),
        matches: CallMatch::default(),
        percent: Percent::ALL,
        window: Window::ALL,
    };
    let file = Inode { number: 5, generation: 6, device: 7 };
    let everything = Wanted {
        cgroups: vec![CgroupId { id: u64::MAX, level: 2 }],
        processes: vec![u32::MAX],
        places: vec![(file, None), (file, Some("*.[a-z]b?".into()))],
        users: vec![u32::MAX],
        names: vec![[1, 2]],
        file_systems: vec![[3, 4]],
        devices: vec![u32::MAX],
        flags: 1,
    };
    let least = Wanted { processes: vec![u32::MAX], ..Wanted::default() };
    vec![CallRule::new(&fault, if all { everything } else { least })]
}

/// With all in it that can be asked for, and with as little as can be.
fn each_program() -> Result {
    verified()?.hold()
}

/// What of them was looked at.
///
/// # Errors
///
/// What does not load.
pub(crate) fn verified() -> Result<Verified> {
    // One for each program, for which the verifier takes seconds in a guest if it has everything in it.
    let some =
        [Op::Read, Op::Create, Op::Rename, Op::Link, Op::Stat, Op::Readlink, Op::Exec, Op::Fsync, Op::Bind];
    load_all(&some, Some("fsync,openat,getpid,futex"), &[true, false])
}

/// With as little as can be, everywhere that a program can be attached for an operation.
fn every_operation() -> Result {
    let all = [&Op::OF_FILES[..], &Op::OF_SOCKETS, &Op::OF_MEMORY, &[Op::Fd, Op::Fork]].concat();
    load_all(&all, None, &[false])?.hold()
}

/// Loads and attaches what fails, delays and corrupts these, by each mechanism there is: with all that can be asked for, or
/// with as little as can be.
fn load_all(ops: &[Op], named: Option<&str>, shapes: &[bool]) -> Result<Verified> {
    let named = named.map(parse_calls).transpose().map_err(|error| Failure::new(error.to_string()))?;
    let named = named.unwrap_or_default();
    let kernel = probe::run();
    let types = KernelTypes::read().context("the kernel's types")?;
    let delay = Action::delay(&["1ms".into(), "100us".into(), "distribution".into(), "normal".into()])
        .map_err(|error| Failure::new(error.to_string()))?;
    let corrupt = Action::corrupt(&[]).map_err(|error| Failure::new(error.to_string()))?;
    let actions = [
        (Effect::Fail, Action::Error(Errno::EIO)),
        (Effect::Fail, Action::Full(Errno::ENOSPC)),
        (Effect::Wait, delay),
        (Effect::Spoil, corrupt),
    ];
    let mut verified = Verified::default();
    for (effect, action) in actions {
        for mechanism in hook::mechanisms(effect).filter(|it| kernel.has(*it)) {
            if effect == Effect::Spoil && !kernel.has(Mechanism::ProbeWriteUser) {
                continue;
            }
            let can = |op: &Op| !hook::sites(*op, mechanism, types).is_empty();
            let ops: Vec<_> = ops.iter().copied().filter(can).collect();
            let ops = if mechanism == Mechanism::Lsm { let_to_bpf(ops, &action)? } else { ops };
            let named: Vec<_> = named
                .iter()
                .copied()
                .filter(|call| hook::site_of(*call, mechanism, types).is_some())
                .collect();
            let mut kinds = vec![Calls::Ops(ops)];
            if !named.is_empty() {
                kinds.push(Calls::Named(named, Default::default()));
            }
            for calls in kinds.into_iter().filter(|calls| *calls != Calls::Ops(Vec::new())) {
                for all in shapes.iter().copied() {
                    // With as little as can be, what grows fails like all else.
                    if !all && matches!(action, Action::Full(_)) {
                        continue;
                    }
                    let rules = shape(&action, &calls, all);
                    let tables =
                        CallTables::new(&rules, 1).map_err(|error| Failure::new(error.to_string()))?;
                    let loaded = CallPrograms::new(&rules, &tables, Some(mechanism), Exempt::default());
                    let programs = loaded
                        .map_err(|error| Failure::new(format!("{mechanism}, {}: {error}", rules[0].label)))?;
                    for attached in programs.attached() {
                        verified.take(attached.program, &(mechanism, &rules[0].label))?;
                    }
                }
            }
        }
    }
    Ok(verified)
}

/// Those of these at whose hooks of security modules this kernel lets BPF (Linux 7.2 not at `file_alloc_security`). It
/// says so of each alone, in words of its own.
fn let_to_bpf(ops: Vec<Op>, action: &Action) -> Result<Vec<Op>> {
    let mut left = Vec::new();
    for op in ops {
        let rules = shape(action, &Calls::Ops(vec![op]), false);
        let tables = CallTables::new(&rules, 1).map_err(|error| Failure::new(error.to_string()))?;
        match CallPrograms::new(&rules, &tables, Some(Mechanism::Lsm), Exempt::default()) {
            Ok(_) => left.push(op),
            Err(error) if error.to_string().contains("points to disabled hook") => {
                eprintln!("not here: {error}");
            }
            Err(error) => return Err(Failure::new(format!("lsm, {op}: {error}"))),
        }
    }
    Ok(left)
}

/// What the kernel knows files by tells them apart, and is the same however they are reached.
fn files_are_known() -> Result {
    use std::os::fd::AsFd;
    let open = |path: &str| std::fs::File::open(path).context("open");
    let mut kernel = Identifier::new().context("identifier")?;
    let mut known = |path: &str| kernel.inode(open(path)?.as_fd()).context("inode");
    let (exe, again, proc) = (known("/proc/self/exe")?, known("/proc/self/exe")?, known("/proc")?);
    ensure!(exe == again && exe.number != 0, "{exe:?} and {again:?}");
    ensure!(proc != exe, "{proc:?}");
    Ok(())
}
