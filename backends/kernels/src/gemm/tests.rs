//! GEMM against f64, and every instruction set against the others.

use half::f16;

use super::*;
use crate::testing::{noise, with_threads};

fn sets() -> Vec<Isa> {
    // What this CPU has, and everything below it.
    match Isa::of_this_cpu() {
        Isa::Avx512Bf16 | Isa::AmxBf16 => vec![Isa::Avx512Bf16, Isa::Avx512, Isa::Portable],
        Isa::Avx512 => vec![Isa::Avx512, Isa::Portable],
        Isa::Portable | Isa::Emulated => vec![Isa::Portable],
    }
}

/// The product in f64 of operands rounded as `precision` says, and the same of absolute values.
fn reference(precision: Precision, m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let rounded = |x: f32| match precision {
        Precision::F32 => f64::from(x),
        Precision::Bf16 => f64::from(bf16::from_f32(x).to_f32()),
    };
    let (mut c, mut size) = (vec![0f64; m * n], vec![0f64; m * n]);
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let x = rounded(a[i * k + l]) * rounded(b[l * n + j]);
                c[i * n + j] += x;
                size[i * n + j] += x.abs();
            }
        }
    }
    (c, size)
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
}

const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 300, 40),
    (2, 3, 700),
    (5, 8, 64),
    (33, 8, 192),
    (64, 192, 1300),
    (130, 70, 2),
    (40, 1, 9),
    (1, 64, 100),
    (17, 49, 1029),
    (7, 20, 0),
];

