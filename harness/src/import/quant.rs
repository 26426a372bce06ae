//! The element types of GGUF: how wide their blocks are and what numbers they stand for.
//!
//! A quantized tensor is a row of blocks; a block is a fixed number of elements (32, or 256 of the
//! K types) that share one or two scales stored as IEEE halves. Layouts and the order of operations
//! are those of the Python package `gguf` (`quants.py`) and of ggml's reference code: every product
//! and sum is rounded to f32 on its own, so the numbers are the same to the bit.
//! `harness/tests/import.rs` holds them against vectors which that package made.

use half::{bf16, f16};

/// Elements in a block of the K types.
const SUPER: usize = 256;

/// An element type that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the format's")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Number in the file, type, elements of a block, bytes of a block.
const READ: [(u32, GgmlType, usize, usize); 13] = [
    (0, GgmlType::F32, 1, 4),
    (1, GgmlType::F16, 1, 2),
    (30, GgmlType::BF16, 1, 2),
    (2, GgmlType::Q4_0, 32, 18),
    (3, GgmlType::Q4_1, 32, 20),
    (6, GgmlType::Q5_0, 32, 22),
    (7, GgmlType::Q5_1, 32, 24),
    (8, GgmlType::Q8_0, 32, 34),
    (10, GgmlType::Q2_K, SUPER, 84),
    (11, GgmlType::Q3_K, SUPER, 110),
    (12, GgmlType::Q4_K, SUPER, 144),
    (13, GgmlType::Q5_K, SUPER, 176),
    (14, GgmlType::Q6_K, SUPER, 210),
];

/// Types of the format that are not read, by number, so that they can be refused by name.
const NOT_READ: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl GgmlType {
    /// The type of a number in the file; the name (or the number) of one that is not read.
    ///
    /// # Errors
    /// The name to refuse it by.
    pub fn from_number(number: u32) -> Result<Self, String> {
        match READ.iter().find(|(n, ..)| *n == number) {
            Some((_, kind, ..)) => Ok(*kind),
            None => Err(match NOT_READ.iter().find(|(n, _)| *n == number) {
                Some((_, name)) => name.to_string(),
                None => format!("number {number}"),
            }),
        }
    }

    /// The names of all types that are read.
    pub fn names() -> String {
        READ.map(|(_, kind, ..)| format!("{kind:?}")).join(", ")
    }

    fn row(self) -> (usize, usize) {
        let row = READ.iter().find(|(_, kind, ..)| *kind == self).expect("every type has its row in READ");
        (row.2, row.3)
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        self.row().0
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().1
    }

    /// Widens whole blocks to f32.
    ///
    /// # Panics
    /// If `bytes` and `out` are not the same whole number of blocks.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (len, size) = self.row();
        assert!(bytes.len().is_multiple_of(size) && bytes.len() / size * len == out.len(), "whole blocks of {self:?}");
        let block: fn(&[u8], &mut [f32]) = match self {
            GgmlType::F32 => |b, x| x[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            GgmlType::F16 => |b, x| x[0] = half(b),
            GgmlType::BF16 => |b, x| x[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            GgmlType::Q4_0 => q4_0,
            GgmlType::Q4_1 => q4_1,
            GgmlType::Q5_0 => q5_0,
            GgmlType::Q5_1 => q5_1,
            GgmlType::Q8_0 => q8_0,
            GgmlType::Q2_K => q2_k,
            GgmlType::Q3_K => q3_k,
            GgmlType::Q4_K => q4_k,
            GgmlType::Q5_K => q5_k,
            GgmlType::Q6_K => q6_k,
        };
        for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(len)) {
            block(bytes, out);
        }
    }
}

/// The IEEE half at the start of `b`.
fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

/// The element `i` of 32 four-bit numbers: the low halves of 16 bytes, then the high ones.
fn nibble(quants: &[u8], i: usize) -> u8 {
    (quants[i % 16] >> (4 * (i / 16))) & 15
}

/// The bit `i` of 32.
fn bit(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8)) & 1
}

fn q4_0(b: &[u8], x: &mut [f32]) {
    let d = half(b);
    for (i, x) in x.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b[2..], i) as i8 - 8);
    }
}

fn q4_1(b: &[u8], x: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (i, x) in x.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b[4..], i)) + m;
    }
}

