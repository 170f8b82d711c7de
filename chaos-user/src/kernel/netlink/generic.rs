//! Generic netlink: families of commands, whose numbers the kernel gives out as it starts.

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::{Answer, Netlink, attribute, u16_at};
use crate::kernel::{Error, Result};

/// `struct genlmsghdr`: command, version, two reserved bytes.
const HEADER: usize = 4;
/// The family that tells the numbers of families: `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`,
/// `CTRL_ATTR_FAMILY_NAME` (<https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/genetlink.h>).
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// A connection to one family.
#[derive(Debug)]
pub(in crate::kernel) struct Generic {
    netlink: Netlink,
    family: u16,
}

/// A command of a family, with its attributes.
#[derive(Clone, Debug)]
struct Command {
    family: u16,
    bytes: Vec<u8>,
}

impl Command {
    fn new(family: u16, command: u8, attributes: &Attributes) -> Self {
        let mut bytes = vec![command, 1, 0, 0];
        bytes.extend(&attributes.0);
        Self { family, bytes }
    }
}

impl NetlinkSerializable for Command {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

/// Attributes, one behind the other.
#[derive(Clone, Debug, Default)]
pub(in crate::kernel) struct Attributes(Vec<u8>);

impl Attributes {
    /// `NLA_F_NESTED`.
    const NESTED: u16 = 1 << 15;

    /// One more, of these bytes.
    pub(in crate::kernel) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (HEADER + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// One more, of attributes.
    pub(in crate::kernel) fn with_nest(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | Self::NESTED, &inner.0)
    }
}

impl Generic {
    /// Connects to a family, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel's: `ENOENT` if it has no such family.
    pub(in crate::kernel) fn open(name: &'static str) -> Result<Self> {
        let mut netlink = Netlink::open_protocol(NETLINK_GENERIC, "NETLINK_GENERIC")?;
        let asked = Attributes::default().with(FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let command = Command::new(CONTROL, GET_FAMILY, &asked);
        let call = "netlink(CTRL_CMD_GETFAMILY)";
        let answers = netlink.request(command, 0, call, name)?;
        let family =
            answers.iter().find_map(|answer| u16_at(attribute(answer.get(HEADER..)?, FAMILY_ID)?, 0));
        let family = family.ok_or_else(|| Error::new(call, name, std::io::ErrorKind::InvalidData.into()))?;
        Ok(Self { netlink, family })
    }

    /// Sends a command, waits for its acknowledgement, and returns the attributes of what was answered before it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(in crate::kernel) fn command(
        &mut self,
        command: u8,
        attributes: &Attributes,
        call: &'static str,
        object: &str,
    ) -> Result<Vec<Answer>> {
        let command = Command::new(self.family, command, attributes);
        let answers = self.netlink.request(command, 0, call, object)?;
        Ok(answers.into_iter().map(|answer| answer.get(HEADER..).unwrap_or_default().to_vec()).collect())
    }
}
