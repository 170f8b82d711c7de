//! Partitions, and file systems on devices of their own.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
};

use nix::mount::{MsFlags, mount, umount};

use crate::{
    ensure,
    error::{Context, Result, check},
    harness::program,
};

/// What becomes of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// `BLKPG_ADD_PARTITION`
    Add = 1,
    /// `BLKPG_DEL_PARTITION`
    Delete = 2,
}

/// Of the first partition; the disk need have no table.
pub(super) fn change_partition(disk: &File, operation: Operation) -> Result {
    /// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/blkpg.h>
    const BLKPG: libc::Ioctl = 0x1269;
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: i32,
        names: [u8; 128],
    }
    #[repr(C)]
    struct Argument {
        operation: i32,
        flags: i32,
        length: i32,
        data: *mut Partition,
    }
    let mut partition = Partition { start: 1 << 20, length: 64 << 20, number: 1, names: [0; 128] };
    let length = size_of::<Partition>() as i32;
    let mut argument = Argument { operation: operation as i32, flags: 0, length, data: &raw mut partition };
    // SAFETY: both live until the call is over, and are as long as they say.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut argument) };
    check(result.into(), format_args!("ioctl(BLKPG, {operation:?})")).map(drop)
}

/// A file system in a file, mounted.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) folder: PathBuf,
    image: PathBuf,
    pub(super) device: String,
}

impl Mounted {
    pub(super) fn new() -> Result<Self> {
        let base = std::env::temp_dir().join(format!("fl-slow-{}", std::process::id()));
        let (folder, image) = (base.join("mounted"), base.join("image"));
        fs::create_dir_all(&folder).context(folder.display())?;
        File::create(&image).and_then(|file| file.set_len(64 << 20)).context(image.display())?;
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        let device = run("losetup", &["-f", "--show", &image.to_string_lossy()])?.trim().to_owned();
        let mounted = Self { folder, image, device };
        mount(Some(mounted.device.as_str()), &mounted.folder, Some("ext4"), MsFlags::empty(), None::<&str>)
            .context("mount")?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount(&self.folder);
        let _ = run("losetup", &["-d", &self.device]);
        let _ = fs::remove_file(&self.image);
    }
}

fn run(name: &str, arguments: &[&str]) -> Result<String> {
    let path = program(name).context(format_args!("no program {name}"))?;
    let output = Command::new(path).args(arguments).output().context(name)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments:?}: {} {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
