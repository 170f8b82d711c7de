//! A target that is every process of the machine has to be meant.

use super::{FAMILIES, run_line};
use crate::{
    cgroup, ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::Test,
    inventory::Inventory,
    life::scene::{at_once, records},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("rights::everybody_is_meant", is_meant).needs(FAMILIES).waits()];

/// For `@` the topmost cgroup, by whatever name. All are over at once should one of them begin.
const REFUSED: [&str; 6] = [
    "time skew --offset 1h @",
    "io error EIO --ops read @",
    "io delay 1ms --fstype tmpfs @",
    "sys delay getppid 1ms @",
    "sock error ECONNRESET --ops connect @",
    "net refuse @",
];

/// A plan touches nothing.
const MEANT: [&str; 4] = [
    "time skew --offset 1h --everything --pid 1",
    "time skew --offset 1h --everything",
    "io delay 1ms --path /etc --cgroup /",
    "net refuse --everything",
];

fn is_meant() -> Result {
    let before = Inventory::settled(&[])?;
    let root = cgroup::root()?;
    let folder = format!("--cgroup {}", root.display());
    for line in REFUSED {
        for aim in ["--cgroup /", "--pid 1", &folder, "--cgroup / --cgroup /"] {
            let line = format!("{} --for 1ms --plan", line.replace('@', aim));
            let words: Vec<&str> = line.split(' ').collect();
            Faultline::check_refused(&words, 2, &["every process of this machine", "--everything"])?;
        }
    }
    for line in MEANT {
        let exit = run_line(&format!("{line} --plan"), |_| {})?;
        ensure!(exit.code == Some(0) && exit.stdout.contains("target: "), "{line}: {exit:?}");
    }
    for (line, says) in [
        ("time skew --offset 1h --everything --pid 2", "--everything is of everybody"),
        ("net refuse --everything --pid 2", "--everything is of everybody"),
        ("net loss 1% --everything --dev lo", "refuse"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        Faultline::check_refused(&words, 2, &[says])?;
    }
    ensure!(records()?.is_empty(), "left {:?}", records());
    before.wait_until_equal(&[], at_once()).context("a plan has left something")
}
