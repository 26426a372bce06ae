//! SwiGLU: `silu(gate) * up` (Shazeer, arXiv 2002.05202).

use rayon::prelude::*;

use super::simd::{sigmoid, simd};

const CHUNK: usize = 1 << 14;

/// `y = gate sigmoid(gate) up`, elementwise.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
        simd(
            #[inline(always)]
            || {
                for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(g) * u;
                }
            },
        );
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
                || {
                    for ((dg, du), ((&g, &u), &d)) in dgate.iter_mut().zip(dup).zip(gate.iter().zip(up).zip(dy)) {
                        let s = sigmoid(g);
                        *du = d * g * s;
                        *dg = d * u * s * (1.0 + g * (1.0 - s));
                    }
                },
            );
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
    }
}
