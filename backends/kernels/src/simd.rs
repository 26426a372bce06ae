//! SIMD: a dispatcher to the widest instruction set of this CPU, lane-wise sums and an exponential.
//!
//! The bodies are ordinary loops that the compiler vectorises once for each instruction set. Rust
//! never contracts `a * b + c` by itself and the lanes below are fixed, so each set gives the same
//! bits.

use std::sync::OnceLock;

/// Lanes of a vectorised sum. Fixed, because the order of a sum shows in its last bits.
pub const LANES: usize = 16;

/// Runs `f` compiled for the widest instruction set this CPU has. The closure must be marked
/// `#[inline(always)]`, or it stays a function of its own for the plainest one.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    match *ARCH.get_or_init(pulp::Arch::new) {
        pulp::Arch::Scalar => without_vectors(f),
        arch => arch.dispatch(f),
    }
}

/// Runs `f` compiled for a CPU without AVX2, where a fused step is a call. It is a function of its
/// own so that such calls are seen where nothing but the choice of instructions leads to them, and
/// nowhere else (`tests/slow_calls`).
#[inline(never)]
fn without_vectors<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES]) -> f32 {
    let mut sum = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sum[i] += sum[i + width];
        }
        width /= 2;
    }
    sum[0]
}

/// `sum_i f([x0[i], x1[i], ...])` in fixed lanes, over the elements of the first slice; the others
/// are at least as long.
#[inline(always)]
pub fn sum_of<const N: usize>(x: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let n = x[0].len();
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    // Slices of a known length: an index that has to be checked would not be vectorised.
    for i in (0..whole).step_by(LANES) {
        let part = x.map(|x| &x[i..i + LANES]);
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(part.map(|part| part[l]));
        }
    }
    let rest = x.map(|x| &x[whole..n]);
    for (l, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(rest.map(|rest| rest[l]));
    }
    fold(lanes)
}

/// Dot product in fixed lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    sum_of([&a[..n], &b[..n]], |[a, b]| a * b)
}

/// The largest element; negative infinity for an empty slice. NaN elements are skipped.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = a.chunks_exact(LANES);
    for chunk in &mut chunks {
        for l in 0..LANES {
            lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
        }
    }
    chunks.remainder().iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// `e^x` within 2 units in the last place, branch-free so that it vectorises (Cephes' `expf`:
/// reduction by `ln 2` in two parts, a polynomial of degree 5). Below -87.3 the result is 0, above
/// 88.7 infinity; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let clamped = x.clamp(-87.336_54, 88.722_84);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n in two halves, since n = 128 has no exponent of its own.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = y * scale(half) * scale(n.wrapping_sub(half));
    let y = if x < -87.336_54 { 0.0 } else { y };
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `e^x 2^-n` for the whole number `n` nearest to `log2 e^x`, in fused steps.
#[inline(always)]
fn fused_remainder(x: f32, n: f32) -> f32 {
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4;
    p = f32::mul_add(p, r, 1.398_199_9e-3);
    p = f32::mul_add(p, r, 8.333_452e-3);
    p = f32::mul_add(p, r, 4.166_579_6e-2);
    p = f32::mul_add(p, r, 1.666_666_5e-1);
    p = f32::mul_add(p, r, 0.5);
    p.mul_add(r * r, r) + 1.0
}

/// [`exp`] in fused steps, half as many: for what is rounded to bf16 in the end. The same reduction
/// and polynomial, within one unit in the last place; above 88.3 it grows no more.
#[inline(always)]
pub fn exp_fused(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.336_54, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let y = fused_remainder(clamped, n);
    // `n` is at least -126 and at most 127 here.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = y * scale;
    if x < -87.336_54 { 0.0 } else { y }
}

