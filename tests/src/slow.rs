//! `io slow`: a cgroup is as slow with a device as was asked, another with the same device is not, and what was limited
//! before is again.

mod disks;
mod input;
mod worker;

use std::{
    fs::{self, File},
    os::unix::{fs::FileTypeExt, process::CommandExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};

use self::{
    disks::{Mounted, Operation, change_partition},
    worker::{Done, LONG, Unit, Way, Worker},
};
use crate::{
    cgroup::{self, Cgroup},
    ensure,
    error::{Context, Result},
    faultline::{Event, Faultline},
    harness::{Need, Test, is_emulated, moments, patience},
};

const NEEDS: &[Need] = &[Need::Root, Need::IoMax, Need::Disks];
const FILE_SYSTEM: &[Need] =
    &[Need::Root, Need::IoMax, Need::Disks, Need::Program("mkfs.ext4"), Need::Program("losetup")];

/// The tests of this file.
pub(crate) const TESTS: &[Test] = &[
    Test::new("slow::a_rate_is_kept", a_rate_is_kept).needs(NEEDS).timeout(120),
    Test::new("slow::whom_it_is_of", whom_it_is_of).needs(NEEDS).timeout(60),
    Test::new("slow::a_partition_is_of_a_disk", partition).needs(NEEDS),
    Test::new("slow::the_device_of_a_path", path).needs(FILE_SYSTEM).timeout(60),
    Test::new("slow::killed_at_any_moment", killed).needs(NEEDS).timeout(90).once(),
    Test::new("slow::listed_stopped_and_swept", owners).needs(NEEDS).timeout(60),
    Test::new("slow::swept_from_elsewhere", from_elsewhere).needs(NEEDS).once(),
    Test::new("slow::what_somebody_else_sets_stays", overruled).needs(NEEDS),
    Test::new("slow::what_is_gone_is_no_error", gone).needs(NEEDS),
    Test::new("slow::what_is_none", input::refused).needs(NEEDS).timeout(60),
    Test::new("slow::not_here", input::not_here).needs(&[Need::Root, Need::CgroupV2, Need::Without(IO_MAX)]),
];

const IO_MAX: chaos_user::kernel::mechanism::Mechanism = chaos_user::kernel::mechanism::Mechanism::IoMax;

/// Two disks that keep nothing, `null_blk`'s.
const DISKS: [&str; 2] = ["/dev/nullb0", "/dev/nullb1"];

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a disk is used to see how fast it is.
const SHORT: Duration = Duration::from_millis(500);
/// How much is read or written at once.
const LARGE: usize = 64 << 10;
const SMALL: usize = 4 << 10;
/// Whether this machine has the disks.
pub(crate) fn has_disks() -> std::result::Result<(), String> {
    let is_disk = |path: &&str| fs::metadata(path).is_ok_and(|file| file.file_type().is_block_device());
    let missing = DISKS.into_iter().find(|path| !is_disk(path));
    missing.map_or(Ok(()), |path| Err(format!("there is no {path}: null_blk is not loaded with two devices")))
}

/// Two cgroups, and a process in each that uses the first disk.
struct Scene {
    target: Worker,
    bystander: Worker,
    cgroup: Cgroup,
    beside: Cgroup,
}

impl Scene {
    fn new() -> Result<Self> {
        Self::on(Path::new(DISKS[0]))
    }

    fn on(path: &Path) -> Result<Self> {
        let (cgroup, beside) = (Cgroup::new()?, Cgroup::new()?);
        let (target, bystander) = (Worker::new(&cgroup, path)?, Worker::new(&beside, path)?);
        Ok(Self { target, bystander, cgroup, beside })
    }

    fn folder(&self) -> String {
        self.cgroup.path().display().to_string()
    }

    /// The words of a fault of the target on the first disk.
    fn words<'a>(&self, folder: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        [&["io", "slow"], rest, &["--dev-block", DISKS[0], "--cgroup", folder]].concat()
    }

    fn armed(&self, rest: &[&str]) -> Result<(Faultline, Event)> {
        let folder = self.folder();
        let fault = Faultline::start(&self.words(&folder, rest))?;
        let armed = fault.wait_event("armed", PATIENCE)?;
        Ok((fault, armed))
    }

    /// Both at once.
    fn both(&mut self, way: Way, size: usize, time: Duration) -> Result<[Done; 2]> {
        self.target.start(way, size, time)?;
        self.bystander.start(way, size, time)?;
        Ok([self.target.finish()?, self.bystander.finish()?])
    }

    fn limits(&self) -> Result<String> {
        limits(&self.cgroup)
    }

    /// Nothing is limited, and nobody's record is left of this.
    fn over(&self, id: &str, before: &str, when: &str) -> Result {
        let limits = self.limits()?;
        ensure!(limits == before, "{when}: {limits:?}, not {before:?}");
        ensure!(self::limits(&self.beside)?.is_empty(), "{when}: the bystander is limited");
        ensure!(!Path::new(&record(id)).exists(), "{when}: its record is left");
        Ok(())
    }
}

