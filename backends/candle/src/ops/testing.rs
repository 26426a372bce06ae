//! What the kernel tests share: noise, pools of a given size and gradients by finite differences.

/// Reproducible values in `(-1, 1)`.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        })
        .collect()
}

/// Runs `f` in a pool of `threads`.
pub fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Checks `gradient` against central differences of `loss`, a scalar in f64, at every element of `x`.
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
