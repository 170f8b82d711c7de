//! Faultline.
pub mod kernel;
