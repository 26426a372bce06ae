//! Causal grouped-query attention over rows packed back to back.
//!
//! Scores exist only for one block of queries of one head at a time; the backward pass recomputes them from the
//! log-sum-exp that the forward pass leaves (Dao et al., arXiv 2205.14135). Sums over a row are those of that row
//! alone, so a row's result does not depend on its neighbours.

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

/// Floating-point operations of `products` causal products over these rows: pairs that the mask leaves, for every
/// query head.
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

/// `q`, `out` `[tokens, queries * dim]`, `k`, `v` `[tokens, keys * dim]`; row `r` is tokens `starts[r]..starts[r + 1]`.
/// Leaves the log-sum-exp of every query's scores in `lse` `[tokens, queries]`. Scores and weights are rounded to
/// `precision` where they are multiplied; the softmax is f32, and so is the output before it is rounded to what `out` holds.
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

/// Work on some queries of one row that is done in order: it sums up the gradients of the keys and values that they see.
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

/// Gradients that a task leaves: of its queries, `[heads, queries, dim]`, and of the keys and of the values that they see,
/// `[keys, dim]`.
struct Share([Buffer; 3]);

/// In f32 there is one task for each row and key head, so that the gradient of a key is one sum over its queries.
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

/// [`backward`] in bf16 and what comes before attention too: gradients of what the projections gave, rounded where `G` is
/// bf16, and of the norms' weights, `[dim]`, or nothing for one that is not trained.
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

/// Puts the gradients together, those of a key or value in the order of the tasks, and takes them back through what came
/// before; the gradients of the norms' weights.
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
                            // The zero that changes no number it is added to, not even another zero.
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

/// Puts one token's gradients of `q` (0) or `k` (1) where they go, those of what came before if there is anything.
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

