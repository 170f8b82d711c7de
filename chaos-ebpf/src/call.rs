//! What both halves share of faults in system calls and in what the kernel does to files for them, and the decisions
//! that are pure.
//!
//! As of packets, a set of rules is a `u64`, and times are in ticks of `jiffies_64` unless they say otherwise.

use crate::{
    abi::{Delay, MAX_LEVELS, Window},
    time::Watch,
};

/// Program names: at most 15 bytes. Each is written for what a hook passes, and loaded once for each hook that passes it.
pub mod program {
    /// A `struct file` first.
    pub const FILE: &str = "fl_file";
    /// A `struct file` first, and what is going to be done to it.
    pub const ACCESS: &str = "fl_access";
    /// A `struct dentry`, first or second.
    pub const DENTRY: [&str; 2] = ["fl_dentry0", "fl_dentry1"];
    /// A `struct path` first.
    pub const PATH: &str = "fl_path";
    /// A `struct dentry` second, and another fourth.
    pub const RENAME: &str = "fl_rename";
    /// A `struct dentry` first, and another third.
    pub const LINK: &str = "fl_link";
    /// A `struct linux_binprm` first.
    pub const EXEC: &str = "fl_exec";
    /// A socket's family, type, protocol, and whether it is the kernel's own.
    pub const SOCKET: &str = "fl_make_socket";
    /// Nothing that is looked at.
    pub const BARE: &str = "fl_bare";
    /// A system call.
    pub const CALL: &str = "fl_call";
    /// The same by a kprobe.
    pub const PROBED_CALL: &str = "fl_probed_call";
    /// The same of all system calls, as they begin.
    pub const ANY_CALL: &str = "fl_any_call";
    /// The end of `vfs_read`.
    pub const READ: &str = "fl_read";
    /// The end of `do_readv` and `do_preadv`, which read into several places.
    pub const READ_VECTOR: [&str; 2] = ["fl_readv", "fl_preadv"];
    /// A process has a child.
    pub const FORKED: &str = "fl_forked";
    /// A process is no more.
    pub const GONE: &str = "fl_gone";
    /// Run by hand: what the kernel knows a file by.
    pub const IDENTIFY: &str = "fl_identify";
}

/// Map names, where they are not those of [`abi::map`](crate::abi::map).
pub mod map {
    /// [`Place`](super::Place) by [`Inode`](super::Inode).
    pub const PLACES: &str = "FL_PLACES";
    /// [`Glob`](crate::glob::Glob) by number.
    pub const GLOBS: &str = "FL_GLOBS";
    /// [`Inode`](super::Inode): the file that was asked for last.
    pub const FOUND: &str = "FL_FOUND";
    /// Effective user id to rule set.
    pub const USERS: &str = "FL_USERS";
    /// Name of a thread, as `comm` has it, to rule set.
    pub const NAMES: &str = "FL_COMMS";
    /// Type of a file system, by its name, to rule set.
    pub const FILE_SYSTEMS: &str = "FL_FILE_SYSTEMS";
    /// Number of a device, as the kernel keeps it, to rule set.
    pub const DEVICES: &str = "FL_DEVICES";
    /// Rule set by the number of a system call, for [`program::ANY_CALL`](super::program::ANY_CALL).
    pub const CALLS: &str = "FL_CALLS";
}

/// How many system calls there are room for.
pub const CALLS: u32 = 512;

/// Most globs of one run: the bits of [`Place::globs`].
pub const MAX_GLOBS: usize = 64;

/// Bytes of a thread's name, its end included (`TASK_COMM_LEN`), and those looked at of a file system's.
pub const NAME: usize = 16;

/// A name, zeros behind it, as two words: bytes one by one are more than the verifier likes to follow.
pub type Name = [u64; NAME / 8];

/// What the kernel knows a file by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inode {
    /// `i_ino`.
    pub number: u64,
    /// `i_generation`, which tells a file from one that had its number before.
    pub generation: u32,
    /// `s_dev` of its file system.
    pub device: u32,
}

/// What is wanted of a file, or of everything beneath a directory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The rules that want it, and everything beneath.
    pub rules: u64,
    /// The globs that say which of its entries are wanted, each with everything beneath.
    pub globs: u64,
}

