//! A program that is started by a command of ours, and held until it may begin.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read, Write},
    mem,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, execvp, fork, pipe2},
};

/// The exit code of `env`, `timeout` and the shells for a program that is not there, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTED: i32 = 126;

/// A process that is going to execute a program. If it is never told to, it ends.
#[derive(Debug)]
pub(super) struct Held {
    pid: Pid,
    go: Option<File>,
    is_told: bool,
}

impl Held {
    /// Makes the process. The caller must have one thread alone.
    pub(super) fn begin(words: &[OsString]) -> io::Result<Self> {
        let words: Vec<_> =
            words.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<_, _>>()?;
        // Whoever ignores it is told by nobody that a child has ended, and so may have been who started us.
        // SAFETY: the default does not run any code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: there is no other thread that could hold a lock for ever in the child.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                Ok(Self { pid: child, go: Some(File::from(write)), is_told: false })
            }
            ForkResult::Child => {
                drop(write);
                become_program(read, &words)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Lets it begin.
    pub(super) fn go(&mut self) -> io::Result<()> {
        self.go.take().map_or(Ok(()), |mut go| go.write_all(b"!"))
    }

    /// Tells it what we were told, once.
    pub(super) fn tell(&mut self, signal: Signal) {
        if !mem::replace(&mut self.is_told, true) {
            // It may have ended by itself.
            let _ = kill(self.pid, signal);
        }
    }

    /// Whether it was let go.
    pub(super) fn has_begun(&self) -> bool {
        self.go.is_none()
    }

    /// Its exit code, once it has ended; 128 and the signal's number if that was what ended it.
    pub(super) fn wait(mut self) -> io::Result<u8> {
        // One that was never told to begin ends here.
        self.go = None;
        loop {
            // Another thread may have traced it a moment ago.
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code as u8),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32 as u8),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
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
        eprintln!("faultline: {}: {}", program.to_string_lossy(), io::Error::from(errno));
        code = if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTED };
    }
    // SAFETY: ends the process at once, without what its parent would have done at its end.
    unsafe { libc::_exit(code) }
}
