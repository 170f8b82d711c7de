//! Clocks that go wrong: of programs from their first instruction on, and what system calls say of them.

mod exec;
mod read;
mod slot;
