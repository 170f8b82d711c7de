//! Files that a user has named: they may be anything, and are read only if they are what was meant.

use std::{
    fs::{self, File, FileType},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Why one is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel's answer.
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    /// It might never end, or do something when it is opened.
    #[error("not a file, but {0}")]
    NotAFile(&'static str),
    /// More than anybody means.
    #[error("it has more than {} megabytes", .0 >> 20)]
    TooLarge(u64),
}

/// Opens a regular file for reading. Nothing else is opened: a FIFO waits for somebody, and a device may do what it is for.
///
/// # Errors
///
/// [`FileError`].
pub fn open_file(path: &Path) -> Result<File, FileError> {
    let is_file = |kind: FileType| if kind.is_file() { Ok(()) } else { Err(FileError::NotAFile(what(kind))) };
    is_file(fs::metadata(path).map_err(FileError::Io)?.file_type())?;
    // Somebody may have put another in its place meanwhile; some of those in /proc wait as well.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(FileError::Io)?;
    is_file(file.metadata().map_err(FileError::Io)?.file_type())?;
    Ok(file)
}

/// The text of a regular file of at most so many bytes.
///
/// # Errors
///
/// [`FileError`].
pub fn read_file(path: &Path, largest: u64) -> Result<String, FileError> {
    let mut text = String::new();
    let read = open_file(path)?.take(largest + 1).read_to_string(&mut text);
    match read {
        // Cut off within a character, it is no text either.
        Ok(read) if read as u64 > largest => Err(FileError::TooLarge(largest)),
        Err(_) if fs::metadata(path).is_ok_and(|file| file.len() > largest) => {
            Err(FileError::TooLarge(largest))
        }
        Err(error) => Err(FileError::Io(error)),
        Ok(_) => Ok(text),
    }
}

fn what(kind: FileType) -> &'static str {
    let kinds = [
        (kind.is_dir(), "a directory"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
        (kind.is_block_device() || kind.is_char_device(), "a device"),
    ];
    kinds.into_iter().find_map(|(is_it, what)| is_it.then_some(what)).unwrap_or("something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size() {
        let folder = std::env::temp_dir().join(format!("fl-spec-file-{}", std::process::id()));
        fs::create_dir(&folder).expect("mkdir");
        let (file, fifo) = (folder.join("file"), folder.join("fifo"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        let said = |path: &Path| read_file(path, 8).map_err(|error| error.to_string());
        fs::write(&file, "12345678").expect("write");
        assert_eq!(said(&file), Ok("12345678".into()));
        for text in ["123456789", "1234567\u{fc}"] {
            fs::write(&file, text).expect("write");
            assert_eq!(said(&file), Err("it has more than 0 megabytes".into()), "{text}");
        }
        fs::write(&file, b"\xff").expect("write");
        assert!(said(&file).is_err_and(|error| error.contains("UTF-8")));
        assert_eq!(said(&fifo), Err("not a file, but a FIFO".into()));
        assert_eq!(said(&folder), Err("not a file, but a directory".into()));
        assert_eq!(said(Path::new("/dev/zero")), Err("not a file, but a device".into()));
        assert!(said(&folder.join("none")).is_err_and(|error| error.contains("No such file")));
        fs::remove_dir_all(&folder).expect("rm");
    }
}
