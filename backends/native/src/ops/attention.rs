//! Causal grouped-query attention over rows packed back to back.
//!
//! Scores exist only for one block of queries of one head at a time; the backward pass recomputes
//! them from the log-sum-exp that the forward pass leaves (Dao et al., arXiv 2205.14135). Sums over
//! a row are those of that row alone, so a row's result does not depend on its neighbours.

mod tiles;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::number::Number;
use super::{norm, rope};
use karat_kernels::gemm::pack::whole::{PackedRhs, multiply};
use karat_kernels::gemm::{Mat, MatMut, Precision};
use karat_kernels::memory::arena::{self, Buffer};
use karat_kernels::simd::{dot, exp, max, simd, sum_of};

/// Queries a block holds.
const BLOCK: usize = 64;

pub use karat_model::Heads;

/// Floating-point operations of `products` causal products over these rows: pairs that the mask
/// leaves, for every query head.
pub fn work(starts: &[usize], heads: Heads, products: usize) -> f64 {
    let pairs: usize = starts.windows(2).map(|w| (w[1] - w[0]) * (w[1] - w[0] + 1) / 2).sum();
    2.0 * (pairs * heads.queries * heads.dim * products) as f64
}

/// Queries that are worked on together.
#[derive(Clone, Copy)]
struct Block {
    /// Number of the row.
    row: usize,
    /// Where the row starts.
    start: usize,
    /// First query.
    first: usize,
    /// One past the last query.
    last: usize,
}

fn query_blocks(starts: &[usize]) -> Vec<Block> {
    let rows = starts.windows(2).enumerate().flat_map(|(row, w)| {
        let (start, end) = (w[0], w[1]);
        (start..end).step_by(BLOCK).map(move |first| Block { row, start, first, last: (first + BLOCK).min(end) })
    });
    rows.collect()
}

/// Splits `x` of `[tokens, width]` at the blocks' ends.
fn split<'a, T>(mut x: &'a mut [T], blocks: &[Block], width: usize) -> Vec<&'a mut [T]> {
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        let (head, tail) = x.split_at_mut((block.last - block.first) * width);
        parts.push(head);
        x = tail;
    }
    parts
}

/// The keys and values of one key head of one row.
struct Context<'a> {
    k: Mat<'a>,
    v: Mat<'a>,
}

/// `[row][key head]`.
fn contexts<'a>(k: Mat<'a>, v: Mat<'a>, starts: &[usize], heads: Heads) -> Vec<Context<'a>> {
    let rows = starts.windows(2).flat_map(|w| {
        (0..heads.keys).map(move |head| {
            let part = |x: Mat<'a>| x.part(w[0]..w[1], heads.columns(head));
            Context { k: part(k), v: part(v) }
        })
    });
    rows.collect()
}

/// `q`, `out` `[tokens, queries * dim]`, `k`, `v` `[tokens, keys * dim]`; row `r` is tokens
/// `starts[r]..starts[r + 1]`. Leaves the log-sum-exp of every query's scores in `lse`
/// `[tokens, queries]`. Scores and weights are rounded to `precision` where they are multiplied;
/// the softmax is f32, and so is the output before it is rounded to what `out` holds.
#[allow(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn forward<O: Number>(
    precision: Precision,
    q: Mat<'_>,
    k: Mat<'_>,
    v: Mat<'_>,
    starts: &[usize],
    heads: Heads,
    out: &mut [O],
    lse: &mut [f32],
) {
    if precision == Precision::Bf16 {
        return tiles::forward([q, k, v], starts, heads, out, lse);
    }
    let (qw, d) = (heads.q_width(), heads.dim);
    let packed: Vec<[PackedRhs; 2]> = contexts(k, v, starts, heads)
        .par_iter()
        .map(|c| [PackedRhs::new(precision, c.k.t()), PackedRhs::new(precision, c.v)])
        .collect();
    let blocks = query_blocks(starts);
    let outs = split(out, &blocks, qw);
    let lses = split(lse, &blocks, heads.queries);
    // Those that see most come first, each to whoever is free: the last ones to end are short.
    let mut work: Vec<_> = blocks.iter().zip(outs).zip(lses).collect();
    work.sort_by_key(|((block, _), _)| std::cmp::Reverse(block.last - block.start));
    work.into_iter().par_bridge().for_each(|((block, out), lse)| {
        let &Block { row, start, first, last } = block;
        let (n, context) = (last - first, last - start);
        let [mut p, mut tile] = [n * context, n * d].map(arena::alloc);
        for h in 0..heads.queries {
            let [key, value] = &packed[row * heads.keys + h / heads.group()];
            let query = q.part(first..last, heads.columns(h));
            multiply(MatMut::new(&mut p, n, context), heads.scale(), query, key, false);
            simd(
                #[inline(always)]
                || {
                    for i in 0..n {
                        let p = &mut p[i * context..][..context];
                        let (seen, future) = p.split_at_mut(first - start + i + 1);
                        future.fill(0.0);
                        let top = max(seen);
                        seen.iter_mut().for_each(|p| *p = exp(*p - top));
                        let sum = sum_of([seen], |[p]| p);
                        let inverse = 1.0 / sum;
                        seen.iter_mut().for_each(|p| *p *= inverse);
                        lse[i * heads.queries + h] = top + sum.ln();
                    }
                },
            );
            multiply(MatMut::new(&mut tile, n, d), 1.0, Mat::new(&p, n, context), value, false);
            out.chunks_exact_mut(qw)
                .zip(tile.chunks_exact(d))
                .for_each(|(out, row)| O::keep(row, &mut out[h * d..][..d]));
        }
    });
}

