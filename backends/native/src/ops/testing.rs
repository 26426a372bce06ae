//! Shared by the kernel tests: gradients by finite differences, comparisons with f64.

pub use karat_kernels::testing::{noise, with_threads};

/// Checks `gradient` against central differences of `loss`, a scalar in f64, at every element of
/// `x`.
pub fn check_gradient(what: &str, x: &[f32], gradient: &[f32], loss: impl Fn(&[f64]) -> f64) {
    let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    for i in 0..x.len() {
        let (at, h) = (x[i], 1e-5);
        x[i] = at + h;
        let up = loss(&x);
        x[i] = at - h;
        let down = loss(&x);
        x[i] = at;
        let (want, got) = ((up - down) / (2.0 * h), f64::from(gradient[i]));
        assert!((want - got).abs() < 2e-5 * (1.0 + want.abs()), "{what}[{i}]: gradient {got}, by differences {want}");
    }
}

/// `sum_i a_i b_i` in f64: a scalar loss with the gradient `b`.
pub fn weigh(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

/// Checks a kernel's output against the same in f64.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() < tolerance * (1.0 + want.abs()), "{what}[{i}]: {got}, want {want}");
    }
}

/// Widens to f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
