//! Whether a vDSO can be written to: the probe's own, by what is there already.

use std::{fs::OpenOptions, os::unix::fs::FileExt};

use super::{Answer, M, Refusal};
use crate::kernel::{
    Error,
    vdso::{Image, Kind},
};

/// A process's memory, whatever its protection.
const MEMORY: &str = "/proc/self/mem";

/// All of them.
pub(super) fn probe() -> Vec<(M, Answer)> {
    vec![(M::VdsoPatch, patch())]
}

fn patch() -> Answer {
    if !cfg!(target_arch = "x86_64") {
        return Err(Refusal::missing("the code to be written is that of x86-64"));
    }
    // SAFETY: takes and returns a number.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if start == 0 {
        return Err(Refusal::missing("this process has no vDSO (AT_SYSINFO_EHDR)"));
    }
    let error = |call| move |source| Error::new(call, MEMORY, source);
    let memory = OpenOptions::new().read(true).write(true).open(MEMORY).map_err(error("open"))?;
    // `e_ident` and what follows; whoever else runs meanwhile sees the same bytes before and after.
    let mut header = [0; 16];
    memory.read_exact_at(&mut header, start).map_err(error("read"))?;
    if !header.starts_with(b"\x7fELF\x02") {
        return Err(Refusal::missing(format!("what lies at AT_SYSINFO_EHDR begins with {header:02x?}")));
    }
    memory.write_all_at(&header, start).map_err(error("write"))?;
    let patched = Image::own().and_then(|image| image.patch(Kind::Skew, 0));
    patched.map(|_| None).map_err(|error| Refusal::missing(error.to_string()))
}
