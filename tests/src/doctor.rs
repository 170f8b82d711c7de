//! The doctor, verified: against what is known of kernels, against what really works, and for what it leaves.

mod calls;
mod cgroups;
mod elsewhere;
mod helpers;
mod known;
mod packets;
mod structures;
mod traces;

use std::{
    fs,
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
    thread,
    time::Instant,
};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use chaos_user::kernel::{
    mechanism::Mechanism as M,
    probe::{self, insn::Code},
    sys::{self, Program},
};
use serde_json::Value;

use crate::{
    ensure,
    error::{Context, Failure, Result},
    faultline::{self, Faultline},
    harness::{
        Need::{self, Mechanism as Has, Program as Installed, Root},
        Test, moments,
    },
};

/// The tests of this file and its parts.
#[rustfmt::skip]
pub(crate) const TESTS: &[Test] = &[
    Test::new("doctor::knows_this_kernel", knows_this_kernel).needs(&[Root, Need::KnownKernel]),
    Test::new("doctor::leaves_nothing", leaves_nothing).once(),
    Test::new("doctor::leaves_nothing_when_killed", leaves_nothing_when_killed).timeout(90).once(),
    Test::new("doctor::two_at_once", two_at_once).needs(&[Root, Has(M::CgroupV2)]).once(),
    Test::new("doctor::of_the_dead_it_clears_away", of_the_dead).needs(&[Root, Has(M::CgroupV2)]).once(),
    // What it calls available really works: of each mechanism one use.
    Test::new("doctor::use_btf", helpers::btf).needs(&[Root, Has(M::Btf)]),
    Test::new("doctor::use_test_run", helpers::test_run).needs(&[Root, Has(M::TestRun)]),
    Test::new("doctor::use_xdp_native", packets::xdp_native).needs(&[Root, Has(M::XdpNative)]),
    Test::new("doctor::use_xdp_generic", packets::xdp_generic).needs(&[Root, Has(M::XdpGeneric)]),
    Test::new("doctor::use_tcx", packets::tcx).needs(&[Root, Has(M::Tcx)]),
    Test::new("doctor::use_clsact", packets::clsact).needs(&[Root, Has(M::Clsact)]),
    Test::new("doctor::use_sch_fq", packets::sch_fq).needs(&[Root, Has(M::SchFq), Has(M::Clsact)]),
    Test::new("doctor::use_sch_netem", packets::sch_netem).needs(&[Root, Has(M::SchNetem)]),
    Test::new("doctor::use_ifb", packets::ifb).needs(&[Root, Has(M::Ifb), Has(M::Clsact), Installed("tc")]),
    Test::new("doctor::use_cgroup_v2", cgroups::cgroup_v2).needs(&[Root, Has(M::CgroupV2)]),
    Test::new("doctor::use_cgroup_skb", cgroups::cgroup_skb).needs(&[Root, Has(M::CgroupSkb)]),
    Test::new("doctor::use_cgroup_connect", cgroups::cgroup_connect).needs(&[Root, Has(M::CgroupConnect)]),
    Test::new("doctor::use_cgroup_sock", cgroups::cgroup_sock).needs(&[Root, Has(M::CgroupSock)]),
    Test::new("doctor::use_io_max", cgroups::io_max).needs(&[Root, Has(M::IoMax), Need::Disks]),
    Test::new("doctor::use_lsm", calls::lsm).needs(&[Root, Has(M::Lsm)]),
    Test::new("doctor::use_fentry", calls::fentry).needs(&[Root, Has(M::Fentry)]),
    Test::new("doctor::use_fexit", calls::fexit).needs(&[Root, Has(M::Fexit)]),
    Test::new("doctor::use_fmod_ret_security", calls::fmod_ret_security).needs(&[Root, Has(M::FmodRetSecurity)]),
    Test::new("doctor::use_fmod_ret_syscall", calls::fmod_ret_syscall).needs(&[Root, Has(M::FmodRetSyscall)]),
    Test::new("doctor::use_kprobe", calls::kprobe).needs(&[Root, Has(M::Kprobe)]),
    Test::new("doctor::use_kprobe_override", calls::kprobe_override).needs(&[Root, Has(M::KprobeOverride)]),
    Test::new("doctor::use_tracepoint", calls::tracepoint).needs(&[Root, Has(M::Tracepoint)]),
    Test::new("doctor::use_raw_tracepoint", calls::raw_tracepoint).needs(&[Root, Has(M::RawTracepoint)]),
    Test::new("doctor::use_uprobe", calls::uprobe).needs(&[Root, Has(M::Uprobe)]),
    Test::new("doctor::use_probe_write_user", helpers::probe_write_user).needs(&[Root, Has(M::ProbeWriteUser)]),
    Test::new("doctor::use_bpf_loop", helpers::bpf_loop).needs(&[Root, Has(M::BpfLoop)]),
    Test::new("doctor::use_call_fields", structures::of_calls).needs(&[Root, Has(M::CallFields)]),
    Test::new("doctor::use_file_fields", structures::of_files).needs(&[Root, Has(M::FileFields)]),
    Test::new("doctor::use_clock_fields", structures::of_clocks).needs(&[Root, Has(M::ClockFields)]),
    Test::new("doctor::use_raw_clock_fields", structures::of_raw_clocks).needs(&[Root, Has(M::RawClockFields)]),
    Test::new("doctor::use_process_fields", structures::of_processes).needs(&[Root, Has(M::ProcessFields)]),
    Test::new("doctor::use_cgroup_fields", structures::of_cgroups).needs(&[Root, Has(M::CgroupFields), Has(M::CgroupV2)]),
    Test::new("doctor::use_vdso_patch", helpers::vdso_patch).needs(&[Root, Has(M::VdsoPatch)]),
];

