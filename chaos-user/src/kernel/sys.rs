//! `bpf(2)` and what is found through it, for all that aya has no call for: links whose fd we hold ourselves,
//! listings by id, and loads of programs that are only there to see whether they load.
//!
//! Field names and sizes are those of `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::Pod;
use aya_obj::generated::{
    BPF_F_RDONLY_PROG, BPF_OBJ_NAME_LEN, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info,
    bpf_map_info, bpf_map_type, bpf_prog_info, bpf_prog_type, bpf_stats_type,
};

use super::{Error, Result};

/// The kinds of object the kernel numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
}

impl Kind {
    fn next(self) -> (bpf_cmd, &'static str) {
        match self {
            Self::Program => (bpf_cmd::BPF_PROG_GET_NEXT_ID, "bpf(BPF_PROG_GET_NEXT_ID)"),
            Self::Map => (bpf_cmd::BPF_MAP_GET_NEXT_ID, "bpf(BPF_MAP_GET_NEXT_ID)"),
            Self::Link => (bpf_cmd::BPF_LINK_GET_NEXT_ID, "bpf(BPF_LINK_GET_NEXT_ID)"),
        }
    }

    fn open(self) -> (bpf_cmd, &'static str) {
        match self {
            Self::Program => (bpf_cmd::BPF_PROG_GET_FD_BY_ID, "bpf(BPF_PROG_GET_FD_BY_ID)"),
            Self::Map => (bpf_cmd::BPF_MAP_GET_FD_BY_ID, "bpf(BPF_MAP_GET_FD_BY_ID)"),
            Self::Link => (bpf_cmd::BPF_LINK_GET_FD_BY_ID, "bpf(BPF_LINK_GET_FD_BY_ID)"),
        }
    }
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// An interface of the current network namespace.
    Interface(u32),
    /// A file, such as a cgroup's directory.
    File(BorrowedFd<'a>),
    /// Nothing: the program itself says what (`attach_btf_id`).
    None,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's number.
    pub id: u32,
    /// The number of the program behind it.
    pub program: u32,
    /// For XDP and tcx the interface, for a cgroup's a part of its number; 0 once it is gone.
    pub ifindex: u32,
}

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The program's number.
    pub id: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Time it ran while [`enable_stats`] was held, in nanoseconds.
    pub run_time_ns: u64,
    /// How often it ran meanwhile.
    pub run_count: u64,
    /// How many instructions the verifier looked at, of a million at most.
    pub verified_instructions: u32,
}

/// A program given as instructions, for [`load`].
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Name in the kernel's listings.
    pub name: &'a str,
    /// Its type.
    pub kind: bpf_prog_type,
    /// Where it is going to be attached, if the type asks.
    pub attach: Option<bpf_attach_type>,
    /// BTF id of what it is attached to, 0 for nothing.
    pub attach_btf_id: u32,
    /// `BPF_F_*` flags.
    pub flags: u32,
    /// The instructions.
    pub instructions: &'a [bpf_insn],
    /// What its functions are, where a helper calls one of them.
    pub functions: Option<Functions<'a>>,
}

/// The functions of a program, for [`Program`].
#[derive(Clone, Copy, Debug)]
pub struct Functions<'a> {
    /// Their types, from [`load_types`].
    pub types: BorrowedFd<'a>,
    /// Of each function its first instruction and its type.
    pub starts: &'a [[u32; 2]],
}

/// Result of one [`test_run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned last.
    pub verdict: u32,
    /// Mean time of one run in nanoseconds.
    pub nanoseconds: u32,
}

pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers; all zero is a value of each, and the kernel wants unused bytes zero.
    unsafe { mem::zeroed() }
}

pub(super) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole `bpf_attr`, and the pointers the callers put into it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: these commands return a new fd, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a program. The verifier's log is asked for only when the load fails.
///
/// # Errors
///
/// The kernel's, with the end of the verifier's log if there is one.
pub fn load(program: &Program<'_>) -> Result<OwnedFd> {
    // Before Linux 6.4 a log that is too short ends where it is full, and not with what matters.
    let mut log = vec![0; 16 << 20];
    let attempt = |log: &mut [u8]| {
        let mut attr = zeroed();
        // SAFETY: the variant BPF_PROG_LOAD reads.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = program.kind as u32;
        load.insns = program.instructions.as_ptr() as u64;
        load.insn_cnt = program.instructions.len() as u32;
        load.license = c"GPL".as_ptr() as u64;
        load.prog_flags = program.flags;
        load.expected_attach_type = program.attach.map_or(0, |attach| attach as u32);
        load.attach_btf_id = program.attach_btf_id;
        if let Some(Functions { types, starts }) = program.functions {
            load.prog_btf_fd = types.as_raw_fd() as u32;
            load.func_info_rec_size = size_of::<[u32; 2]>() as u32;
            load.func_info = starts.as_ptr() as u64;
            load.func_info_cnt = starts.len() as u32;
        }
        let name = program.name.as_bytes().iter().take(BPF_OBJ_NAME_LEN as usize - 1);
        for (to, from) in load.prog_name.iter_mut().zip(name) {
            *to = from.cast_signed();
        }
        if !log.is_empty() {
            load.log_level = 1;
            load.log_buf = log.as_mut_ptr() as u64;
            load.log_size = log.len() as u32;
        }
        bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
    };
    attempt(&mut []).or_else(|first| attempt(&mut log).map_err(|_| first)).map_err(|source| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        let object = said_of(program.name, &String::from_utf8_lossy(&log[..end]));
        Error::new("bpf(BPF_PROG_LOAD)", object, source)
    })
}

