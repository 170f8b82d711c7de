//! Queueing disciplines, and the direct-action BPF filters that hang on `clsact` below Linux 6.6.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{Netlink, attribute, text, u32_at};
use crate::kernel::Result;

/// Length of `struct tcmsg`, which the attributes follow.
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// The parent of a root qdisc.
pub const ROOT: u32 = 0xffff_ffff;
/// Where `clsact` hangs. Its own handle is `ffff:`.
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// A queueing discipline on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Its kind: `fq`, `clsact`, `noqueue`, ..
    pub kind: String,
    /// Its handle, `major << 16`.
    pub handle: u32,
    /// What it hangs on: [`ROOT`] or a class.
    pub parent: u32,
    /// The kind's own options, as the kernel writes them: enough to make it again.
    pub options: Vec<u8>,
    /// How many packets wait in it.
    pub waiting: u32,
    /// How many packets it has dropped.
    pub drops: u32,
}

/// The side of an interface a filter is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl Direction {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A direct-action BPF filter, for [`Netlink::add_bpf_filter`].
#[derive(Clone, Copy, Debug)]
pub struct BpfFilter<'a> {
    /// The interface, which must have a `clsact`.
    pub index: u32,
    /// Which side of it.
    pub direction: Direction,
    /// Its place among others: lower runs first, and 0 has the kernel choose one before all others.
    pub priority: u16,
    /// Its number at that place; 0 has the kernel choose one.
    pub handle: u32,
    /// The program, of type `SCHED_CLS`.
    pub program: BorrowedFd<'a>,
    /// The name `tc filter show` prints.
    pub name: &'a str,
}

/// A filter that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its kind: `bpf`, `u32`, ..
    pub kind: String,
    /// Its place.
    pub priority: u16,
    /// Its number at that place.
    pub handle: u32,
    /// Of a BPF filter: its name.
    pub name: Option<String>,
    /// Of a BPF filter: the number of its program.
    pub program: Option<u32>,
}

impl Netlink {
    /// The qdiscs of an interface.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(message(index, 0, 0));
        let answers = self.dump(&message, "netlink(RTM_GETQDISC)", &format!("interface {index}"))?;
        let parse = |answer: &Vec<u8>| {
            let attributes = answer.get(HEADER..)?;
            // struct gnet_stats_queue: packets, bytes, drops, ..
            let queue = attribute(attributes, TCA_STATS2)
                .and_then(|stats| attribute(stats, TCA_STATS_QUEUE))
                .unwrap_or_default();
            Some(Qdisc {
                waiting: u32_at(queue, 0).unwrap_or(0),
                drops: u32_at(queue, 8).unwrap_or(0),
                kind: text(attribute(attributes, TCA_KIND)?),
                handle: u32_at(answer, 8)?,
                parent: u32_at(answer, 12)?,
                options: attribute(attributes, TCA_OPTIONS).unwrap_or_default().to_vec(),
            })
        };
        // Older kernels list all interfaces whatever is asked.
        Ok(answers.iter().filter(|answer| u32_at(answer, 4) == Some(index)).filter_map(parse).collect())
    }

    /// Makes a qdisc. `options` is the kind's `TCA_OPTIONS`, nothing for its defaults.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` where it does not have the kind, `EEXIST` if there is one in that place.
    pub fn add_qdisc(
        &mut self,
        index: u32,
        parent: u32,
        handle: u32,
        kind: &str,
        options: &[u8],
    ) -> Result<()> {
        let mut message = message(index, parent, handle);
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        if !options.is_empty() {
            message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options.to_vec())));
        }
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        let object = format!("{kind} on interface {index}");
        self.request(message, NLM_F_CREATE | NLM_F_EXCL, "netlink(RTM_NEWQDISC)", &object).map(drop)
    }

    /// Removes a qdisc; the default one takes the place of a root qdisc.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` or `EINVAL` if it is gone.
    pub fn delete_qdisc(&mut self, index: u32, parent: u32, handle: u32) -> Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(message(index, parent, handle));
        self.request(message, 0, "netlink(RTM_DELQDISC)", &format!("interface {index}")).map(drop)
    }

    /// Makes the `clsact` that filters hang on. False if the interface had one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn add_clsact(&mut self, index: u32) -> Result<bool> {
        match self.add_qdisc(index, CLSACT_PARENT, CLSACT_HANDLE, "clsact", &[]) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == libc::EEXIST => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the `clsact` and *all* filters on it, whoever's they are.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` or `EINVAL` if it is gone.
    pub fn delete_clsact(&mut self, index: u32) -> Result<()> {
        self.delete_qdisc(index, CLSACT_PARENT, CLSACT_HANDLE)
    }

    /// Puts a direct-action program on an interface. It stays when its owner goes.
    ///
    /// # Errors
    ///
    /// The kernel's; `EEXIST` if there is one of this handle at this priority.
    pub fn add_bpf_filter(&mut self, filter: &BpfFilter<'_>) -> Result<()> {
        let BpfFilter { index, direction, priority, handle, program, name } = *filter;
        let mut message = filter_message(index, direction, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(
                TCA_BPF_FD,
                program.as_raw_fd().to_ne_bytes().to_vec(),
            ))),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        let object = format!("bpf {name} on {direction:?} of interface {index}");
        self.request(message, NLM_F_CREATE | NLM_F_EXCL, "netlink(RTM_NEWTFILTER)", &object).map(drop)
    }

    /// The filters on one side of an interface.
    ///
    /// # Errors
    ///
    /// The kernel's; `EINVAL` where the interface has no `clsact`.
    pub fn filters(&mut self, index: u32, direction: Direction) -> Result<Vec<Filter>> {
        let message = RouteNetlinkMessage::GetTrafficFilter(message(index, direction.parent(), 0));
        let object = format!("{direction:?} of interface {index}");
        let answers = self.dump(&message, "netlink(RTM_GETTFILTER)", &object)?;
        let parse = |answer: &Vec<u8>| {
            let attributes = answer.get(HEADER..)?;
            let kind = text(attribute(attributes, TCA_KIND)?);
            let options = match kind.as_str() {
                TcFilterBpf::KIND => attribute(attributes, TCA_OPTIONS).unwrap_or_default(),
                _ => &[],
            };
            Some(Filter {
                kind,
                priority: (u32_at(answer, 16)? >> 16) as u16,
                handle: u32_at(answer, 8)?,
                name: attribute(options, TCA_BPF_NAME).map(text),
                program: attribute(options, TCA_BPF_ID).and_then(|id| u32_at(id, 0)),
            })
        };
        // Each chain is announced by an entry without a handle.
        Ok(answers.iter().filter_map(parse).filter(|filter| filter.handle != 0).collect())
    }

    /// Removes one filter.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` or `EINVAL` if it is gone.
    pub fn delete_filter(
        &mut self,
        index: u32,
        direction: Direction,
        priority: u16,
        handle: u32,
    ) -> Result<()> {
        let mut message = filter_message(index, direction, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        let object = format!("filter {priority}:{handle} on {direction:?} of interface {index}");
        self.request(message, 0, "netlink(RTM_DELTFILTER)", &object).map(drop)
    }
}

fn message(index: u32, parent: u32, handle: u32) -> TcMessage {
    let header = TcHeader {
        index: index.cast_signed(),
        parent: TcHandle::from(parent),
        handle: TcHandle::from(handle),
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

fn filter_message(index: u32, direction: Direction, priority: u16, handle: u32) -> TcMessage {
    let mut message = message(index, direction.parent(), handle);
    // Every protocol, in network byte order.
    message.header.info = u32::from(priority) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    message
}