/// Whether it is written down what the kernel we are on can do; if not, which kernel it is.
pub(crate) fn known_kernel() -> std::result::Result<(), String> {
    known::this().map(drop).map_err(|failure| failure.to_string())
}

fn command() -> Result<Command> {
    let mut command = Command::new(faultline::binary()?);
    command.args(["doctor", "--json"]);
    Ok(command)
}

/// Runs the doctor and returns what it says.
fn ask() -> Result<Value> {
    let Output { status, stdout, stderr } = command()?.output().context("start faultline doctor")?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(stderr.is_empty(), "{status}, stderr: {stderr}");
    let report: Value = serde_json::from_slice(&stdout).context("the report")?;
    let ready = report["ready"].as_bool().context("no ready in the report")?;
    ensure!(status.code() == Some(if ready { 0 } else { 3 }), "{status}, and ready is {ready}");
    Ok(report)
}

fn knows_this_kernel() -> Result {
    let kernel = known::this()?;
    let report = ask()?;
    let mut wrong = Vec::new();
    let mut expect = |what: &str, expected: Value, said: &Value| {
        if *said != expected {
            wrong.push(format!("{what}: {expected} is known, the doctor says {said}"));
        }
    };
    expect("ready", true.into(), &report["ready"]);
    expect("lockdown", kernel.lockdown.into(), &report["lockdown"]);
    for mechanism in M::ALL {
        let name = mechanism.name();
        let finding = entry(&report["mechanisms"], "mechanism", name)?;
        let missing = kernel.missing.iter().find(|(missing, _)| *missing == mechanism);
        let state = if missing.is_some() { "missing" } else { "available" };
        expect(name, state.into(), &finding["state"]);
        let cause = finding["cause"].as_str().unwrap_or_default();
        if let Some((_, word)) = missing.filter(|(_, word)| !cause.contains(word)) {
            expect(&format!("the cause of no {name}"), format!("... {word} ...").into(), &finding["cause"]);
        }
        expect(
            &format!("a remedy for {name}"),
            missing.is_some().into(),
            &finding["remedy"].is_string().into(),
        );
    }
    for (direction, ways) in [("in", kernel.loss_in), ("out", kernel.loss_out)] {
        let fault = entry(&report["faults"], "direction", direction)?;
        let names: Vec<&str> = ways.iter().map(|way| way.name()).collect();
        let (first, rest) = names.split_first().context("a kernel without any way")?;
        expect(&format!("loss {direction}"), (*first).into(), &fault["mechanism"]);
        expect(&format!("loss {direction}, else"), rest.into(), &fault["fallbacks"]);
    }
    println!("{} is {}", report["kernel"], kernel.name);
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(wrong.join("; "))) }
}

