use karat_native::cuda::device::Element;
use karat_native::cuda::kernels;
use karat_native::ops::norm;

use crate::bench::*;

const EPS: f32 = 1e-6;
const SHAPES: [(usize, usize); 8] = [(1, 1), (1, 16), (5, 19), (63, 64), (65, 128), (7, 1024), (3, 4100), (1100, 8)];

/// `1 / sqrt(mean(x^2) + eps)` of every row.
fn scales(x: &[f64], width: usize) -> Vec<f64> {
    let mean = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>() / width as f64;
    x.chunks(width).map(|row| 1.0 / (mean(row) + f64::from(EPS)).sqrt()).collect()
}

fn normed(x: &[f64], w: &[f64]) -> Vec<f64> {
    let r = scales(x, w.len());
    x.chunks(w.len()).zip(r).flat_map(|(row, r)| row.iter().zip(w).map(move |(x, w)| x * r * w)).collect()
}

/// Rows of zeros, denormals and large numbers among ordinary ones.
fn input(rows: usize, width: usize, seed: u64, t: Element) -> Vec<f32> {
    let mut x = noise(rows * width, seed);
    for (row, x) in x.chunks_mut(width).enumerate() {
        let by = [1.0, 1e-40, 1e4, 0.0, 1e15, 1e-3][row % 6];
        x.iter_mut().for_each(|x| *x *= by);
    }
    rounded(x, t)
}

#[test]
fn rms_norm_matches_f64_and_the_cpu() {
    for t in BOTH {
        for (rows, width) in SHAPES {
            let (x, w) = (input(rows, width, 1, t), noise(width, 2));
            prove(
                |d| {
                    let (dx, dw) = (d.put(&x, t), d.put_f32(&w));
                    let (y, scale) = (d.fresh(rows * width, t), d.fresh(rows, Element::F32));
                    let args = [dx.arg(), dw.arg(), y.arg(), scale.arg()];
                    kernels::rms_norm(d.gpu(), t, args, (rows, width), EPS).unwrap();
                    vec![d.get(&y), d.get(&scale)]
                },
                |device, got| {
                    let what = format!("{device} {t:?} {rows} x {width}");
                    close(&format!("{what}: scale"), &got[1], &scales(&wide(&x), width), 2e-6, 0.0);
                    close(&what, &got[0], &normed(&wide(&x), &wide(&w)), ulp(t), 1e-37);
                    let (mut y, mut scale) = (vec![0f32; x.len()], vec![0f32; rows]);
                    norm::forward(&x, &w, EPS, &mut y, &mut scale);
                    close(&format!("{what}: CPU"), &got[0], &wide(&y), ulp(t), 1e-37);
                },
            );
        }
    }
}

#[test]
fn the_residual_sum_is_fused_with_its_norm() {
    for t in BOTH {
        for (rows, width) in [(5, 19), (65, 64), (3, 1024)] {
            let (x, branch) = (rounded(noise(rows * width, 1), t), rounded(noise(rows * width, 3), t));
            let w = noise(width, 2);
            prove(
                |d| {
                    let (sum, db, dw) = (d.put(&x, t), d.put(&branch, t), d.put_f32(&w));
                    let (y, scale) = (d.fresh(rows * width, t), d.fresh(rows, Element::F32));
                    let args = [sum.arg(), db.arg(), dw.arg(), y.arg(), scale.arg()];
                    kernels::add_rms_norm(d.gpu(), t, args, (rows, width), EPS).unwrap();
                    let fused = vec![d.get(&sum), d.get(&y), d.get(&scale)];
                    // The two steps one after the other give the same bits.
                    let sum = d.put(&x, t);
                    kernels::add(d.gpu(), t, [sum.arg(), db.arg()], rows * width).unwrap();
                    let args = [sum.arg(), dw.arg(), y.arg(), scale.arg()];
                    kernels::rms_norm(d.gpu(), t, args, (rows, width), EPS).unwrap();
                    assert_eq!(fused, [d.get(&sum), d.get(&y), d.get(&scale)]);
                    fused
                },
                |device, got| {
                    let want: Vec<f64> = x.iter().zip(&branch).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
                    close(&format!("{device} {t:?}"), &got[0], &want, ulp(t), 1e-7);
                },
            );
        }
    }
}

