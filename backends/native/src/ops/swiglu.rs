//! SwiGLU: `silu(gate) * up` (Shazeer, arXiv 2002.05202).

use half::bf16;
use rayon::prelude::*;

use super::number::Number;
use karat_kernels::gemm::narrow_here;
use karat_kernels::simd::{exp_fused, sigmoid, simd};

const CHUNK: usize = 1 << 14;

/// Numbers that are worked on together, while they are in the nearest cache.
const BLOCK: usize = 512;

/// [`sigmoid`] by [`exp_fused`], for what is rounded to bf16.
#[inline(always)]
fn sigmoid_fused(x: f32) -> f32 {
    1.0 / (1.0 + exp_fused(-x))
}

#[inline(always)]
fn forward_of(gate: &[f32], up: &[f32], y: &mut [f32], sigmoid: impl Fn(f32) -> f32) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid(g) * u;
    }
}

#[inline(always)]
fn backward_of([gate, up, dy]: [&[f32]; 3], dgate: &mut [f32], dup: &mut [f32], sigmoid: impl Fn(f32) -> f32) {
    for ((dg, du), ((&g, &u), &d)) in dgate.iter_mut().zip(dup).zip(gate.iter().zip(up).zip(dy)) {
        let s = sigmoid(g);
        *du = d * g * s;
        *dg = d * u * s * (1.0 + g * (1.0 - s));
    }
}

/// `y = gate sigmoid(gate) up`, elementwise.
pub fn forward<T: Number, O: Number>(gate: &[T], up: &[T], y: &mut [O]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
        let [mut of_gate, mut of_up, mut wide] = [[0f32; BLOCK]; 3];
        for ((y, gate), up) in y.chunks_mut(BLOCK).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK)) {
            let wide = &mut wide[..y.len()];
            simd(
                #[inline(always)]
                || {
                    let (gate, up) = (T::wide(gate, &mut of_gate), T::wide(up, &mut of_up));
                    match O::ROUNDED {
                        true => forward_of(gate, up, wide, sigmoid_fused),
                        false => forward_of(gate, up, wide, sigmoid),
                    }
                },
            );
            O::keep(wide, y);
        }
    });
}

/// [`forward`], rounded as products round it; `kept` is what [`backward`] will read of `gate` and
/// `up`, rounded while they are in the cache. The result is that of the numbers themselves: the
/// loss does not change, its derivative is taken at a point up to 2^-9 of them away.
pub fn forward_keeping(gate: &[f32], up: &[f32], y: &mut [bf16], [kept_gate, kept_up]: [&mut [bf16]; 2]) {
    let kept = kept_gate.par_chunks_mut(CHUNK).zip(kept_up.par_chunks_mut(CHUNK));
    let operands = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    y.par_chunks_mut(CHUNK).zip(kept).zip(operands).for_each(|((y, (kept_gate, kept_up)), (gate, up))| {
        let mut wide = [0f32; BLOCK];
        let kept = kept_gate.chunks_mut(BLOCK).zip(kept_up.chunks_mut(BLOCK));
        let operands = gate.chunks(BLOCK).zip(up.chunks(BLOCK));
        for ((y, (kept_gate, kept_up)), (gate, up)) in y.chunks_mut(BLOCK).zip(kept).zip(operands) {
            let wide = &mut wide[..y.len()];
            simd(
                #[inline(always)]
                || forward_of(gate, up, wide, sigmoid_fused),
            );
            narrow_here(wide, y);
            narrow_here(gate, kept_gate);
            narrow_here(up, kept_up);
        }
    });
}

