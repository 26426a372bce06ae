use half::bf16;

use super::super::isa::Isa;
use super::super::tile::Precision;
use super::super::{Gemm, Mat, MatMut, Term, Threads, gemms_by};
use super::emulated::tdpbf16ps;
use super::*;
use crate::testing::noise;

fn emulated(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
    let mut c = vec![0.5f32; m * n];
    let terms = vec![Term { alpha: 1.5, a, b }];
    let product = Gemm { c: MatMut::new(&mut c, m, n), add: true, terms };
    assert!(k > 0);
    gemms_by(Isa::Emulated, Precision::Bf16, vec![product], Threads::One);
    c
}

#[test]
fn the_blocking_over_tiles_gives_the_product_of_every_shape() {
    for (m, n, k) in [(1, 1, 1), (5, 8, 64), (33, 40, 70), (16, 16, 32), (130, 70, 2), (100, 130, 1100)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let rounded = |x: f32| f64::from(bf16::from_f32(x).to_f32());
        let c = emulated(m, n, k, Mat::new(&a, m, k), Mat::new(&b, k, n));
        for i in 0..m {
            for j in 0..n {
                let terms = (0..k).map(|l| rounded(a[i * k + l]) * rounded(b[l * n + j]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, z), x| (s + x, z + x.abs()));
                let error = (f64::from(c[i * n + j]) - 0.5 - 1.5 * sum).abs();
                assert!(error < 1e-5 * (1.0 + size), "{m}x{n}x{k}: {error}");
            }
        }
    }
}

#[test]
fn a_row_or_column_does_not_depend_on_the_others() {
    let (m, n, k) = (70, 100, 200);
    let (a, b) = (noise(m * k, 1), noise(n * k, 2));
    let whole = emulated(m, n, k, Mat::new(&a, m, k), Mat::new(&b, n, k).t());
    for rows in [1, 15, 16, 17, 33] {
        let part = emulated(rows, n, k, Mat::new(&a[k..], rows, k), Mat::new(&b, n, k).t());
        assert_eq!(whole[n..(1 + rows) * n], part, "{rows} rows");
    }
    for columns in [1, 17, 64, 65] {
        let part = emulated(m, columns, k, Mat::new(&a, m, k), Mat::new(&b, columns, k).t());
        let of_whole: Vec<f32> = whole.chunks(n).flat_map(|row| row[..columns].to_vec()).collect();
        assert_eq!(of_whole, part, "{columns} columns");
    }
}

