use karat_kernels::gemm::Mat;
use karat_native::cuda::device::Element;
use karat_native::cuda::kernels::attention::{PackedRows, attention, attention_backward};
use karat_native::device::Precision;
use karat_native::ops::attention as cpu;
use karat_native::ops::attention::Heads;

use crate::bench::*;

/// Output, log-sum-exps and gradients of q, k and v in f64.
struct Reference {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn in_f64([q, k, v, dout]: [&[f32]; 4], starts: &[usize], heads: Heads) -> Reference {
    let Heads { queries, keys, dim } = heads;
    let (qw, kw, tokens) = (queries * dim, keys * dim, starts[starts.len() - 1]);
    let [q, k, v, dout] = [q, k, v, dout].map(wide);
    let zeros = |width: usize| vec![0f64; tokens * width];
    let mut r = Reference { out: zeros(qw), lse: zeros(queries), dq: zeros(qw), dk: zeros(kw), dv: zeros(kw) };
    let scale = 1.0 / (dim as f64).sqrt();
    for row in starts.windows(2) {
        for t in row[0]..row[1] {
            for h in 0..queries {
                let (at, kv) = (t * qw + h * dim, h / (queries / keys) * dim);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let of = |x: &[f64], j: usize| x[j * kw + kv..][..dim].to_vec();
                let scores: Vec<f64> =
                    (row[0]..=t).map(|j| dot(&q[at..at + dim], &k[j * kw + kv..][..dim]) * scale).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
                r.lse[t * queries + h] = lse;
                let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
                for (j, p) in (row[0]..=t).zip(&p) {
                    of(&v, j).iter().enumerate().for_each(|(i, v)| r.out[at + i] += p * v);
                }
                let delta = dot(&r.out[at..at + dim], &dout[at..at + dim]);
                for (j, p) in (row[0]..=t).zip(&p) {
                    let ds = p * (dot(&dout[at..at + dim], &of(&v, j)) - delta) * scale;
                    for i in 0..dim {
                        r.dq[at + i] += ds * k[j * kw + kv + i];
                        r.dk[j * kw + kv + i] += ds * q[at + i];
                        r.dv[j * kw + kv + i] += p * dout[at + i];
                    }
                }
            }
        }
    }
    r
}

/// Rows of `width` elements `stride` apart, the gaps full of NaN.
fn spread(x: &[f32], width: usize, stride: usize) -> Vec<f32> {
    x.chunks(width).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f32::NAN, stride - width))).collect()
}
fn dense(x: &[f32], width: usize, stride: usize) -> Vec<f32> {
    x.chunks(stride).flat_map(|row| row[..width].iter().copied()).collect()
}

struct Case {
    lengths: &'static [usize],
    heads: Heads,
    /// Size of queries and keys.
    by: f32,
    /// Elements between the rows of q, k and v.
    gap: usize,
}