fn q5_0(b: &[u8], x: &mut [f32]) {
    let d = half(b);
    for (i, x) in x.iter_mut().enumerate() {
        let q = nibble(&b[6..], i) | bit(&b[2..6], i) << 4;
        *x = d * f32::from(q as i8 - 16);
    }
}

fn q5_1(b: &[u8], x: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (i, x) in x.iter_mut().enumerate() {
        let q = nibble(&b[8..], i) | bit(&b[4..8], i) << 4;
        *x = d * f32::from(q) + m;
    }
}

fn q8_0(b: &[u8], x: &mut [f32]) {
    let d = half(b);
    for (x, &q) in x.iter_mut().zip(&b[2..]) {
        *x = f32::from(q as i8) * d;
    }
}

/// The element `i` of 256 two-bit numbers in 64 bytes: halves of 128, quarters of 32 by rising
/// bits.
fn pair(quants: &[u8], i: usize) -> u8 {
    (quants[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3
}

fn q2_k(b: &[u8], x: &mut [f32]) {
    let (scales, quants) = (&b[..16], &b[16..80]);
    let (d, min) = (half(&b[80..]), half(&b[82..]));
    for (i, x) in x.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let (d, m) = (d * f32::from(scale & 15), min * f32::from(scale >> 4));
        *x = d * f32::from(pair(quants, i)) - m;
    }
}

fn q3_k(b: &[u8], x: &mut [f32]) {
    let (mask, quants, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half(&b[108..]);
    for (i, x) in x.iter_mut().enumerate() {
        // Sixteen scales of six bits: four low bits in eight bytes, two high bits in four.
        let k = i / 16;
        let low = (scales[k % 8] >> (4 * (k / 8))) & 15;
        let high = (scales[8 + k % 4] >> (2 * (k / 4))) & 3;
        let d = d * f32::from((low | high << 4) as i8 - 32);
        // The third bit is stored inverted: set means nothing is taken off.
        let set = (mask[i % 32] >> (i / 32)) & 1;
        *x = d * f32::from(pair(quants, i) as i8 - 4 * (1 - set as i8));
    }
}

/// Scale and minimum of the group `g` of eight, six bits each in twelve bytes.
fn scale_and_min(scales: &[u8], g: usize) -> (f32, f32) {
    let (scale, min) = match g {
        0..4 => (scales[g] & 63, scales[4 + g] & 63),
        _ => {
            let both = scales[4 + g];
            ((both & 15) | (scales[g - 4] >> 2 & 48), (both >> 4) | (scales[g] >> 2 & 48))
        }
    };
    (f32::from(scale), f32::from(min))
}

/// The element `i` of 256 four-bit numbers in 128 bytes: 64 elements share 32 bytes.
fn nibble_k(quants: &[u8], i: usize) -> u8 {
    (quants[i / 64 * 32 + i % 32] >> (4 * (i % 64 / 32))) & 15
}

fn q4_k(b: &[u8], x: &mut [f32]) {
    let (d, min) = (half(b), half(&b[2..]));
    for (g, x) in x.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_and_min(&b[4..16], g);
        let (d, m) = (d * scale, min * m);
        for (j, x) in x.iter_mut().enumerate() {
            *x = d * f32::from(nibble_k(&b[16..], g * 32 + j)) - m;
        }
    }
}

fn q5_k(b: &[u8], x: &mut [f32]) {
    let (d, min) = (half(b), half(&b[2..]));
    for (g, x) in x.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_and_min(&b[4..16], g);
        let (d, m) = (d * scale, min * m);
        for (j, x) in x.iter_mut().enumerate() {
            let q = nibble_k(&b[48..], g * 32 + j) | (b[16 + j] >> g & 1) << 4;
            *x = d * f32::from(q) - m;
        }
    }
}

fn q6_k(b: &[u8], x: &mut [f32]) {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = half(&b[208..]);
    for (i, x) in x.iter_mut().enumerate() {
        let d = d * f32::from(scales[i / 16] as i8);
        // Halves of 128; within one, 64 bytes hold two elements each.
        let nibble = (low[i / 128 * 64 + i % 64] >> (4 * (i % 128 / 64))) & 15;
        *x = d * f32::from((nibble | pair(high, i) << 4) as i8 - 32);
    }
}
