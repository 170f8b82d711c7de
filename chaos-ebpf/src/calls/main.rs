//! The programs that act on system calls, and on what the kernel asks its security modules for them. Each is written for
//! what a hook passes, and loaded once for each hook: as a security module's, in place of a function's result (`fmod_ret`),
//! or before and after a function.

#![no_std]
#![no_main]
// For what `atomic` and `act` say in the verifier's own words; BPF's assembly is not yet stable.
#![feature(asm_experimental_arch)]

mod act;
#[path = "../atomic.rs"]
mod atomic;
mod corrupt;
#[path = "../end.rs"]
mod end;
mod family;
mod growth;
mod kernel;
#[path = "../kin.rs"]
mod kin;
mod maps;
mod subject;
mod time;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_override_return, bpf_probe_read_user},
};
use chaos_ebpf::call::{NO_KIND, Setup, kind};

use act::{candidate, decide, verdict};
use kernel::{Addressed, Object, Reach, Typed, setup};
use subject::Subject;

/// The arguments of the function a program is attached to, and behind them its result.
type Arguments = *const u64;

/// An argument that is a pointer; the verifier knows to what.
#[inline(always)]
fn object<const PLACE: usize>(arguments: Arguments) -> Object {
    // SAFETY: the context the kernel called us with has as many as the function.
    unsafe { *arguments.add(PLACE).cast::<Object>() }
}

#[inline(always)]
fn number<const PLACE: usize>(arguments: Arguments) -> u64 {
    // SAFETY: as above.
    unsafe { *arguments.add(PLACE) }
}

/// The first thing a hook is asked for, and the only one but for a few.
const ONLY: usize = kind::READ;

#[inline(always)]
fn answer(setup: &Setup, subject: impl FnOnce() -> Subject<Typed>) -> i64 {
    let Some(candidate) = candidate(setup, setup.rules[ONLY]) else { return 0 };
    verdict(setup, decide(setup, &candidate, &subject()))
}

/// A `struct file`; without one it is memory that is mapped, and no file.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_file")]
extern "C" fn fl_file(arguments: Arguments) -> i64 {
    let file = object::<0>(arguments);
    if file.is_null() {
        return 0;
    }
    answer(setup(), || Subject::of_file(file))
}

/// A `struct file`, and what is going to be done to it (`MAY_READ`, `MAY_WRITE`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_access")]
extern "C" fn fl_access(arguments: Arguments) -> i64 {
    const MAY_WRITE: u64 = 2;
    const MAY_READ: u64 = 4;
    let setup = setup();
    let (file, mask) = (object::<0>(arguments), number::<1>(arguments));
    let [read, write, list] = setup.rules;
    let mut rules = 0;
    if mask & MAY_WRITE != 0 {
        rules |= write;
    }
    if mask & MAY_READ != 0 {
        rules |= if read == list {
            read
        } else if growth::is_directory(setup, Typed::object(file, setup.at.file_inode)) {
            list
        } else {
            read
        };
    }
    let Some(candidate) = candidate(setup, rules) else { return 0 };
    verdict(setup, decide(setup, &candidate, &Subject::<Typed>::of_file(file)))
}

/// A `struct dentry` first.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_dentry0")]
extern "C" fn fl_dentry0(arguments: Arguments) -> i64 {
    let dentry = object::<0>(arguments);
    answer(setup(), || Subject::of_dentry(dentry))
}

/// A `struct dentry` second.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_dentry1")]
extern "C" fn fl_dentry1(arguments: Arguments) -> i64 {
    let dentry = object::<1>(arguments);
    answer(setup(), || Subject::of_dentry(dentry))
}

/// A `struct path` first.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_path")]
extern "C" fn fl_path(arguments: Arguments) -> i64 {
    let path = object::<0>(arguments);
    let setup = setup();
    answer(setup, || Subject::of_dentry(Typed::object(path, setup.at.path_dentry)))
}

/// A `struct dentry` second, and what is to have its place fourth.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_rename")]
extern "C" fn fl_rename(arguments: Arguments) -> i64 {
    let (from, to) = (object::<1>(arguments), object::<3>(arguments));
    answer(setup(), || Subject::of_both(from, to))
}

/// A `struct dentry` first, and its other name third.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_link")]
extern "C" fn fl_link(arguments: Arguments) -> i64 {
    let (from, to) = (object::<0>(arguments), object::<2>(arguments));
    answer(setup(), || Subject::of_both(from, to))
}

/// A `struct linux_binprm`: a program that is executed.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_exec")]
extern "C" fn fl_exec(arguments: Arguments) -> i64 {
    let exec = object::<0>(arguments);
    let setup = setup();
    answer(setup, || Subject::of_file(Typed::object(exec, setup.at.exec_file)))
}

/// A socket that is made, unless the kernel makes it for itself.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_make_socket")]
extern "C" fn fl_make_socket(arguments: Arguments) -> i64 {
    if number::<3>(arguments) as u32 != 0 {
        return 0;
    }
    answer(setup(), || Subject::NONE)
}

