//! The faults that a step can begin, in the words that a user would type. What is known only once the scene is set stands
//! there by its name: `{netns}`, `{cgroup}`, `{pid}`, `{folder}`, `{command}`.

use std::collections::BTreeSet;

use super::random::Random;

/// The interface of the first wire, its disk, and who is at its other end.
pub(super) const DEVICE: &str = crate::lab::NEAR_DEVICE;
pub(super) const DISK: &str = "/dev/nullb0";
const PEER: &str = "10.77.0.2";

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Family {
    /// As it is counted.
    pub(super) name: &'static str,
    /// As the doctor calls what it needs.
    needs: &'static str,
    /// How often it is chosen.
    weight: u64,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// Of packets on an interface.
    Packets(&'static [&'static str]),
    /// The same, with what makes one packet of several switched off unless it is asked not to be.
    Exact(&'static [&'static str]),
    /// Of connections that processes ask for.
    Connections,
    /// Of calls that processes make.
    Calls(&'static [&'static str]),
    /// Of a cgroup and a disk.
    Disk,
    /// Of what processes read clocks by.
    Clocks,
    /// The same, of a program that is started for it.
    Command,
}

use Form::{Calls, Clocks, Command, Connections, Disk, Exact, Packets};

const fn family(name: &'static str, needs: &'static str, weight: u64, form: Form) -> Family {
    Family { name, needs, weight, form }
}

/// All there are.
pub(super) const FAMILIES: &[Family] = &[
    family(
        "loss",
        "loss",
        5,
        Packets(&["net loss 30%", "net loss 100%", "net loss 5% 25%", "net loss 50% --per flow"]),
    ),
    family("bursts", "loss", 2, Exact(&["net loss gemodel 5% 30%", "net loss gemodel 1%"])),
    family("duplicate", "duplicate", 5, Exact(&["net duplicate 50%", "net duplicate 10% 5%"])),
    family(
        "corrupt",
        "corrupt",
        4,
        Exact(&["net corrupt 20%", "net corrupt 5% bits 3", "net corrupt 10% --fix-checksum"]),
    ),
    family(
        "delay",
        "delay",
        4,
        Packets(&["net delay 5ms", "net delay 20ms 5ms 25%", "net delay 8ms 2ms distribution normal"]),
    ),
    family(
        "rate",
        "rate",
        3,
        Packets(&["net rate 20mbit", "net rate 5mbit limit 50", "net loss 1% rate 10mbit delay 2ms"]),
    ),
    family("reorder", "delay", 2, Exact(&["net reorder 25% delay 5ms", "net reorder 50% gap 3 delay 3ms"])),
    family(
        "profile",
        "delay",
        3,
        Packets(&["net --profile lte", "net --profile 3g", "net --profile wifi-bad"]),
    ),
    family("partition", "loss", 2, Packets(&["net partition --peer 10.77.0.2"])),
    family("blackhole", "loss", 2, Packets(&["net blackhole"])),
    family("timeout", "timeout", 2, Packets(&["net timeout"])),
    family("reset", "reset", 3, Packets(&["net reset", "net reset --port 6000"])),
    family(
        "dns",
        "dns",
        3,
        Packets(&[
            "net dns nxdomain",
            "net dns servfail --name *.example",
            "net dns drop --type A,AAAA",
            "net dns refused",
        ]),
    ),
    family("refuse", "refuse", 4, Connections),
    family(
        "io error",
        "io_error",
        4,
        Calls(&[
            "io error EIO --ops open,read,write --path {folder}",
            "io error ENOSPC --ops write --path {folder}",
        ]),
    ),
    family(
        "io delay",
        "io_delay",
        3,
        Calls(&[
            "io delay 1ms --ops read,write --path {folder}",
            "io delay 2ms 1ms --ops open --path {folder}",
        ]),
    ),
    family(
        "io corrupt",
        "io_corrupt",
        3,
        Calls(&["io corrupt flip --path {folder}", "io corrupt zero bytes 4 --path {folder}"]),
    ),
    family("io full", "io_error", 2, Calls(&["io full --path {folder}", "io full EDQUOT --path {folder}"])),
    family("io slow", "io_slow", 6, Disk),
    family("sys error", "sys_error", 3, Calls(&["sys error getppid EPERM", "sys error fsync,getppid EIO"])),
    family(
        "sys delay",
        "sys_delay",
        3,
        Calls(&["sys delay getppid 2ms", "sys delay fsync,getppid 1ms 500us"]),
    ),
    family("mem", "mem_error", 2, Calls(&["mem error", "mem error --ops mmap"])),
    family("fd", "fd_error", 2, Calls(&["fd error", "fd error ENFILE"])),
    family("fork", "fork_error", 2, Calls(&["fork error", "fork error ENOMEM"])),
    family(
        "sock",
        "sock_error",
        2,
        Calls(&["sock error ECONNRESET --ops connect,sendmsg", "sock error ENOBUFS --ops create"]),
    ),
    family(
        "deny",
        "deny",
        2,
        Calls(&["deny EACCES --ops open --path {folder}", "deny EPERM --ops open,stat --path {folder}"]),
    ),
    family("time skew", "time_skew", 9, Clocks),
    family("time skew --", "time_skew", 3, Command),
];