/// Gradients of `gate` and `up` given `dy`.
pub fn backward<T: Number, O: Number>(gate: &[T], up: &[T], dy: &[f32], dgate: &mut [O], dup: &mut [O]) {
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((dgate, dup), ((gate, up), dy))| {
            let [mut of_gate, mut of_up, mut dg, mut du] = [[0f32; BLOCK]; 4];
            let operands = gate.chunks(BLOCK).zip(up.chunks(BLOCK)).zip(dy.chunks(BLOCK));
            for ((dgate, dup), ((gate, up), dy)) in dgate.chunks_mut(BLOCK).zip(dup.chunks_mut(BLOCK)).zip(operands) {
                let (dg, du) = (&mut dg[..dy.len()], &mut du[..dy.len()]);
                simd(
                    #[inline(always)]
                    || {
                        let operands = [T::wide(gate, &mut of_gate), T::wide(up, &mut of_up), dy];
                        match O::ROUNDED {
                            true => backward_of(operands, dg, du, sigmoid_fused),
                            false => backward_of(operands, dg, du, sigmoid),
                        }
                    },
                );
                O::keep(dg, dgate);
                O::keep(du, dup);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check_gradient, noise, weigh, wide};

    fn in_f64(gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    }

    #[test]
    fn forward_and_backward_match_f64() {
        let gate: Vec<f32> = noise(77, 1).iter().map(|x| x * 8.0).collect();
        let (up, g) = (noise(77, 2), noise(77, 3));
        let mut y = vec![0f32; 77];
        forward(&gate, &up, &mut y);
        assert_close("y", &y, &in_f64(&wide(&gate), &wide(&up)), 1e-6);
        let (mut dgate, mut dup) = (vec![0f32; 77], vec![0f32; 77]);
        backward(&gate, &up, &g, &mut dgate, &mut dup);
        check_gradient("gate", &gate, &dgate, |x| weigh(&in_f64(x, &wide(&up)), &g));
        check_gradient("up", &up, &dup, |x| weigh(&in_f64(&wide(&gate), x), &g));
        let narrowed = |x: &[f32]| {
            let mut y = vec![bf16::ZERO; x.len()];
            narrow_here(x, &mut y);
            y
        };
        let [mut a, mut b, mut c, mut kept_gate, mut kept_up] = [0; 5].map(|_| vec![bf16::ZERO; 77]);
        forward(&gate, &up, &mut a);
        backward(&gate, &up, &g, &mut b, &mut c);
        // What products read is that of fused exponentials, rounded; the exponentials themselves
        // are as good.
        let [mut fused, mut fused_gate, mut fused_up] = [0; 3].map(|_| vec![0f32; 77]);
        forward_of(&gate, &up, &mut fused, sigmoid_fused);
        backward_of([&gate, &up, &g], &mut fused_gate, &mut fused_up, sigmoid_fused);
        assert_eq!([&a, &b, &c], [&fused, &fused_gate, &fused_up].map(|x| narrowed(x)).each_ref());
        assert_close("fused y", &fused, &in_f64(&wide(&gate), &wide(&up)), 1e-6);
        for (rounded, x) in [(&a, &y), (&b, &dgate), (&c, &dup)] {
            let near = |(rounded, x): (&bf16, &f32)| (rounded.to_f32() - x).abs() <= x.abs() / 256.0;
            assert!(rounded.iter().zip(x).all(near));
        }
        let mut same = a.clone();
        forward_keeping(&gate, &up, &mut same, [&mut kept_gate, &mut kept_up]);
        assert_eq!([same, kept_gate.clone(), kept_up.clone()], [a, narrowed(&gate), narrowed(&up)]);
        // What was kept is read as the numbers that it is.
        let [rounded_gate, rounded_up] =
            [&kept_gate, &kept_up].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        let [mut want, mut got] = [0; 2].map(|_| [0; 3].map(|_| vec![0f32; 77]));
        let ([y, dgate, dup], [y_kept, dgate_kept, dup_kept]) = (&mut want, &mut got);
        forward(&rounded_gate, &rounded_up, y);
        forward(&kept_gate, &kept_up, y_kept);
        backward(&rounded_gate, &rounded_up, &g, dgate, dup);
        backward(&kept_gate, &kept_up, &g, dgate_kept, dup_kept);
        assert_eq!(want, got);
    }
}
