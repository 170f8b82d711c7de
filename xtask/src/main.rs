//! The only scripts: build, demo, test, bench.

fn main() {}
