//! Programs on a cgroup of our own: they act on the process in it, and on no other.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};
use chaos_user::kernel::{
    probe::insn::Code,
    sys::{Target, link},
};
use nix::sched::{CloneFlags, setns};

use super::{
    elsewhere::{Errno, elsewhere, errno},
    load,
};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Failure, Result},
    lab::Netns,
};

/// Nothing on this machine says so by itself.
const CHOSEN: Errno = libc::ENOTRECOVERABLE;

pub(super) fn cgroup_v2() -> Result {
    let cgroup = Cgroup::new()?;
    let joined = elsewhere(|| {
        let joined = cgroup.join().and_then(|()| cgroup.is_joined());
        let alone = cgroup.population();
        Errno::from((joined, alone) != (Ok(true), Ok(1)))
    })?;
    ensure!(joined == 0, "a process did not get into a cgroup");
    let (left, own) = (cgroup.population()?, cgroup.is_joined()?);
    ensure!((left, own) == (0, false), "{left} processes in the cgroup, are we: {own}");
    Ok(())
}

/// A refused packet tells its sender so; one that is not let in is not heard of.
pub(super) fn cgroup_skb() -> Result {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB;
    for (hook, errno) in [
        (bpf_attach_type::BPF_CGROUP_INET_EGRESS, libc::EPERM),
        (bpf_attach_type::BPF_CGROUP_INET_INGRESS, libc::EAGAIN),
    ] {
        check(hook, errno, talk, |cgroup| attach(cgroup, kind, hook, &Code::default().exit(0)))?;
    }
    Ok(())
}

pub(super) fn cgroup_connect() -> Result {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
    let code = || Code::default().set(1, -CHOSEN).call(bpf_func_id::BPF_FUNC_set_retval).exit(0);
    let v4 = || connect(Ipv4Addr::LOCALHOST.into());
    let v6 = || connect(Ipv6Addr::LOCALHOST.into());
    let hook = bpf_attach_type::BPF_CGROUP_INET4_CONNECT;
    check(hook, CHOSEN, v4, |cgroup| attach(cgroup, kind, hook, &code()))?;
    check(hook, 0, v6, |cgroup| attach(cgroup, kind, hook, &code()))?;
    let hook = bpf_attach_type::BPF_CGROUP_INET6_CONNECT;
    check(hook, CHOSEN, v6, |cgroup| attach(cgroup, kind, hook, &code()))
}

/// What the program refuses is not made.
pub(super) fn cgroup_sock() -> Result {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK;
    let hook = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE;
    check(hook, libc::EPERM, made, |cgroup| attach(cgroup, kind, hook, &Code::default().exit(0)))
}

/// A limit is there once it is written, and no longer when it is taken away.
pub(super) fn io_max() -> Result {
    let cgroup = Cgroup::new()?;
    let path = cgroup.path().join("io.max");
    let device = fs::read_to_string("/sys/class/block/nullb0/dev").context("nullb0")?;
    let device = device.trim();
    for (limit, left) in
        [("1000000", format!("{device} rbps=1000000 wbps=max riops=max wiops=max\n")), ("max", "".into())]
    {
        fs::write(&path, format!("{device} rbps={limit}")).context(path.display())?;
        let text = fs::read_to_string(&path).context(path.display())?;
        ensure!(text == left, "rbps={limit}: {text:?}");
    }
    Ok(())
}

/// The action gives this errno in the cgroup while the program is there, and goes well otherwise.
fn check(
    hook: bpf_attach_type,
    errno: Errno,
    action: impl Fn() -> Errno,
    attach: impl FnOnce(&Cgroup) -> Result<OwnedFd>,
) -> Result {
    let netns = Netns::new()?;
    setns(&netns, CloneFlags::CLONE_NEWNET).context("setns(CLONE_NEWNET)")?;
    let cgroup = Cgroup::new()?;
    let look = || {
        let inside = elsewhere(|| if cgroup.join().is_ok() { action() } else { -1 })?;
        Ok::<_, Failure>([inside, elsewhere(&action)?])
    };
    let before = look()?;
    let link = attach(&cgroup)?;
    let during = look()?;
    drop(link);
    let seen = [before, during, look()?];
    ensure!(
        seen == [[0, 0], [errno, 0], [0, 0]],
        "{hook:?}: errno inside and outside, before, during and after: {seen:?}, not {errno}"
    );
    Ok(())
}

fn attach(cgroup: &Cgroup, kind: bpf_prog_type, hook: bpf_attach_type, code: &Code) -> Result<OwnedFd> {
    let program = load(kind, Some(hook), 0, code)?;
    Ok(link(program.as_fd(), Target::File(cgroup.as_fd()), hook, 0)?)
}

/// Sends a packet to itself.
fn talk() -> Errno {
    let talk = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send(b"talk")?;
        socket.recv(&mut [0; 8])
    };
    errno(talk())
}

/// Makes a socket.
fn made() -> Errno {
    errno(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
}

/// Connects to itself.
fn connect(address: std::net::IpAddr) -> Errno {
    let connect = || {
        let listener = TcpListener::bind((address, 0))?;
        TcpStream::connect(listener.local_addr()?)
    };
    errno(connect())
}
