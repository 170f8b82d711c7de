//! What happens to the owners of a step, or to what they act on.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

use super::{
    owners::{Owner, records},
    plan::{Event, Moment, Namespace, Step},
    report::Finding,
    roles::Role,
    scene::Scene,
};
use crate::{
    cgroup::entering,
    error::{Context, Result},
    faultline::{Exit, Faultline, binary, sibling},
    harness::{RECORDS, patience},
};

/// Longer than the lease, by more than the machine stands still.
const AWAY: Duration = Duration::from_millis(3400);
/// Longer than a second, after which an owner tells how far it is.
const TOLD: Duration = Duration::from_millis(1300);
/// An owner that is asked to end has ended its fault, or itself, within this time.
const HEARD: Duration = Duration::from_secs(4);
/// A command that takes longer hangs.
const COMMAND: Duration = Duration::from_secs(30);

/// Has it happen. Whatever is found then is added.
pub(super) fn happen(
    step: &Step,
    scene: &mut Scene<'_>,
    owners: &mut [Owner],
    findings: &mut Vec<Finding>,
) -> Result {
    match step.event {
        Event::Stop => stop(step, owners, findings)?,
        Event::StopAll => stop_all(step, owners, findings)?,
        Event::Interrupt => signal(step, owners, Signal::SIGINT),
        Event::Terminate => signal(step, owners, Signal::SIGTERM),
        Event::HangUp => signal(step, owners, Signal::SIGHUP),
        Event::Quit => signal(step, owners, Signal::SIGQUIT),
        Event::Kill => signal(step, owners, Signal::SIGKILL),
        Event::KillWithGuard => kill_with_guards(step, owners),
        Event::Duration => {}
        Event::Pause => {
            signal(step, owners, Signal::SIGSTOP);
            thread::sleep(AWAY);
            signal(step, owners, Signal::SIGCONT);
        }
        Event::OutOfMemory => out_of_memory(scene, owners, findings)?,
        Event::InterfaceDeleted => scene.spare.as_ref().map_or(Ok(()), super::scene::Spare::delete)?,
        Event::InterfaceMoved => scene.spare.as_ref().map_or(Ok(()), super::scene::Spare::relocate)?,
        Event::NamespaceGone => drop(scene.spare.as_mut().and_then(|spare| spare.near.take())),
        Event::CgroupGone => {
            // It ends, and with it what is left in its cgroup.
            scene.target = None;
            scene.cgroup = None;
        }
        Event::TargetEnds => scene.target = None,
        Event::TargetMoved => {
            if let Some(target) = &scene.target {
                scene.elsewhere.take(target.pid())?;
            }
        }
        Event::SweptFrom(namespace) => {
            kill_with_guards(step, owners);
            wait_for_killed(owners);
            swept_from(namespace, findings)?;
        }
        Event::TornLine => {
            kill_with_guards(step, owners);
            wait_for_killed(owners);
            tear()?;
        }
        Event::UnknownLine => {
            kill_with_guards(step, owners);
            wait_for_killed(owners);
            unknown(step, findings)?;
        }
        Event::OutputFull => output_full(step, owners, findings)?,
    }
    Ok(())
}

fn hit<'a>(step: &'a Step, owners: &'a mut [Owner]) -> impl Iterator<Item = &'a mut Owner> {
    owners.iter_mut().enumerate().filter(|(place, _)| step.hits(*place)).map(|(_, owner)| owner)
}

fn signal(step: &Step, owners: &mut [Owner], signal: Signal) {
    hit(step, owners).for_each(|owner| owner.signal(signal));
}

fn kill_with_guards(step: &Step, owners: &mut [Owner]) {
    hit(step, owners).for_each(Owner::kill_with_guard);
}

fn wait_for_killed(owners: &mut [Owner]) {
    for owner in owners.iter_mut().filter(|owner| owner.is_killed) {
        owner.ends_within(COMMAND);
    }
}

