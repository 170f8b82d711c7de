//! Whether a vDSO can be written to: that of a child, by what is there already, as a fault does it.

use std::io;

use super::{Answer, M, Refusal};
use crate::kernel::{
    Error,
    memory::{ClockError, Memory},
    vdso::{Image, Kind},
};

/// All of them.
pub(super) fn probe() -> Vec<(M, Answer)> {
    vec![(M::VdsoPatch, patch())]
}

fn patch() -> Answer {
    if !cfg!(target_arch = "x86_64") {
        return Err(Refusal::missing("the code to be written is that of x86-64"));
    }
    // SAFETY: takes and returns a number.
    if unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } == 0 {
        return Err(Refusal::missing("this process has no vDSO (AT_SYSINFO_EHDR)"));
    }
    let child = Child::begin()?;
    let memory = Memory::open(child.0.cast_unsigned()).map_err(refusal)?;
    // `e_ident` and what follows.
    let mut header = [0; 16];
    memory.read(0, &mut header).map_err(refusal)?;
    memory.forced(|| memory.write(0, &header)).map_err(refusal)?;
    let patched = Image::own().and_then(|image| image.patch(Kind::Skew, 0));
    patched.map(|_| None).map_err(|error| Refusal::missing(error.to_string()))
}

fn refusal(error: ClockError) -> Refusal {
    match error {
        ClockError::Kernel(error) => Refusal::Kernel(error),
        error => Refusal::missing(format!("a child's vDSO: {error}")),
    }
}

/// A process that does nothing, and ends with this.
struct Child(libc::pid_t);

impl Child {
    fn begin() -> Result<Self, Error> {
        let parent = std::process::id().cast_signed();
        // SAFETY: the child makes a few system calls, and allocates nothing.
        match unsafe { libc::fork() } {
            // SAFETY: as above.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // One that had ended by then says nothing.
                while libc::getppid() == parent {
                    libc::pause();
                }
                libc::_exit(0)
            },
            child if child > 0 => Ok(Self(child)),
            _ => Err(Error::new("fork", "a process to try the vDSO of", io::Error::last_os_error())),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, std::ptr::null_mut(), 0) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}
