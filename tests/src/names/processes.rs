//! Processes by any name.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{BPF, FAULTS, FOLDER, cgroups::Home, fit, names, said, step};
use crate::{
    cgroup::{Cgroup, Inhabitant},
    clocks, ensure,
    error::{Context, Result},
    faultline::binary,
    harness::{Test, die_with_parent, patience},
    lab::Lab,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("names::of_processes", of_processes).needs(BPF).timeout(180).waits(),
    Test::new("names::of_faultline_itself", of_faultline_itself).needs(BPF).timeout(90).waits(),
];

/// Begins a program of ours under a name.
pub(super) fn called(name: &[u8], cgroup: &Cgroup, lab: &Lab) -> Result<Inhabitant> {
    let link = Path::new(FOLDER).join(OsStr::from_bytes(name));
    symlink(clocks::path()?, &link).context(link.display())?;
    let process = cgroup.inhabit_as(&link, |command| {
        // Only the name of the file is what the kernel goes by, and this the program reads.
        command.arg0("clock");
        lab.near.home_of(command);
    })?;
    // The kernel names it a moment after its parent is told that it has begun.
    let deadline = Instant::now() + patience(Duration::from_secs(5));
    while comm(process.pid())? != name[..name.len().min(15)] {
        ensure!(Instant::now() < deadline, "it is called {}", comm(process.pid())?.escape_ascii());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(process)
}

/// What the kernel calls a process.
fn comm(pid: u32) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/comm");
    let mut name = fs::read(&path).context(path)?;
    name.pop();
    Ok(name)
}

/// All at once in a cgroup; then one by one, with one beside them that its name makes a child of each.
fn of_processes() -> Result {
    fs::create_dir(FOLDER).context(FOLDER)?;
    let (lab, cgroup, beside) = (Lab::new()?, Cgroup::new()?, Cgroup::new()?);
    let all: Vec<_> = names(255).iter().map(|name| called(name, &cgroup, &lab)).collect::<Result<_>>()?;
    let pids: Vec<u32> = all.iter().map(Inhabitant::pid).collect();
    let path = cgroup.path().as_os_str().as_bytes();
    let mut planned = 0;
    for fault in FAULTS {
        let plan = said(&format!("{fault} --plan --json --cgroup"), &[path])?;
        if plan.hits(&pids)? {
            planned += 1;
            for (pid, name) in plan.processes()? {
                let is_it = String::from_utf8(comm(pid)?).map_or(true, |comm| comm == name);
                ensure!(is_it, "{}: process {pid} is not called {name:?}", plan.words);
            }
            let text = said(&format!("{fault} --plan --cgroup"), &[path])?.stdout;
            let missing = pids.iter().find(|pid| !text.contains(&format!("({pid})")));
            ensure!(missing.is_none(), "{fault}: no process {missing:?} in {text}");
        }
    }
    ensure!(planned > 3, "only {planned} faults can be planned here");
    for (number, pid) in pids.iter().enumerate().step_by(step()) {
        let forger = called(format!(") S {pid} (").as_bytes(), &beside, &lab)?;
        let fault = FAULTS[number % FAULTS.len()];
        // A limit of a process there is not.
        let fault = if fault.starts_with("io slow") { FAULTS[0] } else { fault };
        said(&format!("{fault} --plan --json --pid {pid}"), &[])?.hits(&[*pid])?;
        drop(forger);
    }
    for line in
        ["time skew --offset 1h --for 20ms --json --cgroup", "time skew --offset 1h --for 20ms --cgroup"]
    {
        said(line, &[path])?;
    }
    for command in ["ps", "ps --json", "sweep", "stop --all"] {
        ensure!(said(command, &[])?.code == Some(0), "{command}");
    }
    Ok(())
}

/// Where its own path and its own cgroup are not UTF-8, it does what it does elsewhere.
fn of_faultline_itself() -> Result {
    let (lab, above) = (Lab::new()?, Cgroup::new()?);
    let name = b"own\xff\x1b[2J) R 1";
    let home = Home::new(&above, name, &lab)?.context("refused")?;
    let folder = Path::new(FOLDER).join(OsStr::from_bytes(name));
    fs::create_dir_all(&folder).context(folder.display())?;
    let own = folder.join("faultline");
    fs::copy(binary()?, &own).context(own.display())?;
    let pid = home.process.pid();
    for line in [
        "ps",
        "doctor",
        &format!("net loss 1% --plan --pid {pid}"),
        &format!("io error EIO --ops read --plan --pid {pid}"),
        &format!("time skew --offset 1h --plan --pid {pid}"),
        &format!("time skew --offset 1h --for 20ms --pid {pid}"),
    ] {
        let mut command = Command::new(&own);
        command.args(line.split(' ')).stdin(Stdio::null());
        die_with_parent(&mut command);
        home.cgroup.admit(&mut command)?;
        let output = command.output().context("faultline")?;
        fit(&output.stdout).context(line)?;
        let stderr = fit(&output.stderr).context(line)?;
        let elsewhere = said(line, &[])?.code;
        ensure!(output.status.code() == elsewhere, "{line}: {}, not {elsewhere:?}: {stderr}", output.status);
    }
    Ok(())
}