/// Work on some queries of one row that is done in order: it sums up the gradients of the keys and
/// values that they see.
struct Task {
    /// In [`contexts`].
    context: usize,
    /// Query heads; all of them read the same keys.
    heads: Range<usize>,
    /// Where the row starts.
    start: usize,
    /// Tokens.
    queries: Range<usize>,
}

/// Gradients that a task leaves: of its queries, `[heads, queries, dim]`, and of the keys and of
/// the values that they see, `[keys, dim]`.
struct Share([Buffer; 3]);

/// In f32 there is one task for each row and key head, so that the gradient of a key is one sum
/// over its queries.
fn whole_tasks(starts: &[usize], heads: Heads) -> Vec<Task> {
    let rows = starts.windows(2).enumerate().flat_map(|(row, w)| {
        (0..heads.keys).map(move |head| Task {
            context: row * heads.keys + head,
            heads: head * heads.group()..(head + 1) * heads.group(),
            start: w[0],
            queries: w[0]..w[1],
        })
    });
    rows.filter(|task| !task.queries.is_empty()).collect()
}

/// Gradients of `q`, `k` and `v` given `dout`; what was in them is overwritten.
pub fn backward<O: Number>(
    precision: Precision,
    [q, k, v]: [Mat<'_>; 3],
    starts: &[usize],
    heads: Heads,
    (out, lse): (&[O], &[f32]),
    dout: &[f32],
    into: [&mut [f32]; 3],
) {
    match precision {
        Precision::F32 => {
            let tasks = whole_tasks(starts, heads);
            let shares = whole_backward([q, k, v], starts, heads, &tasks, (out, lse), dout);
            gather(&tasks, &shares, starts, heads, None, into);
        }
        Precision::Bf16 => {
            let tasks = tiles::tasks(starts, heads);
            let shares = tiles::backward([q, k, v], starts, heads, &tasks, (out, lse), dout);
            gather(&tasks, &shares, starts, heads, None, into);
        }
    }
}

/// QK-norm and RoPE, between the projections and attention.
pub struct Before<'a> {
    /// Position of each token.
    pub positions: &'a [u32],
    /// Angles by which queries and keys were turned.
    pub table: &'a rope::RotaryTable,
    /// The norms of the heads of `q` and `k`, if there are any.
    pub norms: Option<[Normed<'a>; 2]>,
}

/// The norm of heads, as its backward pass needs it.
pub struct Normed<'a> {
    /// Input of the norm, `[tokens, heads * dim]`.
    pub x: &'a [bf16],
    /// Its weight, `[dim]`.
    pub weight: &'a [f32],
    /// The scale of each head, `[tokens, heads]`.
    pub scale: &'a [f32],
    /// Whether the gradient of the weight is wanted.
    pub trained: bool,
}

