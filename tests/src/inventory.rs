//! Everything of this test's on the whole machine that could still act on a packet or lie about.

mod surroundings;

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use chaos_user::kernel::sys::{self, Kind};
use nix::unistd::{Pid, getpgid, getpgrp};

pub(crate) use self::surroundings::{Surroundings, neighbours};
use crate::{
    error::{Context, Failure, Result},
    harness::RECORDS,
    lab::Netns,
};

/// What programs, and with them their links, are called in the kernel.
const PROGRAM_PREFIX: &str = "fl_";
/// What maps are called in the kernel.
const MAP_PREFIX: &str = "FL_";
/// Where network namespaces have names.
const NAMED_NETNS: &str = "/run/netns";
/// Where BPF objects can be made to outlive their owner.
const PINS: &str = "/sys/fs/bpf";

/// How long the kernel may take to free maps that nobody holds.
const FREEING: Duration = Duration::from_secs(10);

/// A listing of what there is, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    lines: BTreeSet<String>,
    /// Those of them that no process held: what another test's ended process had, which the kernel frees any moment. That
    /// they are gone later says nothing.
    unheld: BTreeSet<String>,
}

impl Inventory {
    /// As it is now, with the interfaces and qdiscs of the given namespaces.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take(namespaces: &[&Netns]) -> Result<Self> {
        let (mut lines, unheld) = bpf()?;
        for folder in [RECORDS, NAMED_NETNS, PINS] {
            files(Path::new(folder), &mut lines)?;
        }
        for (number, netns) in namespaces.iter().enumerate() {
            interfaces(number, netns, &mut lines)?;
        }
        Ok(Self { lines, unheld })
    }

    /// The same once nothing changes any more: what ended just before still lies about for a while.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn settled(namespaces: &[&Netns]) -> Result<Self> {
        Self::settled_as(|| Self::take(namespaces))
    }

    /// The same of whatever `take` lists.
    pub(crate) fn settled_as(take: impl Fn() -> Result<Self>) -> Result<Self> {
        const STILL: Duration = Duration::from_millis(300);
        const LONGEST: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + LONGEST;
        loop {
            let now = take()?;
            thread::sleep(STILL);
            if now.difference(&take()?).is_none() || Instant::now() > deadline {
                return Ok(now);
            }
        }
    }

    /// What `after` has more or less than this; nothing if they are equal.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Option<Difference> {
        let only =
            |one: &Self, other: &Self| -> Vec<_> { one.lines.difference(&other.lines).cloned().collect() };
        let (mut gone, new) = (only(self, after), only(after, self));
        gone.retain(|line| !self.unheld.contains(line));
        (!gone.is_empty() || !new.is_empty()).then_some(Difference { gone, new })
    }

    /// Waits until all is as it was: the kernel frees programs and maps a little after their last user is gone.
    ///
    /// # Errors
    ///
    /// The difference that remains at the end of `time`.
    pub fn wait_until_equal(&self, namespaces: &[&Netns], time: Duration) -> Result {
        self.wait(|| Self::take(namespaces), time, |line| !line.is_empty())
    }

    /// Waits until all that `take` lists is as it was.
    pub(crate) fn wait_for(&self, take: impl Fn() -> Result<Self>, time: Duration) -> Result {
        self.wait(take, time, |line| !line.is_empty())
    }

    /// Waits until nothing is there, beyond what was, that could act on a packet: what only lies about may be
    /// swept later.
    ///
    /// # Errors
    ///
    /// The difference that remains at the end of `time`.
    pub fn wait_until_harmless(&self, namespaces: &[&Netns], time: Duration) -> Result {
        self.wait(|| Self::take(namespaces), time, |line| !line.starts_with("file "))
    }

    fn wait(&self, take: impl Fn() -> Result<Self>, time: Duration, counts: impl Fn(&str) -> bool) -> Result {
        let deadline = Instant::now() + time;
        let only = |inventory: &Self| Self {
            lines: inventory.lines.iter().filter(|line| counts(line)).cloned().collect(),
            unheld: inventory.unheld.clone(),
        };
        let before = only(self);
        loop {
            let now = only(&take()?);
            let Some(difference) = before.difference(&now) else { return Ok(()) };
            // Maps that nobody holds act on nothing, and a busy kernel takes its time over freeing them; whose they were is not
            // known any more: tests run beside each other.
            let is_map = |line: &String| line.starts_with("map ") && now.unheld.contains(line);
            let being_freed = difference.gone.is_empty() && difference.new.iter().all(is_map);
            let longest = if being_freed { deadline + FREEING } else { deadline };
            if Instant::now() >= longest {
                return Err(Failure::new(format!("{time:?} later:\n{difference}")));
            }
            // There is no event to wait for; each look is a question of its own.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(formatter, "{line}"))
    }
}

