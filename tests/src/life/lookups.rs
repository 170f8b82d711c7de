//! Before anything begins, while it is looked up what is meant: files that never end, names that nobody knows.

use std::{
    fs::{self, File},
    net::UdpSocket,
    path::Path,
};

use nix::{
    mount::{MsFlags, mount, umount},
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use super::{
    environment::one_sentence,
    scene::{PATIENCE, at_once, records},
};
use crate::{
    ensure,
    error::{Context, Result},
    faultline::Faultline,
    harness::{Need, Test},
    inventory::Inventory,
    lab::Netns,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("input::only_files_of_bounded_size", files).waits(),
    Test::new("life::a_signal_ends_a_look_up", signal_ends_look_up).needs(&[Need::Root, Need::Btf]).waits(),
];

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

/// By names that a server is asked for who does not answer; and what is said of one that cannot be asked.
fn signal_ends_look_up() -> Result {
    let before = Inventory::take(&[])?;
    let netns = Netns::new()?;
    let none: Option<&str> = None;
    mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), none).context("mount on /etc")?;
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
        .context("write")?;
    let words = ["net", "loss", "1%", "--dev", "lo", "--peer", "never.example.com"];
    let server = netns.run(|| UdpSocket::bind(("127.0.0.1", 53)).context("bind"))?;
    server.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let fault = Faultline::start_with(&words, |command| netns.home_of(command))?;
        server.recv_from(&mut [0; 512]).context("nobody asks for the name")?;
        fault.kill(signal)?;
        let exit = fault.wait(at_once())?;
        let silent = exit.stderr.is_empty() && exit.stdout.is_empty() && exit.events.is_empty();
        ensure!(exit.code == Some(130) && silent, "{signal}: {exit:?}");
        ensure!(records()?.is_empty(), "{signal}: left {:?}", records());
        // What it asked besides, for the other family.
        server.set_nonblocking(true).context("ioctl(FIONBIO)")?;
        while server.recv_from(&mut [0; 512]).is_ok() {}
        server.set_nonblocking(false).context("ioctl(FIONBIO)")?;
    }
    drop(server);
    // Right words, in a file as well, and nobody who knows.
    fs::write("/run/peers", "10.0.0.7\nnever.example.com\n").context("write")?;
    let ask = |peer: &str| {
        let words = [&words[..6], &[peer]].concat();
        Faultline::run_with(&words, |command| netns.home_of(command))
    };
    one_sentence(&ask("never.example.com")?, 3, &["--peer: never.example.com does not resolve"])?;
    one_sentence(&ask("@/run/peers")?, 3, &["/run/peers:2: never.example.com does not resolve"])?;
    fs::write("/run/peers", "10.0.0.7\n\n10.0.0.0/x\n").context("write")?;
    one_sentence(&ask("@/run/peers")?, 2, &["/run/peers:3: '10.0.0.0/x'"])?;
    fs::remove_file("/run/peers").context("rm")?;
    umount("/etc").context("umount /etc")?;
    drop(netns);
    before.wait_until_equal(&[], at_once())
}
