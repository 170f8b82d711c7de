//! Attaching by `perf_event_open(2)`: kprobes, uprobes and tracepoints. All of it goes with the fds.

use std::{
    ffi::CStr,
    fs, io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{
    PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, bpf_attach_type, perf_event_attr, perf_type_id,
};

use crate::kernel::{
    Error, Result,
    sys::{self, Target},
};

/// An event, of the calling thread or of all.
#[derive(Debug)]
pub struct Event(OwnedFd);

/// A program on an event, until this is dropped.
#[derive(Debug)]
pub struct Attached {
    /// The link, where perf events have links.
    pub link: Option<OwnedFd>,
    _event: OwnedFd,
}

impl Event {
    /// The start of a kernel function (`kprobe`) or of what lies at an offset of a file (`uprobe`).
    pub fn probe(unit: &'static str, place: &CStr, offset: u64) -> Result<Self> {
        let mut attr = attr();
        attr.type_ = unit_type(unit)?;
        attr.__bindgen_anon_3.config1 = place.as_ptr() as u64;
        attr.__bindgen_anon_4.config2 = offset;
        open(&attr, THIS_THREAD, &format!("{unit} {}", place.to_string_lossy()))
    }

    /// The start of a kernel function, whoever calls it.
    pub fn function(name: &CStr) -> Result<Self> {
        let mut attr = attr();
        attr.type_ = unit_type("kprobe")?;
        attr.__bindgen_anon_3.config1 = name.as_ptr() as u64;
        open(&attr, EVERYBODY, &format!("kprobe {}", name.to_string_lossy()))
    }

    /// A tracepoint, by the number tracefs has for it.
    pub fn tracepoint(id: u64) -> Result<Self> {
        let mut attr = attr();
        attr.type_ = perf_type_id::PERF_TYPE_TRACEPOINT as u32;
        attr.config = id;
        open(&attr, THIS_THREAD, &format!("tracepoint {id}"))
    }

    /// Attaches a program, by a link where perf events have links (Linux 5.15).
    pub fn attach(self, program: &OwnedFd) -> Result<Attached> {
        let Self(event) = self;
        let target = Target::File(event.as_fd());
        match sys::link(program.as_fd(), target, bpf_attach_type::BPF_PERF_EVENT, 0) {
            Ok(link) => Ok(Attached { link: Some(link), _event: event }),
            // The older way tells the two EINVALs apart: no such link, or no such program on this event.
            Err(refused) if refused.errno() == libc::EINVAL => {
                // SAFETY: both fds are open; the call takes an fd by value.
                let result = unsafe {
                    libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF as _, program.as_raw_fd())
                };
                if result < 0 { Err(refused) } else { Ok(Attached { link: None, _event: event }) }
            }
            Err(refused) => Err(refused),
        }
    }
}

fn attr() -> perf_event_attr {
    // SAFETY: plain integers, for which all zero is a value.
    let mut attr: perf_event_attr = unsafe { mem::zeroed() };
    attr.size = size_of::<perf_event_attr>() as u32;
    attr
}

/// A thread and a CPU: this one on any.
const THIS_THREAD: (i32, i32) = (0, -1);
/// Any thread; of all CPUs one must be named, and the program runs on all the same.
const EVERYBODY: (i32, i32) = (-1, 0);

fn open(attr: &perf_event_attr, (thread, cpu): (i32, i32), object: &str) -> Result<Event> {
    let group = -1;
    // SAFETY: `attr` is whole, and what it points to is held by the callers.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attr, thread, cpu, group, u64::from(PERF_FLAG_FD_CLOEXEC))
    };
    if fd < 0 {
        return Err(Error::new("perf_event_open", object, io::Error::last_os_error()));
    }
    // SAFETY: the call returned a new fd, which nobody else has.
    Ok(Event(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// The number the kernel gave this kind of event.
pub(super) fn unit_type(unit: &str) -> Result<u32> {
    let path = format!("/sys/bus/event_source/devices/{unit}/type");
    let text = fs::read_to_string(&path).map_err(|source| Error::new("open", &path, source))?;
    text.trim().parse().map_err(|_| Error::new("read", &path, io::ErrorKind::InvalidData.into()))
}
