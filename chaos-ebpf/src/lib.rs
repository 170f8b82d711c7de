//! What the programs in the kernel and the owner in user space agree on, and the decisions the programs make.
//!
//! Everything here is `no_std`, free of helpers and maps, and tested on the host: [`abi`] holds the shared
//! types and names, [`packet`] finds the headers, [`question`] what a DNS query asks for,
//! [`classify`](mod@classify) finds the rules that match, and [`decide`] says whether a rule fires;
//! [`background`] knows the packets that come by themselves. [`corruption`] and
//! [`tcp`] say what becomes of the packet's bytes. [`call`] has the same of faults in system calls, [`glob`] the names of
//! their files, and [`time`] has the same of faults in clocks. [`field`] is where the kernel's own structures are read.

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod background;
pub mod call;
pub mod classify;
pub mod corruption;
pub mod decide;
pub mod field;
pub mod figures;
pub mod glob;
pub mod packet;
pub mod question;
pub mod tcp;
pub mod time;