/// [`backward`] in bf16 and what comes before attention too: gradients of what the projections
/// gave, rounded where `G` is bf16, and of the norms' weights, `[dim]`, or nothing for one that is
/// not trained.
pub fn backward_before<O: Number, G: Number>(
    [q, k, v]: [Mat<'_>; 3],
    starts: &[usize],
    heads: Heads,
    (out, lse): (&[O], &[f32]),
    dout: &[f32],
    before: &Before<'_>,
    into: [&mut [G]; 3],
) -> [Vec<f32>; 2] {
    let tasks = tiles::tasks(starts, heads);
    let shares = tiles::backward([q, k, v], starts, heads, &tasks, (out, lse), dout);
    gather(&tasks, &shares, starts, heads, Some(before), into)
}

fn whole_backward<O: Number>(
    [q, k, v]: [Mat<'_>; 3],
    starts: &[usize],
    heads: Heads,
    tasks: &[Task],
    (out, lse): (&[O], &[f32]),
    dout: &[f32],
) -> Vec<Share> {
    let (qw, d, precision) = (heads.q_width(), heads.dim, Precision::F32);
    let upstreams = Mat::new(dout, q.dims().0, qw);
    let packed: Vec<[PackedRhs; 3]> = contexts(k, v, starts, heads)
        .par_iter()
        .map(|c| [c.k.t(), c.v.t(), c.k].map(|m| PackedRhs::new(precision, m)))
        .collect();
    let one = |task: &Task| {
        let [key_t, value_t, key] = &packed[task.context];
        let n = task.queries.len();
        let [mut dqs, mut dks, mut dvs] = [task.heads.len(), 1, 1].map(|heads| arena::alloc(heads * n * d));
        let [mut p, mut ds] = [0, 1].map(|_| arena::alloc(BLOCK.min(n) * n));
        dks.fill(0.0);
        dvs.fill(0.0);
        let mut tile = vec![0f32; d];
        for first in task.queries.clone().step_by(BLOCK) {
            for h in task.heads.clone() {
                let last = (first + BLOCK).min(task.queries.end);
                let (b, context) = (last - first, last - task.start);
                let (p, ds) = (&mut p[..b * context], &mut ds[..b * context]);
                let [query, upstream] = [q, upstreams].map(|x| x.part(first..last, heads.columns(h)));
                multiply(MatMut::new(p, b, context), heads.scale(), query, key_t, false);
                multiply(MatMut::new(ds, b, context), 1.0, upstream, value_t, false);
                simd(
                    #[inline(always)]
                    || {
                        let rows = p.chunks_exact_mut(context).zip(ds.chunks_exact_mut(context));
                        for (token, (p, ds)) in (first..last).zip(rows) {
                            let at = token * qw + h * d;
                            let delta = dot(O::wide(&out[at..at + d], &mut tile), &dout[at..at + d]);
                            let lse = lse[token * heads.queries + h];
                            let seen = token - task.start + 1;
                            let (p, p_future) = p.split_at_mut(seen);
                            let (ds, ds_future) = ds.split_at_mut(seen);
                            p_future.fill(0.0);
                            ds_future.fill(0.0);
                            for (p, ds) in p.iter_mut().zip(ds) {
                                *p = exp(*p - lse);
                                *ds = *p * (*ds - delta);
                            }
                        }
                    },
                );
                let (p, ds) = (Mat::new(p, b, context), Mat::new(ds, b, context));
                let at = ((h - task.heads.start) * n + first - task.start) * d;
                multiply(MatMut::new(&mut dqs[at..], b, d), heads.scale(), ds, key, false);
                let dks = MatMut::new(&mut dks[..context * d], context, d);
                multiply(dks, heads.scale(), ds.t(), &PackedRhs::new(precision, query), true);
                let dvs = MatMut::new(&mut dvs[..context * d], context, d);
                multiply(dvs, 1.0, p.t(), &PackedRhs::new(precision, upstream), true);
            }
        }
        Share([dqs, dks, dvs])
    };
    tasks.par_iter().with_max_len(1).map(one).collect()
}

/// Puts the gradients together, those of a key or value in the order of the tasks, and takes them
/// back through what came before; the gradients of the norms' weights.
fn gather<G: Number>(
    tasks: &[Task],
    shares: &[Share],
    starts: &[usize],
    heads: Heads,
    before: Option<&Before<'_>>,
    [dq, dk, dv]: [&mut [G]; 3],
) -> [Vec<f32>; 2] {
    let (qw, kw, d) = (heads.q_width(), heads.k_width(), heads.dim);
    let norms = before.and_then(|before| before.norms.as_ref());
    let nothing = || [0, 1].map(|of| vec![0f32; if norms.is_some_and(|norms| norms[of].trained) { d } else { 0 }]);
    let blocks = query_blocks(starts);
    let outs = split(dq, &blocks, qw).into_iter().zip(split(dk, &blocks, kw)).zip(split(dv, &blocks, kw));
    let sums: Vec<[Vec<f32>; 2]> = blocks
        .par_iter()
        .zip(outs.collect::<Vec<_>>())
        .map(|(block, ((dq, dk), dv))| {
            let reaches = |task: &Task| task.start == block.start && task.queries.end > block.first;
            let mine: Vec<(&Task, &Share)> = tasks.iter().zip(shares).filter(|(task, _)| reaches(task)).collect();
            let [mut row, mut tile] = [qw.max(kw), d].map(|n| vec![0f32; n]);
            let mut sums = nothing();
            simd(
                #[inline(always)]
                || {
                    for (at, token) in (block.first..block.last).enumerate() {
                        for (task, Share([dqs, ..])) in &mine {
                            let (n, i) = (task.queries.len(), token.wrapping_sub(task.queries.start));
                            for (g, h) in task.heads.clone().enumerate().filter(|_| i < n) {
                                row[h * d..][..d].copy_from_slice(&dqs[(g * n + i) * d..][..d]);
                            }
                        }
                        let through = before.map(|before| (before, token));
                        leave(&mut row[..qw], through.map(|x| (x, 0)), &mut tile, &mut sums, &mut dq[at * qw..][..qw]);
                        for (which, to) in [&mut *dk, &mut *dv].into_iter().enumerate() {
                            // The zero that changes no number it is added to, not even another
                            // zero.
                            row[..kw].fill(-0.0);
                            for (task, Share(parts)) in &mine {
                                let at = (token - task.start) * d;
                                let Some(part) = parts[1 + which].get(at..at + d) else { continue };
                                let to = &mut row[task.heads.start / heads.group() * d..][..d];
                                to.iter_mut().zip(part).for_each(|(to, from)| *to += from);
                            }
                            let through = through.filter(|_| which == 0).map(|x| (x, 1));
                            leave(&mut row[..kw], through, &mut tile, &mut sums, &mut to[at * kw..][..kw]);
                        }
                    }
                },
            );
            sums
        })
        .collect();
    let mut all = nothing();
    for (sum, part) in sums.iter().flat_map(|sums| sums.iter().enumerate()) {
        all[sum].iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    all
}

/// Puts one token's gradients of `q` (0) or `k` (1) where they go, those of what came before if
/// there is anything.
#[inline(always)]
fn leave<G: Number>(
    row: &mut [f32],
    through: Option<((&Before<'_>, usize), usize)>,
    tile: &mut [f32],
    sums: &mut [Vec<f32>; 2],
    to: &mut [G],
) {
    if let Some(((before, token), of)) = through {
        before.table.turn_back(row, before.positions[token]);
        if let Some(norms) = &before.norms {
            let (Normed { x, weight, scale, .. }, sum) = (&norms[of], &mut sums[of]);
            let (d, first) = (weight.len(), token * (row.len() / weight.len()));
            for (h, dy) in row.chunks_exact_mut(d).enumerate() {
                let (x, r) = (bf16::wide(&x[(first + h) * d..][..d], tile), scale[first + h]);
                for ((sum, dy), x) in sum.iter_mut().zip(&*dy).zip(x) {
                    *sum += dy * (x * r);
                }
                norm::row_backward(x, weight, r, dy);
            }
        }
    }
    G::keep(row, to);
}

/// One query per sequence against its cache: `q`, `out` `[sequences, queries * dim]`; `caches[s]`
/// are the keys and values `[positions, keys * dim]` of sequence `s`, the query's own position
/// last.
pub fn decode(q: &[f32], caches: &[(&[f32], &[f32])], heads: Heads, out: &mut [f32]) {
    let (qw, kw, d) = (heads.q_width(), heads.k_width(), heads.dim);
    out.par_chunks_mut(qw).zip(q.par_chunks(qw)).zip(caches).for_each(|((out, q), (keys, values))| {
        let mut p = vec![0f32; keys.len() / kw];
        simd(
            #[inline(always)]
            || {
                for (h, (q, out)) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
                    let kv = h / heads.group() * d;
                    for (p, key) in p.iter_mut().zip(keys.chunks_exact(kw)) {
                        *p = dot(q, &key[kv..kv + d]) * heads.scale();
                    }
                    let top = max(&p);
                    p.iter_mut().for_each(|p| *p = exp(*p - top));
                    let inverse = 1.0 / sum_of([&p], |[p]| p);
                    out.fill(0.0);
                    for (p, value) in p.iter().zip(values.chunks_exact(kw)) {
                        let p = p * inverse;
                        for (o, v) in out.iter_mut().zip(&value[kv..kv + d]) {
                            *o += p * v;
                        }
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests;
