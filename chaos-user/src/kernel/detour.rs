//! The way round that a waiting packet takes: a veth pair beside the interface, whose near end has an fq qdisc and
//! whose far end lies in a network namespace that nobody but the owner holds. It goes with its owner, however that
//! ends: the kernel destroys a namespace nobody holds, the interfaces in it, and with each its other end. So
//! nothing of it is journalled, and no qdisc of the interface is touched.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::bpf_attach_type;
use chaos_ebpf::abi::{Direction, program};
use nix::sched::{CloneFlags, setns, unshare};

use super::{
    Error, Result, ethtool,
    netlink::{BpfFilter, Direction as Side, Netlink, Quiet, ROOT, Veth},
    own_thread,
    programs::Programs,
    sys::{self, Target},
};

/// What waits in the near end's qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How many packets.
    pub limit: u32,
    /// How long at most.
    pub horizon: Duration,
}

/// What became of the packets that took the detour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCount {
    /// Packets that wait.
    pub waiting: u32,
    /// Packets that were lost because no more could wait, in the queue or, once their time had come, for the CPU
    /// (`net.core.netdev_max_backlog`).
    pub lost: u64,
}

/// A way round; it is gone when this is dropped.
#[derive(Debug)]
pub struct Detour {
    netns: File,
    /// The number of the end beside the interface.
    pub near: u32,
    /// The number of the other end, where that is.
    pub far: u32,
    links: Vec<OwnedFd>,
}

/// `fq`'s options, `TCA_FQ_*`.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/pkt_sched.h#L822>
mod fq {
    pub(super) const PLIMIT: u16 = 1;
    pub(super) const FLOW_PLIMIT: u16 = 2;
    pub(super) const QUANTUM: u16 = 3;
    pub(super) const INITIAL_QUANTUM: u16 = 4;
    pub(super) const RATE_ENABLE: u16 = 5;
    pub(super) const BUCKETS_LOG: u16 = 8;
    pub(super) const ORPHAN_MASK: u16 = 10;
    pub(super) const TIMER_SLACK: u16 = 13;
    pub(super) const HORIZON: u16 = 14;
    pub(super) const HORIZON_DROP: u16 = 15;
}

impl Detour {
    /// Makes one beside the interfaces of the calling thread's network namespace; nothing goes through it yet.
    /// Without `checksums` the near end completes each packet's checksum.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` where it has no `fq`.
    pub fn new(name: &str, queue: Option<Queue>, checksums: bool) -> Result<Self> {
        let netns = new_netns()?;
        let mut here = Netlink::open()?;
        // Both ends have one name: they lie in different namespaces.
        let pair = Veth { peer_netns: Some(netns.as_fd()), ..Veth::new(name, name) };
        here.add_veth(&pair)?;
        let mut there = Netlink::open_in(netns.as_fd())?;
        let number = |netlink: &mut Netlink| {
            let link = netlink.link_by_name(name)?;
            let gone = || Error::new("look-up", name, io::Error::from_raw_os_error(libc::ENODEV));
            Ok::<_, Error>(link.ok_or_else(gone)?.index)
        };
        let near = number(&mut here)?;
        // From here on it is removed if anything fails.
        let mut detour = Self { netns, near, far: 0, links: Vec::new() };
        detour.far = number(&mut there)?;
        there.set_quiet(detour.far, Quiet { mtu: LARGEST })?;
        here.set_quiet(near, Quiet { mtu: LARGEST })?;
        if !checksums {
            let mut near = ethtool::Ethtool::open(near)?;
            let there = near.features(ethtool::CHECKSUMS)?;
            near.set(there.iter().map(|feature| feature.name.as_str()), false)?;
        }
        if let Some(queue) = queue {
            here.add_qdisc(near, ROOT, 1 << 16, "fq", &options(queue))?;
        }
        there.set_up(detour.far, true)?;
        here.set_up(near, true)?;
        Ok(detour)
    }