#[test]
fn products_of_all_layouts_match_f64() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, n, k) in SHAPES {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let (want, size) = reference(precision, m, n, k, &a, &b);
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let lhs = [Mat::new(&a, m, k), Mat::new(&at, k, m).t()];
            let rhs = [Mat::new(&b, k, n), Mat::new(&bt, n, k).t()];
            for a in lhs {
                for b in rhs {
                    let mut c = vec![1f32; m * n];
                    gemm(precision, MatMut::new(&mut c, m, n), 0.5, a, b, true, Threads::Pool);
                    gemm(precision, MatMut::new(&mut c, m, n), 1.0, a, b, true, Threads::One);
                    // A chain of so many sums in f32 errs by a few units in the last place of its
                    // size.
                    for (i, c) in c.iter().enumerate() {
                        let error = (f64::from(*c) - 1.0 - 1.5 * want[i]).abs();
                        assert!(error < 1e-5 * (1.0 + size[i]), "{precision:?} {m}x{n}x{k}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn operands_that_were_rounded_before_give_the_bits_of_those_that_are_rounded_on_the_way() {
    // Few rows and many, odd and even inner dimensions, narrow and wide outputs, several blocks.
    for (m, n, k) in
        [(8, 200, 130), (5, 33, 65), (16, 1100, 1300), (13, 7, 9), (200, 600, 64), (600, 96, 700), (40, 3, 1)]
    {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let rounded = |x: &[f32]| {
            let mut y = vec![bf16::ZERO; x.len()];
            narrow(x, &mut y);
            y
        };
        let (an, bn) = (rounded(&a), rounded(&b));
        let transposed = |x: &[bf16], rows: usize, cols: usize| -> Vec<bf16> {
            (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
        };
        let (at, bt) = (transposed(&an, m, k), transposed(&bn, k, n));
        let mut want = vec![0.5f32; m * n];
        let plain = (Mat::new(&a, m, k), Mat::new(&b, k, n));
        gemm(Precision::Bf16, MatMut::new(&mut want, m, n), 0.3, plain.0, plain.1, true, Threads::Pool);
        for a in [Mat::narrowed(&an, m, k), Mat::narrowed(&at, k, m).t(), plain.0] {
            for b in
                [Mat::narrowed(&bn, k, n), Mat::narrowed(&bt, n, k).t(), Mat::of(Elements::Bf16(&bn), k, n), plain.1]
            {
                let mut got = vec![0.5f32; m * n];
                gemm(Precision::Bf16, MatMut::new(&mut got, m, n), 0.3, a, b, true, Threads::Pool);
                assert_eq!(got, want, "{m}x{n}x{k}");
            }
        }
    }
}

#[test]
fn parts_cover_everything_once_and_the_last_are_small() {
    for (n, size, least) in
        [(512, 48, 12), (1536, 64, 32), (576, 32, 32), (7, 48, 12), (1, 1, 1), (0, 12, 12), (100, 48, 24)]
    {
        let parts = split(n, size, least);
        let mut next = 0;
        for part in &parts {
            assert!(part.start == next && !part.is_empty() && part.len() <= size);
            assert!(part.end == n || part.len() % least == 0, "{part:?} of {n}");
            next = part.end;
        }
        assert_eq!(next, n);
    }
    let sizes: Vec<usize> = split(512, 48, 12).iter().map(Range::len).collect();
    assert_eq!(sizes, [[48; 7].as_slice(), &[24; 4], &[12; 6], &[8]].concat());
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, n, k) in SHAPES {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let narrow: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
            let half: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
            let lhs = [Mat::new(&a, m, k), Mat::new(&a, k, m).t()];
            let rhs = [Elements::F32(&b), Elements::Bf16(&narrow), Elements::F16(&half)]
                .into_iter()
                .flat_map(|b| [Mat::of(b, k, n), Mat::of(b, n, k).t()]);
            for b in rhs {
                for a in lhs {
                    let run = |isa: Isa| {
                        let mut c = vec![0.25f32; m * n];
                        let terms = vec![Term { alpha: 1.5, a, b }, Term { alpha: 1.0, a, b }];
                        let product = Gemm { c: MatMut::new(&mut c, m, n), add: true, terms };
                        gemms_by(isa, precision, vec![product], Threads::One);
                        c
                    };
                    let want = run(Isa::Portable);
                    for isa in sets() {
                        assert_eq!(run(isa), want, "{isa:?} {precision:?} {m}x{n}x{k}");
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_on_every_instruction_set() {
    let mut x: Vec<f32> = noise(1000, 5);
    x.extend([0.0, -0.0, 1e-40, -1e-40, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]);
    // Ties, upwards and downwards.
    x.extend((0..64u32).map(|i| f32::from_bits(0x3f80_8000 + (i << 16))));
    for isa in sets() {
        let mut out = vec![0u32; x.len().div_ceil(2)];
        let part = Part { start: 0, along: x.len(), first: 0, across: 1 };
        pack::left(isa, Precision::Bf16, &Mat::new(&x, 1, x.len()), part, out.len(), &mut out);
        let got: Vec<u16> = out.iter().flat_map(|u| [*u as u16, (*u >> 16) as u16]).take(x.len()).collect();
        for (x, got) in x.iter().zip(got) {
            let want = if x.is_subnormal() { bf16::from_f32(0.0f32.copysign(*x)) } else { bf16::from_f32(*x) };
            assert_eq!(got, want.to_bits(), "{isa:?} {x:e}");
        }
    }
}

#[test]
fn a_short_term_goes_on_with_the_chain_of_the_one_before_it() {
    // Rows and columns of the output in tasks of either kind; ranks odd and even; several blocks
    // before it.
    for (m, n, k, r) in [(5, 70, 130, 8), (130, 200, 2200, 3), (200, 1100, 64, 64), (300, 40, 1024, 1), (40, 90, 0, 8)]
    {
        let (a, b, low, up) = (noise(m * k, 1), noise(k * n, 2), noise(m * r, 3), noise(r * n, 4));
        for isa in sets().into_iter().chain([Isa::Emulated]) {
            let depth = 2 * isa.depth(Precision::Bf16);
            // A term ends with a unit, on tiles with a tile of units.
            let k_whole = k.next_multiple_of(if isa == Isa::Emulated { 32 } else { 2 });
            // The same units one after the other, from where the last block of the first term
            // starts.
            let last = k_whole.saturating_sub(1) / depth * depth;
            let beside = |x: &[f32], columns: usize, from: usize, y: &[f32]| -> Vec<f32> {
                let row = |i: usize| {
                    let zeros = vec![0.0; k_whole - k];
                    [&x[i * columns + from..(i + 1) * columns], &zeros, &y[i * r..(i + 1) * r]].concat()
                };
                (0..m).flat_map(row).collect()
            };
            let joined = beside(&a, k, last, &low);
            let below = [&b[last * n..], &vec![0.0; (k_whole - k) * n], &up].concat();
            let width = k_whole - last + r;
            let run = |isa: Isa, terms: Vec<Term<'_>>| {
                let mut c = vec![0.25f32; m * n];
                let product = Gemm { c: MatMut::new(&mut c, m, n), add: true, terms };
                gemms_by(isa, Precision::Bf16, vec![product], Threads::Pool);
                c
            };
            let term = |a, b| Term { alpha: 0.5, a, b };
            let (x, w) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
            let short = term(Mat::new(&low, m, r), Mat::new(&up, r, n));
            let got = run(isa, vec![term(x, w), short]);
            let whole = (width <= depth).then(|| {
                let end = term(Mat::new(&joined, m, width), Mat::new(&below, width, n));
                let start = term(x.part(0..m, 0..last), w.part(0..last, 0..n));
                run(isa, if last > 0 { vec![start, end] } else { vec![end] })
            });
            assert!(whole.is_none_or(|whole| whole == got), "{isa:?} {m}x{n}x{k}+{r}");
            if isa != Isa::Emulated {
                assert_eq!(got, run(Isa::Portable, vec![term(x, w), short]), "{isa:?} {m}x{n}x{k}+{r}");
            }
            // With another factor it is a sum of its own, and in f32 always.
            let other = run(isa, vec![term(x, w), Term { alpha: 0.25, ..short }]);
            let apart = other.iter().zip(&got).filter(|(a, b)| a != b).count();
            assert!(apart > 0, "{isa:?} {m}x{n}x{k}+{r}");
        }
    }
}

#[test]
fn several_products_at_once_are_the_same_as_one_by_one() {
    let (m, k) = (50, 70);
    let x = noise(m * k, 1);
    for precision in [Precision::F32, Precision::Bf16] {
        let weights: Vec<(usize, Vec<f32>)> = [90, 8, 64].map(|n| (n, noise(n * k, n as u64))).into();
        let single: Vec<Vec<f32>> = weights
            .iter()
            .map(|(n, w)| {
                let mut c = vec![0f32; m * n];
                let (a, b) = (Mat::new(&x, m, k), Mat::new(w, *n, k).t());
                gemm(precision, MatMut::new(&mut c, m, *n), 1.0, a, b, false, Threads::One);
                c
            })
            .collect();
        let mut together: Vec<Vec<f32>> = weights.iter().map(|(n, _)| vec![0f32; m * n]).collect();
        let jobs = together.iter_mut().zip(&weights).map(|(c, (n, w))| Gemm {
            c: MatMut::new(c, m, *n),
            add: false,
            terms: vec![Term { alpha: 1.0, a: Mat::new(&x, m, k), b: Mat::new(w, *n, k).t() }],
        });
        gemms(precision, jobs.collect(), Threads::Pool);
        assert_eq!(single, together);
    }
}

#[test]
fn a_row_does_not_depend_on_the_other_rows_nor_on_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (n, k) in [(192, 192), (8, 192), (192, 8), (64, 1100), (500, 576)] {
            let (a, b) = (noise(200 * k, 3), noise(n * k, 4));
            let mut whole = vec![0f32; 200 * n];
            let (w, x) = (Mat::new(&b, n, k).t(), Mat::new(&a, 200, k));
            let run = |c: &mut [f32], x: Mat<'_>, rows: usize| {
                gemm(precision, MatMut::new(c, rows, n), 1.0, x, w, false, Threads::Pool);
            };
            with_threads(1, || run(&mut whole, x, 200));
            for threads in [2, 3] {
                let mut again = vec![0f32; 200 * n];
                with_threads(threads, || run(&mut again, x, 200));
                assert_eq!(whole, again, "{threads} threads");
            }
            for rows in [1, 2, 3, 7, 31, 32, 33, 64, 65, 199] {
                let mut part = vec![0f32; rows * n];
                run(&mut part, Mat::new(&a[k..], rows, k), rows);
                assert_eq!(whole[n..(1 + rows) * n], part, "{rows} rows of {n} from {k}");
            }
        }
    }
}
