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
        // Two products in a row, each with operands rounded by up to 2^-9 of themselves; the errors
        // of a sum's terms have random signs, so the norm of all errors is what the bound holds
        // for.
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
