//! A small synchronous netlink client: one request, its answers, its acknowledgement.
//!
//! Requests are built from `netlink-packet-route`'s types. Answers are read attribute by attribute, and only the
//! attributes asked for: a newer kernel's unknown attribute in a message of forty must not fail a look-up by name.

mod diag;
mod generic;
mod link;
mod tc;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    io,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};

pub(super) use self::generic::{Attributes, Generic};
pub use self::{
    diag::{Connection, Connections},
    link::{Link, Quiet, Veth},
    tc::{BpfFilter, Direction, Filter, Qdisc, ROOT},
};
use super::{Error, Result, own_thread};
use crate::spec::shown;

/// Length of `struct nlmsghdr`, which an error repeats.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's sentence on what it did not like.
const ATTR_MSG: u16 = 1;
/// A listing that changed while it was read is read again, this often.
const DUMP_ATTEMPTS: usize = 16;

/// A connection to the kernel's rtnetlink of one network namespace.
///
/// It stays with the namespace it was opened in, wherever the thread goes later.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One answer: its payload behind the netlink header.
type Answer = Vec<u8>;

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open() -> Result<Self> {
        Self::open_protocol(NETLINK_ROUTE, "NETLINK_ROUTE")
    }

    fn open_protocol(protocol: isize, name: &'static str) -> Result<Self> {
        let error = |call| move |source| Error::new(call, name, source);
        let mut socket = Socket::new(protocol).map_err(error("socket(AF_NETLINK)"))?;
        socket.bind_auto().map_err(error("bind(AF_NETLINK)"))?;
        // Only the kernel (port 0) may answer.
        socket.connect(&SocketAddr::new(0, 0)).map_err(error("connect(AF_NETLINK)"))?;
        // The sentence that comes with an errno, and no copy of our own request before it.
        socket.set_ext_ack(true).map_err(error("setsockopt(NETLINK_EXT_ACK)"))?;
        socket.set_cap_ack(true).map_err(error("setsockopt(NETLINK_CAP_ACK)"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Connects to another network namespace. The calling thread stays where it is.
    ///
    /// # Errors
    ///
    /// The kernel's, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        let open = || {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::new("setns(CLONE_NEWNET)", "network namespace", errno.into()))?;
            Self::open()
        };
        own_thread::run(open)
            .map_err(|source| Error::new("clone", "a thread to enter a network namespace", source))?
    }

    /// Sends a request, waits for its acknowledgement, and returns what was answered before it.
    fn request<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
        call: &'static str,
        object: &str,
    ) -> Result<Vec<Answer>> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags, call, object)?;
        Ok(self.receive(call, object)?.0)
    }

    /// Asks for a listing, again if it changed while it was read.
    fn dump<M: NetlinkSerializable + Clone>(
        &mut self,
        message: &M,
        call: &'static str,
        object: &str,
    ) -> Result<Vec<Answer>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, call, object)?;
            let (answers, interrupted) = self.receive(call, object)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        let source = io::Error::new(io::ErrorKind::ResourceBusy, "the list changed each time it was read");
        Err(Error::new(call, object, source))
    }

    fn send<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
        call: &'static str,
        object: &str,
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        retry(|| self.socket.send(&bytes, 0)).map_err(|source| Error::new(call, object, source))?;
        Ok(())
    }

    /// All answers to the last request, and whether the kernel says that they do not fit together.
    fn receive(&mut self, call: &'static str, object: &str) -> Result<(Vec<Answer>, bool)> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.datagram().map_err(|source| Error::new(call, object, source))?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let Ok(message) = NetlinkBuffer::new_checked(rest) else {
                    return Err(Error::new(call, object, io::ErrorKind::InvalidData.into()));
                };
                let length = (message.length() as usize).next_multiple_of(4).clamp(HEADER, rest.len());
                let ours = message.sequence_number() == self.sequence;
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    // An answer to something given up earlier.
                    _ if !ours => {}
                    kind @ (NLMSG_DONE | NLMSG_ERROR) => {
                        let payload = message.payload();
                        return match status(payload) {
                            0 => Ok((answers, interrupted)),
                            errno => {
                                let said = explanation(kind, message.flags(), payload)
                                    .map_or_else(|| object.to_owned(), |said| format!("{object}: {said}"));
                                Err(Error::new(call, said, io::Error::from_raw_os_error(-errno)))
                            }
                        };
                    }
                    _ => answers.push(message.payload().to_vec()),
                }
                rest = &rest[length..];
            }
        }
    }

    fn datagram(&self) -> io::Result<Vec<u8>> {
        let mut nothing = Vec::new();
        let length = retry(|| self.socket.recv(&mut nothing, libc::MSG_PEEK | libc::MSG_TRUNC))?;
        let mut datagram = Vec::with_capacity(length.max(1));
        retry(|| self.socket.recv(&mut datagram, 0))?;
        Ok(datagram)
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The code at the start of an acknowledgement: 0 or `-errno`.
fn status(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code))
}

/// The sentence in an extended acknowledgement, if there is one.
fn explanation(kind: u16, flags: u16, payload: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // Behind the code: for an error the header of our request, with its body unless it was capped; at the end of
    // a listing nothing.
    let skip = match kind {
        NLMSG_DONE => 4,
        _ if flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => 4 + (u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?) as usize).next_multiple_of(4),
    };
    attribute(payload.get(skip..)?, ATTR_MSG).map(text)
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    nested(attributes, wanted).next()
}

/// The values of all attributes of this kind.
pub(super) fn nested(attributes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    let all = NlasIterator::new(attributes).map_while(std::result::Result::ok);
    let found = all.filter(move |attribute| attribute.kind() == wanted);
    found.filter_map(|attribute| {
        let end = usize::from(attribute.length());
        attribute.into_inner().get(4..end)
    })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|number| u16::from_ne_bytes(*number))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

/// A text attribute, without the zero at its end, as a name that no other has.
pub(super) fn text(value: &[u8]) -> String {
    shown::name(OsStr::from_bytes(value.strip_suffix(&[0]).unwrap_or(value)))
}