fn record(id: &str) -> String {
    format!("/run/faultline/{id}.json")
}

fn id(event: &Event) -> Result<&str> {
    event.get("/id")?.as_str().context("an id that is no text")
}

/// What a cgroup's `io.max` says.
fn limits(cgroup: &Cgroup) -> Result<String> {
    let path = cgroup.path().join("io.max");
    fs::read_to_string(&path).context(path.display())
}

fn set_limits(cgroup: &Cgroup, line: &str) -> Result {
    let path = cgroup.path().join("io.max");
    fs::write(&path, line).context(format_args!("{line} to {}", path.display()))
}

/// `MAJOR:MINOR` of a disk.
fn numbers(disk: &str) -> Result<String> {
    let name = disk.strip_prefix("/dev/").context("a path in /dev")?;
    let path = format!("/sys/class/block/{name}/dev");
    Ok(fs::read_to_string(&path).context(path)?.trim().to_owned())
}

/// Waits until a condition holds.
fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result {
    let deadline = Instant::now() + patience(PATIENCE);
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        // There is no event to wait for.
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A fault, which way it is seen by, and what that comes to a second: bytes, or else reads and writes.
type Case = (&'static [&'static str], Way, usize, f64);

fn a_rate_is_kept() -> Result {
    const CASES: [Case; 4] = [
        (&["4mb/s"], Way::Read, LARGE, 4e6),
        (&["2mib/s", "--ops", "write"], Way::Write, LARGE, 2_097_152.0),
        (&["200", "iops", "--ops", "read"], Way::Read, SMALL, 200.0),
        (&["100mb/s", "150iops"], Way::Write, SMALL, 150.0),
    ];
    let mut scene = Scene::new()?;
    for (words, way, size, asked) in CASES {
        let what = words.join(" ");
        let unit: Unit = if what.contains("iops") { |speed| speed.iops } else { |speed| speed.rate };
        let before = scene.both(way, size, SHORT)?.map(|done| unit(done.peak));
        ensure!(before.iter().all(|rate| *rate > 4.0 * asked), "{what}: before it {before:?}");
        let (fault, armed) = scene.armed(words)?;
        scene.bystander.start(way, size, LONG)?;
        let (total, slow) = scene.target.reach(way, size, asked, unit)?;
        let beside = unit(scene.bystander.finish()?.peak);
        let exit = fault.end()?;
        let after = scene.both(way, size, SHORT)?.map(|done| unit(done.peak));
        println!(
            "{what}: before {:.0}, {asked:.0} asked, {slow:.0} had, {beside:.0} beside, after {:.0}",
            before[0], after[0]
        );
        ensure!(beside > 4.0 * asked, "{what}: the bystander has {beside}, before it {before:?}");
        ensure!(after[0] > 4.0 * asked, "{what}: after it {after:?}");
        let rule = exit.event("summary")?.get("/rules/0")?.clone();
        ensure!(rule["bytes"] == total.bytes, "{what}: {} done, counted {rule}", total.bytes);
        for count in ["seen", "matched", "fired"] {
            ensure!(rule[count] == total.ios, "{what}: {} made, counted {rule}", total.ios);
        }
        scene.over(id(&armed)?, "", &what)?;
    }
    Ok(())
}

