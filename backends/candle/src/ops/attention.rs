//! Causal grouped-query attention over rows packed back to back.
//!
//! Scores exist only for one block of queries of one head at a time; the backward pass recomputes them from the
//! log-sum-exp that the forward pass leaves (Dao et al., arXiv 2205.14135). Sums over a row are those of that row
//! alone, so a row's result does not depend on its neighbours.

use rayon::prelude::*;

use super::matmul::{Mat, MatMut, Precision, Threads};
use super::simd::{dot, exp, max, simd, sum_by};

/// Products inside attention are f32 in every mode: they are a small part of the work, and softmax is sensitive.
fn product(c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: Mat<'_>, add: bool, threads: Threads) {
    super::matmul::product(Precision::F32, c, alpha, a, b, add, threads);
}

/// Queries a block holds.
const BLOCK: usize = 64;

/// Numbers of heads and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    fn q_width(&self) -> usize {
        self.queries * self.dim
    }
    fn k_width(&self) -> usize {
        self.keys * self.dim
    }
    fn group(&self) -> usize {
        self.queries / self.keys
    }
    /// Scores are multiplied by `1 / sqrt(dim)`.
    fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }
}

/// Floating-point operations of `products` causal products over these rows: pairs that the mask leaves, for every
/// query head.
pub fn work(starts: &[usize], heads: Heads, products: usize) -> f64 {
    let pairs: usize = starts.windows(2).map(|w| (w[1] - w[0]) * (w[1] - w[0] + 1) / 2).sum();
    2.0 * (pairs * heads.queries * heads.dim * products) as f64
}

/// `(start of row, first query, one past the last query)` of every query block.
fn query_blocks(starts: &[usize]) -> Vec<(usize, usize, usize)> {
    let rows = starts.windows(2).flat_map(|w| {
        let (start, end) = (w[0], w[1]);
        (start..end).step_by(BLOCK).map(move |q| (start, q, (q + BLOCK).min(end)))
    });
    rows.collect()
}

/// Splits `x` of `[tokens, width]` at the blocks' ends.
fn split<'a>(mut x: &'a mut [f32], blocks: &[(usize, usize, usize)], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(blocks.len());
    for &(_, first, last) in blocks {
        let (head, tail) = x.split_at_mut((last - first) * width);
        parts.push(head);
        x = tail;
    }
    parts
}

/// `q`, `out` `[tokens, queries * dim]`, `k`, `v` `[tokens, keys * dim]`; row `r` is tokens `starts[r]..starts[r + 1]`.
/// Leaves the log-sum-exp of every query's scores in `lse` `[tokens, queries]`.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], starts: &[usize], heads: Heads, out: &mut [f32], lse: &mut [f32]) {
    let (qw, kw, d) = (heads.q_width(), heads.k_width(), heads.dim);
    let blocks = query_blocks(starts);
    let outs = split(out, &blocks, qw);
    let lses = split(lse, &blocks, heads.queries);
    blocks.par_iter().zip(outs).zip(lses).for_each(|((&(start, first, last), out), lse)| {
        let (n, context) = (last - first, last - start);
        let mut p = vec![0f32; n * context];
        for h in 0..heads.queries {
            let kv = h / heads.group() * d;
            let key = Mat::strided(&k[start * kw + kv..], context, d, kw);
            let value = Mat::strided(&v[start * kw + kv..], context, d, kw);
            let query = Mat::strided(&q[first * qw + h * d..], n, d, qw);
            product(MatMut::new(&mut p, n, context), heads.scale(), query, key.t(), false, Threads::One);
            simd(
                #[inline(always)]
                || {
                    for (i, p) in p.chunks_exact_mut(context).enumerate() {
                        let (seen, future) = p.split_at_mut(first - start + i + 1);
                        future.fill(0.0);
                        let top = max(seen);
                        seen.iter_mut().for_each(|p| *p = exp(*p - top));
                        let sum = sum_by(seen.len(), |j| seen[j]);
                        let inverse = 1.0 / sum;
                        seen.iter_mut().for_each(|p| *p *= inverse);
                        lse[i * heads.queries + h] = top + sum.ln();
                    }
                },
            );
            let out = MatMut::strided(&mut out[h * d..], n, d, qw);
            product(out, 1.0, Mat::new(&p, n, context), value, false, Threads::One);
        }
    });
}

