//! Faultline.
pub mod kernel;
pub mod fault;
pub mod spec;
pub mod target;