#[test]
fn the_chains_of_both_halves_are_summed_apart_and_subnormal_numbers_are_zero() {
    let unit = |low: f32, high: f32| {
        u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
    };
    let (mut a, mut b, mut c) = ([0u32; SIDE], [[0u32; SIDE]; SIDE], [0f32; SIDE]);
    [c[0], c[1]] = [0.25, 1e-40];
    // In one chain the ones would be lost beside 2^25 before it is taken away again.
    a[0] = unit(33_554_432.0, 1.0);
    a[1] = unit(-33_554_432.0, 1.0);
    (b[0][0], b[1][0]) = (unit(1.0, 1.0), unit(1.0, 1.0));
    tdpbf16ps(&mut c, &a, &b);
    assert_eq!(c[..2], [2.25, 0.0]);
    // A product too small for a normal number, and an operand that is none.
    (a[0], a[1]) = (unit(2e-38, 1e-39), 0);
    b[0][0] = unit(0.25, 1.0);
    let mut c = [0f32; SIDE];
    tdpbf16ps(&mut c, &a, &b);
    assert_eq!(c[0], 0.0);
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_tiles_of_this_cpu_are_those_of_the_emulation() {
    if !ready() {
        eprintln!("skipped: this CPU has no AMX for bf16, or the system does not let this process use it");
        return;
    }
    // SAFETY: `ready` said yes.
    assert!(unsafe { agrees() });
}

/// A tile of noise and a tail with everything that they lie in.
struct Case {
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<f32>,
    units: usize,
    more: usize,
    stride: usize,
}

impl Case {
    fn new(rows: usize, (units, more): (usize, usize), vectors: usize) -> Self {
        let draw = |n: usize, seed| -> Vec<u32> {
            noise(2 * n, seed)
                .chunks(2)
                .map(|pair| {
                    let [low, high] = [pair[0], pair[1]].map(|x| u32::from(bf16::from_f32(x).to_bits()));
                    low | high << 16
                })
                .collect()
        };
        let stride = vectors * LANES + 3;
        let (a, b) = (draw(rows * (units + more + 2), 1), draw((units + more) * vectors * LANES, 2));
        Case { a, b, c: noise(rows * stride, 3), units, more, stride }
    }

    fn tile(&mut self, vectors: usize, columns: usize, alpha: f32, add: bool) -> Tile {
        Tile {
            units: self.units,
            a: self.a.as_ptr(),
            a_stride: self.units + self.more + 2,
            b: self.b.as_ptr(),
            vectors,
            columns,
            c: self.c.as_mut_ptr(),
            c_stride: self.stride,
            alpha,
            add,
        }
    }

    /// The units after those of [`Case::tile`].
    fn tail(&self, vectors: usize) -> Tail {
        Tail {
            units: self.more,
            a: self.a[self.units..].as_ptr(),
            a_stride: self.units + self.more + 2,
            b: self.b[self.units * vectors * LANES..].as_ptr(),
        }
    }
}

#[test]
fn vectors_around_the_tiles_do_what_plain_loops_do_and_write_nothing_else() {
    #[cfg(target_arch = "x86_64")]
    if !crate::simd::has_avx512() {
        eprintln!("skipped: this CPU has no AVX-512");
        return;
    }
    for rows in 1..=33 {
        // Ranks 1, 8, 16, 33 and 64 after units whole and not.
        for (units, more, vectors, columns) in [
            (16, 0, 1, 16),
            (5, 1, 1, 9),
            (40, 4, 2, 17),
            (16, 8, 4, 64),
            (1, 17, 3, 40),
            (33, 32, 4, 20),
            (0, 4, 1, 3),
        ] {
            for (alpha, add) in [(1.0, false), (0.3, false), (1.0, true), (0.3, true)] {
                let mut cases = [0; 2].map(|_| Case::new(rows, (units, more), vectors));
                let before = cases[0].c.clone();
                let [plain, wide] =
                    cases.each_mut().map(|case| (case.tile(vectors, columns, alpha, add), case.tail(vectors)));
                // SAFETY: the operands have the sizes that are named.
                unsafe {
                    let (mut tiles, nothing) = (emulated::Emulated::new(), &mut Prefetcher::nothing());
                    blocks::<_, Plain>(&mut tiles, rows, &plain.0, &plain.1, nothing);
                    run_emulated(rows, wide.0, wide.1, nothing);
                }
                let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let what = format!(
                    "{rows} rows, {units} + {more} units, {columns} columns of {vectors} vectors, {alpha} {add}"
                );
                assert_eq!(bits(&cases[0].c), bits(&cases[1].c), "{what}");
                let stride = cases[0].stride;
                let untouched = |(i, (c, before)): (usize, (&f32, &f32))| i % stride < columns || c == before;
                assert!(cases[0].c.iter().zip(&before).enumerate().all(untouched), "{what}");
            }
        }
    }
}

#[test]
fn all_that_lies_ahead_is_asked_for_by_the_end_of_a_panel_but_not_too_much_at_once() {
    let next = vec![0f32; 64 * 1024];
    let of = |rows: usize| {
        let mut case = Case::new(rows, (512, 0), 4);
        let tile = case.tile(4, 64, 1.0, false);
        let mut ahead = Prefetcher::of(&Mat::new(&next, 64, 1024), 0..64, 0..512);
        let before = ahead.lines();
        // SAFETY: the operands have the sizes that are named.
        unsafe { run_emulated(rows, tile, Tail::NONE, &mut ahead) };
        (before, ahead.lines())
    };
    let (all, left) = of(512);
    assert!(all >= 64 * 32 && left == 0, "{left} of {all}");
    // One row of two blocks of 32 steps, in 11 parts each.
    let (all, left) = of(1);
    assert_eq!(all - left, 2 * 11 * LINES);
}

#[test]
fn whatever_tiles_load_begins_at_cache_lines_but_an_operand_in_place_that_does_not() {
    // Few rows and many, so that either operand is packed; tails; an inner dimension that ends
    // inside a cache line.
    for (m, n, k, rank) in [(5, 70, 64, 8), (130, 200, 2200, 16), (200, 96, 70, 33), (3, 64, 64, 0), (40, 90, 0, 8)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let (low, up) = (noise(m * rank, 3), noise(rank * n, 4));
        let mut c = vec![0f32; m * n];
        let mut terms = vec![Term { alpha: 1.0, a: Mat::new(&a, m, k), b: Mat::new(&b, k, n) }];
        if rank > 0 {
            terms.push(Term { alpha: 1.0, a: Mat::new(&low, m, rank), b: Mat::new(&up, rank, n) });
        }
        let product = Gemm { c: MatMut::new(&mut c, m, n), add: false, terms };
        emulated::STRADDLING.set(0);
        gemms_by(Isa::Emulated, Precision::Bf16, vec![product], Threads::One);
        assert_eq!(emulated::STRADDLING.get(), 0, "{m}x{n}x{k}+{rank}");
    }
    let rounded: Vec<bf16> = noise(40 * 40, 1).iter().map(|x| bf16::from_f32(*x)).collect();
    let (a, b, mut c) = (Mat::narrowed(&rounded, 40, 40), noise(40 * 8, 2), vec![0f32; 40 * 8]);
    let terms = vec![Term { alpha: 1.0, a, b: Mat::new(&b, 40, 8) }];
    let product = Gemm { c: MatMut::new(&mut c, 40, 8), add: false, terms };
    gemms_by(Isa::Emulated, Precision::Bf16, vec![product], Threads::One);
    assert!(emulated::STRADDLING.get() > 0, "the count counts nothing");
}

#[test]
fn tiles_are_configured_once_a_task_and_released_at_its_end() {
    let (a, b) = (noise(100 * 64, 1), noise(64 * 128, 2));
    let multiply = |rows: usize| {
        let mut c = vec![0f32; rows * 128];
        let terms = vec![Term { alpha: 1.0, a: Mat::new(&a, rows, 64), b: Mat::new(&b, 64, 128) }];
        let product = Gemm { c: MatMut::new(&mut c, rows, 128), add: false, terms };
        gemms_by(Isa::Emulated, Precision::Bf16, vec![product], Threads::One);
    };
    let configurations = |f: &dyn Fn()| {
        emulated::CONFIGURATIONS.set(0);
        f();
        assert!(CONFIGURED.get().tiles.is_none(), "tiles were not released");
        emulated::CONFIGURATIONS.get()
    };
    // Sixteen rows alone do not need another configuration than thirty-two.
    let twice = || {
        multiply(64);
        multiply(48);
    };
    assert_eq!(configurations(&|| task(twice)), 1);
    assert!(configurations(&twice) > 1);
    // Other rows do; so do those after them.
    assert!(configurations(&|| task(|| multiply(70))) > 1);
    let panicked = std::panic::catch_unwind(|| {
        task(|| {
            multiply(64);
            panic!("amid a task");
        })
    });
    assert!(panicked.is_err() && CONFIGURED.get().tiles.is_none() && CONFIGURED.get().tasks == 0);
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_assembly_does_what_the_emulation_does_on_tiles_or_instruction_by_instruction() {
    if !crate::simd::has_avx512() {
        eprintln!("skipped: this CPU has no AVX-512 to go with tiles");
        return;
    }
    let here = ready();
    let carried_out = |f: &dyn Fn()| match here {
        true => f(),
        false => assert!(trapped::trapped(f) > 0),
    };
    // SAFETY: this CPU has tiles, or every instruction that it refuses is carried out in its place.
    carried_out(&|| assert!(unsafe { agrees() }));
    for (rows, units, more, vectors, columns) in [
        (1, 16, 0, 1, 16),
        (16, 40, 4, 4, 64),
        (17, 48, 0, 3, 40),
        (33, 100, 32, 4, 50),
        (70, 33, 17, 2, 32),
        (64, 32, 0, 4, 64),
        (64, 1100, 4, 4, 64),
    ] {
        for (alpha, add) in [(1.0, false), (0.3, true)] {
            let mut cases = [0; 2].map(|_| Case::new(rows, (units, more), vectors));
            let [real, wanted] =
                cases.each_mut().map(|case| (case.tile(vectors, columns, alpha, add), case.tail(vectors)));
            carried_out(&|| {
                // SAFETY: as above; the operands have the sizes that are named.
                unsafe { task(|| run(rows, real.0, real.1, &mut Prefetcher::nothing())) }
            });
            // SAFETY: as above.
            unsafe { run_emulated(rows, wanted.0, wanted.1, &mut Prefetcher::nothing()) };
            let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&cases[0].c), bits(&cases[1].c), "{rows} rows, {units} + {more} units, {columns} columns");
            assert!(CONFIGURED.get().tiles.is_none());
        }
    }
    // SAFETY: as above.
    carried_out(&|| assert_eq!(unsafe { steps(3) }, 3.0 * 4.0 * 16_384.0));
}
