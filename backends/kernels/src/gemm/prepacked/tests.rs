//! Prepacked weights against products that pack as they go.

use half::bf16;

use super::super::fused::swiglu::swiglu_by;
use super::super::{Gemm, MatMut, Term, Threads, gemm, gemms_by};
use super::*;
use crate::memory::mmap::Elements;
use crate::testing::{noise, with_threads};

const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 300, 40),
    (2, 70, 700),
    (5, 8, 513),
    (27, 200, 1027),
    (33, 200, 1027),
    (130, 65, 1029),
    (500, 49, 66),
    (3, 129, 2),
    (0, 20, 7),
];

fn sets() -> Vec<Isa> {
    let all = [Isa::Portable, Isa::Avx512, Isa::Avx512Bf16, Isa::AmxBf16];
    all.into_iter().filter(|isa| *isa <= Isa::of_this_cpu()).chain([Isa::Emulated]).collect()
}

fn bytes(packed: &[u32]) -> &[u8] {
    bytemuck::cast_slice(packed)
}

/// The product of the same numbers by the kernels of `isa` that pack as they go; tiles sum in
/// another order than vectors.
fn unpacked(isa: Isa, precision: Precision, x: &[f32], w: &[bf16], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let mut want = vec![0f32; m * n];
    let terms = vec![Term { alpha: 1.0, a: Mat::new(x, m, k), b: Mat::of(Elements::Bf16(w), n, k).t() }];
    gemms_by(isa, precision, vec![Gemm { c: MatMut::new(&mut want, m, n), add: false, terms }], Threads::One);
    want
}

#[test]
fn a_stored_weight_gives_the_bits_of_a_plain_product_in_every_shape_and_instruction_set() {
    for (m, n, k) in SHAPES {
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        for isa in sets() {
            for (storage, precision) in [
                (PackedType::F32, Precision::F32),
                (PackedType::Bf16, Precision::F32),
                (PackedType::Bf16, Precision::Bf16),
            ] {
                let packed = storage.pack_by(isa, &wide, k, &Threads::One);
                assert_eq!(bytes(&packed).len(), storage.bytes(n, k));
                let weight = Prepacked::new(bytes(&packed), storage, n, k).unwrap();
                let mut got = vec![f32::NAN; m * n];
                let mut layers = [PrepackedLinear { weight, output: &mut got }];
                multiply_by(isa, precision, &x, k, &mut layers, &Threads::Pool);
                let want = unpacked(isa, precision, &x, &narrow, (m, n, k));
                assert!(got == want, "{isa:?} {storage:?} {precision:?} {m}x{n}x{k}");
            }
        }
    }
}

#[test]
fn rounding_into_storage_is_rounding_of_the_product() {
    let (m, n, k) = (7, 130, 77);
    let (x, w) = (noise(m * k, 1), noise(n * k, 2));
    let mut want = vec![0f32; m * n];
    let weight = Mat::new(&w, n, k).t();
    gemm(Precision::Bf16, MatMut::new(&mut want, m, n), 1.0, Mat::new(&x, m, k), weight, false, Threads::One);
    let packed = PackedType::Bf16.pack(&w, k, &Threads::Pool);
    let weight = Prepacked::new(bytes(&packed), PackedType::Bf16, n, k).unwrap();
    let mut got = vec![0f32; m * n];
    multiply(Precision::Bf16, &x, k, &mut [PrepackedLinear { weight, output: &mut got }], &Threads::Pool);
    assert!(got == want);
}

#[test]
fn a_weight_packed_in_stretches_of_panels_is_the_weight_packed_at_once() {
    let (n, k) = (64 * 3 + 20, 33);
    let w = noise(n * k, 4);
    for storage in [PackedType::F32, PackedType::Bf16] {
        let whole = storage.pack(&w, k, &Threads::Pool);
        let parts = w.chunks(2 * PANEL * k).flat_map(|rows| storage.pack(rows, k, &Threads::One));
        assert_eq!(parts.collect::<Vec<u32>>(), whole);
    }
}