/// How two listings differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What was there before only.
    pub gone: Vec<String>,
    /// What is there after only.
    pub new: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = self.gone.iter().map(|line| ('-', line)).chain(self.new.iter().map(|line| ('+', line)));
        for (sign, line) in signed {
            writeln!(formatter, "  {sign} {line}")?;
        }
        Ok(())
    }
}

/// Opens an object; `None` if it is gone. A link that is being made has a number but cannot be opened yet (`EAGAIN`).
fn open(kind: Kind, id: u32) -> Result<Option<OwnedFd>> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match sys::open(kind, id) {
            Err(error) if error.errno() == libc::EAGAIN && Instant::now() < deadline => thread::yield_now(),
            result => return Ok(result?),
        }
    }
}

/// Programs and maps by our names, links by their programs; not those of another `faultline` on this machine. And those
/// that nobody holds. An object may go while it is looked at.
fn bpf() -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let mut programs = BTreeSet::new();
    let mut lines = BTreeSet::new();
    for id in sys::ids(Kind::Program)? {
        let Some(program) = open(Kind::Program, id)? else { continue };
        let name = sys::program_info(program.as_fd())?.name;
        if name.starts_with(PROGRAM_PREFIX) {
            programs.insert(id);
            lines.insert(format!("program {id} {name}"));
        }
    }
    for id in sys::ids(Kind::Map)? {
        let Some(map) = open(Kind::Map, id)? else { continue };
        let (_, name) = sys::map_info(map.as_fd())?;
        if name.starts_with(MAP_PREFIX) {
            lines.insert(format!("map {id} {name}"));
        }
    }
    for id in sys::ids(Kind::Link)? {
        let Some(link) = open(Kind::Link, id)? else { continue };
        let info = sys::link_info(link.as_fd())?;
        if programs.contains(&info.program) {
            lines.insert(format!("link {id} of program {} on interface {}", info.program, info.ifindex));
        }
    }
    // Looked for afterwards: what is new since then is of no interest, and what is gone is not there.
    let held = if lines.is_empty() { Held::default() } else { Held::now() };
    let object = |line: &String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    lines.retain(|line| !held.by_others.contains(&object(line)));
    let unheld = lines.iter().filter(|line| !held.by_us.contains(&object(line))).cloned().collect();
    Ok((lines, unheld))
}

/// What processes hold open: `program 7`.
#[derive(Debug, Default)]
struct Held {
    /// By this test's: it and what it starts are a process group.
    by_us: BTreeSet<String>,
    by_others: BTreeSet<String>,
}

impl Held {
    fn now() -> Self {
        let listed = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        let mut held = Self::default();
        for process in listed(Path::new("/proc")) {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw);
            // Processes and files come and go while they are looked at.
            let Some(group) = pid.and_then(|pid| getpgid(Some(pid)).ok()) else { continue };
            let held = if group == getpgrp() { &mut held.by_us } else { &mut held.by_others };
            for file in listed(&process.path().join("fdinfo")) {
                let text = fs::read_to_string(file.path()).unwrap_or_default();
                let fields = text.lines().filter_map(|line| line.split_once(":\t"));
                held.extend(fields.filter_map(|(field, id)| match field {
                    "prog_id" => Some(format!("program {id}")),
                    "map_id" => Some(format!("map {id}")),
                    "link_id" => Some(format!("link {id}")),
                    _ => None,
                }));
            }
        }
        held
    }
}

/// What lies in a folder and below; the folder itself may be there or not.
fn files(folder: &Path, lines: &mut BTreeSet<String>) -> Result {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(folder.display()),
    };
    for entry in entries {
        let entry = entry.context(folder.display())?;
        lines.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), lines)?;
        }
    }
    Ok(())
}

/// Interfaces with what can be changed about them, and their qdiscs.
fn interfaces(number: usize, netns: &Netns, lines: &mut BTreeSet<String>) -> Result {
    let mut netlink = netns.netlink()?;
    for link in netlink.links()? {
        let (index, name, segments) = (link.index, &link.name, link.gso_max_segs.unwrap_or(0));
        let state = if link.is_up() { "up" } else { "down" };
        lines.insert(format!("interface {name} of namespace {number}: {state}, gso_max_segs {segments}"));
        for qdisc in netlink.qdiscs(index)? {
            let (kind, handle, parent) = (qdisc.kind, qdisc.handle, qdisc.parent);
            lines.insert(format!("qdisc {kind} {handle:x} at {parent:x} on {name} of namespace {number}"));
        }
    }
    Ok(())
}
