//! Whose packet it is: the cgroup of the socket that sends it, or that will receive it.
//!
//! What is sent carries its socket; what is received has none yet, so it is looked up as the kernel is going to, by the
//! packet's ends. So is that of a packet which has lost its socket on another owner's way round, or that the kernel
//! itself sends for a connection. Raw sockets, ICMP and multicast have no ends to be found by when they are received.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple, task_struct},
    helpers::generated::{
        bpf_get_current_task_btf, bpf_get_listener_sock, bpf_probe_read_kernel, bpf_sk_lookup_tcp,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
    },
    programs::{SockContext, TcContext},
};
use chaos_ebpf::{
    abi::{Direction, HookState, Setup},
    field,
    packet::{Headers, Network, protocol},
};

use crate::{
    hook::setup,
    kin,
    maps::{FL_PROCESSES, FL_SOCKETS},
};

/// `BPF_F_CURRENT_NETNS`: that of the interface.
const HERE: u64 = u64::MAX;

/// The rules that want the cgroup of the packet's socket, or one around it.
#[inline(always)]
pub(crate) fn cgroup(
    context: &TcContext,
    headers: &Headers,
    direction: Direction,
    setup: &Setup,
    hook: &mut HookState,
) -> u64 {
    let skb = context.skb.skb;
    // SAFETY: the context the kernel called us with.
    if matches!(direction, Direction::Out) && unsafe { bpf_skb_cgroup_id(skb) } != 0 {
        // SAFETY: as above, and a number.
        let rules = kin::around(&setup.levels, setup.level_count, |level| unsafe {
            bpf_skb_ancestor_cgroup_id(skb, level as i32)
        });
        if setup.processes == 0 {
            return rules;
        }
        return rules | sent_by(skb);
    }
    // A copy, made only here: else what is looked at by its address lies in memory for every packet.
    let found = look_up(skb, &black_box(*headers), direction);
    if found.is_null() {
        return 0;
    }
    let mut rules = 0;
    if setup.processes != 0 {
        // SAFETY: a socket that was found.
        rules = unsafe { FL_SOCKETS.get(found.cast()) };
    }
    if setup.level_count != 0 {
        rules |= of_socket(address(found, hook), setup);
    }
    // SAFETY: a socket that was found, which is held until now.
    unsafe { bpf_sk_release(found.cast()) };
    rules
}

/// The rules that want the process whose socket sends this.
#[inline(always)]
fn sent_by(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the context the kernel called us with.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the packet's socket.
    match unsafe { FL_SOCKETS.get(socket.cast()) } {
        // A connection that is not accepted yet is its listener's.
        // SAFETY: as above; there may be none.
        0 => unsafe { FL_SOCKETS.get(bpf_get_listener_sock(socket).cast()) },
        rules => rules,
    }
}

/// The rules that want the cgroup of the socket at this address, or one around it.
#[inline(always)]
fn of_socket(socket: u64, setup: &Setup) -> u64 {
    let at = &setup.cgroup;
    let cgroup = read(socket + place(at.of_socket));
    let depth = read(cgroup + place(at.level)) as u32;
    kin::around(&setup.levels, setup.level_count, |level| {
        if level > depth {
            return 0;
        }
        let ancestor = read(cgroup + place(at.ancestors) + 8 * u64::from(level));
        read(read(ancestor + place(at.node)) + place(at.node_id))
    })
}

/// The rules that want the process that runs, or its cgroup, or one around it.
#[inline(always)]
pub(crate) fn current(setup: &Setup) -> u64 {
    kin::of_current(&setup.levels, setup.level_count)
        | if setup.processes != 0 { current_process(setup) } else { 0 }
}

/// A process makes a socket: what it sends and receives is that process's from now on, whoever has it later.
#[inline(always)]
pub(crate) fn opened(context: &SockContext) {
    let rules = current_process(setup());
    if rules != 0 {
        // SAFETY: the context the kernel called us with.
        unsafe { FL_SOCKETS.keep(context.sock.cast(), rules) };
    }
}