/// Where the running kernel keeps what: fields in bytes from the start of their types.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// Of `struct task_struct`: the process's number.
    pub task_tgid: u32,
    /// Its own.
    pub task_pid: u32,
    /// What its process has in common.
    pub task_signal: u32,
    /// Of `struct signal_struct`: how many of its threads have not begun to end.
    pub signal_live: u32,
    /// `PF_*`.
    pub task_flags: u32,
    /// Its memory.
    pub task_mm: u32,
    /// What it acts with.
    pub task_cred: u32,
    /// What it has.
    pub task_real_cred: u32,
    /// Its name.
    pub task_comm: u32,
    /// Its open files.
    pub task_files: u32,
    /// Of `struct mm_struct`: the program that was executed.
    pub mm_exe_file: u32,
    /// Of `struct cred`.
    pub cred_euid: u32,
    /// Of `struct files_struct`.
    pub files_fdt: u32,
    /// Of `struct fdtable`.
    pub fdt_fd: u32,
    /// How many.
    pub fdt_max_fds: u32,
    /// Of `struct file`.
    pub file_inode: u32,
    /// `f_path.dentry`.
    pub file_dentry: u32,
    /// `O_*`.
    pub file_flags: u32,
    /// Where the next byte is.
    pub file_pos: u32,
    /// Of `struct path`.
    pub path_dentry: u32,
    /// Of `struct dentry`.
    pub dentry_parent: u32,
    /// What it names.
    pub dentry_inode: u32,
    /// `d_name.name`.
    pub dentry_name: u32,
    /// `d_name.len`.
    pub dentry_length: u32,
    /// Its place among the names of its inode.
    pub dentry_alias: u32,
    /// Of `struct inode`.
    pub inode_sb: u32,
    /// `i_ino`.
    pub inode_number: u32,
    /// `i_generation`.
    pub inode_generation: u32,
    /// Type and permissions.
    pub inode_mode: u32,
    /// Length in bytes.
    pub inode_size: u32,
    /// Its names.
    pub inode_names: u32,
    /// Of `struct super_block`.
    pub sb_dev: u32,
    /// Its type.
    pub sb_type: u32,
    /// Of `struct file_system_type`.
    pub type_name: u32,
    /// Of `struct linux_binprm`.
    pub exec_file: u32,
    /// Of `struct mm_struct`: where the vDSO lies. This and what follows are found for faults in clocks alone.
    pub mm_vdso: u32,
    /// Which it is.
    pub mm_vdso_image: u32,
    /// Of `struct vdso_image`: how long it is.
    pub image_size: u32,
}

/// Constants of one program at one hook: what the verifier sees here it uses to remove the branches it does not need.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The rules of the hook, by [`kind`].
    pub rules: [u64; 3],
    /// Rules that any process satisfies but the first and the kernel's own.
    pub any_owner: u64,
    /// Rules that any file satisfies, and none.
    pub any_place: u64,
    /// Rules that any user satisfies.
    pub any_user: u64,
    /// Rules that any thread satisfies.
    pub any_name: u64,
    /// Rules that any file system satisfies.
    pub any_file_system: u64,
    /// Rules that any device satisfies.
    pub any_device: u64,
    /// Which numbers of inodes are wanted, by their last six bits.
    pub numbers: u64,
    /// The only cgroup that rules want, if it is the only one; then it is not looked up.
    pub cgroup: u64,
    /// The rules that want it.
    pub of_cgroup: u64,
    /// The injector's own program, and the loader of programs it is linked with: never hit.
    pub exempt: [Inode; 2],
    /// The owner's tgid.
    pub owner_tgid: u32,
    /// What any rule does here, a set of [`effect`] bits.
    pub effects: u32,
    /// 1 if rules want processes.
    pub processes: u32,
    /// How many `levels` there are.
    pub level_count: u32,
    /// How deep the cgroups are that rules want, the root being 0; a level each.
    pub levels: [u8; MAX_LEVELS],
    /// System calls within which the hook is that of these rules alone.
    pub calls: [Within; MAX_CALLS],
    /// How many `calls` there are.
    pub call_count: u32,
    /// What becomes of other system calls: [`NO_KIND`] for nothing, or a [`kind`].
    pub other_calls: u32,
    /// 1 if a system call's first argument is an open file.
    pub by_fd: u32,
    /// 1 if rules want what globs match.
    pub globs: u32,
    /// 1 if rules ask for a system call's arguments.
    pub asks: u32,
    /// 1 if there is one rule alone.
    pub single: u32,
    /// Of faults in clocks.
    pub watch: Watch,
    /// Where the running kernel keeps what.
    pub at: Offsets,
}

