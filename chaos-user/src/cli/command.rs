//! A program that is started by a command of ours, and held until it may begin.

use std::{
    ffi::{CString, NulError, OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, kill, sigprocmask},
    unistd::{ForkResult, Pid, execvp, fork, getpgid, getpgrp, pipe2},
};

use super::out::say;
use crate::{
    kernel::{
        self,
        signals::{Asked, News, Signals},
    },
    spec::shown,
};

/// The exit code of `env`, `timeout` and the shells for a program that is not there, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTED: i32 = 126;

/// A process that is going to execute a program. If it is never told to, it ends.
#[derive(Debug)]
pub(super) struct Held {
    pid: Pid,
    go: Option<File>,
}

impl Held {
    /// Makes the process.
    pub(super) fn begin(words: &[OsString]) -> kernel::Result<Self> {
        let named = words.first().map_or_else(String::new, shown::name);
        let error = |call, source| kernel::Error::new(call, format!("the command {named}"), source);
        let words = words.iter().map(|word| CString::new(word.clone().into_vec()));
        let words: Vec<_> =
            words.collect::<Result<_, _>>().map_err(|nul: NulError| error("execve", nul.into()))?;
        // Whoever ignores it is told by nobody that a child has ended, and so may have been who started us.
        // SAFETY: the default does not run any code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let (read, write) =
            pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| error("pipe", errno.into()))?;
        // SAFETY: the C library has its locks for memory be free in the child, whatever other threads do; nothing else of what that
        // does takes one.
        match unsafe { fork() }.map_err(|errno| error("fork", errno.into()))? {
            ForkResult::Parent { child } => Ok(Self { pid: child, go: Some(File::from(write)) }),
            ForkResult::Child => {
                drop(write);
                become_program(read, &words)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Lets it begin. That it has ended already is seen where it is waited for.
    pub(super) fn go(&mut self) {
        let _ = self.go.take().map(|mut go| go.write_all(b"!"));
    }

    /// Tells it what we were told, unless the terminal tells both.
    pub(super) fn tell(&self, asked: Asked) {
        // A terminal tells all of its foreground's group, which it may have left.
        if !asked.by_terminal || getpgid(Some(self.pid)) != Ok(getpgrp()) {
            // It may have ended by itself, but is not waited for yet: the number is its own.
            let _ = kill(self.pid, asked.signal);
        }
    }

    /// Whether it was let go.
    pub(super) fn has_begun(&self) -> bool {
        self.go.is_none()
    }

    /// Its exit code, once it has ended; 128 and the signal's number if that was what ended it. It is told what we are told
    /// meanwhile.
    pub(super) fn wait(mut self, signals: &Signals) -> kernel::Result<u8> {
        let error = |call| move |errno: Errno| kernel::Error::new(call, "the command", errno.into());
        // One that was never told to begin ends here.
        self.go = None;
        let pidfd = pidfd(self.pid).map_err(error("pidfd_open"))?;
        loop {
            match signals.wait_for(pidfd.as_fd())? {
                Some(News::Gone) => break,
                Some(News::Signal(asked)) => self.tell(asked),
                None => {}
            }
        }
        loop {
            let mut status = 0;
            // Another thread may have traced it a moment ago.
            // SAFETY: there is room for what is written.
            match Errno::result(unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, libc::__WALL) }) {
                Ok(_) if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status) as u8),
                // A real-time signal's too, which nix has no name for.
                Ok(_) if libc::WIFSIGNALED(status) => return Ok(128 + libc::WTERMSIG(status) as u8),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(error("waitpid")(errno)),
            }
        }
    }
}

fn pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: two integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: a new one, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn become_program(go: OwnedFd, words: &[CString]) -> ! {
    let mut told = [0];
    let is_told = File::from(go).read_exact(&mut told).is_ok();
    let mut code = NOT_EXECUTED;
    if let (true, Some(program)) = (is_told, words.first()) {
        // What its parent has taken over is not taken over for it, nor what Rust ignores.
        // SAFETY: nobody else runs here, and the default does not run any code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        let Err(errno) = execvp(program, words);
        let named = shown::name(OsStr::from_bytes(program.as_bytes()));
        say(format_args!("{named}: {}", io::Error::from(errno)));
        code = if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTED };
    }
    // SAFETY: ends the process at once, without what its parent would have done at its end.
    unsafe { libc::_exit(code) }
}
