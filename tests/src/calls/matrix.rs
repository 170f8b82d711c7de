//! Every operation on a file, each errno, each mechanism: the target gets that errno, nobody else does.

use std::time::Duration;

use chaos_user::kernel::mechanism::Mechanism as M;
use nix::errno::Errno;

use super::{
    fault::Fault,
    folder::Folder,
    operator::{Operator, Pair},
    ops::{CASES, Case, Hand, furnish, names},
};
use crate::{
    ensure,
    error::{Failure, Result},
    harness::{
        Need::{self, Mechanism as Has},
        Test, is_gate,
    },
    inventory::Inventory,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("calls::every_operation_is_done_in_peace", undisturbed).needs(&[Need::Root, Need::CgroupV2]),
    Test::new("calls::every_operation_by_lsm", by_lsm)
        .needs(&[Need::Root, Need::CgroupV2, Has(M::Lsm)])
        .timeout(180),
    Test::new("calls::every_operation_by_fmod_ret_security", by_fmod_ret_security)
        .needs(&[Need::Root, Need::CgroupV2, Has(M::FmodRetSecurity)])
        .timeout(180),
    Test::new("calls::every_operation_takes_longer", delayed)
        .needs(&[Need::Root, Need::CgroupV2, Has(M::Lsm), Has(M::Fentry)])
        .timeout(90),
    Test::new("calls::operations_on_descriptors_by_fmod_ret_syscall", by_fmod_ret_syscall)
        .needs(&[Need::Root, Need::CgroupV2, Has(M::FmodRetSyscall)])
        .timeout(120),
    Test::new("calls::operations_on_descriptors_by_kprobe_override", by_kprobe_override)
        .needs(&[Need::Root, Need::CgroupV2, Has(M::KprobeOverride)])
        .timeout(120),
];

/// What the targets get: something each operation can give, and something it never does.
const ERRNOS: [Errno; 5] = [Errno::EIO, Errno::EINTR, Errno::ENOSPC, Errno::EACCES, Errno::ENOMEM];
/// How many of them in the gate: the number is data to the programs, and one of each kind shows whose it is.
const IN_GATE: usize = 2;
/// What no security hook is asked about.
const UNHOOKED: &str = "fsync";
/// What is done by system calls whose first argument is a file's descriptor, and by no others.
const BY_DESCRIPTOR: &[&str] = &["read", "write", "readdir", "ioctl", UNHOOKED];
/// What a call is made to wait, and less than which nobody else does.
const WAIT: Duration = Duration::from_millis(8);

/// How often the bystander may try to be quicker than that.
const TRIES: usize = 4;

fn by_lsm() -> Result {
    hooked("lsm")
}

fn by_fmod_ret_security() -> Result {
    hooked("fmod_ret_security")
}

fn by_fmod_ret_syscall() -> Result {
    every("fmod_ret_syscall", BY_DESCRIPTOR)
}

fn by_kprobe_override() -> Result {
    every("kprobe_override", BY_DESCRIPTOR)
}

fn hooked(mechanism: &str) -> Result {
    let ops: Vec<&str> = names().into_iter().filter(|op| *op != UNHOOKED).collect();
    every(mechanism, &ops)
}

/// What every other row here stands on.
fn undisturbed() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    furnish(&place)?;
    let hands = hands(&pair, &place)?;
    calm("at first", &hands)?;
    calm("again", &hands)
}

fn hands<'a>(pair: &'a Pair, place: &'a Folder) -> Result<[Hand<'a>; 2]> {
    Ok([Hand::new(&pair.target, place, "target")?, Hand::new(&pair.bystander, place, "bystander")?])
}