    /// Attaches the programs of its ends.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn attach(&mut self, programs: &mut Programs, direction: Direction) -> Result<()> {
        let way = direction as usize;
        self.attach_near(programs, program::QUEUE, Side::Egress)?;
        self.attach_near(programs, program::BACK[way], Side::Ingress)?;
        let bounce = programs.classifier(program::BOUNCE[way])?.as_fd();
        let (netns, far) = (self.netns.as_fd(), self.far);
        let attach = || {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::new("setns(CLONE_NEWNET)", "the detour's", errno.into()))?;
            hold(bounce, far, Side::Ingress, program::BOUNCE[way])
        };
        let link = own_thread::run(attach).map_err(no_thread)??;
        self.links.extend(link);
        Ok(())
    }

    fn attach_near(&mut self, programs: &mut Programs, name: &'static str, side: Side) -> Result<()> {
        let program = programs.classifier(name)?.as_fd();
        self.links.extend(hold(program, self.near, side, name)?);
        Ok(())
    }

    /// What waits, and what could not.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn count(&self) -> Result<QueueCount> {
        let mut netlink = Netlink::open()?;
        let qdiscs = netlink.qdiscs(self.near)?;
        let fq = qdiscs.iter().find(|qdisc| qdisc.kind == "fq");
        let (waiting, unqueued) = fq.map_or((0, 0), |fq| (fq.waiting, fq.drops));
        // Each end counts what the CPU's backlog had no room for on the way to the other.
        let unsent = |netlink: &mut Netlink, end: u32| {
            Ok::<_, Error>(netlink.link_by_index(end)?.map_or(0, |end| end.unsent))
        };
        let there = unsent(&mut Netlink::open_in(self.netns.as_fd())?, self.far)?;
        let here = unsent(&mut netlink, self.near)?;
        Ok(QueueCount { waiting, lost: u64::from(unqueued) + here + there })
    }

    /// Waits until no packet waits any more, at most this long.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn drain(&self, patience: Duration) -> Result<QueueCount> {
        const PAUSE: Duration = Duration::from_millis(2);
        let deadline = Instant::now() + patience;
        loop {
            let count = self.count()?;
            if count.waiting == 0 || Instant::now() >= deadline {
                return Ok(count);
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        // At once and not a little later, with its namespace; if that fails, that.
        let _ = Netlink::open().and_then(|mut netlink| netlink.delete_link(self.near));
    }
}

/// Largest frame that veth takes.
const LARGEST: u32 = 65_535;

fn new_netns() -> Result<File> {
    const OWN: &str = "/proc/thread-self/ns/net";
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::new("unshare(CLONE_NEWNET)", "the detour's", errno.into()))?;
        File::open(OWN).map_err(|source| Error::new("open", OWN, source))
    };
    own_thread::run(make).map_err(no_thread)?
}

fn no_thread(source: io::Error) -> Error {
    Error::new("clone", "a thread for the detour", source)
}

/// Puts a program on an end. Below Linux 6.6 by a filter, which goes with the interface.
fn hold(
    program: std::os::fd::BorrowedFd<'_>,
    ifindex: u32,
    side: Side,
    name: &str,
) -> Result<Option<OwnedFd>> {
    let attach = match side {
        Side::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
        Side::Egress => bpf_attach_type::BPF_TCX_EGRESS,
    };
    match sys::link(program, Target::Interface(ifindex), attach, 0) {
        Ok(link) => return Ok(Some(link)),
        Err(error) if error.errno() == libc::EINVAL => {}
        Err(error) => return Err(error),
    }
    let mut netlink = Netlink::open()?;
    netlink.add_clsact(ifindex)?;
    netlink.add_bpf_filter(&BpfFilter {
        index: ifindex,
        direction: side,
        priority: 0,
        handle: 0,
        program,
        name,
    })?;
    Ok(None)
}

fn options(queue: Queue) -> Vec<u8> {
    let horizon = u32::try_from(queue.horizon.as_micros()).unwrap_or(u32::MAX);
    // It lets go of packets by their time alone: no pacing of its own, no fairness between flows.
    let numbers = [
        (fq::PLIMIT, queue.limit),
        (fq::FLOW_PLIMIT, queue.limit),
        (fq::QUANTUM, 1 << 20),
        (fq::INITIAL_QUANTUM, 1 << 20),
        (fq::RATE_ENABLE, 0),
        (fq::TIMER_SLACK, 0),
        // Of each flow only the first packet's time is known: one that comes after it and is to go before it waits as
        // long, so flows of different delays must not be taken for one. By default there are 1024.
        (fq::ORPHAN_MASK, u32::MAX),
        (fq::BUCKETS_LOG, 14),
        (fq::HORIZON, horizon),
    ];
    let attribute = |kind: u16, value: &[u8]| {
        let length = (4 + value.len()) as u16;
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let numbers = numbers.into_iter().map(|(kind, number)| attribute(kind, &number.to_ne_bytes()));
    // What lies beyond the horizon goes there instead of being dropped.
    numbers.chain([attribute(fq::HORIZON_DROP, &[0])]).collect::<Vec<_>>().concat()
}
