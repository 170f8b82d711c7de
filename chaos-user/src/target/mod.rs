//! What a fault is aimed at.

mod netns;

pub use netns::Netns;

/// An interface of the current network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number there.
    pub ifindex: u32,
    /// Length of its link-layer header in bytes: 14 on Ethernet, 0 where packets begin with IP.
    pub link_header: u32,
}
