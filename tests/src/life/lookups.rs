//! Before anything begins, while it is looked up what is meant: files that never end.

use std::{
    fs::{self, File},
    path::Path,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{environment::one_sentence, scene::at_once};
use crate::{
    error::{Context, Result},
    faultline::Faultline,
    harness::Test,
    inventory::Inventory,
};

pub(super) const TESTS: &[Test] = &[Test::new("input::only_files_of_bounded_size", files).waits()];

/// Whatever else a file's name stands for is not waited for, and not read.
fn files() -> Result {
    let before = Inventory::take(&[])?;
    let folder = Path::new("/run/files");
    fs::create_dir(folder).context("mkdir")?;
    mkfifo("/run/files/fifo", Mode::S_IRUSR).context("mkfifo")?;
    // It takes no room.
    File::create("/run/files/large").and_then(|file| file.set_len(17 << 20)).context("a large file")?;
    for (file, says) in [
        ("/dev/zero", "a device"),
        ("/run/files/fifo", "a FIFO"),
        ("/run/files", "a directory"),
        ("/run/files/large", "megabytes"),
        ("/run/files/none", "No such file"),
    ] {
        for (line, code) in [
            ("net loss 1% --dev lo --peer @", 2),
            ("net loss 1% --dev lo --exclude @", 2),
            ("net --dev lo --profile ", 2),
            ("profile apply ", 2),
            ("net delay 2ms 1ms --dev lo distribution ", 2),
            ("io delay 2ms 1ms --everything distribution ", 2),
            ("net loss 1% --dev lo --netns ", 3),
        ] {
            // To the kernel a namespace is a file as well, and it says itself which is none.
            let says = if code == 3 && says == "megabytes" { "Invalid argument" } else { says };
            // The words of a fault come before its options.
            let line = match line.split_once(" --") {
                Some((first, rest)) if rest.contains(" distribution ") => {
                    let (options, _) = rest.split_once(" distribution ").context(line)?;
                    format!("{first} distribution {file} --{options}")
                }
                _ => format!("{line}{file}"),
            };
            let exit = Faultline::run(&line.split(' ').collect::<Vec<_>>())?;
            one_sentence(&exit, code, &[file, says]).context(line)?;
        }
    }
    fs::remove_dir_all(folder).context("rm")?;
    before.wait_until_equal(&[], at_once())
}