/// One query per sequence against its cache: `q`, `out` `[sequences, queries * dim]`; `caches[s]` are the keys and
/// values `[positions, keys * dim]` of sequence `s`, the query's own position last.
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
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check_gradient, noise, weigh, wide, with_threads};
    use karat_kernels::gemm::narrow_here;

    const HEADS: Heads = Heads { queries: 4, keys: 2, dim: 6 };

    fn in_f64(q: &[f64], k: &[f64], v: &[f64], starts: &[usize], heads: Heads) -> Vec<f64> {
        let (qw, kw, d) = (heads.q_width(), heads.k_width(), heads.dim);
        let mut out = vec![0f64; q.len()];
        for w in starts.windows(2) {
            for t in w[0]..w[1] {
                for h in 0..heads.queries {
                    let kv = h / heads.group() * d;
                    let score = |j: usize| (0..d).map(|i| q[t * qw + h * d + i] * k[j * kw + kv + i]).sum::<f64>();
                    let e: Vec<f64> = (w[0]..=t).map(|j| (score(j) / (d as f64).sqrt()).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    for (j, e) in (w[0]..=t).zip(&e) {
                        for i in 0..d {
                            out[t * qw + h * d + i] += e / sum * v[j * kw + kv + i];
                        }
                    }
                }
            }
        }
        out
    }

    fn mats<'a>([q, k, v]: [&'a [f32]; 3]) -> [Mat<'a>; 3] {
        let tokens = q.len() / HEADS.q_width();
        [(q, HEADS.q_width()), (k, HEADS.k_width()), (v, HEADS.k_width())].map(|(x, width)| Mat::new(x, tokens, width))
    }

    fn run(precision: Precision, starts: &[usize]) -> [Vec<f32>; 8] {
        let t = starts[starts.len() - 1];
        let (qn, kn) = (t * HEADS.q_width(), t * HEADS.k_width());
        let (q, k, v, g) = (noise(qn, 1), noise(kn, 2), noise(kn, 3), noise(qn, 4));
        let (mut out, mut lse) = (vec![0f32; qn], vec![0f32; t * HEADS.queries]);
        let [qs, ks, vs] = mats([&q, &k, &v]);
        forward(precision, qs, ks, vs, starts, HEADS, &mut out, &mut lse);
        let (mut dq, mut dk, mut dv) = (vec![9f32; qn], vec![9f32; kn], vec![9f32; kn]);
        let into = [&mut dq[..], &mut dk, &mut dv];
        backward(precision, mats([&q, &k, &v]), starts, HEADS, (&out[..], &lse), &g, into);
        [q, k, v, g, out, dq, dk, dv]
    }

    #[test]
    fn forward_and_backward_match_f64() {
        let starts = [0, 5, 6, 9];
        let [q, k, v, g, out, dq, dk, dv] = run(Precision::F32, &starts);
        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        assert_close("out", &out, &in_f64(&q64, &k64, &v64, &starts, HEADS), 1e-6);
        check_gradient("q", &q, &dq, |x| weigh(&in_f64(x, &k64, &v64, &starts, HEADS), &g));
        check_gradient("k", &k, &dk, |x| weigh(&in_f64(&q64, x, &v64, &starts, HEADS), &g));
        check_gradient("v", &v, &dv, |x| weigh(&in_f64(&q64, &k64, x, &starts, HEADS), &g));
    }

    #[test]
    fn rows_longer_than_a_block_match_f64() {
        let starts = [0, 150, 170];
        let [q, k, v, _, out, ..] = run(Precision::F32, &starts);
        assert_close("out", &out, &in_f64(&wide(&q), &wide(&k), &wide(&v), &starts, HEADS), 2e-6);
    }

    #[test]
    fn in_bf16_forward_and_backward_are_those_of_f32_within_its_rounding() {
        let starts = [0, 150, 170, 171, 300];
        let (wide, narrow) = (run(Precision::F32, &starts), run(Precision::Bf16, &starts));
        for (name, at) in [("out", 4), ("dq", 5), ("dk", 6), ("dv", 7)] {
            // Two products in a row, each with operands rounded by up to 2^-9 of themselves; the errors of a sum's terms have
            // random signs, so the norm of all errors is what the bound holds for.
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut wide[at].iter().zip(&narrow[at]).map(|(a, b)| f64::from(a - b)));
            let size = norm(&mut wide[at].iter().map(|a| f64::from(*a)));
            assert!(error < size / 256.0, "{name}: {}", error / size);
            assert_ne!(wide[at], narrow[at], "{name}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        for precision in [Precision::F32, Precision::Bf16] {
            let starts = [0, 150, 170, 300];
            let [q, k, v, g, all @ ..] = run(precision, &starts);
            let (qw, kw) = (HEADS.q_width(), HEADS.k_width());
            for w in starts.windows(2) {
                let n = w[1] - w[0];
                let part = |x: &[f32], width: usize| x[w[0] * width..w[1] * width].to_vec();
                let (q, k, v, g) = (part(&q, qw), part(&k, kw), part(&v, kw), part(&g, qw));
                let (mut out, mut lse) = (vec![0f32; n * qw], vec![0f32; n * HEADS.queries]);
                let [qs, ks, vs] = mats([&q, &k, &v]);
                forward(precision, qs, ks, vs, &[0, n], HEADS, &mut out, &mut lse);
                let (mut dq, mut dk, mut dv) = (vec![9f32; n * qw], vec![9f32; n * kw], vec![9f32; n * kw]);
                let into = [&mut dq[..], &mut dk, &mut dv];
                backward(precision, mats([&q, &k, &v]), &[0, n], HEADS, (&out[..], &lse), &g, into);
                for (alone, (of, width)) in [out, dq, dk, dv].iter().zip(all.iter().zip([qw, qw, kw, kw])) {
                    assert_eq!(*alone, part(of, width), "{precision:?}");
                }
            }
        }
    }

    #[test]
    fn the_way_back_through_what_came_before_is_that_of_its_parts_in_a_row() {
        let (starts, d) = ([0, 70, 100], HEADS.dim);
        let [q, k, v, g, out, mut dq, mut dk, dv] = run(Precision::Bf16, &starts);
        let positions: Vec<u32> = (0..70).chain(0..30).collect();
        let table = rope::RotaryTable::new(&karat_model::Rope::plain(1e4), d, 70);
        let narrowed = |x: &[f32]| {
            let mut y = vec![bf16::ZERO; x.len()];
            narrow_here(x, &mut y);
            y
        };
        let (xs, ws) = ([&q, &k].map(|x| narrowed(x)), [noise(d, 5), noise(d, 6)]);
        let scales = [&q, &k].map(|x| noise(x.len() / d, 7).iter().map(|x| 1.0 + x * x).collect::<Vec<f32>>());
        let mut want_sums = [vec![0f32; d], vec![0f32; d]];
        for (i, (dx, heads)) in [(&mut dq, HEADS.queries), (&mut dk, HEADS.keys)].into_iter().enumerate() {
            rope::rotate(dx, &positions, heads, &table, true);
            let dy = dx.clone();
            norm::backward(&xs[i], &ws[i], &scales[i], &dy, dx, false, Some(&mut want_sums[i]));
        }
        let mut lse = vec![0f32; 100 * HEADS.queries];
        let mut same = vec![0f32; out.len()];
        let [qs, ks, vs] = mats([&q, &k, &v]);
        forward(Precision::Bf16, qs, ks, vs, &starts, HEADS, &mut same, &mut lse);
        assert_eq!(same, out);
        let normed = |i: usize| Normed { x: &xs[i], weight: &ws[i], scale: &scales[i], trained: true };
        let before = Before { positions: &positions, table: &table, norms: Some([normed(0), normed(1)]) };
        let [mut a, mut b, mut c] = [dq.len(), dk.len(), dv.len()].map(|n| vec![bf16::ZERO; n]);
        let into = [&mut a[..], &mut b, &mut c];
        let read = mats([&q, &k, &v]);
        let sums = backward_before(read, &starts, HEADS, (&out[..], &lse), &g, &before, into);
        assert_eq!([a, b, c], [&dq, &dk, &dv].map(|x| narrowed(x)));
        for (sum, want) in sums.iter().zip(&want_sums) {
            assert_close("dw", sum, &wide(want), 1e-5);
        }
    }

    #[test]
    fn threads_do_not_show() {
        for precision in [Precision::F32, Precision::Bf16] {
            let starts = [0, 130, 131, 200];
            let one = with_threads(1, || run(precision, &starts));
            assert_eq!(one, with_threads(2, || run(precision, &starts)));
            assert_eq!(one, with_threads(5, || run(precision, &starts)));
        }
    }

    #[test]
    fn decoding_from_a_cache_matches_the_whole_row() {
        let starts = [0, 9, 14];
        let [q, k, v, _, out, ..] = run(Precision::F32, &starts);
        let (qw, kw) = (HEADS.q_width(), HEADS.k_width());
        let caches: Vec<(&[f32], &[f32])> =
            starts.windows(2).map(|w| (&k[w[0] * kw..w[1] * kw], &v[w[0] * kw..w[1] * kw])).collect();
        let last: Vec<f32> = [8, 13].iter().flat_map(|t| q[t * qw..(t + 1) * qw].to_vec()).collect();
        let mut got = vec![0f32; 2 * qw];
        decode(&last, &caches, HEADS, &mut got);
        let want: Vec<f64> = [8, 13].iter().flat_map(|t| wide(&out[t * qw..(t + 1) * qw])).collect();
        assert_close("decode", &got, &want, 1e-6);
    }
}