/// Most system calls that one hook tells apart.
pub const MAX_CALLS: usize = 4;

/// A system call, and what the hook is within it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    /// Its number.
    pub number: u32,
    /// A [`kind`], or [`NO_KIND`].
    pub kind: u32,
}

/// Nothing: the hook is passed by.
pub const NO_KIND: u32 = 3;

/// What a hook is asked for, where one is for several operations: the places of [`Setup::rules`].
pub mod kind {
    /// Reading, and whatever else a hook is for.
    pub const READ: usize = 0;
    /// Writing.
    pub const WRITE: usize = 1;
    /// Reading a directory.
    pub const LIST: usize = 2;
}

/// Bits of [`Rule::effects`].
pub mod effect {
    /// The call fails with [`Rule::errno`](super::Rule::errno).
    pub const FAIL: u32 = 1 << 0;
    /// It takes longer.
    pub const WAIT: u32 = 1 << 1;
    /// Only if the file would grow.
    pub const GROWTH: u32 = 1 << 2;
    /// What was read is made wrong: bits of it are turned over.
    pub const FLIP: u32 = 1 << 3;
    /// It becomes zeros.
    pub const ZERO: u32 = 1 << 4;
    /// It becomes anything.
    pub const SCRAMBLE: u32 = 1 << 5;
    /// Any of these.
    pub const CORRUPT: u32 = FLIP | ZERO | SCRAMBLE;
}

/// An argument of a system call: taken if, of the bits of `mask`, it has those of `value` and no others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Argument {
    /// Which bits are looked at; none takes everything.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// How many arguments a system call has at most.
pub const ARGUMENTS: usize = 6;

/// What a rule does, and until when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule does nothing from here on; [`u64::MAX`] leaves the end to the lease alone.
    pub expires_at: u64,
    /// Which calls, by their order.
    pub window: Window,
    /// Its random numbers, see [`nth`].
    pub seed: u64,
    /// What it does, a set of [`effect`] bits.
    pub effects: u32,
    /// The chance of each, see [`decide::fires`](crate::decide::fires).
    pub chance: u32,
    /// Why it fails: the errno below zero, as the kernel returns it.
    pub errno: i64,
    /// How long it waits.
    pub delay: Delay,
    /// How many bytes of what was read become wrong.
    pub bytes: u32,
    /// Where in what was read they begin; [`ANYWHERE`] for a place by chance.
    pub offset: u32,
    /// `O_*` that a file must have been opened with.
    pub flags: u32,
    /// 1 if `arguments` ask for anything.
    pub asks: u32,
    /// What a system call's arguments must be.
    pub arguments: [Argument; ARGUMENTS],
}

/// [`Rule::offset`] of a place by chance.
pub const ANYWHERE: u32 = u32::MAX;

/// Most bytes that are made wrong by one call.
pub const MOST_BYTES: u32 = 65_536;

/// Longest a call can be made to wait, in nanoseconds: that is how long the loop that waits can go on.
pub const LONGEST_WAIT: u64 = 2_000_000_000;

impl Rule {
    /// Does nothing to any call.
    pub const NOTHING: Self = Self {
        expires_at: u64::MAX,
        window: Window::ALL,
        seed: 0,
        effects: 0,
        chance: crate::decide::ALWAYS,
        errno: 0,
        delay: Delay { time: 0, jitter: 0, correlation: 0, table: 0, entries: 0, pad: 0 },
        bytes: 0,
        offset: ANYWHERE,
        flags: 0,
        asks: 0,
        arguments: [Argument { mask: 0, value: 0 }; ARGUMENTS],
    };
}

const _: () = assert!(size_of::<Inode>() == 16);
const _: () = assert!(size_of::<Place>() == 16);
const _: () = assert!(size_of::<Offsets>() == 152);
const _: () = assert!(size_of::<Setup>() == 384);
const _: () = assert!(size_of::<Argument>() == 16);
const _: () = assert!(size_of::<Rule>() == 200);

