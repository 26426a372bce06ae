//! Launches of generation: the cache of keys and values, one query against it, the next token.

use karat_backend::GenerateConfig;

use super::super::device::{Arg, Element, Gpu, Launch};
use super::{blocks, launch};
use crate::error::Result;
use crate::ops::attention::Heads;

/// Positions that a block goes through.
const SPLIT: usize = 128;

/// The `longest` to give [`scratch`] and [`decode`] where the longest sequence has `longest`
/// positions and none will have more than `most`: of few kinds, so that launches stay the same over
/// many steps. What is too much costs blocks that end at once.
pub fn length_class(longest: usize, most: usize) -> usize {
    blocks(longest, SPLIT).next_power_of_two().min(blocks(most, SPLIT)) * SPLIT
}

/// Keys and values of one layer: `[slots, slot_stride]` each, a slot being positions of
/// `keys * dim` elements back to back.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// Keys.
    pub keys: Arg<'a>,
    /// Values.
    pub values: Arg<'a>,
    /// Elements from one slot to the next.
    pub slot_stride: usize,
    /// Numbers of heads.
    pub heads: Heads,
}

/// Writes rows of `k` and `v` into the cache: token `t` to position `positions[t]` of slot
/// `slots[t]` (u32 `[tokens]`). Rows of `k` and `v` lie `strides` elements apart.
///
/// # Errors
/// As [`Gpu::launch`]; so all functions here.
pub fn append(
    gpu: &dyn Gpu,
    t: Element,
    [k, v, slots, positions]: [Arg<'_>; 4],
    cache: &Cache<'_>,
    tokens: usize,
    strides: [usize; 2],
) -> Result<()> {
    let width = cache.heads.keys * cache.heads.dim;
    let [k_stride, v_stride] = strides.map(|s| Arg::I64(s as i64));
    let (width, slot_stride) = (Arg::I32(width as i32), Arg::I64(cache.slot_stride as i64));
    let args = [k, v, cache.keys, cache.values, slots, positions, width, k_stride, v_stride, slot_stride];
    launch(gpu, tokens, named!(t, "cache_append"), Launch::linear(tokens, 128), &args)
}

/// f32 elements of scratch that [`decode`] needs for caches of up to `longest` positions.
pub fn scratch(sequences: usize, longest: usize, heads: Heads) -> usize {
    sequences * heads.queries * blocks(longest, SPLIT) * (heads.dim + 2)
}

/// One query per sequence: `q` (rows `q_stride` elements apart), `out`
/// `[sequences, queries * dim]`; sequence `s` attends to the first `lengths[s]` positions (at least
/// 1, at most `longest`) of slot `slots[s]`, u32 `[sequences]` both. A sequence's result does not
/// depend on `longest` or on the others. Two launches.
pub fn decode(
    gpu: &dyn Gpu,
    t: Element,
    [q, slots, lengths, out, scratch]: [Arg<'_>; 5],
    cache: &Cache<'_>,
    (sequences, longest, q_stride): (usize, usize, usize),
) -> Result<()> {
    let Heads { queries, keys, dim } = cache.heads;
    let splits = blocks(longest, SPLIT);
    let group = queries / keys;
    let [heads, kv_heads, width] = [queries, keys, dim].map(|n| Arg::I32(n as i32));
    let scale = Arg::F32((1.0 / (dim as f64).sqrt()) as f32);
    let strides = [q_stride, cache.slot_stride].map(|s| Arg::I64(s as i64));
    let shared = (group * (dim + SPLIT) + 128 * 4 * (16 / t.size())) * 4;
    let geometry =
        Launch { grid: [splits as u32, keys as u32, sequences as u32], block: [128, 1, 1], shared: shared as u32 };
    let args =
        [q, cache.keys, cache.values, slots, lengths, scratch, heads, kv_heads, width, strides[0], strides[1], scale];
    launch(gpu, sequences, named!(t, "decode"), geometry, &args)?;
    let geometry = Launch { grid: [queries as u32, sequences as u32, 1], block: [128, 1, 1], shared: 0 };
    let args = [scratch, lengths, out, heads, width, Arg::I32(splits as i32)];
    launch(gpu, sequences, named!(t, "decode_join"), geometry, &args)
}

/// `x += 1`: u32 `[n]`, positions and lengths from one token to the next.
pub fn increment(gpu: &dyn Gpu, x: Arg<'_>, n: usize) -> Result<()> {
    launch(gpu, n, "karat_increment", Launch::linear(blocks(n, 256), 256), &[x, Arg::I32(n as i32)])
}

/// Written by [`sample`] instead of an id where a logit is not a number.
pub const NOT_A_NUMBER: u32 = u32::MAX;

/// Picks a token for each row of `logits` `[rows, vocab]` into `ids` u32 `[rows]`, as
/// [`crate::generate`] does: greedy at temperature 0, else the draw of generator row `numbers[row]`
/// at `places[row]` (u32 `[rows]`). `weights` is scratch of 8 bytes for each logit; it may be null
/// for greedy.
pub fn sample(
    gpu: &dyn Gpu,
    t: Element,
    [logits, numbers, places, ids, weights]: [Arg<'_>; 5],
    (rows, vocab): (usize, usize),
    config: &GenerateConfig,
) -> Result<()> {
    let args = [
        logits,
        numbers,
        places,
        ids,
        weights,
        Arg::I32(vocab as i32),
        Arg::U64(config.temperature.to_bits()),
        Arg::U32(u32::try_from(config.top_k).unwrap_or(u32::MAX)),
        Arg::U64(config.top_p.to_bits()),
        Arg::U64(config.seed),
    ];
    let threads = vocab.div_ceil(8).next_multiple_of(32).clamp(32, 1024) as u32;
    launch(gpu, rows, named!(t, "sample"), Launch::linear(rows, threads), &args)
}
