//! How a probe sees that its program ran, and ran for the probe's own thread only.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use aya_obj::generated::{bpf_cmd, bpf_func_id, bpf_map_type, bpf_prog_type};

use nix::unistd::gettid;

use super::insn::Code;
use crate::kernel::{
    Error, Result,
    sys::{self, Program, bpf, bpf_fd, zeroed},
};

/// The first PID namespace, the same on all kernels.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/proc_ns.h#L42>
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A number in a map that a program writes.
#[derive(Debug)]
pub struct Flag(OwnedFd);

impl Flag {
    /// A new one, 0.
    pub fn new() -> Result<Self> {
        let mut attr = zeroed();
        // SAFETY: the variant BPF_MAP_CREATE reads.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        create.key_size = 4;
        create.value_size = 8;
        create.max_entries = 1;
        for (to, from) in create.map_name.iter_mut().zip(b"doctor_flag") {
            *to = from.cast_signed();
        }
        bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
            .map(Self)
            .map_err(|source| Error::new("bpf(BPF_MAP_CREATE)", "an array of 8 bytes", source))
    }

    /// What it is now.
    pub fn get(&self) -> Result<u64> {
        let key = 0_u32;
        let mut value = 0_u64;
        let mut attr = zeroed();
        // SAFETY: the variant BPF_MAP_LOOKUP_ELEM reads.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = self.0.as_raw_fd() as u32;
        element.key = (&raw const key) as u64;
        element.__bindgen_anon_1.value = (&raw mut value) as u64;
        bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)
            .map_err(|source| Error::new("bpf(BPF_MAP_LOOKUP_ELEM)", "doctor", source))?;
        Ok(value)
    }

    /// Code that sets it to 1.
    pub fn raise(&self) -> Code {
        Code::default().set_value(1, self.0.as_fd()).store(1, 0, 1)
    }

    /// Code that adds 1 to it.
    pub fn count(&self) -> Code {
        Code::default().set_value(1, self.0.as_fd()).set(2, 1).add_to(1, 0, 2)
    }

    /// Code that sets it to register 0.
    pub fn keep_result(&self) -> Code {
        Code::default().set_value(1, self.0.as_fd()).store_register(1, 0, 0)
    }
}

impl AsFd for Flag {
    /// The map, of which it is the first value.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The calling thread as the kernel's programs see it, whatever PID namespace it is in.
#[derive(Clone, Copy, Debug)]
pub struct Thread(u64);

impl Thread {
    /// The calling thread.
    ///
    /// Asked of a program, because `getpid` answers in the process's own PID namespace and a program sees the
    /// initial one.
    ///
    /// # Errors
    ///
    /// The kernel's, but for where the two are the same.
    pub fn current() -> Result<Self> {
        ask(bpf_func_id::BPF_FUNC_get_current_pid_tgid).map(Self).or_else(|error| {
            let namespace = fs::metadata("/proc/self/ns/pid").map(|namespace| namespace.ino());
            if matches!(namespace, Ok(FIRST_NAMESPACE)) { Ok(Self::here()) } else { Err(error) }
        })
    }

    /// The calling thread by its numbers in its own PID namespace.
    pub fn here() -> Self {
        Self(u64::from(std::process::id()) << 32 | gettid().as_raw() as u64)
    }

    /// Its process, as a program sees it.
    pub fn tgid(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// A program that does something for this thread only, and returns 0 to all. Register 6 is its context.
    pub fn only(self, then: Code) -> Code {
        Code::default()
            .copy(6, 1)
            .call(bpf_func_id::BPF_FUNC_get_current_pid_tgid)
            .set_wide(1, self.0)
            .if_equal(0, 1, then)
            .exit(0)
    }
}

/// What a helper without arguments answers a program that runs in the calling thread.
pub(super) fn ask(helper: bpf_func_id) -> Result<u64> {
    ask_about(helper, 0)
}

/// The same of a helper with one argument, or without.
pub(super) fn ask_about(helper: bpf_func_id, number: i32) -> Result<u64> {
    Question::new(helper, number)?.ask()
}

/// A program that answers with what a helper answers it.
#[derive(Debug)]
pub struct Question {
    flag: Flag,
    program: OwnedFd,
}

impl Question {
    /// Loads it, for a helper with this argument or without any.
    pub(super) fn new(helper: bpf_func_id, number: i32) -> Result<Self> {
        let flag = Flag::new()?;
        let code = Code::default().set(1, number).call(helper).then(flag.keep_result()).exit(0);
        let program = load_raw("doctor_ask", &code)?;
        Ok(Self { flag, program })
    }

    /// The answer now, in the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn ask(&self) -> Result<u64> {
        run_here(&self.program)?;
        self.flag.get()
    }
}

/// Loads a raw tracepoint program, attached to nothing.
pub fn load_raw(name: &str, code: &Code) -> Result<OwnedFd> {
    sys::load(&Program {
        name,
        kind: bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
        attach: None,
        attach_btf_id: 0,
        flags: 0,
        instructions: code.as_slice(),
        functions: None,
    })
}

/// Runs a raw tracepoint program once, in the calling thread and without any tracepoint. Returns its result.
pub fn run_here(program: &OwnedFd) -> Result<u32> {
    sys::call(program.as_fd(), &[])
}
