//! Block devices, as `/sys` has them.

use std::{fs, io, path::PathBuf};

use super::PlaceError;
use crate::{kernel::throttle::BlockDevice, spec::DeviceSpec};

/// The folder of a device.
fn folder(device: BlockDevice) -> PathBuf {
    format!("/sys/dev/block/{device}").into()
}

/// Whether there is such a device.
#[must_use]
pub fn has_block_device(device: BlockDevice) -> bool {
    folder(device).exists()
}

/// The whole disk that a device is, or is a partition of: limits are of disks.
///
/// # Errors
///
/// [`PlaceError::Device`] if there is none.
pub fn disk(device: BlockDevice) -> Result<BlockDevice, PlaceError> {
    let error =
        |source| PlaceError::Device { device: DeviceSpec::Numbers(device.major, device.minor), source };
    if !has_block_device(device) {
        return Err(error(io::Error::other("there is no such block device; `lsblk` lists those there are")));
    }
    if !folder(device).join("partition").exists() {
        return Ok(device);
    }
    // The folder is a link to that of the partition, which lies in that of its disk.
    let numbers = fs::canonicalize(folder(device)).and_then(|path| fs::read_to_string(path.join("../dev")));
    let numbers = numbers.map_err(error)?;
    match numbers.trim().parse() {
        Ok(DeviceSpec::Numbers(major, minor)) => Ok(BlockDevice { major, minor }),
        _ => Err(error(io::ErrorKind::InvalidData.into())),
    }
}
