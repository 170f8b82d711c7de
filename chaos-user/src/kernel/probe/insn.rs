//! Programs by hand: the few instructions the probes are made of.

use std::{
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_ATOMIC, BPF_CALL, BPF_DW, BPF_EXIT, BPF_JMP, BPF_JNE, BPF_K, BPF_LD, BPF_MEM,
    BPF_MOV, BPF_PSEUDO_FUNC, BPF_PSEUDO_MAP_VALUE, BPF_ST, BPF_STX, BPF_X, bpf_func_id, bpf_insn,
};

/// A register: 0 is the result, 1 to 5 the arguments, 6 to 9 are kept across calls, 10 is the stack.
pub type Register = u8;

/// A program in the making.
#[derive(Debug, Default)]
pub struct Code(Vec<bpf_insn>);

impl Code {
    /// `to = number`.
    pub fn set(self, to: Register, number: i32) -> Self {
        self.push(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, number)
    }

    /// `to = from`.
    pub fn copy(self, to: Register, from: Register) -> Self {
        self.push(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)
    }

    /// `to = from + number`.
    pub fn add(self, to: Register, number: i32) -> Self {
        self.push(BPF_ALU64 | BPF_K, to, 0, 0, number)
    }

    /// `to = number`, all 64 bits of it.
    pub fn set_wide(self, to: Register, number: u64) -> Self {
        self.wide(to, 0, number as u32, (number >> 32) as u32)
    }

    /// `to = &map[0]`, of an array.
    pub fn set_value(self, to: Register, map: BorrowedFd<'_>) -> Self {
        self.wide(to, BPF_PSEUDO_MAP_VALUE, map.as_raw_fd() as u32, 0)
    }

    /// `to = the function that begins at this instruction`.
    pub fn set_function(self, to: Register, at: u32) -> Self {
        // Counted, as in a jump, from the instruction behind this one's first half.
        let distance = at.wrapping_sub(self.0.len() as u32 + 1);
        self.wide(to, BPF_PSEUDO_FUNC, distance, 0)
    }

    /// `*(u64 *)(to + offset) = number`.
    pub fn store(self, to: Register, offset: i16, number: i32) -> Self {
        self.push(BPF_ST | BPF_MEM | BPF_DW, to, 0, offset, number)
    }

    /// `*(u64 *)(to + offset) = from`.
    pub fn store_register(self, to: Register, offset: i16, from: Register) -> Self {
        self.push(BPF_STX | BPF_MEM | BPF_DW, to, from, offset, 0)
    }

    /// `*(u64 *)(to + offset) += from`, whoever else does so at the same time.
    pub fn add_to(self, to: Register, offset: i16, from: Register) -> Self {
        self.push(BPF_STX | BPF_ATOMIC | BPF_DW, to, from, offset, BPF_ADD.cast_signed())
    }

    /// Calls a helper.
    pub fn call(self, helper: bpf_func_id) -> Self {
        self.push(BPF_JMP | BPF_CALL, 0, 0, 0, helper as i32)
    }

    /// Runs `then` only if the registers are equal.
    pub fn if_equal(self, left: Register, right: Register, then: Self) -> Self {
        let skip = then.0.len() as i16;
        self.push(BPF_JMP | BPF_JNE | BPF_X, left, right, skip, 0).then(then)
    }

    /// Goes on with `next`.
    pub fn then(mut self, next: Self) -> Self {
        self.0.extend(next.0);
        self
    }

    /// Returns `number`.
    pub fn exit(self, number: i32) -> Self {
        self.set(0, number).push(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
    }

    /// Returns what the last helper returned.
    pub fn exit_with_result(self) -> Self {
        self.push(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
    }

    /// The instructions.
    pub fn as_slice(&self) -> &[bpf_insn] {
        &self.0
    }

    fn wide(self, to: Register, kind: u32, low: u32, high: u32) -> Self {
        self.push(BPF_LD | BPF_DW, to, kind as u8, 0, low.cast_signed()).push(0, 0, 0, 0, high.cast_signed())
    }

    fn push(mut self, code: u32, to: Register, from: Register, off: i16, imm: i32) -> Self {
        let _bitfield_1 = bpf_insn::new_bitfield_1(to, from);
        self.0.push(bpf_insn { code: code as u8, _bitfield_align_1: [], _bitfield_1, off, imm });
        self
    }
}

const _: () = assert!(offset_of!(bpf_insn, imm) == 4 && size_of::<bpf_insn>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    /// Opcodes as the kernel's `bpf_insn.h` has them.
    #[test]
    fn opcodes() {
        let code = Code::default()
            .set(1, -1)
            .copy(2, 10)
            .add(2, -8)
            .set_wide(3, 0x1_0000_0002)
            .store(10, -8, 7)
            .store_register(10, -16, 6)
            .add_to(10, -8, 6)
            .call(bpf_func_id::BPF_FUNC_get_current_pid_tgid)
            .if_equal(0, 3, Code::default().set(4, 0).set(5, 0))
            .exit(0);
        let seen: Vec<(u8, u8, u8, i16, i32)> = code
            .as_slice()
            .iter()
            .map(|insn| (insn.code, insn.dst_reg(), insn.src_reg(), insn.off, insn.imm))
            .collect();
        let expected = [
            (0xb7, 1, 0, 0, -1),
            (0xbf, 2, 10, 0, 0),
            (0x07, 2, 0, 0, -8),
            (0x18, 3, 0, 0, 2),
            (0x00, 0, 0, 0, 1),
            (0x7a, 10, 0, -8, 7),
            (0x7b, 10, 6, -16, 0),
            (0xdb, 10, 6, -8, 0),
            (0x85, 0, 0, 0, 14),
            (0x5d, 0, 3, 2, 0),
            (0xb7, 4, 0, 0, 0),
            (0xb7, 5, 0, 0, 0),
            (0xb7, 0, 0, 0, 0),
            (0x95, 0, 0, 0, 0),
        ];
        assert_eq!(seen, expected);
    }
}
