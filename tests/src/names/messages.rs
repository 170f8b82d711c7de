//! What is said of names that are not there or cannot be meant, and what a terminal gets of any.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    ptr,
};

use super::{BPF, FOLDER, cgroups::Home, command, fit, names, processes::called, said, step};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result, check},
    harness::Test,
    lab::Lab,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("names::in_messages", in_messages).needs(BPF).timeout(120).waits(),
    Test::new("names::on_a_terminal", on_a_terminal).needs(BPF).timeout(60).waits(),
];

/// What comes before a line of progress on a terminal.
const CLEAR: &str = "\r\x1b[K";

/// What names something that is not there, or cannot be meant, and what comes before the name in the last word.
const QUOTING: &[(&str, &str)] = &[
    ("help", ""),
    ("net", ""),
    ("net loss", ""),
    ("net loss 1% --dev lo --plan --cgroup", "/no/"),
    ("net loss 1% --dev lo --plan --cgroup", ""),
    ("net loss 1% --dev lo --plan", "--unit="),
    ("net loss 1% --dev lo --plan", "--container="),
    ("net loss 1% --dev lo --plan", "--pid="),
    ("net loss 1% --dev lo --plan", "--netns="),
    ("net loss 1% --dev lo --plan", "--peer=@/no/"),
    ("net loss 1% --dev lo --plan", "--peer=cgroup:/no/"),
    ("net loss 1% --dev lo --plan", "--peer=unit:"),
    ("net loss 1% --dev lo --plan", "--exclude=container:"),
    ("net loss 1% --dev lo --plan", "--proto="),
    ("net loss 1% --dev lo --plan", "--ramp="),
    ("net loss 1% --dev lo --plan", "--for="),
    ("net dns nxdomain --dev lo --plan", "--name="),
    ("net dns nxdomain --dev lo --plan", "--type="),
    ("net loss 1% --plan", "--dev="),
    ("net --dev lo --plan", "--profile=/no/"),
    ("net --dev lo --plan", "--profile="),
    ("io", ""),
    ("io error", ""),
    ("io error EIO --plan --everything --ops", ""),
    ("io error EIO --plan --ops read --path", "/no/"),
    ("io error EIO --plan --ops read --everything --comm", ""),
    ("io error EIO --plan --ops read --everything --fstype", ""),
    ("io error EIO --plan --ops read --everything --dev-block", "/no/"),
    ("io error EIO --plan --ops read --everything --uid", ""),
    ("io slow 1mb/s --plan --dev-block 8:0", "--cgroup=/no/"),
    ("io delay 1ms 1us distribution", "./"),
    ("sys error --plan --everything", ""),
    ("time skew --plan --everything", "--offset="),
    ("time skew --plan --everything --offset 1h", "--clock="),
    ("time skew --offset 1h --", "/no/such/"),
    ("stop", ""),
    ("profile show", ""),
    ("profile apply", "/no/"),
    ("profile apply 3g", "--id="),
];

/// Each message with some of the names, and each name in some messages.
fn in_messages() -> Result {
    let names: Vec<_> = names(255).into_iter().collect();
    for (row, (line, before)) in QUOTING.iter().enumerate() {
        for number in (0..6).step_by(step()) {
            let name = &names[(7 * row + 11 * number) % names.len()];
            said(line, &[&[before.as_bytes(), name].concat()])?;
        }
    }
    Ok(())
}

/// Runs a command on a terminal of its own: its exit code, and what is to be seen there.
fn on_terminal(line: &str, more: &[&[u8]]) -> Result<(Option<i32>, String)> {
    let (mut ours, mut theirs) = (-1, -1);
    let (name, settings) = (ptr::null_mut(), ptr::null());
    // SAFETY: room for two numbers; nothing else is asked for.
    let made = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, ptr::null()) };
    check(made.into(), "openpty")?;
    // SAFETY: new ones, which nobody else has.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut command = command(line, more)?;
    command.stdout(theirs.try_clone().context("dup")?).stderr(theirs);
    let mut child = command.spawn().context("faultline")?;
    // The other end is open in here as well until then.
    drop(command);
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    // An error when nobody has the other end any more.
    while let Ok(length @ 1..) = ours.read(&mut part) {
        text.extend_from_slice(&part[..length]);
    }
    let code = child.wait().context("waitpid")?.code();
    Ok((code, String::from_utf8(text).context(line)?))
}

/// The line of progress is written over, and nothing else moves the cursor.
fn on_a_terminal() -> Result {
    fs::create_dir(FOLDER).context(FOLDER)?;
    let (lab, above) = (Lab::new()?, Cgroup::new()?);
    let name = "x\u{1b}[2J\u{9b}\u{202e}\r";
    let home = Home::new(&above, name.as_bytes(), &lab)?.context("refused")?;
    let _process = called(b"x\nfault 00000", &home.cgroup, &lab)?;
    let path = home.path();
    let rows: &[(&str, &[u8])] = &[
        ("net loss 1% --for 1500ms --cgroup", path),
        ("time skew --offset 1h --for 1500ms --cgroup", path),
        ("net loss 1% --plan --cgroup", path),
        ("net loss 1% --plan --json --cgroup", path),
        ("time skew --offset 1h --plan --cgroup", path),
        ("net loss 1% --dev lo --unit", name.as_bytes()),
        ("net loss 1% --netns", name.as_bytes()),
        ("net loss 1% --dev", b"\xff\x1b[2J"),
        ("time skew --offset 1h --", b"/no/\x1b[2J"),
        ("stop", name.as_bytes()),
        ("sweep", b"\x1b[2J"),
    ];
    for (line, last) in rows {
        let (code, text) = on_terminal(line, &[last])?;
        ensure!(matches!(code, Some(0 | 2 | 3 | 5 | 127)), "{line}: {code:?}: {text:?}");
        let progress = text.contains(CLEAR);
        // The terminal's own end of a line.
        let text = text.replace("\r\n", "\n").replace(CLEAR, "");
        let text = fit(text.as_bytes()).context(line)?;
        ensure!(!text.is_empty(), "{line}: it said nothing");
        let runs = line.contains("--for") && code != Some(3);
        ensure!(progress == runs, "{line}: progress {progress}: {text}");
    }
    Ok(())
}
