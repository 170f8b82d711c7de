//! The folders of the cgroup hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, Result};
use crate::spec::shown;

/// All folders below this one.
///
/// # Errors
///
/// If one cannot be listed: what is below it is not known then.
pub(crate) fn below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        let before = found.len();
        match folders(&folder, &mut found) {
            // What goes meanwhile is not looked for.
            Err(error) if !leads_nowhere(&error) => {
                return Err(Error::new("list", shown::name(&folder), error));
            }
            _ => left.extend_from_slice(&found[before..]),
        }
    }
    Ok(found)
}

/// Those in this folder.
fn folders(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Whether a path is answered so because nothing is there, and not because it could not be looked at.
pub(crate) fn leads_nowhere(error: &io::Error) -> bool {
    let codes = [libc::ENOENT, libc::ENODEV, libc::ENOTDIR, libc::ELOOP, libc::ENAMETOOLONG];
    // Rust's own: there is no path with a zero byte.
    error.raw_os_error().map_or(error.kind() == io::ErrorKind::InvalidInput, |code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_listed_is_not_passed_over() {
        let nowhere = |code| leads_nowhere(&io::Error::from_raw_os_error(code));
        assert!(nowhere(libc::ENOENT) && nowhere(libc::ENODEV));
        assert!(!nowhere(libc::ENOMEM) && !nowhere(libc::EMFILE) && !nowhere(libc::EACCES));
        assert!(below(Path::new("/nowhere at all")).is_ok_and(|found| found.is_empty()));
    }
}
