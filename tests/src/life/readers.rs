//! Whoever reads what it prints may take all the time there is: the fault is none of theirs.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use chaos_user::session::{LEASE, RENEWAL};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};

use super::scene::{PATIENCE, Scene, at_once, records};
use crate::{
    ensure,
    error::{Context, Failure, Result, check},
    faultline::{Faultline, binary},
    harness::{Need, Test, die_with_parent, pidfd, wait_for_exit},
};

const NEEDS: &[Need] = &[Need::Root, Need::Btf];

pub(super) const TESTS: &[Test] = &[
    Test::new("life::nobody_has_to_read", nobody_has_to_read).needs(NEEDS).timeout(60).waits(),
    Test::new("life::a_terminal_that_is_stopped", stopped_terminal).needs(NEEDS).timeout(60).waits(),
    Test::new("life::standard_error_is_not_needed", standard_error).needs(NEEDS).waits(),
    Test::new("life::ignored_signals_stay_ignored", ignored).needs(NEEDS).waits(),
    Test::new("life::closed_pipes", closed_pipes).needs(NEEDS).timeout(60).waits(),
];

const OUT: [&str; 3] = ["100%", "--proto", "udp"];

/// A pipe that nothing more can be written to.
fn full_pipe() -> Result<(PipeReader, PipeWriter)> {
    const SIZE: i32 = 4096;
    let (reader, mut writer) = pipe().context("pipe")?;
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE)).context("F_SETPIPE_SZ")?;
    writer.write_all(&vec![b'\n'; size as usize]).context("fill a pipe")?;
    Ok((reader, writer))
}

