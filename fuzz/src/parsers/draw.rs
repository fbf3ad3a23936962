//! Choices drawn from a fuzzer's bytes. When the bytes are used up, every choice is the first one,
//! so that a case which is cut anywhere is still a valid case.

use arbitrary::Unstructured;

/// Numbers near which code often fails.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    63,
    64,
    127,
    128,
    255,
    256,
    4095,
    4096,
    65_535,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

/// Pieces of text on which code often fails.
const PIECES: [&str; 28] = [
    "",
    "a",
    "acme-1",
    "main.js",
    "x.json",
    "t.txt",
    "\"",
    "\\",
    "\\u0041",
    "\\ud83d\\ude00",
    "\\ud800",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "ä",
    "\u{1f600}",
    "\u{feff}",
    "%",
    "%00",
    "%ff",
    "%2e%2e",
    "../",
    "{}",
    "[]",
    "null",
    "1e999",
    "-0",
];

/// Draws that cannot fail.
pub(super) trait Draw<'a> {
    /// A number below `bound`, or 0 if `bound` is 0.
    fn below(&mut self, bound: usize) -> usize;
    /// A number, often one of [`EDGES`] or next to one.
    fn number(&mut self) -> u64;
    /// At most `most` of the bytes that follow.
    fn take(&mut self, most: usize) -> &'a [u8];
    /// All bytes that are left.
    fn rest(&mut self) -> &'a [u8];

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// True once in `times`.
    fn rarely(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        let index = self.below(from.len());
        &from[index]
    }

    /// A text of at most `most` pieces.
    fn text(&mut self, most: usize) -> String {
        let pieces = self.below(most + 1);
        (0..pieces)
            .map(|_| match self.below(4) {
                0 => String::from_utf8_lossy(self.take(6)).into_owned(),
                1 => char::from_u32(u32::try_from(self.number() & 0x1f_ffff).unwrap_or(0)).unwrap_or('x').to_string(),
                _ => (*self.pick(&PIECES)).to_owned(),
            })
            .collect()
    }

    /// A number that fits 32 bits.
    fn small(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or(0)
    }
}

impl<'a> Draw<'a> for Unstructured<'a> {
    fn below(&mut self, bound: usize) -> usize {
        self.int_in_range(0..=bound.saturating_sub(1)).unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(256) as u64,
            1 => self.arbitrary().unwrap_or(0),
            2 => self.pick(&EDGES).wrapping_add(self.below(3) as u64).wrapping_sub(1),
            _ => *self.pick(&EDGES),
        }
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let count = self.below(most.min(self.len()) + 1);
        self.bytes(count).unwrap_or_default()
    }

    fn rest(&mut self) -> &'a [u8] {
        self.bytes(self.len()).unwrap_or_default()
    }
}

/// Bytes with up to three changes: bits, bytes, cuts, repetitions.
pub(super) fn damaged(mut bytes: Vec<u8>, u: &mut Unstructured<'_>) -> Vec<u8> {
    for _ in 0..u.below(4) {
        let at = u.below(bytes.len());
        match u.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << u.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = u.below(256).to_le_bytes()[0]),
            3 => drop(bytes.splice(at..at, u.take(8).iter().copied())),
            4 => {
                let end = (at + u.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + u.below(64)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

/// Compares two values. The error shows both if they differ.
pub(super) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: found {found:?}, expected {expected:?}")) }
}

/// The oracle's complaint, if `holds` is false.
pub(super) fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}
