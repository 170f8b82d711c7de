//! What the kernel says from now on.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

use crate::error::{Context, Result};

const PATH: &str = "/dev/kmsg";

/// The longest record (`CONSOLE_EXT_LOG_MAX`).
const LONGEST: usize = 8192;

/// The kernel's log, from when it was opened.
#[derive(Debug)]
pub(crate) struct KernelLog(File);

impl KernelLog {
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn open() -> Result<Self> {
        let mut log =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(PATH).context(PATH)?;
        log.seek(SeekFrom::End(0)).context(PATH)?;
        Ok(Self(log))
    }

    /// The new records that contain this.
    ///
    /// # Errors
    ///
    /// The kernel's, also that records were lost.
    pub(crate) fn of(&mut self, words: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut record = [0; LONGEST];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&record[..length]);
                    let said = record.split_once(';').map_or(&*record, |(_, said)| said);
                    if said.contains(words) {
                        found.push(said.trim().to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                Err(error) => return Err(error).context(PATH),
            }
        }
    }
}