#[cfg(feature = "user")]
mod pod {
    use super::{Inode, Place, Rule, Setup};
    use crate::glob::Glob;

    // SAFETY: `#[repr(C)]`, integers only, and the sizes asserted above leave no padding.
    unsafe impl aya::Pod for Inode {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Setup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rule {}
    // SAFETY: `#[repr(C)]`, `u64`s only.
    unsafe impl aya::Pod for Glob {}
}

/// The random number of a rule's `n`-th call: the same in every run with that seed, whichever CPU it is made on.
///
/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014), which needs no state but its place in the sequence.
#[inline(always)]
#[must_use]
pub fn nth(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether the arguments are those a rule wants.
#[inline(always)]
#[must_use]
pub fn takes(wanted: &[Argument; ARGUMENTS], arguments: &[u64; ARGUMENTS]) -> bool {
    let mut wrong = 0;
    // Without a branch for each, for the verifier.
    for place in 0..ARGUMENTS {
        wrong |= (arguments[place] & wanted[place].mask) ^ wanted[place].value;
    }
    wrong == 0
}

/// Whether so many bytes at this place of a file end behind its last.
#[inline(always)]
#[must_use]
pub fn grows(position: u64, count: u64, size: u64) -> bool {
    count != 0 && position.saturating_add(count) > size
}

/// Where `bytes` wrong bytes begin in what was read, and how many there are: of `length` bytes there may be fewer.
#[inline(always)]
#[must_use]
pub fn part(length: u64, bytes: u32, offset: u32, random: u64) -> (u64, u64) {
    let bytes = u64::from(bytes);
    let bytes = if bytes < length { bytes } else { length };
    let room = length - bytes;
    let start = if offset == ANYWHERE {
        // The high half of a product: evenly over all places, without a division.
        ((random >> 32) * (room + 1)) >> 32
    } else {
        u64::from(offset)
    };
    if start >= length {
        return (length, 0);
    }
    let left = length - start;
    (start, if bytes < left { bytes } else { left })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2^20 numbers of each of several seeds: the mean bit within 4.9 standard deviations, which a fair generator
    /// misses once in a million. The seeds are fixed: this passes always or never.
    #[test]
    fn numbers_are_fair_and_repeat() {
        for seed in [0, 1, 42, u64::MAX] {
            let low = (0..1 << 20).filter(|n| nth(seed, *n) as u32 & 1 == 1).count() as f64;
            assert!((low - 524_288.0).abs() < 4.9 * 512.0, "{seed}: {low}");
        }
        assert_eq!(nth(7, 9), nth(7, 9));
        assert_ne!(nth(7, 9), nth(8, 9));
    }

    #[test]
    fn arguments() {
        let none = [Argument::default(); ARGUMENTS];
        assert!(takes(&none, &[1, 2, 3, 4, 5, 6]));
        let mut wanted = none;
        wanted[0] = Argument { mask: u64::MAX, value: 3 };
        wanted[1] = Argument { mask: 0x40, value: 0x40 };
        assert!(takes(&wanted, &[3, 0x241, 0, 0, 0, 0]));
        assert!(!takes(&wanted, &[3, 0x201, 0, 0, 0, 0]) && !takes(&wanted, &[4, 0x241, 0, 0, 0, 0]));
    }

    #[test]
    fn what_makes_a_file_grow() {
        assert!(grows(0, 1, 0) && grows(5, 6, 10) && grows(u64::MAX, 1, 10));
        assert!(!grows(5, 5, 10) && !grows(10, 0, 10) && !grows(100, 0, 10));
    }

    proptest! {
        /// Never beyond what was read, and as many as there is room for.
        #[test]
        fn parts(length in 0u64..1 << 31, bytes in 1u32..=MOST_BYTES, offset: u32, random: u64) {
            for offset in [offset, offset % 100, ANYWHERE] {
                let (start, count) = part(length, bytes, offset, random);
                prop_assert!(start + count <= length);
                if offset == ANYWHERE {
                    prop_assert_eq!(count, u64::from(bytes).min(length));
                }
            }
        }
    }
}