fn calm(when: &str, hands: &[Hand<'_>]) -> Result {
    for case in CASES {
        for hand in hands {
            let errno = case.run(hand)?;
            ensure!(errno == 0, "{when}: {} gives {}", case.call, Errno::from_raw(errno));
        }
    }
    Ok(())
}

fn every(mechanism: &str, ops: &[&str]) -> Result {
    let before = Inventory::settled(&[])?;
    let (pair, place) = (Pair::new()?, Folder::new()?);
    furnish(&place)?;
    let hands = hands(&pair, &place)?;
    let cases: Vec<&Case> = CASES.iter().filter(|case| ops.contains(&case.op)).collect();
    let mut table = Table::new(&cases);
    for errno in ERRNOS.into_iter().take(if is_gate() { IN_GATE } else { ERRNOS.len() }) {
        calm(&format!("before {errno:?}"), &hands)?;
        let (ops, path, target) = (ops.join(","), place.path().display(), pair.option());
        let words = format!("io error {errno:?} --ops {ops} --path {path} {target} --by {mechanism}");
        let fault = Fault::arm(&words)?;
        ensure!(fault.hooks.iter().all(|hook| hook == mechanism), "{words}: by {:?}", fault.hooks);
        let [target, bystander] = &hands;
        for (row, case) in cases.iter().enumerate() {
            table.add(row, errno, case.run(target)?, case.run(bystander)?);
        }
        let counts = fault.end()?;
        println!("{mechanism} {errno:?}: {counts:?}");
        let enough = counts.matched >= cases.len() as u64 && counts.fired == counts.matched;
        table.note(enough, format!("{errno:?}: {counts:?} after {} calls", cases.len()));
    }
    calm("after", &hands)?;
    table.judge()?;
    before.wait_until_equal(&[], Duration::from_secs(5))
}

/// Whatever they do takes the target longer, and nobody else; by whichever mechanism can do it.
fn delayed() -> Result {
    let (pair, place) = (Pair::new()?, Folder::new()?);
    furnish(&place)?;
    let [target, bystander] = hands(&pair, &place)?;
    let (path, aim, ops) = (place.path().display(), pair.option(), names().join(","));
    let fault = Fault::arm(&format!("io delay {}ms --ops {ops} --path {path} {aim}", WAIT.as_millis()))?;
    println!("by {:?}", fault.hooks);
    let mut wrong = Vec::new();
    for case in CASES {
        let time = |hand: &Hand<'_>, operator: &Operator| -> Result<Duration> {
            operator.slowest.set(Duration::ZERO);
            let errno = case.run(hand)?;
            ensure!(errno == 0, "{} gives {}", case.call, Errno::from_raw(errno));
            Ok(operator.slowest.get())
        };
        let mut times = [time(&target, &pair.target)?, time(&bystander, &pair.bystander)?];
        // A guest may stand still at any time; a call that is hit takes that long however often it is made.
        for _ in 1..TRIES {
            if times[1] >= WAIT {
                times[1] = time(&bystander, &pair.bystander)?;
            }
        }
        println!("{:<10}{:<24}{:>12.1?}{:>12.1?}", case.op, case.call, times[0], times[1]);
        // Of a program that is executed it is not known how long that took without its process.
        if times[0] < WAIT || times[1] >= WAIT && case.op != "exec" {
            wrong
                .push(format!("{} takes the target {:?}, the bystander {:?}", case.call, times[0], times[1]));
        }
    }
    let counts = fault.end()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(counts.fired >= CASES.len() as u64 && counts.fired == counts.matched, "{counts:?}");
    Ok(())
}

/// What each call gave to whom.
struct Table<'a> {
    rows: Vec<(&'a Case, Vec<String>)>,
    wrong: Vec<String>,
}

impl<'a> Table<'a> {
    fn new(cases: &[&'a Case]) -> Self {
        Self { rows: cases.iter().map(|case| (*case, Vec::new())).collect(), wrong: Vec::new() }
    }

    fn add(&mut self, row: usize, expected: Errno, target: i32, bystander: i32) {
        let (case, cells) = &mut self.rows[row];
        let said = [target, bystander].map(|errno| match errno {
            0 => "ok".to_owned(),
            errno => format!("{:?}", Errno::from_raw(errno)),
        });
        let right = target == expected as i32 && bystander == 0;
        cells.push(said.join("/"));
        let wrong = format!("{} gives target/bystander {}, not {expected:?}/ok", case.call, said.join("/"));
        self.note(right, wrong);
    }

    fn note(&mut self, right: bool, otherwise: String) {
        if !right {
            self.wrong.push(otherwise);
        }
    }

    /// Prints it, and fails if something in it is not as it should be.
    fn judge(self) -> Result {
        for (case, cells) in &self.rows {
            let cells: String = cells.iter().map(|cell| format!("{cell:<16}")).collect();
            println!("{:<10}{:<24}{cells}", case.op, case.call);
        }
        if self.wrong.is_empty() { Ok(()) } else { Err(Failure::new(self.wrong.join("; "))) }
    }
}