/// How many generations are looked back on. Whoever has lost those between is of the init process's.
const GENERATIONS: u32 = 16;

/// The rules that want the process that runs, or one that has begun it.
#[inline(always)]
fn current_process(setup: &Setup) -> u64 {
    // SAFETY: takes nothing; the task is the current one and stays.
    let mut task: *const task_struct = unsafe { bpf_get_current_task_btf() }.cast_const();
    let mut rules = 0;
    for _ in 0..GENERATIONS {
        // SAFETY: the offsets are those of `tgid` and `real_parent` in the running kernel's BTF, which the verifier checks.
        let (tgid, parent) = unsafe {
            let task = task.cast::<u8>();
            (
                *task.add(field::at(setup.tgid_offset)).cast::<u32>(),
                *task.add(field::at(setup.parent_offset)).cast::<*const task_struct>(),
            )
        };
        // SAFETY: the owner never deletes an entry while a program can run.
        rules |= unsafe { FL_PROCESSES.get(tgid) }.copied().unwrap_or(0);
        task = parent;
    }
    rules
}

/// Where a socket lies, as a number. The helper that would say a socket's cgroup is not for tc programs; the kernel's
/// own structures say it, by offsets that the verifier does not let a socket's pointer be moved by.
#[inline(always)]
fn address(socket: *mut bpf_sock, hook: &mut HookState) -> u64 {
    let scratch = &raw mut hook.scratch;
    // SAFETY: in the map, this CPU's slot.
    unsafe {
        scratch.write_volatile(socket as u64);
        scratch.read_volatile()
    }
}

/// Bytes to a field.
#[inline(always)]
fn place(offset: u32) -> u64 {
    field::at(offset) as u64
}

/// Eight bytes of the kernel's memory, 0 where there is none.
#[inline(always)]
fn read(address: u64) -> u64 {
    let mut value = 0_u64;
    // SAFETY: the helper checks what it reads, and writes eight bytes.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const c_void) };
    value
}

/// The socket that has the local end of a packet, to be released; null if there is none. A subprogram, for there is no
/// more room on the stack of the others.
#[inline(never)]
fn look_up(skb: *mut __sk_buff, headers: &Headers, direction: Direction) -> *mut bpf_sock {
    let Headers { has_ports, network, source, destination, source_port, destination_port, .. } = headers;
    let is_tcp = headers.protocol == protocol::TCP;
    if !*has_ports || !is_tcp && headers.protocol != protocol::UDP {
        return core::ptr::null_mut();
    }
    // As it would be received: the remote end is the source.
    let ((remote, remote_port), (local, local_port)) = match direction {
        Direction::In => ((source, source_port), (destination, destination_port)),
        Direction::Out | Direction::Connect | Direction::Call => {
            ((destination, destination_port), (source, source_port))
        }
    };
    let ports = u32::from(remote_port.to_be()) | u32::from(local_port.to_be()) << 16;
    match network {
        Network::V4 => find(skb, &mut [remote[0], local[0], ports], is_tcp),
        Network::V6 => {
            let mut ends =
                [remote[0], remote[1], remote[2], remote[3], local[0], local[1], local[2], local[3], ports];
            find(skb, &mut ends, is_tcp)
        }
        Network::Other => core::ptr::null_mut(),
    }
}

/// Addresses and ports in the order of `struct bpf_sock_tuple`, whose length says which family it is.
#[inline(always)]
fn find<const WORDS: usize>(skb: *mut __sk_buff, ends: &mut [u32; WORDS], is_tcp: bool) -> *mut bpf_sock {
    let (context, tuple) = (skb.cast::<c_void>(), ends.as_mut_ptr().cast::<bpf_sock_tuple>());
    let size = size_of::<[u32; WORDS]>() as u32;
    // SAFETY: the context the kernel called us with, and as many bytes as are said.
    unsafe {
        if is_tcp {
            bpf_sk_lookup_tcp(context, tuple, size, HERE, 0)
        } else {
            bpf_sk_lookup_udp(context, tuple, size, HERE, 0)
        }
    }
}