/// `e^x 2^-shift` for a whole number `shift`, in the steps of [`exp_fused`] and as exact: the power
/// of two comes off the exponent. 0 where the result is below 2^-126; `x` is at most 1e6 in size,
/// and the result at most 2^127.
#[inline(always)]
pub fn exp_shifted(x: f32, shift: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -1e6;
    // Infinity below becomes a number; a NaN stays one.
    let x = if x < LEAST { LEAST } else { x };
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let y = fused_remainder(x, n);
    // The exponent's bits are those of a whole number from 0 to 254; 0 stands for zero.
    let exponent = (n - shift).clamp(-127.0, 127.0) + (ROUND + 127.0);
    y * f32::from_bits(exponent.to_bits() << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Whether this CPU has the parts of AVX-512 that the kernels use.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_over_its_range() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -87.3 + i as f32 * (176.0 / 2_000_000.0);
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * want;
            worst = worst.max((f64::from(exp(x)) - want).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(200.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn fused_steps_are_as_close_to_the_exponential() {
        let (mut worst, mut squares, mut plain) = (0f64, 0f64, 0f64);
        for i in 0..2_000_000 {
            let x = -87.3 + i as f32 * (175.6 / 2_000_000.0);
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * want;
            let error = |got: f32| (f64::from(got) - want).abs() / ulp;
            worst = worst.max(error(exp_fused(x)));
            squares += error(exp_fused(x)).powi(2);
            plain += error(exp(x)).powi(2);
        }
        assert!(worst < 0.75 && squares <= plain, "{worst} ulp, sums of squares {squares} and {plain}");
        assert_eq!(exp_fused(0.0), 1.0);
        assert_eq!(exp_fused(-200.0), 0.0);
        assert_eq!(exp_fused(f32::NEG_INFINITY), 0.0);
        assert!(exp_fused(200.0) > 2e38 && exp_fused(f32::INFINITY) > 2e38);
        assert!(exp_fused(f32::NAN).is_nan());
    }

    #[test]
    fn a_shifted_exponential_is_as_close_wherever_its_argument_lies() {
        let mut worst = 0f64;
        for shift in [-1400i32, -100, -1, 0, 7, 126, 1400] {
            for i in 0..200_000 {
                let x = (f64::from(shift) * std::f64::consts::LN_2 - 87.0 + f64::from(i) * (175.0 / 200_000.0)) as f32;
                let want = (f64::from(x) - f64::from(shift) * std::f64::consts::LN_2).exp();
                let got = f64::from(exp_shifted(x, shift as f32));
                worst = worst.max((got - want).abs() / (f64::from(f32::EPSILON) * want));
            }
        }
        assert!(worst < 0.75, "{worst} ulp");
        assert_eq!(
            [exp_shifted(0.0, 0.0), exp_shifted(0.0, 3.0), exp_shifted(0.0, -60.0)],
            [1.0, 0.125, 2f32.powi(60)]
        );
        assert_eq!(exp_shifted(-200.0, 0.0), 0.0);
        assert_eq!(exp_shifted(f32::NEG_INFINITY, -10.0), 0.0);
        assert!(exp_shifted(f32::NAN, 5.0).is_nan() && exp_shifted(f32::INFINITY, 5.0).is_nan());
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        let x: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 17.0 - 2.0).collect();
        let plain: Vec<u32> = x.iter().map(|&x| exp(x).to_bits()).collect();
        let wide: Vec<u32> = simd(
            #[inline(always)]
            || x.iter().map(|&x| exp(x).to_bits()).collect(),
        );
        assert_eq!(plain, wide);
        let plain: Vec<u32> = x.iter().map(|&x| exp_shifted(x, 3.0).to_bits()).collect();
        let wide: Vec<u32> = simd(
            #[inline(always)]
            || x.iter().map(|&x| exp_shifted(x, 3.0).to_bits()).collect(),
        );
        assert_eq!(plain, wide);
        let plain: Vec<u32> = x.iter().map(|&x| exp_fused(x).to_bits()).collect();
        let wide: Vec<u32> = simd(
            #[inline(always)]
            || x.iter().map(|&x| exp_fused(x).to_bits()).collect(),
        );
        assert_eq!(plain, wide);
        assert_eq!(
            dot(&x, &x).to_bits(),
            simd(
                #[inline(always)]
                || dot(&x, &x)
            )
            .to_bits()
        );
    }
}