/// What is wrong with how a command ended.
fn unless(codes: &[i32], words: &str, exit: &Exit, findings: &mut Vec<Finding>) {
    if !exit.code.is_some_and(|code| codes.contains(&code)) {
        let (code, said) = (exit.code, exit.stderr.trim());
        findings.push(Finding::Exit { what: format!("faultline {words}: exit {code:?}, {said:?}") });
    }
}

fn ids() -> Vec<String> {
    records().into_iter().map(|(id, _)| id).collect()
}

/// Those that are hit, by their ids.
fn stop(step: &Step, owners: &mut [Owner], findings: &mut Vec<Finding>) -> Result {
    let mut known = ids();
    if !step.to_all {
        known.truncate(1);
    }
    if known.is_empty() {
        return Ok(());
    }
    // Which of them it is that has this id is told by who ends.
    owners.iter_mut().for_each(|owner| owner.is_asked = true);
    let words: Vec<&str> = ["stop"].into_iter().chain(known.iter().map(String::as_str)).collect();
    // One that ends by itself in between is not there any more.
    let ended = owners.iter_mut().any(|owner| owner.look().is_some());
    let codes: &[i32] = if ended || matches!(step.moment, Moment::Started(_)) { &[0, 2] } else { &[0] };
    unless(codes, &words.join(" "), &Faultline::run(&words)?, findings);
    Ok(())
}

/// All of them, and nobody is left out: what was armed when it began has ended when it says so.
fn stop_all(step: &Step, owners: &mut [Owner], findings: &mut Vec<Finding>) -> Result {
    owners.iter_mut().for_each(|owner| owner.is_asked = true);
    let armed: Vec<_> = owners.iter().map(Owner::is_armed).collect();
    let exit = Faultline::run(&["stop", "--all"])?;
    unless(&[0], "stop --all", &exit, findings);
    for (owner, _) in owners.iter_mut().zip(armed).filter(|(_, is_armed)| *is_armed) {
        if !owner.ends_within(patience(Duration::from_secs(1))) {
            let what = format!(
                "after `faultline stop --all` (exit {:?}, {:?}) there still runs {}",
                exit.code,
                exit.stderr.trim(),
                owner.fault.line()
            );
            let lie = exit.code == Some(0) && matches!(step.moment, Moment::Armed(_));
            findings.push(if lie { Finding::Lie { what } } else { Finding::Stuck { what } });
        }
    }
    Ok(())
}

/// Somebody else takes the memory that there is, and the kernel takes an owner's.
fn out_of_memory(scene: &Scene<'_>, owners: &mut [Owner], findings: &mut Vec<Finding>) -> Result {
    /// Room to begin with.
    const ROOM: u64 = 2 << 20;
    let memory = scene.memory();
    for owner in owners.iter_mut() {
        // It is they that are to be killed. One that has ended has no number any more.
        if let Some(pid) = owner.look().is_none().then(|| owner.pid()).flatten() {
            let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
        }
    }
    memory.leave(ROOM)?;
    let mut command = Command::new(sibling("fl-soak")?);
    command.args(["--role", "hog"]).stderr(std::process::Stdio::null());
    crate::harness::die_with_parent(&mut command);
    // From its start on: what it has taken elsewhere would make it the larger one, and be nobody's want.
    let enter = entering(&memory.members())?;
    // SAFETY: two system calls, no allocation.
    unsafe { command.pre_exec(enter) };
    let mut hog = command.spawn().context("start the hog")?;
    let ended = owners.iter_mut().any(|owner| owner.ends_within(Duration::from_secs(4)));
    let _ = hog.kill();
    let _ = hog.wait();
    memory.unlimit()?;
    if !ended {
        let what = "nobody was killed for want of memory".into();
        findings.push(Finding::Stuck { what });
    }
    Ok(())
}

/// A sweep by somebody who does not see what there is to be put back.
fn swept_from(namespace: Namespace, findings: &mut Vec<Finding>) -> Result {
    let role = ["--role", "within", namespace.name()];
    let sweep = Faultline::start_by(&sibling("fl-soak")?, &role, &["sweep".into()], |_| {})?;
    let exit = sweep.wait(COMMAND)?;
    // Kept, and named; or seen after all.
    unless(&[0, 6], &format!("sweep (in another {} namespace)", namespace.name()), &exit, findings);
    Ok(())
}

