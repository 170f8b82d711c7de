//! What to write into a vDSO, and where.

use std::ops::Range;

use chaos_ebpf::time::{Block, slot_of};

use super::{Function, Image, Machine, VdsoError, aarch64::Aarch64, block, x86_64::X86_64};

/// The start of a body. Its last byte is the version of what follows.
const MAGIC: [u8; 8] = *b"fltlVDS\x01";
/// Where the parts of a body's header lie: magic, token, sequence number, kind, slots of the clocks, two blocks.
const TOKEN: usize = MAGIC.len();
pub(super) const SEQ: usize = TOKEN + 8;
const KIND: usize = SEQ + 1;
pub(super) const SLOTS: usize = KIND + 1;
pub(super) const BLOCKS: usize = 32;
/// How long it is; the code follows.
pub(super) const HEADER: usize = BLOCKS + 2 * block::LEN;
/// How many clocks have a place in the header. What is there is half of where the slot's line lies among the lines, or
/// [`UNSKEWED`].
pub(super) const CLOCKS: usize = libc::CLOCK_TAI as usize + 1;
/// Of a clock that has no slot. All others are below 128.
const UNSKEWED: u8 = u8::MAX;

/// What becomes of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each makes the system call, so that whoever hooks that hits it.
    Call = 1,
    /// Each adds to what it would have told, as the [`Block`] in force says.
    Skew = 2,
}

/// Bytes to be written, and what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where, from the start of the mapping.
    pub offset: usize,
    /// What is there in a vDSO that is not patched.
    pub original: Vec<u8>,
    /// What is to be there, as long as the original.
    pub bytes: Vec<u8>,
}

impl Piece {
    fn new(image: &Image, offset: usize, bytes: Vec<u8>) -> Self {
        let original = image.bytes[offset..offset + bytes.len()].to_vec();
        Self { offset, original, bytes }
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes.len()
    }
}

/// The code of a machine.
pub(super) trait Stubs {
    /// Of a patch whose body lies at `body`: what follows its header, and what leads there.
    fn build(&self, image: &Image, kind: Kind, body: usize) -> Result<Code, VdsoError>;
    /// Where a function goes at once, if it begins with a jump.
    fn target(&self, image: &Image, function: &Function) -> Option<usize>;
    /// Whether it begins as one of [`Kind::Call`] that needs no body.
    fn is_call(&self, image: &Image, function: &Function) -> bool;
}

/// What a machine's [`Stubs`] make.
pub(super) struct Code {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

/// The changed start of a function.
pub(super) struct Entry {
    /// From its first byte to the end of the last instruction that is changed.
    pub(super) cut: Range<usize>,
    /// At most 8, from there on.
    pub(super) bytes: Vec<u8>,
}

fn stubs(machine: Machine) -> &'static dyn Stubs {
    match machine {
        Machine::X86_64 => &X86_64,
        Machine::Aarch64 => &Aarch64,
    }
}

/// The token of the body that a slack begins with.
pub(super) fn token(slack: &[u8]) -> Option<u64> {
    let token = slack.strip_prefix(&MAGIC)?.first_chunk()?;
    Some(u64::from_le_bytes(*token))
}

/// Whether a function begins as a patch has it, in an image whose slack begins with a body or not.
pub(super) fn is_ours(image: &Image, function: &Function, body: bool) -> bool {
    let stubs = stubs(image.machine);
    let away = stubs.target(image, function).is_some_and(|target| image.slack.contains(&target));
    away || (body && stubs.is_call(image, function))
}

/// A patch of one image. The order of the writes is [`body`](Self::body), [`renewal`](Self::renewal), then each of
/// [`entries`](Self::entries) while no thread is within [`text`](Self::text). To take it back: [`off`](Self::off),
/// then the entries' originals, under the same condition. The body may then be read by threads that were held up in
/// it, or that have called the original function from it and will return there. So it stays, unless no thread has an
/// address of the vDSO in a register or on its stack; [`Image::parse`] counts it as room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    kind: Kind,
    token: u64,
    body: Piece,
    entries: Vec<Piece>,
    cuts: Vec<Range<usize>>,
    functions: Vec<&'static str>,
    length: usize,
}

