//! The kernel's own structures, by offsets that the owner has taken from its BTF.
//!
//! What a hook hands over, and what is reached from there field by field, the verifier knows the types of: it is read
//! directly. An address that was computed it does not know: that is read by a helper.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::{pt_regs, task_struct},
    helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
};
use chaos_ebpf::{
    call::{ARGUMENTS, Inode, Setup},
    field::at,
};

/// Some structure of the kernel's.
pub(crate) type Object = *const u8;

/// Written by the owner before each load; see [`setup`].
#[unsafe(no_mangle)]
// SAFETY: integers only, for which all zero is a value.
static FL_SETUP: Setup = unsafe { core::mem::zeroed() };

/// The load's constants. LLVM must not see that they are all zero here; the verifier sees what they became.
#[inline(always)]
pub(crate) fn setup() -> &'static Setup {
    black_box(&FL_SETUP)
}

/// A way to read a structure.
pub(crate) trait Reach {
    /// Whether the verifier knows the types.
    const IS_TYPED: bool;
    /// A pointer in it.
    fn object(from: Object, offset: u32) -> Object;
    /// A number in it.
    fn long(from: Object, offset: u32) -> u64;
    /// A shorter one.
    fn int(from: Object, offset: u32) -> u32;
    /// The shortest there are.
    fn short(from: Object, offset: u32) -> u16;
}

/// Of a type that the verifier knows. The offsets are those of the running kernel's BTF, which it checks.
pub(crate) struct Typed;

impl Reach for Typed {
    const IS_TYPED: bool = true;

    #[inline(always)]
    fn object(from: Object, offset: u32) -> Object {
        // SAFETY: the verifier checks it, and the kernel survives an address that is none any more.
        unsafe { *from.add(at(offset)).cast::<Object>() }
    }

    #[inline(always)]
    fn long(from: Object, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { *from.add(at(offset)).cast::<u64>() }
    }

    #[inline(always)]
    fn int(from: Object, offset: u32) -> u32 {
        // SAFETY: as above.
        unsafe { *from.add(at(offset)).cast::<u32>() }
    }

    #[inline(always)]
    fn short(from: Object, offset: u32) -> u16 {
        // SAFETY: as above.
        unsafe { *from.add(at(offset)).cast::<u16>() }
    }
}

/// At an address.
pub(crate) struct Addressed;

impl Reach for Addressed {
    const IS_TYPED: bool = false;

    #[inline(always)]
    fn object(from: Object, offset: u32) -> Object {
        Self::long(from, offset) as Object
    }

    #[inline(always)]
    fn long(from: Object, offset: u32) -> u64 {
        read(from as u64 + at(offset) as u64)
    }

    #[inline(always)]
    fn int(from: Object, offset: u32) -> u32 {
        read(from as u64 + at(offset) as u64)
    }

    #[inline(always)]
    fn short(from: Object, offset: u32) -> u16 {
        read(from as u64 + at(offset) as u64)
    }
}

/// What lies at an address; zeros where nothing does.
#[inline(always)]
fn read<T: Default>(address: u64) -> T {
    let mut value = T::default();
    let size = size_of::<T>() as u32;
    // SAFETY: the helper checks what it reads, and writes as many bytes as there are.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size, address as *const c_void) };
    value
}

/// The task that runs.
#[inline(always)]
pub(crate) fn current() -> Object {
    // SAFETY: takes nothing; the task is the current one and stays.
    unsafe { bpf_get_current_task_btf() }.cast_const().cast()
}

/// What the kernel knows this inode by.
#[inline(always)]
pub(crate) fn identity<R: Reach>(inode: Object) -> Inode {
    let at = &setup().at;
    Inode {
        number: R::long(inode, at.inode_number),
        generation: R::int(inode, at.inode_generation),
        device: R::int(R::object(inode, at.inode_sb), at.sb_dev),
    }
}

/// A system call as it was made.
pub(crate) struct Call {
    /// Its number.
    pub(crate) number: u32,
    /// Its arguments.
    pub(crate) arguments: [u64; ARGUMENTS],
}

/// The system call that a task is in. System V ABI, AMD64 supplement, section A.2.1.
#[inline(always)]
pub(crate) fn call(task: Object) -> Call {
    // SAFETY: the current task; the kernel keeps its registers at the end of its stack.
    let registers = unsafe { bpf_task_pt_regs(task.cast_mut().cast::<task_struct>()) } as *const pt_regs;
    // SAFETY: as above; the verifier knows their type.
    let pt_regs { orig_rax, rdi, rsi, rdx, r10, r8, r9, .. } = unsafe { &*registers };
    Call { number: *orig_rax as u32, arguments: [*rdi, *rsi, *rdx, *r10, *r8, *r9] }
}

/// The file a task has under this number, by its address; 0 for none.
#[inline(always)]
pub(crate) fn file(task: Object, fd: u64) -> Object {
    let at = &setup().at;
    let files = Typed::object(task, at.task_files);
    if files.is_null() {
        return core::ptr::null();
    }
    let table = Typed::object(files, at.files_fdt);
    let fd = fd & 0xffff_ffff;
    if fd >= u64::from(Typed::int(table, at.fdt_max_fds)) {
        return core::ptr::null();
    }
    let array = Typed::long(table, at.fdt_fd);
    read::<u64>(array + 8 * fd) as Object
}