/// Which faults a step's event is worth trying on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All.
    Any,
    /// Those on an interface that is not everybody's, most of them with its features switched off.
    Interface,
    /// Those aimed at the target's cgroup or process.
    Aimed,
    /// Those that change what their owner's end does not undo.
    Recorded,
    /// Those that an owner can have that numbers processes otherwise.
    Foreign,
}

/// A fault that is going to be begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Of which kind it is.
    pub(super) family: Family,
    /// The words.
    pub(super) words: Vec<String>,
}

impl Fault {
    /// Whether a program is started for it.
    pub(super) fn has_command(&self) -> bool {
        self.family.form == Command
    }

    /// Whether it refuses memory, which a program may not survive.
    pub(super) fn is_of_memory(&self) -> bool {
        self.family.name == "mem"
    }

    /// As it is typed.
    pub(super) fn line(&self) -> String {
        self.words.join(" ")
    }
}

impl Family {
    /// Whether the kernel can do it.
    pub(super) fn is_in(&self, abilities: &BTreeSet<String>) -> bool {
        abilities.contains(self.needs)
    }

    fn fits(&self, kind: Kind, abilities: &BTreeSet<String>) -> bool {
        let on_interface = matches!(self.form, Packets(_) | Exact(_));
        match kind {
            Kind::Any => true,
            Kind::Interface => on_interface,
            Kind::Foreign => on_interface || self.form == Connections,
            // `io delay` and the like are everywhere.
            Kind::Aimed => !matches!(self.form, Command),
            // Without tcx filters hang on a `clsact`, which outlives its owner.
            Kind::Recorded => {
                matches!(self.form, Exact(_) | Disk | Clocks) || on_interface && !abilities.contains("tcx")
            }
        }
    }

    fn weight(&self, kind: Kind) -> u64 {
        let recorded = matches!(self.form, Exact(_));
        if kind == Kind::Interface && recorded { self.weight * 4 } else { self.weight }
    }
}

/// A fault of this kind that the kernel can do; now and then one that it cannot, to be told so.
pub(super) fn draw(random: &mut Random, kind: Kind, abilities: &BTreeSet<String>) -> Fault {
    let lacks = kind == Kind::Any && random.chance(3);
    let fitting = FAMILIES.iter().filter(|family| family.fits(kind, abilities));
    let chosen = |lacks: bool| -> Vec<(u64, Family)> {
        let fitting = fitting.clone().filter(|family| family.is_in(abilities) != lacks);
        fitting.map(|family| (family.weight(kind), *family)).collect()
    };
    let families = Some(chosen(lacks)).filter(|some| !some.is_empty()).unwrap_or_else(|| chosen(false));
    // A kernel that can do nothing of all this is told of each.
    let family = if families.is_empty() { FAMILIES[0] } else { random.weighed(&families) };
    Fault { family, words: words(random, family, kind) }
}