/// What is not limited is not, what is below the cgroup is, and the other disk is nobody's business.
fn whom_it_is_of() -> Result {
    let mut scene = Scene::new()?;
    let below = scene.cgroup.child("below")?;
    let mut inner = Worker::new(&below, Path::new(DISKS[0]))?;
    let mut other = Worker::new(&scene.cgroup, Path::new(DISKS[1]))?;
    let rate = 4e6;
    let (fault, armed) = scene.armed(&["4mb/s", "--ops", "read"])?;
    let writes = scene.target.run(Way::Write, LARGE, SHORT)?;
    let elsewhere = other.run(Way::Read, LARGE, SHORT)?;
    let (within, speed) = inner.reach(Way::Read, LARGE, rate, |speed| speed.rate)?;
    let exit = fault.end()?;
    println!("writes {:.0}, the other disk {:.0}, below {speed:.0}", writes.peak.rate, elsewhere.peak.rate);
    ensure!(writes.peak.rate > 4.0 * rate, "writes: {writes:?}");
    ensure!(elsewhere.peak.rate > 4.0 * rate, "the other disk: {elsewhere:?}");
    let rule = exit.event("summary")?.get("/rules/0")?.clone();
    ensure!(rule["matched"] == within.ios && rule["seen"] == within.ios + writes.ios, "{rule}");
    scene.over(id(&armed)?, "", "after it")?;
    let (fault, armed) = scene.armed(&["4mb/s", "--for", "4s"])?;
    ensure!(armed.get("/remaining_s")?.as_f64().is_some_and(|left| left > 0.5), "{armed:?}");
    scene.target.run(Way::Read, LARGE, SHORT)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(0), "{exit:?}");
    scene.over(id(&armed)?, "", "its time is over")?;
    // Without anything to slow down it is not said to have been seen.
    let folder = scene.folder();
    let exit = Faultline::run(&scene.words(&folder, &["4mb/s", "--for", "50ms", "--json"]))?;
    ensure!(exit.code == Some(5), "{exit:?}");
    drop(inner);
    Ok(())
}

/// The kernel limits whole disks alone, whichever of their partitions is used.
fn partition() -> Result {
    let disk = File::open(DISKS[1]).context(DISKS[1])?;
    change_partition(&disk, Operation::Add)?;
    let part = format!("{}p1", DISKS[1]);
    let tried = wait_for("the partition's file", || Ok(Path::new(&part).exists())).and_then(|()| {
        let mut scene = Scene::on(Path::new(&part))?;
        let folder = scene.folder();
        let words = ["io", "slow", "2mb/s", "--dev-block", &part, "--cgroup", &folder];
        let fault = Faultline::start(&words)?;
        let armed = fault.wait_event("armed", PATIENCE)?;
        let during = scene.limits()?;
        scene.target.reach(Way::Read, LARGE, 2e6, |speed| speed.rate)?;
        fault.end()?;
        let expected = format!("{} rbps=2000000 wbps=2000000 riops=max wiops=max\n", numbers(DISKS[1])?);
        ensure!(during == expected, "{during:?}, not {expected:?}");
        scene.over(id(&armed)?, "", "after it")
    });
    change_partition(&disk, Operation::Delete)?;
    tried
}

/// Whatever lies on it, by the path of anything on it.
fn path() -> Result {
    let mounted = Mounted::new()?;
    let file = mounted.folder.join("file");
    fs::write(&file, vec![7; 8 << 20]).context(file.display())?;
    let mut scene = Scene::on(&file)?;
    let before = scene.both(Way::Read, LARGE, SHORT)?;
    let (folder, path) = (scene.folder(), mounted.folder.display().to_string());
    let words = ["io", "slow", "1mb/s", "--ops", "read", "--path", &path, "--cgroup", &folder];
    let fault = Faultline::start(&words)?;
    let armed = fault.wait_event("armed", PATIENCE)?;
    let during = scene.limits()?;
    scene.bystander.start(Way::Read, LARGE, LONG)?;
    scene.target.reach(Way::Read, LARGE, 1e6, |speed| speed.rate)?;
    let beside = scene.bystander.finish()?;
    fault.end()?;
    let expected = format!("{} rbps=1000000 wbps=max riops=max wiops=max\n", numbers(&mounted.device)?);
    ensure!(during == expected, "{during:?}, not {expected:?}");
    ensure!(before.iter().chain([&beside]).all(|it| it.peak.rate > 4e6), "{before:?}, beside {beside:?}");
    scene.over(id(&armed)?, "", "after it")
}