/// Nothing that is looked at; within which system call says what it is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_bare")]
extern "C" fn fl_bare(_arguments: Arguments) -> i64 {
    let setup = setup();
    let [one, other, third] = setup.rules;
    let Some(mut candidate) = candidate(setup, one | other | third) else { return 0 };
    if setup.call_count != 0 {
        let number = kernel::call(candidate.task).number;
        let mut kind = setup.other_calls;
        for (place, within) in setup.calls.iter().enumerate() {
            if (place as u32) < setup.call_count && within.number == number {
                kind = within.kind;
            }
        }
        candidate.rules &= match kind {
            0 => one,
            1 => other,
            2 => third,
            _ => 0,
        };
        if kind == NO_KIND || candidate.rules == 0 {
            return 0;
        }
    }
    verdict(setup, decide(setup, &candidate, &Subject::NONE))
}

/// A system call, with the file that its first argument may be.
#[inline(always)]
fn called(setup: &Setup, rules: u64) -> i64 {
    let Some(candidate) = candidate(setup, rules) else { return 0 };
    if setup.by_fd == 0 {
        return verdict(setup, decide(setup, &candidate, &Subject::NONE));
    }
    let [fd, ..] = kernel::call(candidate.task).arguments;
    let file = kernel::file(candidate.task, fd);
    verdict(setup, decide(setup, &candidate, &Subject::<Addressed>::of_file(file)))
}

/// In place of a system call, or before it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm/fl_call")]
extern "C" fn fl_call(_arguments: Arguments) -> i64 {
    let setup = setup();
    called(setup, setup.rules[ONLY])
}

/// The same by a kprobe.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe/fl_probed_call")]
extern "C" fn fl_probed_call(registers: *mut pt_regs) -> i64 {
    let setup = setup();
    let errno = called(setup, setup.rules[ONLY]);
    if errno != 0 {
        // SAFETY: the context the kernel called us with; the function may be overridden, or this would not be attached.
        unsafe { bpf_override_return(registers, errno.cast_unsigned()) };
    }
    0
}

/// Before any system call: its number is the second argument.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_enter")]
extern "C" fn fl_any_call(arguments: Arguments) -> i64 {
    let setup = setup();
    let Some(rules) = maps::FL_CALLS.get(number::<1>(arguments) as u32) else { return 0 };
    called(setup, *rules);
    0
}

/// The end of `vfs_read`: the file, the buffer, how much was asked for, where, and how much was read.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/fl_read")]
extern "C" fn fl_read(arguments: Arguments) -> i64 {
    let (file, buffer, read) = (object::<0>(arguments), number::<1>(arguments), number::<4>(arguments));
    spoiled(file, buffer, read.cast_signed());
    0
}

/// The end of `do_readv`: the descriptor, the buffers, how many, flags, and how much was read.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/fl_readv")]
extern "C" fn fl_readv(arguments: Arguments) -> i64 {
    spoiled_vector(number::<0>(arguments), number::<1>(arguments), number::<4>(arguments).cast_signed());
    0
}

/// The end of `do_preadv`: as above, with the place before the flags.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/fl_preadv")]
extern "C" fn fl_preadv(arguments: Arguments) -> i64 {
    spoiled_vector(number::<0>(arguments), number::<1>(arguments), number::<5>(arguments).cast_signed());
    0
}

#[inline(always)]
fn spoiled(file: Object, buffer: u64, read: i64) -> Option<()> {
    let setup = setup();
    if read <= 0 {
        return None;
    }
    let candidate = candidate(setup, setup.rules[ONLY])?;
    let fate = decide(setup, &candidate, &Subject::<Typed>::of_file(file))?;
    corrupt::corrupt(&fate, buffer, read.cast_unsigned());
    Some(())
}

/// Several buffers: the first is made wrong.
#[inline(always)]
fn spoiled_vector(fd: u64, vector: u64, read: i64) -> Option<()> {
    let setup = setup();
    if read <= 0 {
        return None;
    }
    let candidate = candidate(setup, setup.rules[ONLY])?;
    let file = kernel::file(candidate.task, fd);
    let fate = decide(setup, &candidate, &Subject::<Addressed>::of_file(file))?;
    let mut first = [0_u64; 2];
    // SAFETY: the helper checks what it reads, and writes as many bytes as there are.
    unsafe { bpf_probe_read_user(first.as_mut_ptr().cast(), 16, vector as *const core::ffi::c_void) };
    let read = read.cast_unsigned();
    corrupt::corrupt(&fate, first[0], if first[1] < read { first[1] } else { read });
    Some(())
}

/// Run by hand: writes down what the kernel knows the caller's open file by; the descriptor is the first argument.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/fl_identify")]
extern "C" fn fl_identify(arguments: Arguments) -> i64 {
    let file = kernel::file(kernel::current(), number::<0>(arguments));
    let (Some(found), false) = (maps::FL_FOUND.get_ptr_mut(0), file.is_null()) else { return 1 };
    let inode = Addressed::object(file, setup().at.file_inode);
    // SAFETY: in the map; the owner runs this for one file at a time.
    unsafe { *found = kernel::identity::<Addressed>(inode) };
    0
}