/// Who wrote a record died within a line.
fn tear() -> Result {
    for path in dead_records() {
        let mut file = fs::OpenOptions::new().append(true).open(&path).context(path.display())?;
        file.write_all(br#"{"entry":"change","change":"feat"#).context(path.display())?;
    }
    Ok(())
}

/// A newer version wrote something into the records, or their first lines are damaged. What is not understood is kept, with
/// all that there is to be undone, until it can be.
fn unknown(step: &Step, findings: &mut Vec<Finding>) -> Result {
    const NEWER: &str = r#"{"entry":"of_a_later_version","what":7}"#;
    let mut originals = Vec::new();
    for path in dead_records() {
        let text = fs::read_to_string(&path).context(path.display())?;
        let mut lines: Vec<&str> = text.lines().collect();
        if step.number.is_multiple_of(2) {
            lines.insert(lines.len().min(1), NEWER);
        } else if let Some(line) = lines.first_mut() {
            *line = line.get(line.len() / 2..).unwrap_or_default();
        }
        fs::write(&path, lines.join("\n") + "\n").context(path.display())?;
        originals.push((path, text));
    }
    let exit = Faultline::run(&["sweep"])?;
    unless(&[0, 6], "sweep (of a record with an unknown line)", &exit, findings);
    for (path, text) in originals {
        if path.exists() {
            fs::write(&path, text).context(path.display())?;
        }
    }
    Ok(())
}

/// Those of nobody who lives: who does holds his locked.
fn dead_records() -> Vec<PathBuf> {
    let is_dead = |path: &PathBuf| {
        let file = File::open(path).ok();
        file.is_some_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_ok())
    };
    records().into_iter().map(|(_, path)| path).filter(is_dead).collect()
}

/// Nobody reads, and there is no room: it heeds signals. It may wait for somebody to read what became of it once all is over,
/// until it is asked again.
fn output_full(step: &Step, owners: &mut [Owner], findings: &mut Vec<Finding>) -> Result {
    hit(step, owners).try_for_each(|owner| owner.fill_output())?;
    thread::sleep(TOLD);
    for owner in hit(step, owners) {
        let pid = owner.pid();
        owner.signal(Signal::SIGTERM);
        let is_over = owner.ends_within(patience(HEARD)) || !pid.is_some_and(has_record);
        owner.signal(Signal::SIGTERM);
        if !is_over || !owner.ends_within(patience(HEARD)) {
            let what = format!("a full pipe keeps from hearing SIGTERM {}", owner.fault.line());
            findings.push(Finding::Stuck { what });
            owner.signal(Signal::SIGKILL);
            owner.ends_within(COMMAND);
        }
    }
    Ok(())
}

/// Whether a process has one.
fn has_record(pid: i32) -> bool {
    let own = [format!("\"pid\":{pid},"), format!("\"pid\":{pid}}}")];
    records().into_iter().any(|(_, path)| {
        let text = fs::read_to_string(path).unwrap_or_default();
        own.iter().any(|words| text.contains(words))
    })
}

/// Removes what nobody put back, so that the next step begins anew.
pub(super) fn discard() -> Result {
    for pid in crate::inventory::neighbours()? {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = words.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = binary()?.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if String::from_utf8_lossy(program).ends_with(&name) || program.ends_with(b"/proc/self/exe") {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    for (_, path) in records() {
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir(RECORDS);
    Ok(())
}

/// The target still does what it did before all this.
pub(super) fn works_again(target: &Role) -> Result {
    let begun = target.last_numbers().first().copied().unwrap_or_default();
    target.wait_for_numbers("a time in which nothing fails", |numbers| match numbers {
        [rounds, clean] => *clean >= 12 && *rounds > begun + 12,
        _ => false,
    })
}