/// Limits a cgroup has had from elsewhere: none, some of what is set, and some of both.
const BEFORE: [&str; 3] = ["", "rbps=50000000", "rbps=50000000 wbps=60000000 riops=7000 wiops=8000"];

/// The limits as they are before a fault.
fn prepare(scene: &Scene, words: &str) -> Result<String> {
    if !words.is_empty() {
        set_limits(&scene.cgroup, &format!("{} {words}", numbers(DISKS[0])?))?;
    }
    scene.limits()
}

fn killed() -> Result {
    let rounds = moments(if is_emulated() { 6 } else { 12 });
    let mut scene = Scene::new()?;
    let mut left = 0;
    for before in BEFORE {
        let before = prepare(&scene, before)?;
        let folder = scene.folder();
        let start = Instant::now();
        let (fault, armed) = scene.armed(&["4mb/s", "90", "iops"])?;
        let whole = start.elapsed();
        let during = scene.limits()?;
        let expected = format!("{} rbps=4000000 wbps=4000000 riops=90 wiops=90\n", numbers(DISKS[0])?);
        ensure!(during == expected, "{during:?}, not {expected:?}");
        fault.kill(Signal::SIGKILL)?;
        fault.wait(PATIENCE)?;
        // Nothing in the kernel ends it.
        ensure!(scene.limits()? == expected, "killed: {:?}", scene.limits());
        let swept = Faultline::run(&["sweep"])?;
        ensure!(swept.code == Some(0) && swept.stdout.contains(id(&armed)?), "{swept:?}");
        scene.over(id(&armed)?, &before, "swept")?;
        for round in 0..rounds {
            let fault = Faultline::start(&scene.words(&folder, &["4mb/s", "90", "iops"]))?;
            thread::sleep(whole * 5 / 4 * round / rounds);
            fault.kill(Signal::SIGKILL)?;
            fault.wait(PATIENCE)?;
            left += u32::from(scene.limits()? != before);
            let swept = Faultline::run(&["sweep"])?;
            let limits = scene.limits()?;
            ensure!(swept.code == Some(0) && limits == before, "round {round}: {limits:?}, {swept:?}");
        }
        let after = scene.target.run(Way::Read, LARGE, SHORT)?;
        ensure!(after.peak.rate > 16e6, "after it: {after:?}");
    }
    println!("of {} killed {left} were in force", rounds * BEFORE.len() as u32);
    Ok(())
}

fn owners() -> Result {
    let mut scene = Scene::new()?;
    for before in BEFORE {
        let before = prepare(&scene, before)?;
        let (fault, armed) = scene.armed(&["4mb/s"])?;
        let id = id(&armed)?.to_owned();
        let done = scene.target.run(Way::Read, LARGE, SHORT)?;
        let listed = Faultline::run(&["ps", "--json"])?;
        let line = listed.stdout.lines().find(|line| line.contains(&id)).context("it is not listed")?;
        let line: serde_json::Value = serde_json::from_str(line).context("a line of ps")?;
        ensure!(line["state"] == "armed" && line["hooks"][0]["hook"] == "io_max", "{line}");
        ensure!(line["rules"][0]["matched"] == done.ios, "{} made: {line}", done.ios);
        let text = Faultline::run(&["ps"])?;
        ensure!(text.stdout.contains("io slow 4mb/s") && text.stdout.contains("io_max"), "{}", text.stdout);
        let stopped = Faultline::run(&["stop", &id])?;
        ensure!(stopped.code == Some(0), "{stopped:?}");
        ensure!(fault.wait(PATIENCE)?.code == Some(130), "{:?}", fault.wait(PATIENCE));
        scene.over(&id, &before, "stopped")?;
    }
    // An owner that is stopped cannot take it back, and nobody does for it; it does when it goes on.
    let (fault, armed) = scene.armed(&["4mb/s"])?;
    let (id, during) = (id(&armed)?, scene.limits()?);
    fault.kill(Signal::SIGSTOP)?;
    // Longer than the lease.
    thread::sleep(Duration::from_millis(3200));
    let swept = Faultline::run(&["sweep"])?;
    ensure!(!swept.stdout.contains(id) && scene.limits()? == during, "{swept:?} {:?}", scene.limits());
    fault.kill(Signal::SIGCONT)?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(4), "{exit:?}");
    let numbers = numbers(DISKS[0])?;
    let before = format!("{numbers} rbps=50000000 wbps=60000000 riops=7000 wiops=8000\n");
    scene.over(id, &before, "gone on")
}