/// The object of a list in which `key` is `value`.
fn entry<'a>(list: &'a Value, key: &str, value: &str) -> Result<&'a Value> {
    let mut entries = list.as_array().into_iter().flatten();
    entries.find(|entry| entry[key] == value).context(format_args!("no {key} {value} in the report"))
}

fn leaves_nothing() -> Result {
    let before = traces::look()?;
    ask()?;
    traces::wait_for_nothing_new(&before)
}

/// At any moment of its work. What an empty cgroup it leaves is gone with the next doctor.
fn leaves_nothing_when_killed() -> Result {
    let kills = moments(10);
    let before = traces::look()?;
    let started = Instant::now();
    ask()?;
    let whole = started.elapsed();
    for kill in 0..kills {
        let mut doctor = command()?.stdout(Stdio::null()).spawn().context("start faultline")?;
        thread::sleep(whole * kill / kills);
        doctor.kill().context("kill faultline")?;
        doctor.wait().context("wait for faultline")?;
    }
    ask()?;
    traces::wait_for_nothing_new(&before)
}

/// In one process and in several: each says what one alone says.
fn two_at_once() -> Result {
    const ROUNDS: usize = 3;
    let before = traces::look()?;
    let alone = probe::run();
    for round in 0..ROUNDS {
        let (here, there) = thread::scope(|scope| {
            let there: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
            let here: Vec<_> = (0..3).map(|_| scope.spawn(probe::run)).collect();
            let here: Vec<_> = here.into_iter().map(thread::ScopedJoinHandle::join).collect();
            (here, there.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>())
        });
        for found in here {
            let found = found.map_err(|_| Failure::new("a doctor panicked"))?;
            ensure!(found == alone, "round {round}: {found:?}, alone {alone:?}");
        }
        let alone = serde_json::to_value(&alone).context("JSON")?;
        for found in there {
            let found = found.map_err(|_| Failure::new("a doctor panicked"))??;
            ensure!(found == alone, "round {round}: another process's {found}, alone {alone}");
        }
    }
    traces::wait_for_nothing_new(&before)
}

/// What a killed doctor has left goes with the next, and with a sweep; what a living one has stays, whichever PID namespace
/// that is in: it has a number there that is nobody's here.
fn of_the_dead() -> Result {
    const NOBODY: &str = "faultline-probe-2147483646-0";
    let path = crate::cgroup::root()?.join(NOBODY);
    for clears in [&["doctor", "--json"][..], &["sweep"]] {
        fs::create_dir(&path).context(path.display())?;
        let held = fs::File::open(&path).context(path.display())?;
        held.lock().context("flock")?;
        let run = || Faultline::run(clears);
        run()?;
        let stays = path.exists();
        drop(held);
        run()?;
        let goes = !path.exists();
        // Whatever was found, it does not stay.
        let _ = fs::remove_dir(&path);
        ensure!(stays && goes, "{clears:?}: a living doctor's stays: {stays}, a dead one's goes: {goes}");
    }
    Ok(())
}

/// Loads a program that a use is made of.
fn load(
    kind: bpf_prog_type,
    attach: Option<bpf_attach_type>,
    attach_btf_id: u32,
    code: &Code,
) -> Result<OwnedFd> {
    let (name, flags, functions, instructions) = ("fl_test", 0, None, code.as_slice());
    Ok(sys::load(&Program { name, kind, attach, attach_btf_id, flags, instructions, functions })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mechanism_is_used() {
        for mechanism in M::ALL {
            let name = format!("doctor::use_{mechanism}");
            let test = TESTS.iter().find(|test| test.name == name);
            assert!(test.is_some_and(|test| test.needs.contains(&Has(mechanism))), "{name}");
        }
    }
}