fn words(random: &mut Random, family: Family, kind: Kind) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add =
        |text: &str| words.extend(text.split(' ').filter(|word| !word.is_empty()).map(String::from));
    match family.form {
        Packets(forms) | Exact(forms) => {
            let form = random.pick(forms);
            add(form);
            add(&format!("--dev {DEVICE} --netns {{netns}}"));
            packets(random, form, kind, &mut add);
        }
        Connections => {
            add(random.pick(&["net refuse", "net refuse ETIMEDOUT", "net refuse ECONNRESET --port 6000"]));
            add(whose(random, kind));
            add(random.pick(&["", "", "--skip 2", "--every 3"]));
            seed(random, &mut add);
        }
        Calls(forms) => {
            let form = random.pick(forms);
            add(form);
            add(whose(random, kind));
            // More than a few refusals leave a program nothing to live on.
            add(if family.name == "mem" {
                "--percent 20%"
            } else {
                random.pick(&["", "", "--percent 40%", "--every 2", "--first 20"])
            });
            seed(random, &mut add);
        }
        Disk => {
            add(random.pick(&["io slow 1mb/s", "io slow 50 iops", "io slow 2mib/s 100 iops --ops write"]));
            add(&format!("--dev-block {DISK} --cgroup {{cgroup}}"));
        }
        Clocks => {
            add(skew(random));
            add(whose(random, kind));
        }
        Command => {
            add(skew(random));
            add("-- {command} --role command");
        }
    }
    words
}

/// Which packets, and how.
fn packets(random: &mut Random, form: &str, kind: Kind, add: &mut impl FnMut(&str)) {
    let word = form.split(' ').nth(1).unwrap_or_default();
    let is_cut = ["partition", "blackhole", "timeout", "reset"].contains(&word);
    if word == "dns" {
        // A query goes one way.
        add(random.pick(&["--direction out", "--direction in"]));
    } else if !is_cut || random.chance(30) {
        add(random.pick(&["--direction out", "--direction in", "--direction both"]));
    }
    let aimed = match kind {
        Kind::Interface => 0,
        Kind::Aimed => 100,
        _ => 30,
    };
    if random.chance(aimed) {
        add(whose(random, kind));
    } else if !is_cut && word != "dns" && word != "--profile" {
        let peer = format!("--to {PEER}");
        add(random.pick(&["", "", "--proto udp", "--proto tcp", "--port 5000", &peer]));
    }
    if !is_cut && word != "--profile" {
        add(random.pick(&["", "", "", "--skip 3", "--first 50", "--every 2"]));
    }
    if random.chance(if kind == Kind::Interface { 60 } else { 30 }) && word != "dns" {
        add("--exact");
    }
    seed(random, add);
    if word == "loss" && random.chance(20) {
        add("--and loss 2% --port 9");
    }
}

fn seed(random: &mut Random, add: &mut impl FnMut(&str)) {
    add(&format!("--seed {}", random.below(1 << 20)));
}

fn whose(random: &mut Random, kind: Kind) -> &'static str {
    let is_pid = kind != Kind::Foreign && random.chance(45);
    if is_pid { "--pid {pid}" } else { "--cgroup {cgroup}" }
}

fn skew(random: &mut Random) -> &'static str {
    random.pick(&[
        "time skew --offset 2d",
        "time skew --offset -1h30m",
        "time skew --rate 1.5",
        "time skew --drift -200",
        "time skew --freeze",
        "time skew --offset 1s --jump-every 300ms",
        "time skew --offset 5s --strobe 200ms/200ms",
        "time skew --leap smear",
        "time skew --offset 100ms --clock realtime,monotonic",
        "time skew --rate 1.2 --clock monotonic,boottime",
    ])
}