fn check(t: Element, case: &Case) {
    let Case { lengths, heads, by, gap } = *case;
    let Heads { queries, keys, dim } = heads;
    let starts: Vec<usize> =
        [0].into_iter().chain(lengths.iter().scan(0, |sum, n| (*sum += n, Some(*sum)).1)).collect();
    let (tokens, longest) = (starts[lengths.len()], lengths.iter().copied().max().unwrap());
    let (qw, kw) = (queries * dim, keys * dim);
    let q = rounded(scaled(noise(tokens * qw, 1), by), t);
    let k = rounded(scaled(noise(tokens * kw, 2), by), t);
    let (v, dout) = (rounded(noise(tokens * kw, 3), t), rounded(noise(tokens * qw, 4), t));
    let want = in_f64([&q, &k, &v, &dout], &starts, heads);
    let strides = [qw + gap, kw + gap, kw + gap];
    prove(
        |d| {
            let at: Vec<u32> = starts.iter().map(|s| *s as u32).collect();
            let starts = d.put_u32(&at);
            let rows = PackedRows { strides, ..PackedRows::dense(starts.arg(), lengths.len(), longest, tokens, heads) };
            let put = |x: &[f32], width, i: usize| d.put(&spread(x, width, strides[i]), t);
            let (q, k, v, dout) = (put(&q, qw, 0), put(&k, kw, 1), put(&v, kw, 2), d.put(&dout, t));
            let (out, lse) = (d.fresh(tokens * qw, t), d.fresh(tokens * queries, Element::F32));
            attention(d.gpu(), t, [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg()], &rows).unwrap();
            let fresh = |i: usize| d.fresh(tokens * strides[i], t);
            let (dq, dk, dv) = (fresh(0), fresh(1), fresh(2));
            let delta = d.fresh(tokens * queries, Element::F32);
            let args = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg(), dout.arg(), delta.arg()];
            attention_backward(d.gpu(), t, args, [dq.arg(), dk.arg(), dv.arg()], &rows).unwrap();
            let of = |x: &Held, width, i: usize| dense(&d.get(x), width, strides[i]);
            vec![d.get(&out), d.get(&lse), of(&dq, qw, 0), of(&dk, kw, 1), of(&dv, kw, 2)]
        },
        |device, got| {
            let what = format!("{device} {t:?} {lengths:?} {heads:?} x {by}");
            // Weights and their gradients are rounded to bf16 before they are multiplied.
            let (near, size) = match t {
                Element::F32 => (4e-6, f64::from(by).max(1.0)),
                Element::Bf16 => (8e-3, f64::from(by).max(1.0)),
            };
            close(&format!("{what}: lse"), &got[1], &want.lse, 1e-5, 1e-5 * size * size);
            for (name, got, want) in [
                ("out", &got[0], &want.out),
                ("dq", &got[2], &want.dq),
                ("dk", &got[3], &want.dk),
                ("dv", &got[4], &want.dv),
            ] {
                let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
                // Single elements may be sums of what cancels: bounded by the sum's terms, not by
                // themselves.
                close(&format!("{what}: {name}"), got, want, 4.0 * near, 4.0 * near * largest.max(0.1 * size));
                if largest > 1e-3 {
                    let distance = distance(got, want);
                    assert!(distance < near * size, "{what}: {name} is {distance} from f64");
                }
            }
            let (mut out, mut lse) = (vec![0f32; q.len()], vec![0f32; tokens * queries]);
            let widths = [heads.queries, heads.keys, heads.keys].map(|n| n * heads.dim);
            let [qs, ks, vs] = [(&q, 0), (&k, 1), (&v, 2)].map(|(x, i)| Mat::new(x, tokens, widths[i]));
            cpu::forward(Precision::F32, qs, ks, vs, &starts, heads, &mut out, &mut lse);
            assert!(distance(&got[0], &wide(&out)) < near * size, "{what}: the CPU's output");
        },
    );
}

const fn heads(queries: usize, keys: usize, dim: usize) -> Heads {
    Heads { queries, keys, dim }
}

#[test]
fn tensor_core_attention_matches_f64_on_ragged_rows() {
    for (dim, lengths) in [
        (64, &[1usize, 2, 63, 64, 65][..]),
        (64, &[129, 1, 127]),
        (128, &[130, 33]),
        (128, &[1, 31, 64]),
        (32, &[66, 3]),
        (16, &[100, 64]),
    ] {
        check(Element::Bf16, &Case { lengths, heads: heads(4, 2, dim), by: 2.0, gap: 0 });
    }
    // Heads of their own, and eight to one; rows inside a wider matrix.
    check(Element::Bf16, &Case { lengths: &[40, 70], heads: heads(2, 2, 64), by: 1.0, gap: 64 });
    check(Element::Bf16, &Case { lengths: &[70], heads: heads(8, 1, 64), by: 1.0, gap: 8 });
}

#[test]
fn plain_attention_matches_f64_on_ragged_rows() {
    for (dim, lengths) in [(6, &[1usize, 2, 9, 33, 64][..]), (64, &[31, 65]), (128, &[40]), (80, &[5, 34]), (256, &[7])]
    {
        check(Element::F32, &Case { lengths, heads: heads(4, 2, dim), by: 2.0, gap: 0 });
        if !matches!(dim, 64 | 128) {
            check(Element::Bf16, &Case { lengths, heads: heads(4, 2, dim), by: 2.0, gap: 3 });
        }
    }
}

#[test]
fn scores_far_apart_and_all_equal_stay_numbers() {
    for t in BOTH {
        for by in [30.0, 0.0, 1e-20] {
            check(t, &Case { lengths: &[70, 1], heads: heads(2, 1, 64), by, gap: 0 });
        }
    }
}
