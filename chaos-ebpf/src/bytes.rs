//! Bytes of a packet, wherever they lie.

use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};

/// Reads some; `None` if the packet ends before.
#[inline(always)]
pub(crate) fn load<T>(context: &TcContext, offset: u32, to: &mut T) -> Option<()> {
    let length = size_of::<T>() as u32;
    let to = core::ptr::from_mut(to).cast();
    // SAFETY: the context the kernel called us with, and so many bytes to write to.
    let done = unsafe { bpf_skb_load_bytes(context.skb.skb.cast(), offset, to, length) };
    (done == 0).then_some(())
}

/// Writes some, with what the kernel knows of the packet's sum put right, but no checksum within it.
#[inline(always)]
pub(crate) fn store<T>(context: &TcContext, offset: u32, from: &T) -> Option<()> {
    let length = size_of::<T>() as u32;
    let from = core::ptr::from_ref(from).cast();
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
    // SAFETY: the context the kernel called us with, and so many bytes to read from.
    let done = unsafe { bpf_skb_store_bytes(context.skb.skb, offset, from, length, flags) };
    (done == 0).then_some(())
}
