//! Baselines.
#![no_std]
#![no_main]
use aya_ebpf::{macros::xdp, programs::XdpContext};
#[xdp]
pub fn fl_bare_drop(_context: XdpContext) -> u32 {
    1
}
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
