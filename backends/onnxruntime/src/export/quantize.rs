//! Weights in blocks of few bits, as `MatMulNBits` and `GatherBlockQuantized` read them.
//!
//! A row of a matrix `[output, input]` is cut into blocks of 32. A weight `w` of a block is stored
//! as the integer `q` in `0 .. 2^bits` with `w ~ scale (q - zero)`. The zero point is a stored
//! integer of the same bits (asymmetric): a block of 32 rarely lies evenly around zero, and the
//! range it would waste is worth more than the half byte it costs.
//!
//! The range of a block is that of its values and zero, so a weight that is zero stays zero, and
//! the padding of a last block too. Where it is known how large the input channels are, the range
//! is searched: of some smaller ranges and neighbouring zero points, each with the scale that suits
//! its integers best, the one with the least squared error of the products. Everything is computed
//! block by block in one order, so the same weights give the same bytes on any number of threads.

use rayon::prelude::*;

use crate::logits::WIDEST;

/// Weights that share a scale.
pub const BLOCK: usize = 32;

/// A quantized matrix of `rows` rows, `blocks` blocks a row.
pub struct Quantized {
    /// `[rows, blocks, 32 * bits / 8]`; with 4 bits the earlier weight is the low half of its byte.
    pub weights: Vec<u8>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// `[rows, ceil(blocks * bits / 8)]`, packed likewise.
    pub zero_points: Vec<u8>,
}

/// Blocks of a row of `columns` weights.
pub fn blocks(columns: usize) -> usize {
    columns.div_ceil(BLOCK)
}

/// Bytes of the zero points of a row.
pub fn zero_point_bytes(columns: usize, bits: usize) -> usize {
    (blocks(columns) * bits).div_ceil(8)
}

/// Quantizes `matrix` `[rows, columns]` to 4 or 8 bits; an error in a column counts by that
/// column's number in `channels`.
pub fn quantize(matrix: &[f32], columns: usize, bits: usize, channels: Option<&[f32]>) -> Quantized {
    let (rows, blocks) = (matrix.len() / columns, blocks(columns));
    let (block_bytes, zero_bytes) = (BLOCK * bits / 8, zero_point_bytes(columns, bits));
    let mut quantized = Quantized {
        weights: vec![0; rows * blocks * block_bytes],
        scales: vec![0.0; rows * blocks],
        zero_points: vec![0; rows * zero_bytes],
    };
    matrix
        .par_chunks_exact(columns)
        .zip(quantized.weights.par_chunks_exact_mut(blocks * block_bytes))
        .zip(quantized.scales.par_chunks_exact_mut(blocks))
        .zip(quantized.zero_points.par_chunks_exact_mut(zero_bytes))
        .for_each(|(((row, weights), scales), zeros)| {
            for (b, values) in row.chunks(BLOCK).enumerate() {
                let block = match channels {
                    Some(channels) => WIDEST.dispatch(
                        #[inline(always)]
                        || Block::search(values, &channels[b * BLOCK..][..values.len()], bits),
                    ),
                    None => Block::fit(values, bits),
                };
                scales[b] = block.scale;
                put(zeros, b, block.zero, bits);
                let weights = &mut weights[b * block_bytes..(b + 1) * block_bytes];
                for k in 0..BLOCK {
                    // What pads a last block stands for zero.
                    put(weights, k, values.get(k).map_or(block.zero, |&w| block.nearest(w, bits)), bits);
                }
            }
        });
    quantized
}

/// Writes the `index`th number of `bits` into zeroed bytes.
fn put(bytes: &mut [u8], index: usize, value: u8, bits: usize) {
    match bits {
        4 => bytes[index / 2] |= value << (4 * (index % 2)),
        _ => bytes[index] = value,
    }
}

/// Ranges that are tried, relative to the whole one.
const SHRINKS: [f32; 12] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.75, 0.7, 0.65, 0.6];

/// The weighted squared error of `w` with this scale and zero point, and the scale with which the
/// same integers have the least: the weighted least-squares fit of `w` by them.
#[inline(always)]
fn weighted_error(w: &[f32; BLOCK], channels: &[f32; BLOCK], scale: f32, zero: f32, steps: f32) -> (f32, f32) {
    let inverse = 1.0 / scale;
    let (mut error, mut product, mut square) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for k in (0..BLOCK).step_by(LANES) {
        for lane in 0..LANES {
            let (w, c) = (w[k + lane], channels[k + lane]);
            let q = whole(w * inverse).max(-zero).min(steps - zero);
            let off = q * scale - w;
            error[lane] += c * off * off;
            product[lane] += c * q * w;
            square[lane] += c * q * q;
        }
    }
    let (product, square): (f32, f32) = (product.iter().sum(), square.iter().sum());
    let suited = if product > 0.0 && square > 0.0 { product / square } else { scale };
    (error.iter().sum(), suited)
}

/// Numbers worked on side by side.
const LANES: usize = 16;

