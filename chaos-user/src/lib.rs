//! Faultline: fault injection from inside the Linux kernel, gone the moment its owner is gone.

pub mod cli;
pub mod fault;
pub mod host;
pub mod kernel;
pub mod session;
pub mod spec;
pub mod target;