impl Image {
    /// The patch of this image in the name of run `token`. Its blocks skew nothing, and its sequence number is 0.
    ///
    /// # Errors
    ///
    /// Where the body has no room, or the start of a function cannot be moved there.
    pub fn patch(&self, kind: Kind, token: u64) -> Result<Patch, VdsoError> {
        self.tried()?;
        Patch::new(self, kind, token)
    }
}

impl Patch {
    pub(super) fn new(image: &Image, kind: Kind, token: u64) -> Result<Self, VdsoError> {
        let start = image.slack.start;
        let code = stubs(image.machine).build(image, kind, start)?;
        let mut body = header(kind, token);
        body.extend(code.bytes);
        let (needed, there) = (body.len(), image.slack.len());
        if needed > there {
            return Err(VdsoError::Slack { needed, there });
        }
        let cuts = code.entries.iter().map(|entry| entry.cut.clone()).collect();
        let entries = code.entries.into_iter();
        let entries = entries.map(|entry| Piece::new(image, entry.cut.start, entry.bytes)).collect();
        let functions = image.functions.all().map(|function| function.name).collect();
        let body = Piece::new(image, start, body);
        Ok(Self { kind, token, body, entries, cuts, functions, length: image.bytes.len() })
    }

    /// What becomes of the functions.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose it is.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Parameters and code, which lie in the slack and are written first.
    #[must_use]
    pub fn body(&self) -> &Piece {
        &self.body
    }

    /// What its body begins with, which no other has.
    #[must_use]
    pub fn mark(&self) -> &[u8] {
        &self.body.bytes[..SEQ]
    }

    /// Bytes of the whole vDSO.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The functions that are changed.
    pub fn functions(&self) -> impl Iterator<Item = &'static str> {
        self.functions.iter().copied()
    }

    /// The starts of the functions, at most 8 bytes each, to be written in one go each.
    #[must_use]
    pub fn entries(&self) -> &[Piece] {
        &self.entries
    }

    /// Where the body lies.
    #[must_use]
    pub fn body_range(&self) -> Range<usize> {
        self.body.range()
    }

    /// Where no thread may be, nor return to, while the entries are changed: within the changed instructions, their
    /// first bytes excepted.
    #[must_use]
    pub fn text(&self) -> Vec<Range<usize>> {
        let within = |cut: &Range<usize>| cut.start + 1..cut.end;
        self.cuts.iter().map(within).filter(|range| !range.is_empty()).collect()
    }

    /// Where the sequence number lies, one byte: block `seq & 1` is in force.
    #[must_use]
    pub fn seq_offset(&self) -> usize {
        self.body.offset + SEQ
    }

    /// The writes that put a block in force, in their order, where `seq` is the sequence number so far.
    #[must_use]
    pub fn renewal(&self, seq: u8, block: &Block) -> [(usize, Vec<u8>); 2] {
        let next = seq.wrapping_add(1);
        [(self.block_offset(next), block::to_bytes(block).to_vec()), (self.seq_offset(), vec![next])]
    }

    /// The writes after which nothing is skewed any more. They are of zeros over two numbers that only get smaller by
    /// that, so neither their order nor a write that is seen in parts matters.
    #[must_use]
    pub fn off(&self) -> Vec<(usize, Vec<u8>)> {
        [0, 1].map(|seq| (self.block_offset(seq), vec![0; size_of::<u64>()])).to_vec()
    }

    fn block_offset(&self, seq: u8) -> usize {
        self.body.offset + BLOCKS + usize::from(seq & 1) * block::LEN
    }
}

fn header(kind: Kind, token: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(MAGIC);
    bytes.extend(token.to_le_bytes());
    bytes.extend([0, kind as u8]);
    let place = |clock| slot_of(clock).map_or(UNSKEWED, |slot| (slot * block::LINE_LEN / 2) as u8);
    bytes.extend((0..CLOCKS as u32).map(place));
    bytes.resize(HEADER, 0);
    bytes
}