#[test]
fn rows_come_back_as_they_went_in() {
    for (n, k) in [(1, 1), (70, 5), (200, 64), (64, 33)] {
        let w: Vec<f32> = noise(n * k, 6).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        for storage in [PackedType::F32, PackedType::Bf16] {
            let packed = storage.pack(&w, k, &Threads::Pool);
            let weight = Prepacked::new(bytes(&packed), storage, n, k).unwrap();
            let ids: Vec<usize> = (0..3 * n).map(|i| i * 7 % n).collect();
            let mut got = vec![0f32; ids.len() * k];
            gather(weight, &ids, &mut got, &Threads::Pool);
            let want: Vec<f32> = ids.iter().flat_map(|id| w[id * k..][..k].to_vec()).collect();
            assert_eq!(got, want);
        }
    }
}

#[test]
fn what_bf16_would_lose_is_stored_in_f32() {
    assert_eq!(PackedType::without_loss(&[1.0, -0.0, 0.15625, f32::INFINITY]), PackedType::Bf16);
    assert_eq!(PackedType::without_loss(&[1.0, 0.1]), PackedType::F32);
    // A bf16, but one that products in bf16 take as zero.
    assert_eq!(PackedType::without_loss(&[f32::from_bits(1 << 16)]), PackedType::F32);
    assert!(Prepacked::new(bytes(&[0; 16]), PackedType::Bf16, 1, 3).is_none());
    assert!(Prepacked::new(bytes(&[0; 32]), PackedType::Bf16, 1, 3).is_some());
}

#[test]
fn several_weights_at_once_are_the_same_as_one_by_one_on_any_number_of_threads() {
    let (m, k) = (150, 96);
    let x = noise(m * k, 1);
    let weights: Vec<(usize, Vec<u32>)> =
        [90, 8, 64].map(|n| (n, PackedType::Bf16.pack(&noise(n * k, n as u64), k, &Threads::One))).into();
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |which: &[usize], threads| {
            let mut outputs: Vec<Vec<f32>> = which.iter().map(|&i| vec![0f32; m * weights[i].0]).collect();
            let mut layers: Vec<PrepackedLinear<'_>> = Vec::new();
            for (&i, output) in which.iter().zip(&mut outputs) {
                let (n, packed) = &weights[i];
                layers.push(PrepackedLinear {
                    weight: Prepacked::new(bytes(packed), PackedType::Bf16, *n, k).unwrap(),
                    output,
                });
            }
            with_threads(threads, || multiply(precision, &x, k, &mut layers, &Threads::Pool));
            outputs
        };
        let together = run(&[0, 1, 2], 3);
        assert!(together == [run(&[0], 1), run(&[1], 2), run(&[2], 1)].concat());
    }
}

#[test]
fn swiglu_is_the_two_products_and_the_gate_in_every_instruction_set() {
    for (m, n, k) in [(1, 70, 33), (250, 130, 600), (17, 64, 64)] {
        let (x, g, u) = (noise(m * k, 1), noise(n * k, 2), noise(n * k, 3));
        let packed = [&g, &u].map(|w| PackedType::Bf16.pack(w, k, &Threads::Pool));
        let weights = [0, 1].map(|i| Prepacked::new(bytes(&packed[i]), PackedType::Bf16, n, k).unwrap());
        for precision in [Precision::F32, Precision::Bf16] {
            for isa in sets() {
                let products = weights.map(|weight| {
                    let mut output = vec![0f32; m * n];
                    let mut layers = [PrepackedLinear { weight, output: &mut output }];
                    multiply_by(isa, precision, &x, k, &mut layers, &Threads::Pool);
                    output
                });
                let gated = |(&gate, &up): (&f32, &f32)| gate * crate::simd::sigmoid(gate) * up;
                let want: Vec<f32> = products[0].iter().zip(&products[1]).map(gated).collect();
                let mut got = vec![0f32; m * n];
                swiglu_by(isa, precision, &x, k, weights, &mut got, &Threads::Pool);
                assert!(got == want, "{isa:?} {precision:?} {m}x{n}x{k}");
            }
        }
    }
}
