//! Integration tests: real kernels, real traffic, real processes.