/// Gradients of `q`, `k` and `v` given `dout`; what was in them is overwritten.
#[allow(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    starts: &[usize],
    heads: Heads,
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (qw, kw, d, group) = (heads.q_width(), heads.k_width(), heads.dim, heads.group());
    let tasks: Vec<(usize, usize, usize)> =
        starts.windows(2).flat_map(|w| (0..heads.keys).map(move |kv| (w[0], w[1], kv))).collect();
    // Gradients of the queries of the group, the keys and the values of one row and one key head.
    let parts: Vec<[Vec<f32>; 3]> = tasks
        .par_iter()
        .map(|&(start, end, kv)| {
            let n = end - start;
            let mut dqs = vec![0f32; n * group * d];
            let (mut dks, mut dvs) = (vec![0f32; n * d], vec![0f32; n * d]);
            let longest = n.min(BLOCK) * n;
            let (mut p, mut ds) = (vec![0f32; longest], vec![0f32; longest]);
            for first in (start..end).step_by(BLOCK) {
                let last = (first + BLOCK).min(end);
                let (b, context) = (last - first, last - start);
                let (p, ds) = (&mut p[..b * context], &mut ds[..b * context]);
                let key = Mat::strided(&k[start * kw + kv * d..], context, d, kw);
                let value = Mat::strided(&v[start * kw + kv * d..], context, d, kw);
                for g in 0..group {
                    let h = kv * group + g;
                    let query = Mat::strided(&q[first * qw + h * d..], b, d, qw);
                    let upstream = Mat::strided(&dout[first * qw + h * d..], b, d, qw);
                    product(MatMut::new(p, b, context), heads.scale(), query, key.t(), false, Threads::One);
                    product(MatMut::new(ds, b, context), 1.0, upstream, value.t(), false, Threads::One);
                    simd(
                        #[inline(always)]
                        || {
                            for (i, (p, ds)) in
                                p.chunks_exact_mut(context).zip(ds.chunks_exact_mut(context)).enumerate()
                            {
                                let (token, seen) = (first + i, first - start + i + 1);
                                let at = token * qw + h * d;
                                let delta = dot(&out[at..at + d], &dout[at..at + d]);
                                let lse = lse[token * heads.queries + h];
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
                    let at = ((first - start) * group + g) * d;
                    let dq = MatMut::strided(&mut dqs[at..], b, d, group * d);
                    product(dq, heads.scale(), ds, key, false, Threads::One);
                    product(
                        MatMut::new(&mut dks[..context * d], context, d),
                        heads.scale(),
                        ds.t(),
                        query,
                        true,
                        Threads::One,
                    );
                    product(MatMut::new(&mut dvs[..context * d], context, d), 1.0, p.t(), upstream, true, Threads::One);
                }
            }
            [dqs, dks, dvs]
        })
        .collect();
    for (&(start, end, kv), [dqs, dks, dvs]) in tasks.iter().zip(&parts) {
        for t in start..end {
            let local = t - start;
            let width = group * d;
            dq[t * qw + kv * width..][..width].copy_from_slice(&dqs[local * width..][..width]);
            dk[t * kw + kv * d..][..d].copy_from_slice(&dks[local * d..][..d]);
            dv[t * kw + kv * d..][..d].copy_from_slice(&dvs[local * d..][..d]);
        }
    }
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
                    let inverse = 1.0 / sum_by(p.len(), |i| p[i]);
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

    fn run(starts: &[usize]) -> [Vec<f32>; 8] {
        let t = starts[starts.len() - 1];
        let (qn, kn) = (t * HEADS.q_width(), t * HEADS.k_width());
        let (q, k, v, g) = (noise(qn, 1), noise(kn, 2), noise(kn, 3), noise(qn, 4));
        let (mut out, mut lse) = (vec![0f32; qn], vec![0f32; t * HEADS.queries]);
        forward(&q, &k, &v, starts, HEADS, &mut out, &mut lse);
        let (mut dq, mut dk, mut dv) = (vec![9f32; qn], vec![9f32; kn], vec![9f32; kn]);
        backward(&q, &k, &v, starts, HEADS, &out, &lse, &g, &mut dq, &mut dk, &mut dv);
        [q, k, v, g, out, dq, dk, dv]
    }

    #[test]
    fn forward_and_backward_match_f64() {
        let starts = [0, 5, 6, 9];
        let [q, k, v, g, out, dq, dk, dv] = run(&starts);
        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        assert_close("out", &out, &in_f64(&q64, &k64, &v64, &starts, HEADS), 1e-6);
        check_gradient("q", &q, &dq, |x| weigh(&in_f64(x, &k64, &v64, &starts, HEADS), &g));
        check_gradient("k", &k, &dk, |x| weigh(&in_f64(&q64, x, &v64, &starts, HEADS), &g));
        check_gradient("v", &v, &dv, |x| weigh(&in_f64(&q64, &k64, x, &starts, HEADS), &g));
    }

    #[test]
    fn rows_longer_than_a_block_match_f64() {
        let starts = [0, 150, 170];
        let [q, k, v, _, out, ..] = run(&starts);
        assert_close("out", &out, &in_f64(&wide(&q), &wide(&k), &wide(&v), &starts, HEADS), 2e-6);
    }

    #[test]
    fn threads_do_not_show() {
        let starts = [0, 130, 131, 200];
        let one = with_threads(1, || run(&starts));
        assert_eq!(one, with_threads(2, || run(&starts)));
        assert_eq!(one, with_threads(5, || run(&starts)));
    }

    #[test]
    fn decoding_from_a_cache_matches_the_whole_row() {
        let starts = [0, 9, 14];
        let [q, k, v, _, out, ..] = run(&starts);
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