/// Whoever sweeps may see the hierarchy somewhere else.
fn from_elsewhere() -> Result {
    const NONE: Option<&str> = None;
    let (scene, root) = (Scene::new()?, cgroup::root()?);
    let elsewhere = std::env::temp_dir().join(format!("fl-slow-cgroups-{}", std::process::id()));
    fs::create_dir(&elsewhere).context(elsewhere.display())?;
    let (fault, armed) = scene.armed(&["4mb/s"])?;
    fault.kill(Signal::SIGKILL)?;
    fault.wait(PATIENCE)?;
    // Where it is covered, it is not seen.
    let covered = root.clone();
    let swept = Faultline::run_with(&["sweep"], |command| {
        let cover = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            Ok(mount(Some("tmpfs"), &covered, Some("tmpfs"), MsFlags::empty(), NONE)?)
        };
        // SAFETY: system calls alone.
        unsafe { command.pre_exec(cover) };
    })?;
    ensure!(swept.code == Some(6) && swept.stderr.contains(id(&armed)?), "{swept:?}");
    let moved = elsewhere.clone();
    let swept = Faultline::run_with(&["sweep"], |command| {
        let move_it = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            Ok(mount(Some(&root), &moved, NONE, MsFlags::MS_MOVE, NONE)?)
        };
        // SAFETY: system calls alone.
        unsafe { command.pre_exec(move_it) };
    })?;
    ensure!(swept.code == Some(0) && swept.stdout.contains(id(&armed)?), "{swept:?}");
    fs::remove_dir(&elsewhere).context(elsewhere.display())?;
    scene.over(id(&armed)?, "", "swept")
}

/// systemd, say, writes its own again. What it has not written is put back.
fn overruled() -> Result {
    let scene = Scene::new()?;
    let numbers = numbers(DISKS[0])?;
    prepare(&scene, "wbps=70000000")?;
    let (fault, armed) = scene.armed(&["4mb/s"])?;
    set_limits(&scene.cgroup, &format!("{numbers} rbps=33000000 riops=555"))?;
    let exit = fault.wait(PATIENCE)?;
    ensure!(exit.code == Some(4), "{exit:?}");
    let reason = exit.event("summary")?.get("/reason")?.clone();
    ensure!(reason.as_str().is_some_and(|text| text.contains("somebody else")), "{reason}");
    let left = format!("{numbers} rbps=33000000 wbps=70000000 riops=555 wiops=max\n");
    scene.over(id(&armed)?, &left, "after it")
}

/// Its cgroup goes: while it runs, and once its owner has been killed.
fn gone() -> Result {
    for killed in [false, true] {
        let scene = Scene::new()?;
        let (fault, armed) = scene.armed(&["4mb/s"])?;
        if killed {
            fault.kill(Signal::SIGKILL)?;
            fault.wait(PATIENCE)?;
        }
        let Scene { target, bystander, cgroup, beside } = scene;
        drop(target);
        let folder = cgroup.path().to_owned();
        drop(cgroup);
        ensure!(!folder.exists(), "{} is not gone", folder.display());
        if killed {
            let swept = Faultline::run(&["sweep"])?;
            ensure!(swept.code == Some(0) && swept.stdout.contains(id(&armed)?), "{swept:?}");
        } else {
            let exit = fault.wait(PATIENCE)?;
            ensure!(exit.code == Some(4), "{exit:?}");
        }
        ensure!(!Path::new(&record(id(&armed)?)).exists(), "its record is left, killed: {killed}");
        ensure!(limits(&beside)?.is_empty(), "the bystander is limited");
        drop(bystander);
    }
    Ok(())
}
