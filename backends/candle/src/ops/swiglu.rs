//! SwiGLU: `silu(gate) * up` (Shazeer, arXiv 2002.05202).

use half::bf16;
use rayon::prelude::*;

use super::matmul::narrow_here;
use super::simd::{sigmoid, simd};

const CHUNK: usize = 1 << 14;

/// Numbers that are rounded together, while they are in the nearest cache.
const BLOCK: usize = 512;

#[inline(always)]
fn forward_of(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid(g) * u;
    }
}

#[inline(always)]
fn backward_of([gate, up, dy]: [&[f32]; 3], dgate: &mut [f32], dup: &mut [f32]) {
    for ((dg, du), ((&g, &u), &d)) in dgate.iter_mut().zip(dup).zip(gate.iter().zip(up).zip(dy)) {
        let s = sigmoid(g);
        *du = d * g * s;
        *dg = d * u * s * (1.0 + g * (1.0 - s));
    }
}

/// `y = gate sigmoid(gate) up`, elementwise.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
        simd(
            #[inline(always)]
            || forward_of(gate, up, y),
        );
    });
}

/// [`forward`], the result rounded as products round it.
pub fn forward_narrow(gate: &[f32], up: &[f32], y: &mut [bf16]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
        let mut wide = [0f32; BLOCK];
        for ((y, gate), up) in y.chunks_mut(BLOCK).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK)) {
            let wide = &mut wide[..y.len()];
            simd(
                #[inline(always)]
                || forward_of(gate, up, wide),
            );
            narrow_here(wide, y);
        }
    });
}

/// Gradients of `gate` and `up` given `dy`.
pub fn backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((dgate, dup), ((gate, up), dy))| {
            simd(
                #[inline(always)]
                || backward_of([gate, up, dy], dgate, dup),
            );
        });
}

/// [`backward`], the gradients rounded as products round them.
pub fn backward_narrow(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [bf16], dup: &mut [bf16]) {
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((dgate, dup), ((gate, up), dy))| {
            let mut wide = [[0f32; BLOCK]; 2];
            let operands = gate.chunks(BLOCK).zip(up.chunks(BLOCK)).zip(dy.chunks(BLOCK));
            for ((dgate, dup), ((gate, up), dy)) in dgate.chunks_mut(BLOCK).zip(dup.chunks_mut(BLOCK)).zip(operands) {
                let [dg, du] = wide.each_mut().map(|wide| &mut wide[..gate.len()]);
                simd(
                    #[inline(always)]
                    || backward_of([gate, up, dy], dg, du),
                );
                narrow_here(dg, dgate);
                narrow_here(du, dup);
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
        let narrowed = |x: &[f32]| {
            let mut y = vec![bf16::ZERO; x.len()];
            narrow_here(x, &mut y);
            y
        };
        let [mut a, mut b, mut c] = [0, 1, 2].map(|_| vec![bf16::ZERO; 77]);
        forward_narrow(&gate, &up, &mut a);
        backward_narrow(&gate, &up, &g, &mut b, &mut c);
        assert_eq!([a, b, c], [&y, &dgate, &dup].map(|x| narrowed(x)));
        check_gradient("up", &up, &dup, |x| weigh(&in_f64(&wide(&gate), x), &g));
    }
}
