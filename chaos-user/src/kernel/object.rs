//! The eBPF objects this binary carries, as `build.rs` left them.

use aya::include_bytes_aligned;

/// The programs that inject faults into packets and connections.
pub static FAULTS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/faultline-ebpf.o"));

/// The programs that inject faults into system calls.
pub static CALLS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calls-ebpf.o"));

/// The bare programs that `cargo xtask bench` measures them against.
pub static BASELINES: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-ebpf.o"));
