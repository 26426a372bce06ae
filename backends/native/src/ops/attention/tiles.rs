//! Tiled attention in bf16 (FlashAttention): scores leave the L1 cache as packed operands of the
//! next GEMM.
//!
//! A tile is 64 queries by 64 keys. Keys come in blocks that stay in a core's cache with their
//! gradients while all queries that see them pass by; the softmax is made up block by block, as in
//! Milakov & Gimelshein, arXiv 1805.02867. A tile in which no query sees a key is never made.

use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;
use rayon::prelude::*;

use super::{Context, Heads, Share, Task, contexts};
use crate::ops::number::Number;
use karat_kernels::gemm::executor::Executor;
use karat_kernels::gemm::fused::softmax::{OnlineSoftmax, RowStats, SoftmaxBackward, exp_block};
use karat_kernels::gemm::pack::tiled::{PackedLhs, multiply, transpose};
use karat_kernels::gemm::pack::whole::PackedRhs;
use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, narrow_here, task};
use karat_kernels::memory::arena;
use karat_kernels::simd::{dot, simd};

/// Queries and keys of a tile.
const SIDE: usize = 64;
/// Keys of a block.
const KEYS: usize = 256;
/// Queries that pass by together in the backward pass.
const QUERIES: usize = 128;

const BF16: Precision = Precision::Bf16;

/// Queries of a row and the heads that share a key head, and where their outputs go.
struct Strip<'a, O> {
    /// In [`contexts`].
    context: usize,
    /// Key head.
    head: usize,
    /// Where the row starts.
    start: usize,
    queries: Range<usize>,
    /// For each query its part of the output and its log-sum-exps.
    to: Vec<(&'a mut [O], &'a mut [f32])>,
}

/// Those that read the same keys come one after the other, of these first the one that reads most.
fn strips<'a, O>(starts: &[usize], heads: Heads, out: &'a mut [O], lse: &'a mut [f32]) -> Vec<Strip<'a, O>> {
    let (group, keys) = (heads.group(), heads.keys);
    let mut outs = out.chunks_exact_mut(group * heads.dim).zip(lse.chunks_exact_mut(group));
    let mut all = Vec::new();
    for (row, w) in starts.windows(2).enumerate() {
        let first_of_row = all.len();
        for first in (w[0]..w[1]).step_by(SIDE) {
            let queries = first..(first + SIDE).min(w[1]);
            let strip = |head| Strip {
                context: row * keys + head,
                head,
                start: w[0],
                queries: queries.clone(),
                to: Vec::with_capacity(queries.len()),
            };
            let at = all.len();
            all.extend((0..keys).map(strip));
            for _ in queries.clone() {
                all[at..].iter_mut().zip(&mut outs).for_each(|(strip, to)| strip.to.push(to));
            }
        }
        all[first_of_row..].sort_by_key(|strip| (strip.head, std::cmp::Reverse(strip.queries.start)));
    }
    all
}

/// The transposed `x`, packed from a copy: its own rows lie far apart, many of them in the same
/// places of the cache.
fn turned(x: Mat<'_>) -> PackedRhs {
    let (rows, cols) = x.dims();
    let mut near = PackedLhs::room(BF16, rows, cols);
    near.put((0, 0), x);
    PackedRhs::new(BF16, near.part(rows, cols).t())
}

/// [`super::forward`] in bf16.
pub fn forward<O: Number>([q, k, v]: [Mat<'_>; 3], starts: &[usize], heads: Heads, out: &mut [O], lse: &mut [f32]) {
    let d = heads.dim;
    let pack = |c: &Context<'_>| [turned(c.k), PackedRhs::new(BF16, c.v)];
    let packed: Vec<[PackedRhs; 2]> = contexts(k, v, starts, heads).par_iter().map(pack).collect();
    let attend = |mut strip: Strip<'_, O>| {
        let [key, value] = &packed[strip.context];
        let (first, n) = (strip.queries.start - strip.start, strip.queries.len());
        let last = first + n;
        let [mut query, mut weights] = [d, KEYS.min(last)].map(|cols| PackedLhs::room(BF16, n, cols));
        let [mut scores, mut tile] = [KEYS, d].map(|cols| arena::alloc(n * cols));
        for g in 0..heads.group() {
            query.put((0, 0), q.part(strip.queries.clone(), heads.columns(strip.head * heads.group() + g)));
            let mut rows = [OnlineSoftmax::default(); SIDE];
            for block in (0..last).step_by(KEYS) {
                let width = KEYS.min(last - block);
                let to = MatMut::strided(&mut scores, n, width, KEYS);
                multiply(to, heads.scale(), (&query, 0, 0..d), (key, 0, block), false);
                let seen = |row: usize| first + row + 1 - block;
                exp_block(&mut scores, (width, KEYS), &mut rows[..n], seen, &mut weights);
                if block > 0 {
                    simd(
                        #[inline(always)]
                        || {
                            for (row, tile) in rows.iter().zip(tile.chunks_exact_mut(d)) {
                                tile.iter_mut().for_each(|o| *o *= row.kept);
                            }
                        },
                    );
                }
                multiply(MatMut::new(&mut tile, n, d), 1.0, (&weights, 0, 0..width), (value, block, 0), block > 0);
            }
            simd(
                #[inline(always)]
                || {
                    for (row, tile) in rows.iter().zip(tile.chunks_exact_mut(d)) {
                        let inverse = 1.0 / row.sum;
                        tile.iter_mut().for_each(|o| *o *= inverse);
                    }
                },
            );
            for (((out, lse), tile), row) in strip.to.iter_mut().zip(tile.chunks_exact(d)).zip(&rows) {
                O::keep(tile, &mut out[g * d..][..d]);
                lse[g] = row.top + row.sum.ln();
            }
        }
    };
    strips(starts, heads, out, lse).into_iter().par_bridge().for_each(|strip| task(|| attend(strip)));
}