/// An array of one element that programs read and nobody can change any more, so that the verifier knows what is in it.
///
/// # Errors
///
/// The kernel's.
pub fn constants(bytes: &[u8]) -> Result<OwnedFd> {
    let error = |call| move |source| Error::new(call, "constants", source);
    let mut attr = zeroed();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    attr.__bindgen_anon_1.key_size = size_of::<u32>() as u32;
    attr.__bindgen_anon_1.value_size = bytes.len() as u32;
    attr.__bindgen_anon_1.max_entries = 1;
    attr.__bindgen_anon_1.map_flags = BPF_F_RDONLY_PROG;
    let map = bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr).map_err(error("bpf(BPF_MAP_CREATE)"))?;
    let key = 0_u32;
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = bytes.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map_err(error("bpf(BPF_MAP_UPDATE_ELEM)"))?;
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr).map_err(error("bpf(BPF_MAP_FREEZE)"))?;
    Ok(map)
}

/// Runs a raw tracepoint's program, with these for its arguments, as the calling thread.
///
/// # Errors
///
/// The kernel's.
pub fn call(program: BorrowedFd<'_>, arguments: &[u64]) -> Result<u32> {
    let mut attr = zeroed();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    // Without any, the kernel wants no pointer either.
    if !arguments.is_empty() {
        attr.test.ctx_in = arguments.as_ptr() as u64;
        attr.test.ctx_size_in = size_of_val(arguments) as u32;
    }
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_PROG_TEST_RUN)", "a raw tracepoint's program", source))?;
    // SAFETY: the field this command writes.
    Ok(unsafe { attr.test.retval })
}

/// Loads BTF, the types of a program.
///
/// # Errors
///
/// The kernel's.
pub fn load_types(types: &[u8]) -> Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_7.btf = types.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = types.len() as u32;
    bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_BTF_LOAD)", "the types of a program", source))
}

/// A program's name and what the verifier said of it last, rather than all it said. How many instructions it looked at comes behind
/// that on every kernel; nothing else does, as statistics are not asked for.
pub(super) fn said_of(program: &str, log: &str) -> String {
    let lines = log.lines().rev().map(str::trim);
    let mut telling = lines.filter(|line| !line.is_empty() && !line.starts_with("processed "));
    telling.next().map_or_else(|| program.to_string(), |last| format!("{program}: {last}"))
}

/// Attaches a program by a link, which lasts as long as the fd.
///
/// # Errors
///
/// The kernel's.
pub fn link(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach: bpf_attach_type,
    flags: u32,
) -> Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    match target {
        Target::Interface(ifindex) => attr.link_create.__bindgen_anon_2.target_ifindex = ifindex,
        Target::File(fd) => attr.link_create.__bindgen_anon_2.target_fd = fd.as_raw_fd() as u32,
        Target::None => {}
    }
    attr.link_create.attach_type = attach as u32;
    attr.link_create.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_LINK_CREATE)", format!("{attach:?} on {target:?}"), source))
}

/// Attaches a raw tracepoint (`name`) or, without a name, a tracing or LSM program to what it was loaded for.
///
/// # Errors
///
/// The kernel's.
pub fn raw_tracepoint(program: BorrowedFd<'_>, name: Option<&str>) -> Result<OwnedFd> {
    let text = CString::new(name.unwrap_or_default()).unwrap_or_default();
    let mut attr = zeroed();
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    attr.raw_tracepoint.name = if name.is_some() { text.as_ptr() as u64 } else { 0 };
    bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr).map_err(|source| {
        Error::new("bpf(BPF_RAW_TRACEPOINT_OPEN)", name.unwrap_or("tracing program"), source)
    })
}

/// The next number after `after` of this kind, or none.
///
/// # Errors
///
/// The kernel's, `EPERM` without the right to list.
pub fn next_id(kind: Kind, after: u32) -> Result<Option<u32>> {
    let (command, call) = kind.next();
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.start_id = after;
    match bpf(command, &mut attr) {
        // SAFETY: the field this command writes.
        Ok(_) => Ok(Some(unsafe { attr.__bindgen_anon_6.next_id })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(Error::new(call, format!("after {after}"), source)),
    }
}

/// The numbers of all objects of a kind that are there now.
///
/// # Errors
///
/// As [`next_id`].
pub fn ids(kind: Kind) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    while let Some(id) = next_id(kind, ids.last().copied().unwrap_or(0))? {
        ids.push(id);
    }
    Ok(ids)
}