/// The whole number nearest to `x`, ties to even: `round_ties_even`, which is a call for every
/// weight, as far as 2^22.
#[inline(always)]
fn whole(x: f32) -> f32 {
    // 1.5 * 2^23: nothing below one is left beside it.
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

#[derive(Clone, Copy, Debug)]
struct Block {
    scale: f32,
    zero: u8,
}

impl Block {
    /// The scale and zero point for `values`.
    fn fit(values: &[f32], bits: usize) -> Block {
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
        if low == high {
            return Block { scale: 0.0, zero: 0 };
        }
        let steps = ((1u32 << bits) - 1) as f32;
        let scale = (high - low) / steps;
        Block { scale, zero: whole(-low / scale).clamp(0.0, steps) as u8 }
    }

    /// The scale and zero point with the least error of `values`, each error weighted by its number
    /// in `channels`.
    #[inline(always)]
    fn search(values: &[f32], channels: &[f32], bits: usize) -> Block {
        let whole = Block::fit(values, bits);
        if whole.scale == 0.0 {
            return whole;
        }
        // Padded, so that the loops below have a length the compiler knows.
        let (mut w, mut c) = ([0f32; BLOCK], [0f32; BLOCK]);
        w[..values.len()].copy_from_slice(values);
        c[..values.len()].copy_from_slice(channels);
        let steps = ((1u32 << bits) - 1) as f32;
        let middle = f32::from(whole.zero);
        let mut best = (whole, f32::INFINITY);
        for shrink in SHRINKS {
            let scale = whole.scale * shrink;
            for zero in [middle - 1.0, middle, middle + 1.0] {
                if !(0.0..=steps).contains(&zero) {
                    continue;
                }
                let (error, suited) = weighted_error(&w, &c, scale, zero, steps);
                if error < best.1 {
                    best = (Block { scale, zero: zero as u8 }, error);
                }
                let (error, _) = weighted_error(&w, &c, suited, zero, steps);
                if error < best.1 {
                    best = (Block { scale: suited, zero: zero as u8 }, error);
                }
            }
        }
        best.0
    }

    fn nearest(self, weight: f32, bits: usize) -> u8 {
        if self.scale == 0.0 {
            return self.zero;
        }
        let steps = ((1u32 << bits) - 1) as f32;
        (whole(weight / self.scale) + f32::from(self.zero)).clamp(0.0, steps) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| ((i * i) as f32 * 0.37).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    fn back(q: &Quantized, columns: usize, bits: usize) -> Vec<f32> {
        let (blocks, zero_bytes) = (blocks(columns), zero_point_bytes(columns, bits));
        let take = |bytes: &[u8], i: usize| match bits {
            4 => bytes[i / 2] >> (4 * (i % 2)) & 15,
            _ => bytes[i],
        };
        let rows = q.scales.len() / blocks;
        (0..rows * columns)
            .map(|i| {
                let (row, column) = (i / columns, i % columns);
                let b = row * blocks + column / BLOCK;
                let zero = take(&q.zero_points[row * zero_bytes..], column / BLOCK);
                let value = take(&q.weights[b * BLOCK * bits / 8..], column % BLOCK);
                q.scales[b] * (f32::from(value) - f32::from(zero))
            })
            .collect()
    }

    #[test]
    fn no_weight_is_off_by_more_than_its_block_allows() {
        // 70 columns: the last block of a row is not full.
        let (rows, columns) = (5, 70);
        let weights = matrix(rows, columns);
        let q = quantize(&weights, columns, 8, None);
        for (i, (w, v)) in weights.iter().zip(back(&q, columns, 8)).enumerate() {
            let scale = q.scales[i / columns * 3 + i % columns / BLOCK];
            // Half a step, and the half that rounding the zero point may shift the ends by.
            assert!((w - v).abs() <= scale * 1.001, "{i}: {w} {v} {scale}");
        }
    }

    #[test]
    fn four_more_bits_are_sixteen_times_nearer() {
        let (rows, columns) = (16, 64);
        let weights = matrix(rows, columns);
        let error = |bits| {
            let values = back(&quantize(&weights, columns, bits, None), columns, bits);
            weights.iter().zip(values).map(|(w, v)| f64::from(w - v).powi(2)).sum::<f64>().sqrt()
        };
        let ratio = error(4) / error(8);
        assert!((12.0..24.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn zeros_stay_zero_in_any_block() {
        let mut weights = vec![0f32; 2 * BLOCK];
        weights[BLOCK..].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 3 == 0 { 0.0 } else { 1.0 + i as f32 });
        for bits in [4, 8] {
            let values = back(&quantize(&weights, BLOCK, bits, None), BLOCK, bits);
            assert!(weights.iter().zip(values).all(|(&w, v)| w != 0.0 || v == 0.0));
        }
    }

    #[test]
    fn a_searched_block_has_less_error_where_it_counts() {
        let (rows, columns) = (16, 70);
        let weights = matrix(rows, columns);
        // One channel in eight is ten times as large as the others.
        let channels: Vec<f32> = (0..columns).map(|c| if c % 8 == 3 { 100.0 } else { 1.0 }).collect();
        let error = |q: &Quantized| {
            let values = back(q, columns, 4);
            let each = weights.iter().zip(values).enumerate();
            each.map(|(i, (w, v))| f64::from(channels[i % columns]) * f64::from(w - v).powi(2)).sum::<f64>()
        };
        let (plain, searched) = (quantize(&weights, columns, 4, None), quantize(&weights, columns, 4, Some(&channels)));
        assert!(error(&searched) < 0.5 * error(&plain), "{} {}", error(&searched), error(&plain));
        // Block by block it is never worse.
        let even = vec![1.0; columns];
        let squares = |q: &Quantized| {
            let values = back(q, columns, 4);
            let each = weights.iter().zip(values).map(|(w, v)| f64::from(w - v).powi(2));
            each.collect::<Vec<_>>()
        };
        let (a, b) = (squares(&plain), squares(&quantize(&weights, columns, 4, Some(&even))));
        for row in 0..rows {
            for block in [0..32, 32..64, 64..70] {
                let sum = |each: &[f64]| each[row * columns..][block.clone()].iter().sum::<f64>();
                assert!(sum(&b) <= sum(&a) * 1.000_001, "{row} {block:?}");
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let weights = matrix(64, 96);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let channels: Vec<f32> = (1..97).map(|c| c as f32).collect();
            let q = pool.install(|| quantize(&weights, 96, 4, Some(&channels)));
            (q.weights, q.scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>(), q.zero_points)
        };
        assert_eq!(on(1), on(3));
    }
}