/// Has a process begin with this as one of its standard streams.
fn onto(command: &mut Command, stream: i32, to: impl AsFd + Send + Sync + 'static) {
    let redirect = move || {
        // SAFETY: two integers.
        let result = unsafe { libc::dup2(to.as_fd().as_raw_fd(), stream) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: one system call, no allocation.
    unsafe { command.pre_exec(redirect) };
}

fn start(arguments: &[String], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Result<Child> {
    let mut command = Command::new(binary()?);
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    die_with_parent(&mut command);
    command.spawn().context("start faultline")
}

fn tell(fault: &Child, signal: Signal) -> Result {
    kill(Pid::from_raw(fault.id().cast_signed()), signal).context(signal)
}

/// Its exit code, once it has ended.
fn code(fault: &mut Child, time: Duration) -> Result<Option<i32>> {
    let pid = Pid::from_raw(fault.id().cast_signed());
    ensure!(wait_for_exit(pidfd(pid)?.as_fd(), time)?, "it does not end");
    Ok(fault.wait().context("wait")?.code())
}

/// Waits until it acts, which nobody says.
fn begins(scene: &mut Scene) -> Result {
    let deadline = Instant::now() + PATIENCE;
    while scene.lost()? != (100, 0) {
        ensure!(Instant::now() < deadline, "it does not begin");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// It acts for longer than it would without being renewed.
fn goes_on(scene: &mut Scene) -> Result {
    let begin = Instant::now();
    while begin.elapsed() < RENEWAL + LEASE + Duration::from_millis(500) {
        scene.loses((100, 0), &format!("{:?} after it began", begin.elapsed()))?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// It is over, and nothing of it is left but a process that has something to say.
fn is_only_unread(scene: &mut Scene, fault: &mut Child) -> Result {
    scene.over("ended, and not read")?;
    ensure!(records()?.is_empty(), "left {:?}", records());
    ensure!(fault.try_wait().context("wait")?.is_none(), "it has not waited for anybody to read");
    Ok(())
}

/// In text and in JSON: it is armed, renewed and ended though its output goes nowhere.
fn nobody_has_to_read() -> Result {
    let mut scene = Scene::set()?;
    for json in [true, false] {
        let option: &[&str] = if json { &["--json"] } else { &[] };
        let (mut reader, writer) = full_pipe()?;
        let mut fault = start(&scene.loss(&[&OUT, option].concat()), writer, Stdio::null())?;
        begins(&mut scene)?;
        if json {
            goes_on(&mut scene)?;
        }
        tell(&fault, Signal::SIGTERM)?;
        is_only_unread(&mut scene, &mut fault)?;
        if json {
            // All that must be told is told as soon as somebody wants to know.
            let mut text = String::new();
            reader.read_to_string(&mut text).context("read")?;
            for event in ["prepared", "armed", "summary"] {
                ensure!(text.contains(&format!("\"event\":\"{event}\"")), "no {event} in {}", text.trim());
            }
        } else {
            tell(&fault, Signal::SIGTERM)?;
        }
        let code = code(&mut fault, at_once())?;
        ensure!(code == Some(130), "json {json}: exit {code:?}");
    }
    Ok(())
}

/// Both ends of a terminal of our own.
fn terminal() -> Result<(File, File)> {
    // SAFETY: an integer; what is returned is new, and nobody else's.
    let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    check(fd.into(), "posix_openpt")?;
    // SAFETY: as above.
    let master = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut name = [0; 64];
    // SAFETY: an fd, and room for a name with its length.
    let named = unsafe {
        libc::grantpt(fd) == 0
            && libc::unlockpt(fd) == 0
            && libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) == 0
    };
    ensure!(named, "a terminal: {}", std::io::Error::last_os_error());
    let name: Vec<u8> = name.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    let name = String::from_utf8(name).context("a terminal's name")?;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOCTTY);
    Ok((master, options.read(true).write(true).open(&name).context(name)?))
}

fn read_until(terminal: &mut File, word: &str) -> Result<String> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = terminal.read(&mut buffer).context("read the terminal")?;
        text.extend_from_slice(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if so_far.contains(word) {
            return Ok(so_far);
        }
        ensure!(read > 0, "it ended without {word:?}: {so_far}");
    }
}

/// By `^S`, until `^Q`.
fn stopped_terminal() -> Result {
    let mut scene = Scene::set()?;
    let (mut master, slave) = terminal()?;
    let stderr = slave.try_clone().context("dup")?;
    let mut fault = start(&scene.loss(&OUT), slave, stderr)?;
    read_until(&mut master, "^C ends it")?;
    master.write_all(b"\x13").context("^S")?;
    goes_on(&mut scene)?;
    tell(&fault, Signal::SIGTERM)?;
    is_only_unread(&mut scene, &mut fault)?;
    master.write_all(b"\x11").context("^Q")?;
    read_until(&mut master, "interrupted: SIGTERM; disarmed, detached, verified")?;
    let code = code(&mut fault, at_once())?;
    ensure!(code == Some(130), "exit {code:?}");
    Ok(())
}

/// Nobody reads it any more, or nobody reads it just now.
fn standard_error() -> Result {
    let mut scene = Scene::set()?;
    for is_closed in [true, false] {
        let (reader, writer) = full_pipe()?;
        let reader = Some(reader).filter(|_| !is_closed);
        let arguments = scene.loss(&[&OUT, &["--for", "1500ms"][..]].concat());
        let mut fault = start(&arguments, Stdio::piped(), writer)?;
        begins(&mut scene)?;
        let code = code(&mut fault, PATIENCE)?;
        drop(reader);
        let mut text = String::new();
        fault.stdout.take().context("its output")?.read_to_string(&mut text).context("read")?;
        ensure!(code == Some(0) && text.contains("observed:"), "closed {is_closed}: exit {code:?}: {text}");
        scene.over("afterwards")?;
    }
    Ok(())
}

/// As under `nohup`, and of what a shell has put into the background.
fn ignored() -> Result {
    const IGNORED: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];
    let mut scene = Scene::set()?;
    let arguments = scene.loss(&OUT);
    let fault =
        Faultline::start_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), |command| {
            let ignore = || {
                for it in IGNORED {
                    // SAFETY: no function is run.
                    unsafe { signal(it, SigHandler::SigIgn) }?;
                }
                Ok(())
            };
            // SAFETY: three system calls, no allocation.
            unsafe { command.pre_exec(ignore) };
        })?;
    fault.wait_event("armed", PATIENCE)?;
    for signal in IGNORED {
        fault.kill(signal)?;
    }
    // Signals are heeded before anything is told.
    fault.wait_event("progress", PATIENCE)?;
    scene.loses((100, 0), "told to go on")?;
    fault.kill(Signal::SIGTERM)?;
    let exit = fault.wait(at_once())?;
    ensure!(exit.code == Some(130), "{exit:?}");
    ensure!(exit.event("summary")?.get("/reason")? == "SIGTERM", "{exit:?}");
    scene.over("afterwards")
}

/// Nothing panics: what cannot be said is not said, and what cannot be printed is an error.
fn closed_pipes() -> Result {
    let closed = || Ok::<_, Failure>(pipe().context("pipe")?.1);
    let printing: &[&[&str]] = &[
        &["ps"],
        &["ps", "--json"],
        &["sweep"],
        &["doctor"],
        &["doctor", "--json"],
        &["profile", "list"],
        &["profile", "show", "lte"],
        &["net", "loss", "1%", "--dev", "lo", "--plan"],
        &["net", "loss", "1%", "--dev", "lo", "--plan", "--json"],
    ];
    for words in printing {
        // Nothing is said where there is nothing to list.
        let expected = if *words == ["ps", "--json"] { 0 } else { 4 };
        let writer = closed()?;
        let exit = Faultline::run_with(words, |command| onto(command, libc::STDOUT_FILENO, writer))?;
        let told = exit.stderr == "faultline: write to standard output: Broken pipe (os error 32)\n";
        ensure!(exit.code == Some(expected) && told == (expected == 4), "{words:?}: {exit:?}");
    }
    for (words, expected) in [
        (&["stop", "nobody"][..], 2),
        (&["net", "loss", "x", "--dev", "lo"], 2),
        (&["net", "loss", "1%", "--dev", "nope"], 3),
        (&["--help"], 0),
        (&["net"], 2),
    ] {
        let [out, err] = [closed()?, closed()?];
        let exit = Faultline::run_with(words, |command| {
            onto(command, libc::STDOUT_FILENO, out);
            onto(command, libc::STDERR_FILENO, err);
        })?;
        ensure!(exit.code == Some(expected), "{words:?}: {exit:?}");
    }
    ensure!(records()?.is_empty(), "left {:?}", records());
    Ok(())
}