/// Opens an object by its number; `None` if it is gone, or a link that is not attached yet.
///
/// # Errors
///
/// The kernel's.
pub fn open(kind: Kind, id: u32) -> Result<Option<OwnedFd>> {
    let (command, call) = kind.open();
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    match bpf_fd(command, &mut attr) {
        Ok(fd) => Ok(Some(fd)),
        // A link has its number before it is attached (EAGAIN).
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => Ok(None),
        Err(source) => Err(Error::new(call, id.to_string(), source)),
    }
}

fn info<T>(fd: BorrowedFd<'_>) -> Result<T> {
    // SAFETY: only used with the kernel's info structs, plain integers for which all zero is a value.
    let mut info: T = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info = (&raw mut info) as u64;
    attr.info.info_len = size_of::<T>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map_err(|source| {
        Error::new("bpf(BPF_OBJ_GET_INFO_BY_FD)", format!("fd {}", fd.as_raw_fd()), source)
    })?;
    Ok(info)
}

/// What the kernel says of a link.
///
/// # Errors
///
/// The kernel's.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo> {
    let info: bpf_link_info = info(link)?;
    // SAFETY: XDP and tcx links both keep the ifindex first in the union, and those of cgroups the cgroup's number; for
    // others it is some other integer.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(LinkInfo { id: info.id, program: info.prog_id, ifindex })
}

/// What the kernel says of a program.
///
/// # Errors
///
/// The kernel's.
pub fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo> {
    let info: bpf_prog_info = info(program)?;
    Ok(ProgramInfo {
        id: info.id,
        name: name(&info.name),
        run_time_ns: info.run_time_ns,
        run_count: info.run_cnt,
        verified_instructions: info.verified_insns,
    })
}

/// Number and name of a map.
///
/// # Errors
///
/// The kernel's.
pub fn map_info(map: BorrowedFd<'_>) -> Result<(u32, String)> {
    let info: bpf_map_info = info(map)?;
    Ok((info.id, name(&info.name)))
}

fn name(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> =
        bytes.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes entries into a map, all of them by one call.
///
/// # Errors
///
/// The kernel's.
pub fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    name: &'static str,
    keys: &[K],
    values: &[V],
) -> Result<()> {
    let count = keys.len().min(values.len()) as u32;
    if count == 0 {
        return Ok(());
    }
    let mut attr = zeroed();
    attr.batch.map_fd = map.as_raw_fd() as u32;
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = count;
    bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map_err(|source| {
        Error::new("bpf(BPF_MAP_UPDATE_BATCH)", format!("{name}, {count} entries"), source)
    })?;
    Ok(())
}

/// What a value looks like in memory.
pub(super) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: without padding, as `Pod` promises, and as long as the value itself.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

/// The numbers of the programs attached to a target at one hook.
///
/// # Errors
///
/// The kernel's; `EINVAL` where it does not know the hook.
pub fn attached(target: Target<'_>, attach: bpf_attach_type) -> Result<Vec<u32>> {
    let mut programs = [0_u32; 64];
    let mut attr = zeroed();
    match target {
        Target::Interface(ifindex) => attr.query.__bindgen_anon_1.target_ifindex = ifindex,
        Target::File(fd) => attr.query.__bindgen_anon_1.target_fd = fd.as_raw_fd() as u32,
        Target::None => {}
    }
    attr.query.attach_type = attach as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = programs.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_PROG_QUERY)", format!("{attach:?} on {target:?}"), source))?;
    // SAFETY: the field this command writes.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(programs[..count.min(programs.len())].to_vec())
}

/// Has the kernel time every program for as long as the fd is held.
///
/// # Errors
///
/// The kernel's.
pub fn enable_stats() -> Result<OwnedFd> {
    let mut attr = zeroed();
    attr.enable_stats.type_ = bpf_stats_type::BPF_STATS_RUN_TIME as u32;
    bpf_fd(bpf_cmd::BPF_ENABLE_STATS, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_ENABLE_STATS)", "run time", source))
}

/// Runs a program `repeat` times on a packet without any interface.
///
/// # Errors
///
/// The kernel's; `EINTR` if a signal came in between.
pub fn test_run(program: impl AsFd, packet: &[u8], repeat: u32) -> Result<TestRun> {
    let mut attr = zeroed();
    attr.test.prog_fd = program.as_fd().as_raw_fd() as u32;
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = packet.len() as u32;
    attr.test.repeat = repeat;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)
        .map_err(|source| Error::new("bpf(BPF_PROG_TEST_RUN)", format!("{repeat} runs"), source))?;
    // SAFETY: the fields this command writes.
    let (verdict, nanoseconds) = unsafe { (attr.test.retval, attr.test.duration) };
    Ok(TestRun { verdict, nanoseconds })
}
