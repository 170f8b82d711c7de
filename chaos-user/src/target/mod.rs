//! What a fault is aimed at.

mod aim;
mod block;
mod cgroup;
mod device;
mod hunt;
mod names;
mod netns;
mod peer;
mod place;
mod process;
mod protected;
mod sockets;

pub use aim::Target;
pub use block::{disk, has_block_device};
pub use cgroup::{Cgroup, CgroupError};
pub use device::{Device, DeviceError};
pub use hunt::{Sought, in_others as in_other_netns, within as within_netns};
pub use names::Names;
pub use netns::{Home, Netns, NetnsError, NetnsId, current as current_netns};
pub use peer::{PeerError, addresses};
pub use place::{Place, PlaceError, Places, device_number, devices_of};
pub use process::Tree;
pub use protected::{Protected, SshSession};
pub use sockets::{Flow, Named, flows, names};
