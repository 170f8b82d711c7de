//! Whether a write makes its file longer. The hook that is asked about writes is told neither how much is written nor
//! where: the system call's own arguments say that.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use chaos_ebpf::call::{self, Setup};

use crate::{
    kernel::{Call, Object, Reach, Typed},
    subject::Subject,
};

/// The x86-64 system calls that write.
mod number {
    pub(super) const WRITE: u32 = 1;
    pub(super) const PWRITE: u32 = 18;
    pub(super) const WRITEV: u32 = 20;
    pub(super) const SENDFILE: u32 = 40;
    pub(super) const SPLICE: u32 = 275;
    pub(super) const FALLOCATE: u32 = 285;
    pub(super) const PWRITEV: u32 = 296;
    pub(super) const COPY_FILE_RANGE: u32 = 326;
    pub(super) const PWRITEV2: u32 = 328;
}

const O_APPEND: u32 = 0o2000;
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;

/// `FALLOC_FL_KEEP_SIZE`: room is taken, and the length stays.
const KEEP_SIZE: u64 = 1;

/// Whether the file would grow. Where it cannot be told, as of `io_uring`, that is taken for yes.
#[inline(always)]
pub(crate) fn grows<R: Reach>(setup: &Setup, subject: &Subject<R>, made: &Call) -> bool {
    let at = &setup.at;
    let Subject { file, inode, .. } = *subject;
    // Without an inode there is no file either.
    if inode.is_null() {
        return true;
    }
    if R::short(inode, at.inode_mode) & S_IFMT != S_IFREG {
        return false;
    }
    let size = R::long(inode, at.inode_size);
    let appends = R::int(file, at.file_flags) & O_APPEND != 0;
    let current = if appends { size } else { R::long(file, at.file_pos) };
    let [_, second, third, fourth, fifth, _] = made.arguments;
    let (position, count) = match made.number {
        number::WRITE => (current, third),
        number::PWRITE => (if appends { size } else { fourth }, third),
        number::WRITEV => (current, total(second, third)),
        number::PWRITEV => (if appends { size } else { fourth }, total(second, third)),
        number::PWRITEV2 => {
            (if appends || fourth == u64::MAX { current } else { fourth }, total(second, third))
        }
        number::SENDFILE => (current, fourth),
        number::SPLICE | number::COPY_FILE_RANGE => (given(fourth, current), fifth),
        // Room is asked for: there is none, whether it is in the file or behind it.
        number::FALLOCATE => return second & !KEEP_SIZE == 0 && (second != 0 || third + fourth > size),
        _ => return true,
    };
    call::grows(position, count, size)
}

/// The offset at this address of the program's, or where it is if there is none.
#[inline(always)]
fn given(address: u64, current: u64) -> u64 {
    if address == 0 { current } else { read::<u64>(address) }
}

#[inline(always)]
fn read<T: Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks what it reads, and writes as many bytes as there are.
    unsafe { bpf_probe_read_user((&raw mut value).cast(), size_of::<T>() as u32, address as *const c_void) };
    value
}

/// Several buffers, being added up.
struct Sum {
    vector: u64,
    count: u64,
    bytes: u64,
}

/// How many bytes so many `struct iovec` are.
#[inline(never)]
fn total(vector: u64, count: u64) -> u64 {
    /// `UIO_MAXIOV`.
    const MOST: u32 = 1024;
    let mut sum = Sum { vector, count, bytes: 0 };
    let callback = add as unsafe extern "C" fn(u32, *mut Sum) -> i64;
    // SAFETY: the function takes what it is given, which lives until the call is over.
    unsafe { bpf_loop(MOST, callback as *mut c_void, (&raw mut sum).cast(), 0) };
    sum.bytes
}

unsafe extern "C" fn add(place: u32, sum: *mut Sum) -> i64 {
    // SAFETY: as the caller of `bpf_loop` warrants.
    let sum = unsafe { &mut *sum };
    if u64::from(place) >= sum.count {
        return 1;
    }
    // The length is the second half.
    sum.bytes = sum.bytes.wrapping_add(read::<u64>(sum.vector + 16 * u64::from(place) + 8));
    0
}

/// Whether it is one.
#[inline(always)]
pub(crate) fn is_directory(setup: &Setup, inode: Object) -> bool {
    Typed::short(inode, setup.at.inode_mode) & S_IFMT == S_IFDIR
}