/// `(dx, dw)` in f64.
fn gradients(x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (width, mut dw) = (w.len(), vec![0f64; w.len()]);
    let mut dx = Vec::with_capacity(x.len());
    for ((x, dy), r) in x.chunks(width).zip(dy.chunks(width)).zip(scales(x, width)) {
        let c = r.powi(3) / width as f64 * (0..width).map(|i| w[i] * dy[i] * x[i]).sum::<f64>();
        for i in 0..width {
            dx.push(r * w[i] * dy[i] - c * x[i]);
            dw[i] += dy[i] * x[i] * r;
        }
    }
    (dx, dw)
}

#[test]
fn its_gradients_match_f64_and_the_cpu() {
    for t in BOTH {
        for (rows, width) in SHAPES {
            let x = rounded(noise(rows * width, 1), t);
            let (w, dy) = (noise(width, 2), rounded(noise(rows * width, 3), t));
            let was = rounded(noise(rows * width, 4), t);
            let (mut y, mut scale) = (vec![0f32; x.len()], vec![0f32; rows]);
            norm::forward(&x, &w, EPS, &mut y, &mut scale);
            prove(
                |d| {
                    let (dx, dw, ds, ddy) = (d.put(&x, t), d.put_f32(&w), d.put_f32(&scale), d.put(&dy, t));
                    let (new, sum) = (d.fresh(x.len(), t), d.put(&was, t));
                    for (to, add) in [(&new, false), (&sum, true)] {
                        let args = [dx.arg(), dw.arg(), ds.arg(), ddy.arg(), to.arg()];
                        kernels::rms_norm_backward(d.gpu(), t, args, (rows, width), add).unwrap();
                    }
                    let of_w = d.put_f32(&vec![0.5; width]);
                    let scratch = d.fresh(kernels::column_scratch(rows, width), Element::F32);
                    let args = [dx.arg(), ds.arg(), ddy.arg(), of_w.arg(), scratch.arg()];
                    kernels::rms_norm_dw(d.gpu(), t, args, (rows, width)).unwrap();
                    // In place of the gradient that came in.
                    let args = [dx.arg(), dw.arg(), ds.arg(), ddy.arg(), ddy.arg()];
                    kernels::rms_norm_backward(d.gpu(), t, args, (rows, width), false).unwrap();
                    assert_eq!(d.get(&ddy), d.get(&new));
                    vec![d.get(&new), d.get(&sum), d.get(&of_w)]
                },
                |device, got| {
                    let what = format!("{device} {t:?} {rows} x {width}");
                    let (dx, dw) = gradients(&wide(&x), &wide(&w), &wide(&dy));
                    // Two terms of the size of r w dy may cancel.
                    let size = dx.iter().fold(0f64, |m, x| m.max(x.abs())).max(1.0);
                    close(&what, &got[0], &dx, ulp(t), 3e-6 * size);
                    let sum: Vec<f64> = dx.iter().zip(&was).map(|(d, w)| d + f64::from(*w)).collect();
                    close(&format!("{what}: sum"), &got[1], &sum, ulp(t), 3e-6 * size);
                    let dw: Vec<f64> = dw.iter().map(|d| d + 0.5).collect();
                    close(&format!("{what}: dw"), &got[2], &dw, 1e-5, 1e-5);
                    let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0.5f32; width]);
                    norm::backward(&x, &w, &scale, &dy, &mut dx, false, Some(&mut dw));
                    close(&format!("{what}: CPU"), &got[0], &wide(&dx), ulp(t), 3e-6 * size);
                    close(&format!("{what}: CPU, dw"), &got[2], &wide(&dw), 1e-5, 1e-5);
                },
            );
        }
    }
}