/// One query head of a row, or a part of its queries; those of a row are of about the same work and
/// depend on the row and the model alone.
pub(super) fn tasks(starts: &[usize], heads: Heads) -> Vec<Task> {
    /// Tasks of a row at least, if it is long enough: more threads than that find nothing to do.
    const TASKS: usize = 16;
    let mut tasks = Vec::new();
    for (row, w) in starts.windows(2).enumerate() {
        let strips = (w[1] - w[0]).div_ceil(SIDE);
        let parts = TASKS.div_ceil(heads.queries).min(strips);
        // The first `n` strips are about `n^2 / 2` tiles.
        let end = |part: usize| {
            let strips = (strips as f64 * (part as f64 / parts as f64).sqrt()).round() as usize;
            (w[0] + strips * SIDE).min(w[1])
        };
        for head in 0..heads.queries {
            let context = row * heads.keys + head / heads.group();
            let parts = (0..parts).map(|part| end(part)..end(part + 1)).filter(|queries| !queries.is_empty());
            tasks.extend(parts.map(|queries| Task { context, heads: head..head + 1, start: w[0], queries }));
        }
    }
    tasks
}

/// Gradients of [`super::backward`] in bf16, summed up by task.
pub(super) fn backward<O: Number>(
    [q, k, v]: [Mat<'_>; 3],
    starts: &[usize],
    heads: Heads,
    tasks: &[Task],
    (out, lse): (&[O], &[f32]),
    dout: &[f32],
) -> Vec<Share> {
    let tokens = q.dims().0;
    let mut deltas = arena::alloc(tokens * heads.queries);
    let mut rounded = arena::alloc(dout.len().div_ceil(2));
    let rounded: &mut [bf16] = &mut bytemuck::cast_slice_mut(&mut rounded)[..dout.len()];
    upstream((out, dout), heads, rounded, &mut deltas);
    let upstreams = Mat::narrowed(rounded, tokens, heads.q_width());
    let pack = |c: &Context<'_>| [turned(c.k), turned(c.v), PackedRhs::new(BF16, c.k)];
    let packed: Vec<[PackedRhs; 3]> = contexts(k, v, starts, heads).par_iter().map(pack).collect();
    let shares: Vec<OnceLock<Share>> = tasks.iter().map(|_| OnceLock::new()).collect();
    Threads::Pool.each(tasks.len(), &|number| {
        let mine = &tasks[number];
        let share = task(|| one(mine, heads, &packed[mine.context], [q, upstreams], [lse, &deltas]));
        let _ = shares[number].set(share);
    });
    shares.into_iter().flat_map(OnceLock::into_inner).collect()
}

/// The gradient of the output as products read it, and the sum over each head of the output times
/// its gradient, which is that over the weights times theirs, `[tokens, queries]`.
fn upstream<O: Number>((out, dout): (&[O], &[f32]), heads: Heads, rounded: &mut [bf16], deltas: &mut [f32]) {
    /// Tokens of a task.
    const TOKENS: usize = 16;
    let (n, d) = (TOKENS * heads.q_width(), heads.dim);
    let tokens = out.par_chunks(n).zip(dout.par_chunks(n));
    let made = rounded.par_chunks_mut(n).zip(deltas.par_chunks_mut(TOKENS * heads.queries));
    made.zip(tokens).for_each(|((rounded, deltas), (out, dout))| {
        let mut tile = vec![0f32; d];
        simd(
            #[inline(always)]
            || {
                for ((delta, out), dout) in deltas.iter_mut().zip(out.chunks_exact(d)).zip(dout.chunks_exact(d)) {
                    *delta = dot(O::wide(out, &mut tile), dout);
                }
            },
        );
        narrow_here(dout, rounded);
    });
}

fn one(
    task: &Task,
    heads: Heads,
    [key_t, value_t, key]: &[PackedRhs; 3],
    operands: [Mat<'_>; 2],
    [lse, deltas]: [&[f32]; 2],
) -> Share {
    let (d, n, head) = (heads.dim, task.queries.len(), task.heads.start);
    // Positions in the row.
    let (begin, end) = (task.queries.start - task.start, task.queries.end - task.start);
    let (most, widest) = (QUERIES.min(n), KEYS.min(end));
    let [mut dqs, mut dks, mut dvs] = [n, end, end].map(|rows| arena::alloc(rows * d));
    let mut rows = [0; 2].map(|_| PackedLhs::room(BF16, most, d));
    let mut lying = [0; 2].map(|_| PackedLhs::room(BF16, d, most));
    let [weights, gradients] = [0; 2].map(|_| PackedRhs::room(BF16, most, widest));
    let mut made = SoftmaxBackward { weights, gradients, lines: PackedLhs::room(BF16, most, widest) };
    let mut known = Vec::with_capacity(SIDE);
    let mut tiles = [0; 2].map(|_| arena::alloc(SIDE * SIDE));
    let mut sums = [0; 2].map(|_| arena::alloc(d * widest));
    for block in (0..end).step_by(KEYS) {
        let width = KEYS.min(end - block);
        sums.iter_mut().for_each(|sum| sum.fill(0.0));
        for first in (begin..end).step_by(QUERIES) {
            let queries = QUERIES.min(end - first);
            if first + queries <= block {
                continue;
            }
            let context = width.min(first + queries - block);
            let tokens = task.start + first..task.start + first + queries;
            for ((rows, lying), operand) in rows.iter_mut().zip(&mut lying).zip(operands) {
                let operand = operand.part(tokens.clone(), heads.columns(head));
                rows.put((0, 0), operand);
                // Its own rows lie far apart, many of them in the same places of the cache.
                lying.put((0, 0), rows.part(queries, d).t());
            }
            made.weights.reshape(queries, context);
            made.gradients.reshape(queries, context);
            for strip in (0..queries).step_by(SIDE) {
                let height = SIDE.min(queries - strip);
                // One past the last key of this block that a query of the strip sees.
                let seen = (first + strip + height).saturating_sub(block).min(context);
                for column in (0..seen).step_by(SIDE) {
                    let across = SIDE.min(context - column);
                    let [p, ds] = &mut tiles;
                    let of = |tile, alpha, rows, right| {
                        let tile = MatMut::strided(tile, height, across, SIDE);
                        multiply(tile, alpha, (rows, strip, 0..d), (right, 0, block + column), false);
                    };
                    of(p, heads.scale(), &rows[0], key_t);
                    of(ds, 1.0, &rows[1], value_t);
                    known.clear();
                    known.extend((first + strip..first + strip + height).map(|i| {
                        let [lse, delta] = [lse, deltas].map(|x| x[(task.start + i) * heads.queries + head]);
                        RowStats { lse, delta, seen: (i + 1).saturating_sub(block + column) }
                    }));
                    made.put((strip, column), across, &known, p, ds);
                }
                if seen > 0 {
                    let seen = seen.next_multiple_of(SIDE).min(context);
                    let dqs = MatMut::new(&mut dqs[(first + strip - begin) * d..], height, d);
                    multiply(dqs, heads.scale(), (&made.lines, strip, 0..seen), (key, block, 0), block > 0);
                }
            }
            for column in (0..context).step_by(SIDE) {
                let across = SIDE.min(context - column);
                // The first strip that sees one of these keys.
                let from = (block + column).saturating_sub(first) / SIDE * SIDE;
                for (((sum, right), lying), alpha) in sums
                    .iter_mut()
                    .zip([&made.weights, &made.gradients])
                    .zip([&lying[1], &lying[0]])
                    .zip([1.0, heads.scale()])
                {
                    let to = MatMut::strided(&mut sum[column..], d, across, widest);
                    multiply(to, alpha, (lying, 0, from..queries), (right, from, column), true);
                }
            }
        }
        for (sum, to) in sums.iter().zip([&mut dvs, &mut dks]) {
            transpose(sum, d, width, widest, &mut to[block * d..]);
        }
    }
    Share([dqs, dks, dvs])
}
