//! Processes that have no vDSO to patch, or none of ours.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::super::clock::path;
use crate::{
    ensure,
    error::{Context, Result},
    harness::{die_with_parent, patience},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// One that waits for ever. Killed when dropped.
#[derive(Debug)]
pub(super) struct Foreign {
    child: Child,
    file: Option<PathBuf>,
}

impl Foreign {
    /// It has unmapped its own.
    pub(super) fn without_vdso() -> Result<Self> {
        let foreign = Self::start(path()?, None)?;
        let maps = format!("/proc/{}/maps", foreign.pid());
        let deadline = Instant::now() + patience(PATIENCE);
        // Before exec its maps are this program's.
        while foreign.is_still_ours()? || fs::read_to_string(&maps).context(&maps)?.contains("[vdso]") {
            ensure!(Instant::now() < deadline, "it still has a vDSO");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(foreign)
    }

    /// Its vDSO is another.
    pub(super) fn of_32_bits() -> Result<Self> {
        let file = std::env::temp_dir().join(format!("fl-time-32-{}", std::process::id()));
        fs::write(&file, program()).context(file.display())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context(file.display())?;
        Self::start(file.clone(), Some(file))
    }

    fn start(program: PathBuf, file: Option<PathBuf>) -> Result<Self> {
        let mut command = Command::new(&program);
        command.arg("bare").stdin(Stdio::null());
        die_with_parent(&mut command);
        let child = command.spawn().context(program.display())?;
        Ok(Self { child, file })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn is_still_ours(&self) -> Result<bool> {
        let link = format!("/proc/{}/exe", self.pid());
        Ok(fs::read_link(&link).context(&link)? != path()?)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// The smallest program for i386 that waits for ever: one header, one segment, `pause()` in a loop.
fn program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u16 = 52 + 32;
    // mov eax, 29; int 0x80; jmp back
    const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let length = u32::from(HEADERS) + CODE.len() as u32;
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(16, 0);
    let mut words = |of: &[(u32, usize)]| {
        for (value, size) in of {
            bytes.extend(&value.to_le_bytes()[..*size]);
        }
    };
    // An executable for i386; its entry, its segments, no sections.
    words(&[(2, 2), (3, 2), (1, 4), (BASE + u32::from(HEADERS), 4), (52, 4), (0, 4), (0, 4)]);
    words(&[(52, 2), (32, 2), (1, 2), (40, 2), (0, 2), (0, 2)]);
    // To be loaded as it is in the file, to be read and executed.
    words(&[(1, 4), (0, 4), (BASE, 4), (BASE, 4), (length, 4), (length, 4), (5, 4), (0x1000, 4)]);
    bytes.extend(CODE);
    bytes
}
